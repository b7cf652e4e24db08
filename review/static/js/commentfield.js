// The comment on the region that is chosen. Its field is made once for a region: what others do meanwhile must not disturb who
// types, and must not be overwritten unseen either.

import { element, replace } from "./dom.js";
import { fullTime, verdictText } from "./format.js";
import { t } from "./i18n.js";
import { notice } from "./notices.js";

export class CommentField {
  /** review: Review; asFound(): under which settings the server finds the region again */
  constructor(review, asFound) {
    this.review = review;
    this.asFound = asFound;
    this.item = null;
    // Begun and not yet saved: {id, text, over: the comment that was there then, found: the settings that the region was found with}
    this.draft = null;
    this.element = element("div", {});
  }

  get unsaved() {
    return this.draft !== null && this.draft.text.trim() !== this.draft.over;
  }

  /** Somebody has written another comment since this one was begun. */
  get overtaken() {
    return this.unsaved && this.draft.id === this.item?.id && this.item.comment !== this.draft.over;
  }

  /** The region has another id now. */
  move(before, now) {
    if (this.draft?.id === before) Object.assign(this.draft, { id: now, found: this.asFound() });
    if (this.made === before) this.made = now;
  }

  focus() {
    if (this.item) this.text.focus();
  }

  show(item, may) {
    if (this.unsaved && this.item?.id === this.draft.id && item?.id !== this.draft.id) this.leave();
    this.item = item;
    if (!item) {
      this.made = null;
      replace(this.element);
      return;
    }
    if (this.made !== item.id) this.make(item);
    const { text, save, erase, by, theirs, label } = this;
    const mine = this.draft?.id === item.id;
    const wanted = mine ? this.draft.text : item.comment;
    if (text.value !== wanted) text.value = wanted;
    label.textContent = t("regions.comment_on", { label: item.label });
    text.disabled = !may;
    save.hidden = !may || wanted.trim() === item.comment;
    erase.hidden = item.kind !== "drawn" || !may;
    by.textContent = item.by ? t("regions.by", { verdict: verdictText(item.verdict), name: item.by, time: fullTime(item.at) }) : "";
    theirs.textContent = this.overtaken ? t("regions.overtaken", { name: item.by, comment: item.comment }) : "";
  }

  make(item) {
    this.made = item.id;
    this.text = element("textarea", { rows: 2, maxlength: 2000 });
    this.save = element("button", { type: "button", onclick: () => this.keep() }, t("regions.save"));
    this.erase = element("button", { type: "button", onclick: () => this.review.act("erase", { finding: this.item.id }) }, t("regions.erase"));
    this.by = element("p", { class: "quiet by" });
    this.theirs = element("p", { class: "problem", role: "alert" });
    this.label = element("span", {});
    this.text.addEventListener("input", () => {
      const { id, comment } = this.item;
      const begun = this.draft?.id === id ? this.draft : { id, over: comment, found: this.asFound() };
      this.draft = { ...begun, saving: false, text: this.text.value };
      this.save.hidden = this.text.value.trim() === this.item.comment;
    });
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.keep();
    });
    // By itself only where that overwrites nothing that was not seen; the button, and Ctrl+Enter, mean it.
    this.text.addEventListener("change", () => this.overtaken || this.keep());
    replace(this.element, element("div", { class: "comment" }, element("label", { class: "field" }, this.label, this.text), this.theirs, this.by, element("div", { class: "buttons" }, this.erase, this.save)));
  }

  /** Gives whether it is kept. */
  async keep() {
    const { draft } = this;
    if (!draft || draft.saving) return true;
    if (draft.text.trim() === this.item?.comment) {
      this.draft = null;
      return true;
    }
    draft.saving = true;
    const saved = await this.review.act("comment", { finding: draft.id, comment: draft.text.trim(), ...draft.found });
    draft.saving = false;
    if (saved && this.draft === draft) this.draft = null;
    if (this.item) this.show(this.item, !this.text.disabled);
    return saved;
  }

  /** On the way elsewhere: what was typed is kept, or said to be not. */
  async leave() {
    const { draft, unsaved, overtaken } = this;
    if (!unsaved || draft.saving) return;
    const text = draft.text.trim();
    this.draft = null;
    const saved = !overtaken && (await this.review.act("comment", { finding: draft.id, comment: text, ...draft.found }));
    if (!saved) notice(t("regions.not_saved", { comment: text }), { error: true });
  }
}
