// What the model said of the patch under the pointer, or in the middle of the view for those who work by keyboard.

import * as api from "./api.js";
import { debounce, element, replace } from "./dom.js";
import { number, probability } from "./format.js";
import { FAILED, INFERRED } from "./heatdata.js";
import { t } from "./i18n.js";
import { inWords } from "./reasons.js";

export class Readout {
  constructor(slide, data) {
    this.slide = slide;
    this.data = data;
    this.where = null;
    this.cell = null;
    this.details = new Map(); // "column,row" → what the server says of it
    this.element = element("div", { class: "readout" });
    this.ask = debounce(250, () => this.fetch());
    this.clear();
  }

  clear() {
    this.where = null;
    this.cell = null;
    this.ask.cancel();
    this.element.textContent = t("readout.none");
  }

  /** Level-0 px. */
  at(x, y) {
    this.where = [x, y];
    const cell = this.data.at(x, y);
    const same = cell && this.cell && cell.column === this.cell.column && cell.row === this.cell.row;
    this.cell = cell;
    this.show();
    if (cell && !same) this.ask();
  }

  /** After new data: the patch may have been inferred while the pointer stood on it. */
  refresh() {
    this.details.clear();
    if (this.where) this.at(...this.where);
  }

  key = ({ column, row }) => `${column},${row}`;

  async fetch() {
    const { cell } = this;
    if (!cell || this.details.has(this.key(cell))) return;
    try {
      this.details.set(this.key(cell), await api.patch(this.slide.key, cell.column, cell.row));
    } catch {
      return; // What the page knows by itself is shown already.
    }
    this.show();
  }

  show() {
    const { cell } = this;
    if (!cell) {
      this.element.textContent = t("readout.outside");
      return;
    }
    const detail = this.details.get(this.key(cell));
    const parts = [element("span", { class: "quiet" }, t("readout.patch", { column: cell.column, row: cell.row }))];
    if (cell.state === INFERRED) {
      this.data.classes.forEach((name, i) => parts.push(element("span", {}, `${name} `, element("strong", {}, probability(detail?.probabilities?.[name] ?? cell.probabilities[i])))));
    } else if (cell.state === FAILED) parts.push(element("strong", {}, t("readout.failed")), inWords(detail?.reason));
    else parts.push(element("strong", {}, t("readout.pending")));
    const [model, engine] = [detail?.model ?? this.slide.model, detail?.engine ?? this.slide.engine];
    const name = (value) => (typeof value === "string" ? value : (value?.name ?? value?.engine ?? ""));
    if (cell.state === INFERRED) parts.push(element("span", { class: "quiet" }, [name(model), name(engine)].filter(Boolean).join(" · ")));
    replace(this.element, parts);
  }
}

export const share = ({ planned, inferred, failed }) => (planned ? number(Math.floor((100 * (inferred + failed)) / planned)) : "0");
