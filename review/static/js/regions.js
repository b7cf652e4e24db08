// The regions, one key apart: a strip of pictures, and a panel with the current one's figures, verdict and comment.

import * as api from "./api.js";
import { element, replace } from "./dom.js";
import { area, fullTime, number, probability, verdictText } from "./format.js";
import { t } from "./i18n.js";
import { frame, listed, tally } from "./regionlist.js";

const VERDICTS = { accepted: "a", rejected: "r", unsure: "u" };

export class Regions {
  /** review: Review; onChoose(item, byPerson); onItems(items) */
  constructor(slide, review, { may, onChoose, onItems }) {
    this.slide = slide;
    this.review = review;
    this.may = may;
    this.onChoose = onChoose;
    this.onItems = onItems;
    this.found = [];
    this.items = [];
    this.current = null;
    this.buttons = new Map();
    this.draft = null; // {id, text}: a comment begun and not yet saved
    this.list = element("ol", {});
    this.summary = element("p", { class: "summary", role: "status" });
    this.title = element("h2", {});
    this.facts = element("span", { class: "figures" });
    this.bar = element("div", { class: "bar" });
    this.strip = element("section", { class: "strip", "aria-label": t("regions.strip") }, element("div", { class: "about" }, this.title, this.facts, this.summary), element("div", { class: "row" }, this.list, this.bar));
    this.panel = element("section", { class: "panel current", "aria-label": t("regions.comment") });
    review.onChange(() => this.refresh());
    this.refresh();
  }

  /** The server's regions at the review's settings. */
  setFound(found) {
    this.found = found;
    this.refresh();
  }

  refresh() {
    this.items = listed(this.found, this.review.document.findings);
    if (!this.items.some(({ id }) => id === this.current)) this.current = null;
    this.showStrip();
    this.showPanel();
    this.onItems(this.items, this.current);
  }

  get item() {
    return this.items.find(({ id }) => id === this.current) ?? null;
  }

  choose(id, { look = true } = {}) {
    this.current = id;
    this.summary.textContent = this.tallyText();
    for (const [key, button] of this.buttons) button.setAttribute("aria-current", String(key === id));
    this.buttons.get(id)?.scrollIntoView({ block: "nearest", inline: "nearest" });
    this.showPanel();
    this.onItems(this.items, this.current);
    if (this.item) this.onChoose(this.item, look);
  }

  step(by) {
    if (!this.items.length) return;
    const at = this.items.findIndex(({ id }) => id === this.current);
    const next = at < 0 ? (by > 0 ? 0 : this.items.length - 1) : (at + by + this.items.length) % this.items.length;
    this.choose(this.items[next].id);
  }

  async judge(verdict) {
    const { item } = this;
    if (!item || !this.may()) return;
    if (await this.review.act("verdict", { finding: item.id, verdict, ...this.asFound(item) })) {
      this.summary.textContent = `${t("regions.judged", { label: item.label, verdict: verdictText(verdict) })} ${this.tallyText()}`;
    }
  }

  /** Under which settings the server finds this region again. */
  asFound() {
    const { class: name, threshold, min_um2 } = this.settings ?? {};
    return name === undefined ? {} : { class: name, threshold, min_um2 };
  }

  async saveComment() {
    const { draft } = this;
    const now = this.items.find(({ id }) => id === draft?.id);
    if (!draft || draft.saving || !now || draft.text.trim() === now.comment) return;
    draft.saving = true;
    const saved = await this.review.act("comment", { finding: draft.id, comment: draft.text.trim(), ...this.asFound() });
    draft.saving = false;
    if (saved && this.draft === draft) this.draft = null;
    this.showPanel();
  }

  focusComment() {
    this.panel.querySelector("textarea")?.focus();
  }

  tallyText() {
    const counts = tally(this.items);
    return this.items.length
      ? t("regions.tally", { all: number(this.items.length), accepted: counts.accepted, rejected: counts.rejected, unsure: counts.unsure, none: counts.none })
      : t("regions.none");
  }

