// Signing and reopening, the log of all acts, and the result in files.

import * as api from "./api.js";
import { dialog, element, field, refill } from "./dom.js";
import { fullTime, number, reviewText, verdictText } from "./format.js";
import { currentLanguage, t } from "./i18n.js";
import { explain, noticeError } from "./notices.js";
import { tally } from "./regionlist.js";
import * as session from "./session.js";

const FORMATS = ["geojson", "csv", "pdf", "dicom-seg", "dicom-sr"];
const NOT_FINISHED = new Set(["waiting", "running"]);

export class SignOff {
  /** regions: Regions, for how many are judged; data: HeatData, for what could not be read */
  constructor(slide, review, regions, data) {
    this.slide = slide;
    this.review = review;
    this.regions = regions;
    this.data = data;
    // All made once: what is made anew when somebody judges a region goes away under the hand that reaches for it.
    this.said = element("div", { role: "status", class: "grow" });
    this.signButton = element("button", { type: "button", class: "main", onclick: () => this.askSign() }, t("sign.sign"), " ", element("kbd", { "aria-hidden": "true" }, "s"));
    this.reopenButton = element("button", { type: "button", onclick: () => this.askReopen() }, t("sign.reopen"));
    const log = element("button", { type: "button", onclick: () => this.showLog() }, t("log.title"));
    const body = element("div", { class: "line" }, this.said, element("div", { class: "buttons" }, log, this.reopenButton, this.signButton));
    const formats = FORMATS.map((format) => element("li", {}, element("button", { type: "button", onclick: () => this.save(format) }, t(`export.${format}`))));
    const exports = element("details", {}, element("summary", {}, t("export.title")), element("ul", { class: "exports" }, formats));
    this.element = element("section", { class: "panel sign-off", "aria-label": t("sign.title") }, body, exports);
    review.onChange(() => this.show());
    this.show();
  }

  show() {
    const { document: doc, signed } = this.review;
    const state = doc.state ?? "new";
    const may = session.mayAct();
    const finished = !NOT_FINISHED.has(this.slide.state);
    const lines = [];
    if (signed) {
      lines.push(element("p", {}, element("strong", {}, t("sign.signed_by", { name: signed.by, time: fullTime(signed.at) }))));
      lines.push(element("p", { class: "quiet hash", title: signed.hash }, t("sign.hash", { hash: signed.hash.slice(0, 16) })));
      if (doc.outdated) lines.push(element("p", { class: "problem" }, t("sign.outdated")));
    } else {
      lines.push(element("p", {}, element("strong", {}, reviewText(state)), doc.reviewer ? ` · ${doc.reviewer}` : ""));
      if (doc.reopened) lines.push(element("p", { class: "quiet" }, t("sign.reopened_because", { reason: doc.reopened })));
      if (!may) lines.push(element("p", { class: "quiet" }, t("sign.viewer")));
      else if (!finished) lines.push(element("p", { class: "quiet" }, t("sign.not_finished")));
    }
    refill(this.said, lines);
    this.said.classList.toggle("whole", Boolean(signed));
    const hadFocus = [this.signButton, this.reopenButton].includes(document.activeElement);
    this.signButton.hidden = Boolean(signed);
    this.signButton.disabled = !may || !finished;
    this.reopenButton.hidden = !signed;
    this.reopenButton.disabled = !may;
    if (hadFocus) (signed ? this.reopenButton : this.signButton).focus();
  }

  async askSign() {
    if (this.asking) return;
    this.asking = true;
    try {
      await this.openSign();
    } finally {
      this.asking = false;
    }
  }

  async openSign() {
    if (this.review.signed || !session.mayAct() || NOT_FINISHED.has(this.slide.state)) return;
    // A slide without any region is signed too: then opening it is the only other act.
    if ((this.review.document.state ?? "new") === "new" && !(await this.review.act("open"))) return;
    await Promise.all([this.loaded, this.review.settled()]);
    if (!this.element.isConnected || this.review.signed) return;
    const shown = element("div", {});
    // What is signed is what this dialog shows: this revision of the review, and this result of the slide.
    const seen = { result: this.review.document.result };
    const show = () => {
      seen.revision = this.review.document.revision;
      refill(shown, this.toBeSigned());
    };
    show();
    const statement = element("textarea", { rows: 3, required: true, maxlength: 2000, value: t("sign.statement") });
    const password = element("input", { type: "password", autocomplete: "current-password", required: true });
    const asks = session.user().sign_password;
    const content = [shown, field(t("sign.statement_label"), statement), asks && field(t("session.password"), password), element("p", { class: "quiet" }, t("sign.as", { name: session.user().user }))];
    const asked = this.askInDialog(t("sign.dialog", { slide: this.slide.id }), content, t("sign.sign"), () =>
      this.actOrThrow("sign", seen.revision, { statement: statement.value, result: seen.result, ...(asks ? { password: password.value } : {}) }),
    );
    this.itemsChanged = () => {
      const before = seen.revision;
      show();
      if (before !== seen.revision && !asked.busy()) asked.say(t("sign.changed_meanwhile"));
    };
    asked.box.addEventListener("close", () => (this.itemsChanged = () => {}));
  }

