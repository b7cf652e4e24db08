// What slide this is, in what state, and who else has it open.

import * as api from "./api.js";
import { Connection } from "./connection.js";
import { dialog, element, refill } from "./dom.js";
import { NONE, fullTime, number, reasonText, stateText } from "./format.js";
import { t } from "./i18n.js";
import { noticeError } from "./notices.js";
import { share } from "./readout.js";

function named(value) {
  if (!value) return NONE;
  if (typeof value === "string") return value;
  return [value.name ?? value.engine, value.version, value.provider, value.precision, value.sha256?.slice(0, 12)].filter(Boolean).join(" · ") || NONE;
}

export class SlideInfo {
  constructor(slide) {
    this.others = element("p", { class: "others", role: "status" });
    this.connection = new Connection();
    this.words = element("div", {});
    this.images = element("p", { class: "buttons" });
    this.facts = element("dl", { class: "facts tight" });
    const details = element("details", {}, element("summary", {}, t("facts.title")), this.images, this.facts);
    this.element = element("section", { class: "panel", "aria-labelledby": "slide-title" }, element("h1", { id: "slide-title" }, slide.id), this.words, details, this.others, this.connection.element);
    this.show(slide);
    this.present(slide.others ?? []);
  }

  show(slide) {
    const { patches } = slide;
    const words = [element("strong", { class: `state ${slide.state}` }, stateText(slide.state))];
    if (slide.state === "running") words.push(` · ${t("worklist.progress", { percent: share(patches) })}`);
    if (slide.urgency === "stat") words.unshift(element("strong", { class: "stat" }, t("urgency.stat")), " · ");
    if (patches.failed) words.push(` · ${t("worklist.patches_failed", { n: number(patches.failed), planned: number(patches.planned) })}`);
    const facts = [
      ["facts.size", slide.width ? `${number(slide.width)} × ${number(slide.height)} px${slide.mpp ? ` · ${number(slide.mpp, 3)} µm/px` : ""}` : NONE],
      ["facts.patches", t("facts.patches_of", { inferred: number(patches.inferred), planned: number(patches.planned) })],
      ["column.tumour_mm2", t("facts.tumour_of", { tumour: number(slide.tumour_mm2, 2), tissue: number(slide.tissue_mm2, 2) })],
      ["facts.model", named(slide.model)],
      ["facts.engine", named(slide.engine)],
      ["facts.tiles", t(`tiles.${slide.tiles}`, {}, slide.tiles ?? NONE)],
      ["column.arrived", fullTime(slide.arrived)],
      ["facts.finished", fullTime(slide.finished)],
    ];
    const model = slide.model ?? {};
    const remarks = [reasonText(slide.reason), model.own_patch_px && t("facts.other_size", { px: model.patch_px, own: model.own_patch_px })];
    refill(this.words, element("p", {}, words), remarks.filter(Boolean).map((remark) => element("p", { class: "reason" }, remark)));
    const images = slide.labels ?? [];
    this.images.hidden = !images.length;
    refill(this.images, images.map((image) => element("button", { type: "button", onclick: () => this.showLabel(slide, image) }, t(`label.${image}`))));
    refill(this.facts, facts.map(([name, value]) => element("div", { class: "fact" }, element("dt", {}, t(name)), element("dd", {}, value))));
  }

  /** Only when asked for: it may name the patient, and who has seen it is in the log. */
  async showLabel(slide, image) {
    try {
      const address = URL.createObjectURL(await api.label(slide.key, image));
      const box = dialog(
        t(`label.${image}`),
        element("p", { class: "quiet" }, t("label.noted")),
        element("img", { class: "label-image", src: address, alt: t("label.alt", { slide: slide.id }) }),
        element("div", { class: "buttons" }, element("button", { type: "button", onclick: () => box.close() }, t("close"))),
      );
      box.addEventListener("close", () => URL.revokeObjectURL(address));
    } catch (error) {
      noticeError(error);
    }
  }

  present(names) {
    const text = names.length ? t("worklist.others", { names: names.join(", ") }) : "";
    if (this.others.textContent !== text) this.others.textContent = text;
  }
}
