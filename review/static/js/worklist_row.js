// One line of the worklist. What matters is said in words; colour only repeats it.

import { element } from "./dom.js";
import { NONE, fullTime, number, probability, reasonText, reviewText, stateText, time } from "./format.js";
import { t } from "./i18n.js";

function progress({ planned, inferred, failed }) {
  return planned ? t("worklist.progress", { percent: number(Math.floor((100 * (inferred + failed)) / planned)) }) : "";
}

function state(slide) {
  const { state, reason, patches } = slide;
  const parts = [element("strong", { class: `state ${state}` }, stateText(state))];
  if (state === "running") parts.push(" ", progress(patches));
  if (state === "partial" || (patches.failed > 0 && state !== "failed")) parts.push(" ", t("worklist.patches_failed", { n: number(patches.failed), planned: number(patches.planned) }));
  if (reasonText(reason)) parts.push(element("span", { class: "reason" }, reasonText(reason)));
  return parts;
}

function review(slide) {
  const { state, reviewer, open_regions: open } = slide.review;
  const parts = [element("span", { class: `review ${state}` }, reviewText(state))];
  if (reviewer) parts.push(" · ", reviewer);
  if (open > 0 && state !== "signed") parts.push(element("span", { class: "reason" }, t("worklist.open_regions", { n: number(open) })));
  if (slide.others?.length) parts.push(element("span", { class: "reason others" }, t("worklist.others", { names: slide.others.join(", ") })));
  return parts;
}

function score(slide) {
  if (slide.score === null || slide.score === undefined) return NONE;
  const bar = element("meter", { min: 0, max: 1, value: slide.score, "aria-hidden": "true" });
  return [probability(slide.score), bar];
}

export function row(slide, isNew) {
  const cells = [
    slide.urgency === "stat" ? element("strong", { class: "stat" }, t("urgency.stat")) : t("urgency.routine"),
    [
      element("a", { href: `#/slide/${slide.key}`, class: "slide" }, slide.id),
      isNew && element("span", { class: "mark" }, t("worklist.new")),
    ],
    state(slide),
    score(slide),
    number(slide.tumour_mm2, 2),
    element("time", { datetime: slide.arrived, title: fullTime(slide.arrived) }, time(slide.arrived)),
    review(slide),
  ];
  return element(
    "tr",
    { class: [slide.urgency, slide.state, isNew ? "new" : ""].join(" ").trim(), "data-key": slide.key },
    cells.map((cell, i) => element(i === 1 ? "th" : "td", i === 1 ? { scope: "row" } : { class: i === 3 || i === 4 ? "number" : null }, cell)),
  );
}

/** The same line with new values: only the cells that differ are made anew, so that a link stays under the pointer. */
export function refresh(shown, made) {
  shown.className = made.className;
  [...shown.cells].forEach((cell, i) => cell.isEqualNode(made.cells[i]) || cell.replaceWith(made.cells[i]));
  return shown;
}
