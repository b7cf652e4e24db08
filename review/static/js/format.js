// Numbers, areas, times and names as people read them, in the language of the page.

import { currentLanguage, t } from "./i18n.js";
import { inWords } from "./reasons.js";

const locale = () => (currentLanguage() === "zh" ? "zh-CN" : "en-GB");
export const NONE = "–";

export function number(value, digits = 0) {
  if (value === null || value === undefined || Number.isNaN(value)) return NONE;
  return new Intl.NumberFormat(locale(), { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
}

export const probability = (value) => number(value, 2);

export function time(iso) {
  if (!iso) return NONE;
  const when = new Date(iso);
  if (Number.isNaN(when.getTime())) return iso;
  const today = new Date().toDateString() === when.toDateString();
  const options = today ? { hour: "2-digit", minute: "2-digit" } : { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" };
  if (when.getFullYear() !== new Date().getFullYear()) options.year = "numeric";
  return new Intl.DateTimeFormat(locale(), options).format(when);
}

export function fullTime(iso) {
  if (!iso) return NONE;
  const when = new Date(iso);
  if (Number.isNaN(when.getTime())) return iso;
  return new Intl.DateTimeFormat(locale(), { dateStyle: "medium", timeStyle: "long" }).format(when);
}

/** Square micrometres, as mm² from 0.1 mm² on. */
export function area(um2) {
  if (um2 === null || um2 === undefined) return NONE;
  return um2 >= 1e5 ? `${number(um2 / 1e6, 2)} mm²` : `${number(um2)} µm²`;
}

export function length(um) {
  return um >= 1000 ? `${number(um / 1000, um % 1000 ? 1 : 0)} mm` : `${number(um, um < 1 ? 1 : 0)} µm`;
}

export const stateText = (state) => t(`state.${state}`, {}, state);
export const reviewText = (state) => t(`review.${state}`, {}, state);
export const verdictText = (verdict) => t(`verdict.${verdict ?? "none"}`);

/** A reason without the count that the page says itself, in its own language. */
export const reasonText = (reason) => inWords((reason ?? "").replace(/^\d+ of \d+ patches failed(; )?/, ""));
