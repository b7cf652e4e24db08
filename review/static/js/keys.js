// The keyboard: one table of what each key does on this page, and the dialog that shows it.

import { dialog, element } from "./dom.js";
import { t } from "./i18n.js";

const STORED = "slidestream.keys";
const TYPED_INTO = 'input:not([type="checkbox"]):not([type="range"]):not([type="radio"]):not([type="button"]), textarea, select';
let table = [];

/** Entries {keys: ["n"], text: "keys.next", run}; shown in this order. */
export function useKeys(entries) {
  table = entries;
}

// Single keys can be switched off (WCAG 2.1.4): people who dictate, or whose hands shake, need that.
export const keysAreOn = () => localStorage.getItem(STORED) !== "off";

function onKeyDown(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.defaultPrevented) return;
  if (document.querySelector("dialog[open]")) return;
  const typing = event.target instanceof Element && event.target.closest(TYPED_INTO);
  if (typing) {
    if (event.key === "Escape") typing.blur();
    return;
  }
  if (event.key === "?") {
    event.preventDefault();
    showKeys();
    return;
  }
  if (!keysAreOn() && event.key.length === 1) return;
  const entry = table.find(({ keys }) => keys.includes(event.key) || keys.includes(event.key.toLowerCase()));
  if (!entry) return;
  // Enter and the space bar belong to the button that has the focus.
  if (event.key === "Enter" && event.target instanceof Element && event.target.closest("button, a, summary")) return;
  if (entry.run(event) !== false) event.preventDefault();
}

export function startKeys() {
  document.addEventListener("keydown", onKeyDown);
}

const shown = (key) => t(`key.${key}`, {}, key);

export function showKeys() {
  const lines = new Map();
  for (const { keys, text } of [...table, { keys: ["?"], text: "keys.help" }]) lines.set(text, [...(lines.get(text) ?? []), ...keys]);
  const rows = [...lines].map(([text, keys]) =>
    element("li", {}, element("span", { class: "of" }, keys.map((key) => element("kbd", {}, shown(key)))), element("span", {}, t(text))),
  );
  const on = element("input", { type: "checkbox", checked: keysAreOn() });
  on.addEventListener("change", () => localStorage.setItem(STORED, on.checked ? "on" : "off"));
  const made = dialog(
    t("keys.title"),
    element("ul", { class: "keys" }, rows),
    element("label", { class: "check" }, on, t("keys.switch")),
    element("div", { class: "buttons" }, element("button", { type: "button", onclick: () => made.close() }, t("close"))),
  );
  made.classList.add("wide");
}
