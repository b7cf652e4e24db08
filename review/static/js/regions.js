// The regions, one key apart: a strip of pictures, and a panel with the current one's figures, verdict and comment.

import * as api from "./api.js";
import { arrange, element, refill } from "./dom.js";
import { area, number, probability, verdictText } from "./format.js";
import { t } from "./i18n.js";
import { CommentField } from "./commentfield.js";
import { frame, listed, successor, tally } from "./regionlist.js";

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
    this.list = element("ol", { "aria-label": t("regions.strip_keys"), onkeydown: (event) => this.onArrow(event) });
    this.summary = element("p", { class: "summary", role: "status" });
    this.title = element("h2", {});
    this.facts = element("span", { class: "figures" });
    this.turns = [this.turn(-1, t("regions.previous"), "p"), this.turn(1, t("regions.next"), "n")];
    this.verdicts = Object.entries(VERDICTS).map(([verdict, key]) =>
      element("button", { type: "button", class: verdict, onclick: () => this.judge(verdict) }, t(`verdict.do.${verdict}`), " ", element("kbd", { "aria-hidden": "true" }, key)),
    );
    this.bar = element("div", { class: "bar" }, element("div", { class: "verdicts turn" }, this.turns), element("div", { class: "verdicts", role: "group", "aria-label": t("regions.verdict") }, this.verdicts));
    this.strip = element("section", { class: "strip", "aria-label": t("regions.strip") }, element("div", { class: "about" }, this.title, this.facts, this.summary), element("div", { class: "row" }, this.list, this.bar));
    this.comment = new CommentField(review, (item) => this.asFound(item));
    this.words = element("p", { class: "quiet" });
    this.panel = element("section", { class: "panel current", "aria-label": t("regions.comment") }, this.words, this.comment.element);
    review.onChange(() => this.refresh());
    this.refresh();
  }

  turn(by, text, key) {
    return element("button", { type: "button", onclick: () => this.step(by) }, text, " ", element("kbd", { "aria-hidden": "true" }, key));
  }

  /** The server's regions, found with these settings. */
  setFound(found, settings) {
    const before = this.item;
    this.found = found;
    this.foundWith = settings;
    // While a slide grows a region gets another id with each patch: who was at it stays at what it has become.
    const now = before && successor(before, listed(found, this.review.document.findings));
    if (now && now.id !== before.id) {
      this.current = now.id;
      this.comment.move(before.id, now.id);
    }
    this.refresh();
  }

  /** Whether the server has said which regions there are: before that, none is no finding. */
  get known() {
    return this.foundWith !== undefined || !this.slide.classes?.length;
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
    this.mark();
    this.bringInSight(this.buttons.get(id));
    this.showPanel();
    this.onItems(this.items, this.current);
    if (this.item) this.onChoose(this.item, look);
  }

  /** One stop of the Tab key for all pictures, as there may be thousands before the verdicts; the arrow keys go through them. */
  mark() {
    const stop = this.buttons.has(this.current) ? this.current : this.items[0]?.id;
    for (const [key, button] of this.buttons) {
      button.setAttribute("aria-current", String(key === this.current));
      button.tabIndex = key === stop ? 0 : -1;
    }
  }

  onArrow(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.step(by);
    this.buttons.get(this.current)?.focus({ preventScroll: true });
  }

  /** Within the strip only: on a small or magnified screen the slide itself would be scrolled away. */
  bringInSight(button) {
    if (!button) return;
    const [place, box] = [this.list.getBoundingClientRect(), button.getBoundingClientRect()];
    if (box.left < place.left) this.list.scrollLeft -= place.left - box.left + 6;
    else if (box.right > place.right) this.list.scrollLeft += box.right - place.right + 6;
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
    if (await this.review.act("verdict", { finding: item.id, verdict, ...this.asFound() })) {
      this.summary.textContent = `${t("regions.judged", { label: item.label, verdict: verdictText(verdict) })} ${this.tallyText()}`;
    }
  }

  /** Under which settings the server finds this region again. */
  asFound() {
    const { class: name, threshold, min_um2 } = this.foundWith ?? {};
    return name === undefined ? {} : { class: name, threshold, min_um2 };
  }

  focusComment() {
    this.comment.focus();
  }

  tallyText() {
    const counts = tally(this.items);
    return this.items.length
      ? t("regions.tally", { all: number(this.items.length), accepted: counts.accepted, rejected: counts.rejected, unsure: counts.unsure, none: counts.none })
      : t(this.known ? "regions.none" : "regions.not_yet");
  }

  showStrip() {
    this.summary.textContent = this.tallyText();
    const before = this.buttons;
    this.buttons = new Map();
    const focused = [...before].find(([, button]) => button === document.activeElement)?.[0];
    for (const item of this.items) {
      const button = before.get(item.id) ?? this.thumbnail(item);
      this.buttons.set(item.id, button);
      button.className = `thumb ${item.verdict ?? "open"}`;
      refill(
        button.querySelector(".words"),
        element("span", {}, element("strong", {}, item.label), " ", item.max === null ? t(`regions.${item.kind}`) : probability(item.max), item.comment ? " ✎" : ""),
        element("span", { class: "verdict" }, verdictText(item.verdict)),
      );
    }
    this.mark();
    // What is in its place is not touched: a picture that is moved while it is pressed takes the click with it.
    arrange(this.list, [...this.buttons.values()].map((button) => button.parentElement));
    const shown = this.buttons.get(focused);
    if (shown && shown !== document.activeElement) shown.focus({ preventScroll: true });
  }

  thumbnail(item) {
    const picture = element("img", { alt: "", loading: "lazy", decoding: "async", width: 128, height: 96, src: api.pictureAddress(this.slide.key, frame(item.bbox, this.slide), 256) });
    picture.addEventListener("error", () => picture.replaceWith(element("span", { class: "no-picture" }, t("regions.no_picture"))));
    const button = element("button", { type: "button", onclick: () => this.choose(item.id) }, picture, element("span", { class: "words" }));
    element("li", {}, button);
    return button;
  }

  /** The current region: its figures and verdict beside the pictures, always in sight; its comment at the side. */
  showPanel() {
    const { item } = this;
    const may = this.may();
    this.title.textContent = item ? t(`regions.title.${item.kind}`, { label: item.label, n: this.found.length }) : t("regions.title");
    const figures = [item?.max != null && t("regions.max_mean", { class: item.class, max: probability(item.max), mean: probability(item.mean) }), item?.area_um2 != null && area(item.area_um2)];
    this.facts.textContent = figures.filter(Boolean).join(" · ");
    for (const button of this.turns) button.disabled = !this.items.length;
    Object.keys(VERDICTS).forEach((verdict, i) => {
      this.verdicts[i].disabled = !may || !item;
      this.verdicts[i].setAttribute("aria-pressed", String(item?.verdict === verdict));
    });
    this.words.hidden = item !== null;
    this.words.textContent = t(this.items.length ? "regions.choose" : this.known ? "regions.none_long" : "regions.not_yet");
    this.comment.show(item, may);
  }
}
