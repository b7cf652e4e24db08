// The review document of one slide, as the server has it, and the acts on it. Nothing is shown as done before the server says so.

import * as api from "./api.js";
import { t } from "./i18n.js";
import { notice, noticeError } from "./notices.js";

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

  async send(name, fields) {
    try {
      this.take(await api.act(this.key, this.document.revision, name, fields));
      return true;
    } catch (error) {
      if (error.status === 409) await this.meanwhile(error);
      else noticeError(error);
      return false;
    }
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
