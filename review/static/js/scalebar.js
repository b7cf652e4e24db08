// The scale bar: a round length in µm or mm, between 60 and 150 px long.

import { element } from "./dom.js";
import { length, number } from "./format.js";

/** The largest of 1, 2, 5 x 10^n µm that is at most `longest` px long. */
export function roundLength(umPerPx, longest = 150) {
  const most = umPerPx * longest;
  const power = 10 ** Math.floor(Math.log10(most));
  return [5, 2, 1].map((step) => step * power).find((um) => um <= most);
}

export class ScaleBar {
  constructor() {
    this.bar = element("div", { class: "scale-line" });
    this.text = element("span", {});
    this.zoom = element("span", { class: "zoom" });
    this.element = element("div", { class: "scale-bar" }, this.text, this.bar, this.zoom);
  }

  /** mpp: µm per level-0 px; scale: CSS px per level-0 px. */
  update(mpp, scale, magnification) {
    this.element.hidden = !mpp || !(scale > 0);
    if (this.element.hidden) return;
    const um = roundLength(mpp / scale);
    this.bar.style.width = `${(um * scale) / mpp}px`;
    this.text.textContent = length(um);
    this.zoom.textContent = `${number(magnification, magnification < 10 ? 1 : 0)}×`;
  }
}
