// A region drawn by hand, from the first corner until the server has it. What it could not take is not lost.

import { element } from "./dom.js";
import { Drawing } from "./drawing.js";
import { t } from "./i18n.js";
import { notice } from "./notices.js";

const MOST_POINTS = 1500;

export class Sketch {
  /** page: SlidePage, with viewer, review, regions and outlines; place: what is drawn on */
  constructor(page, place) {
    this.page = page;
    this.drawing = new Drawing(page.viewer, place, { onChange: (points) => this.show(points), onDone: (points) => this.done(points) });
    this.hint = element("div", { class: "hint", role: "status" });
  }

  get active() {
    return this.drawing.active;
  }

  get unsaved() {
    return this.active && this.drawing.points.length > 0;
  }

  toggle() {
    if (this.active) this.drawing.finish();
    else if (this.page.mayAct()) this.begin([], t("draw.hint"));
  }

  begin(points, words) {
    this.drawing.begin(points);
    this.page.toolbar.drawing(true);
    this.page.stage.classList.add("drawing");
    this.hint.textContent = words;
  }

  show(points) {
    this.page.outlines.drawn = points;
    this.page.redraw();
  }

  async done(points) {
    const { page } = this;
    page.toolbar.drawing(false);
    page.stage.classList.remove("drawing");
    this.hint.textContent = "";
    if (!points || page.left) return;
    const { width, height } = page.detail;
    const every = Math.ceil(points.length / MOST_POINTS);
    const outline = points.filter((_, i) => i % every === 0).map(([x, y]) => [Math.min(width, Math.max(0, x)), Math.min(height, Math.max(0, y))]);
    this.show(points); // until it is a region
    const before = new Set(page.review.document.findings.map(({ id }) => id));
    const kept = await page.review.act("draw", { outline, comment: "" });
    if (page.left || this.active) return;
    if (!kept) {
      if (page.mayAct()) this.begin(points, t("draw.not_kept"));
      else this.show([]);
      return;
    }
    this.show([]);
    const made = page.review.document.findings.find(({ id }) => !before.has(id));
    if (made) page.regions.choose(made.id, { look: false });
    notice(t("draw.done"));
  }
}
