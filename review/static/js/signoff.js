// Signing and reopening, the log of all acts, and the result in files.

import * as api from "./api.js";
import { dialog, element, field, replace } from "./dom.js";
import { fullTime, number, reviewText, time, verdictText } from "./format.js";
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
    this.body = element("div", {});
    // Made once: a list that is made anew when somebody judges a region closes under the hand that reaches for it.
    const formats = FORMATS.map((format) => element("li", {}, element("button", { type: "button", onclick: () => this.save(format) }, t(`export.${format}`))));
    const exports = element("details", {}, element("summary", {}, t("export.title")), element("ul", { class: "exports" }, formats));
    this.element = element("section", { class: "panel sign-off", "aria-label": t("sign.title") }, this.body, exports);
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
    const button = signed
      ? element("button", { type: "button", disabled: !may, onclick: () => this.askReopen() }, t("sign.reopen"))
      : element("button", { type: "button", class: "main", disabled: !may || !finished, onclick: () => this.askSign() }, t("sign.sign"), " ", element("kbd", { "aria-hidden": "true" }, "s"));
    const had = this.body.contains(document.activeElement);
    replace(
      this.body,
      element("div", { class: "line" }, element("div", { role: "status", class: "grow" }, lines), element("div", { class: "buttons" }, element("button", { type: "button", onclick: () => this.showLog() }, t("log.title")), button)),
    );
    if (had) this.body.querySelector("button:not([disabled])")?.focus();
  }

  async askSign() {
    if (this.review.signed || !session.mayAct() || NOT_FINISHED.has(this.slide.state)) return;
    // A slide without any region is signed too: then opening it is the only other act.
    if ((this.review.document.state ?? "new") === "new" && !(await this.review.act("open"))) return;
    const counts = tally(this.regions.items);
    const failed = this.data.counts[2];
    const warnings = [
      counts.none && t("sign.warn_none", { n: number(counts.none) }),
      counts.unsure && t("sign.warn_unsure", { n: number(counts.unsure) }),
      failed && t("sign.warn_failed", { n: number(failed) }),
      this.slide.state === "failed" && t("sign.warn_slide_failed"),
    ].filter(Boolean);
    const statement = element("textarea", { rows: 3, required: true, maxlength: 2000, value: t("sign.statement") });
    const password = element("input", { type: "password", autocomplete: "current-password", required: true });
    const asks = session.user().sign_password;
    this.askInDialog(
      t("sign.dialog", { slide: this.slide.id }),
      [
        element("p", {}, ["accepted", "rejected", "unsure", "none"].map((verdict) => `${verdictText(verdict === "none" ? null : verdict)}: ${counts[verdict]}`).join(" · ")),
        warnings.length ? element("ul", { class: "warnings" }, warnings.map((warning) => element("li", {}, warning))) : null,
        field(t("sign.statement_label"), statement),
        asks && field(t("session.password"), password),
        element("p", { class: "quiet" }, t("sign.as", { name: session.user().user })),
      ],
      t("sign.sign"),
      () => this.actOrThrow("sign", { statement: statement.value, ...(asks ? { password: password.value } : {}) }),
    );
  }

  askReopen() {
    const reason = element("textarea", { rows: 3, required: true, maxlength: 2000 });
    this.askInDialog(t("sign.reopen_dialog"), [element("p", { class: "quiet" }, t("sign.reopen_why")), field(t("sign.reason"), reason)], t("sign.reopen"), () => this.actOrThrow("reopen", { reason: reason.value }));
  }

  /** In a dialog the refusal belongs into the dialog, beside the password that was wrong. */
  async actOrThrow(name, fields) {
    try {
      this.review.take(await api.act(this.slide.key, this.review.document.revision, name, fields));
    } catch (error) {
      if (error.status === 409) await this.review.meanwhile(error);
      throw error;
    }
  }

  askInDialog(title, content, label, run) {
    // The title has the focus first, so that what is to be signed is read before anything is typed.
    const problem = element("p", { class: "problem", role: "alert" });
    const go = element("button", { class: "main" }, label);
    const form = element("form", {}, content.filter(Boolean), problem, element("div", { class: "buttons" }, element("button", { type: "button", onclick: () => box.close() }, t("cancel")), go));
    const box = dialog(title, form);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      go.disabled = true;
      problem.textContent = "";
      try {
        await run();
        box.close();
      } catch (error) {
        problem.textContent = explain(error);
        go.disabled = false;
      }
    });
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
                  element("td", { class: "number" }, String(row.n)), element("td", { title: row.at }, time(row.at)), element("td", {}, row.user),
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