  /** Called when regions or verdicts have changed; a dialog that shows them follows. */
  itemsChanged() {}

  /** Verdicts, and what is open or unknown. */
  toBeSigned() {
    const counts = tally(this.regions.items);
    const failed = this.data.counts[2];
    const warnings = [
      this.incomplete && t("sign.warn_incomplete"),
      counts.none && t("sign.warn_none", { n: number(counts.none) }),
      counts.unsure && t("sign.warn_unsure", { n: number(counts.unsure) }),
      failed && t("sign.warn_failed", { n: number(failed) }),
      this.slide.state === "failed" && t("sign.warn_slide_failed"),
    ].filter(Boolean);
    return [
      element("p", {}, ["accepted", "rejected", "unsure", "none"].map((verdict) => `${verdictText(verdict === "none" ? null : verdict)}: ${counts[verdict]}`).join(" · ")),
      warnings.length ? element("ul", { class: "warnings" }, warnings.map((warning) => element("li", {}, warning))) : null,
    ];
  }

  askReopen() {
    const reason = element("textarea", { rows: 3, required: true, maxlength: 2000 });
    this.askInDialog(t("sign.reopen_dialog"), [element("p", { class: "quiet" }, t("sign.reopen_why")), field(t("sign.reason"), reason)], t("sign.reopen"), () => this.actOrThrow("reopen", this.review.document.revision, { reason: reason.value }));
  }

  /** In a dialog the refusal belongs into the dialog, beside the password that was wrong. */
  async actOrThrow(name, revision, fields) {
    try {
      this.review.take(await api.act(this.slide.key, revision, name, fields));
    } catch (error) {
      if (error.status === 409) await this.review.meanwhile(error, { quiet: true });
      throw error;
    }
  }

  askInDialog(title, content, label, run) {
    // The title has the focus first, so that what is to be signed is read before anything is typed.
    const problem = element("p", { class: "problem", role: "alert" });
    const go = element("button", { class: "main" }, label);
    const form = element("form", {}, content.filter(Boolean), problem, element("div", { class: "buttons" }, element("button", { type: "button", onclick: () => box.close() }, t("cancel")), go));
    const box = dialog(title, form);
    let busy = false;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (busy) return;
      busy = go.disabled = true;
      problem.textContent = "";
      try {
        await run();
        box.close();
      } catch (error) {
        // Whoever has closed the dialog meanwhile is told all the same.
        if (box.open) problem.textContent = explain(error);
        else noticeError(error);
      } finally {
        busy = go.disabled = false;
      }
    });
    return { box, busy: () => busy, say: (text) => (problem.textContent = text) };
  }

  async showLog() {
    try {
      const answer = await api.log(this.slide.key);
      const rows = Array.isArray(answer) ? answer : (answer.rows ?? answer.log ?? answer.acts ?? []);
      const box = dialog(
        t("log.title"),
        element("p", { class: "quiet" }, t("log.about")),
        rows.length
          ? element(
              "div", { class: "scroll", tabindex: 0, role: "region", "aria-label": t("log.title") },
              element(
                "table", { class: "log" },
                element("thead", {}, element("tr", {}, ["n", "at", "user", "act", "fields", "hash"].map((name) => element("th", { scope: "col" }, t(`log.${name}`))))),
                element("tbody", {}, rows.map((row) => element("tr", {},
                  element("td", { class: "number" }, String(row.n)), element("td", { title: row.at }, fullTime(row.at)), element("td", {}, row.user),
                  element("td", {}, t(`act.${row.act}`, {}, row.act)), element("td", { class: "fields" }, this.inWords(row)), element("td", {}, element("code", { title: row.hash }, row.hash.slice(0, 10)))))),
              ),
            )
          : element("p", {}, t("log.empty")),
        element("div", { class: "buttons" }, element("button", { type: "button", onclick: () => box.close() }, t("close"))),
      );
      box.classList.add("wide");
    } catch (error) {
      noticeError(error);
    }
  }

  inWords({ fields = {} }) {
    const label = this.regions.items.find(({ id }) => id === fields.finding)?.label;
    return [
      fields.finding && t("log.region", { label: label ?? fields.finding }),
      fields.verdict && verdictText(fields.verdict),
      fields.comment && `“${fields.comment}”`,
      fields.class && `${fields.class} ≥ ${number(fields.threshold, 2)}`,
      fields.statement && `“${fields.statement}”`,
      fields.reason && `“${fields.reason}”`,
      fields.image && t(`label.${fields.image}`),
    ].filter(Boolean).join(" · ");
  }

  /** Fetched first: a refusal is a line of text here, not a page of its own. */
  async save(format) {
    try {
      const { blob, name } = await api.download(api.exportAddress(this.slide.key, format, currentLanguage()), `${this.slide.id.replaceAll("/", "_")}.${format}`);
      const address = URL.createObjectURL(blob);
      const link = element("a", { href: address, download: name });
      document.body.append(link);
      link.click();
      link.remove();
      setTimeout(() => URL.revokeObjectURL(address), 60000);
    } catch (error) {
      noticeError(error);
    }
  }
}
