// The review document of one slide, as the server has it, and the acts on it. Nothing is shown as done before the server says so.

import * as api from "./api.js";
import { t } from "./i18n.js";
import { notice, noticeError } from "./notices.js";

const AGAIN = 3;

const theFinding = (document, { finding }) => document.findings.find(({ id }) => id === finding) ?? null;

/** What an act is about, as a document has it: where that is the same in two of them, nothing is overwritten unseen. */
const SUBJECTS = {
  verdict: theFinding,
  comment: theFinding,
  erase: theFinding,
  settings: ({ class: name, threshold, min_um2 }) => [name, threshold, min_um2],
  draw: () => null,
};

export class Review {
  constructor(key, document) {
    this.key = key;
    this.document = document;
    this.listeners = new Set();
    this.queue = Promise.resolve();
  }

  onChange(call) {
    this.listeners.add(call);
    return () => this.listeners.delete(call);
  }

  /** When all acts that were asked for are answered. */
  settled() {
    return this.queue;
  }

  get signed() {
    return this.document.signed ?? null;
  }

  finding(id) {
    return this.document.findings.find((finding) => finding.id === id) ?? null;
  }

  take(document) {
    if (!document || !("revision" in document) || document.revision < this.document.revision) return;
    if (JSON.stringify(document) === JSON.stringify(this.document)) return;
    this.document = document;
    for (const call of this.listeners) call(document);
  }

  async refresh() {
    this.take(await api.review(this.key));
  }

  /** Sends one act after another. True if it was done; the person is told if it was not. */
  act(name, fields = {}) {
    const done = this.queue.then(() => this.send(name, fields));
    this.queue = done.catch(() => {});
    return done;
  }

  async send(name, fields, times = AGAIN) {
    const seen = this.document;
    try {
      this.take(await api.act(this.key, seen.revision, name, fields));
      return true;
    } catch (error) {
      if (times > 1 && this.elsewhere(error, seen, name, fields)) {
        this.take(error.body.review);
        return this.send(name, fields, times - 1);
      }
      if (error.status === 409) await this.meanwhile(error);
      else noticeError(error);
      return false;
    }
  }

  /** Somebody else was faster, but with something else: two who judge different regions do not hinder each other. */
  elsewhere({ code, body }, seen, name, fields) {
    const subject = SUBJECTS[name];
    if (code !== "conflict" || !subject || !body.review?.findings || body.review.signed) return false;
    return JSON.stringify(subject(seen, fields)) === JSON.stringify(subject(body.review, fields));
  }

  /** Somebody else was faster: show what they did, and leave it to the person to do it again. */
  async meanwhile(error, { quiet = false } = {}) {
    const newer = error.body.review ?? null;
    try {
      if (newer && "findings" in newer) this.take(newer);
      else await this.refresh();
    } catch (problem) {
      noticeError(problem);
      return;
    }
    if (!quiet) notice(error.code === "conflict" || !error.message ? t("error.conflict") : error.message, { error: true });
  }
}