  showStrip() {
    this.summary.textContent = this.tallyText();
    const before = this.buttons;
    this.buttons = new Map();
    const focused = [...before].find(([, button]) => button === document.activeElement)?.[0];
    const entries = this.items.map((item) => {
      const button = before.get(item.id) ?? this.thumbnail(item);
      this.buttons.set(item.id, button);
      button.setAttribute("aria-current", String(item.id === this.current));
      button.className = `thumb ${item.verdict ?? "open"}`;
      replace(
        button.querySelector(".words"),
        element("span", {}, element("strong", {}, item.label), " ", item.max === null ? t(`regions.${item.kind}`) : probability(item.max), item.comment ? " ✎" : ""),
        element("span", { class: "verdict" }, verdictText(item.verdict)),
      );
      return element("li", {}, button);
    });
    replace(this.list, entries);
    if (focused) this.buttons.get(focused)?.focus({ preventScroll: true });
  }

  thumbnail(item) {
    const picture = element("img", { alt: "", loading: "lazy", decoding: "async", width: 128, height: 96, src: api.pictureAddress(this.slide.key, frame(item.bbox, this.slide), 256) });
    picture.addEventListener("error", () => picture.replaceWith(element("span", { class: "no-picture" }, t("regions.no_picture"))));
    return element("button", { type: "button", onclick: () => this.choose(item.id) }, picture, element("span", { class: "words" }));
  }

  /** The current region: its figures and verdict beside the pictures, always in sight; its comment at the side. */
  showPanel() {
    const { item } = this;
    const may = this.may();
    this.title.textContent = item ? t(`regions.title.${item.kind}`, { label: item.label, n: this.found.length }) : t("regions.title");
    const figures = [item?.max != null && t("regions.max_mean", { class: item.class, max: probability(item.max), mean: probability(item.mean) }), item?.area_um2 != null && area(item.area_um2)];
    this.facts.textContent = figures.filter(Boolean).join(" · ");
    keepingFocus(this.bar, () => {
      const turn = (by, text, key) => element("button", { type: "button", onclick: () => this.step(by), disabled: !this.items.length }, text, " ", element("kbd", { "aria-hidden": "true" }, key));
      const verdicts = Object.entries(VERDICTS).map(([verdict, key]) =>
        element(
          "button",
          { type: "button", class: verdict, "aria-pressed": String(item?.verdict === verdict), disabled: !may || !item, onclick: () => this.judge(verdict) },
          t(`verdict.do.${verdict}`), " ", element("kbd", { "aria-hidden": "true" }, key),
        ),
      );
      replace(this.bar, element("div", { class: "verdicts turn" }, turn(-1, t("regions.previous"), "p"), turn(1, t("regions.next"), "n")), element("div", { class: "verdicts", role: "group", "aria-label": t("regions.verdict") }, verdicts));
    });
    if (item) this.showComment(item, may);
    else {
      this.field = null;
      replace(this.panel, element("p", { class: "quiet" }, t(this.items.length ? "regions.choose" : "regions.none_long")));
    }
  }

  /** The comment's field stays while it is of the same region: what others do meanwhile must not disturb who types. */
  showComment(item, may) {
    const kept = this.draft?.id === item.id ? this.draft.text : item.comment;
    if (this.field?.id !== item.id) {
      const save = element("button", { type: "button", onclick: () => this.saveComment() }, t("regions.save"));
      const erase = element("button", { type: "button", onclick: () => this.review.act("erase", { finding: item.id }) }, t("regions.erase"));
      const text = element("textarea", { rows: 2, maxlength: 2000 });
      const by = element("p", { class: "quiet by" });
      text.addEventListener("input", () => {
        this.draft = { id: item.id, text: text.value };
        save.hidden = text.value.trim() === this.item?.comment;
      });
      text.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.saveComment();
      });
      text.addEventListener("change", () => this.saveComment());
      this.field = { id: item.id, text, save, erase, by };
      replace(this.panel, element("div", { class: "comment" }, element("label", { class: "field" }, element("span", {}, t("regions.comment_on", { label: item.label })), text), by, element("div", { class: "buttons" }, erase, save)));
    }
    const { text, save, erase, by } = this.field;
    if (text.value !== kept) text.value = kept;
    text.disabled = !may;
    save.hidden = kept.trim() === item.comment;
    erase.hidden = item.kind !== "drawn" || !may;
    by.textContent = item.by ? t("regions.by", { verdict: verdictText(item.verdict), name: item.by, time: fullTime(item.at) }) : "";
  }
}

/** Replaces what is inside; the focus stays on the control of the same place. */
function keepingFocus(place, change) {
  const controls = () => [...place.querySelectorAll("button, textarea")];
  const at = controls().indexOf(document.activeElement);
  change();
  if (at >= 0) controls()[at]?.focus({ preventScroll: true });
}
