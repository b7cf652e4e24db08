// Short messages at the foot of the page, read aloud by screen readers. Errors stay until they are put away.

import { element } from "./dom.js";
import { t } from "./i18n.js";

export function notice(text, { error = false } = {}) {
  const place = document.getElementById("notices");
  const made = element("div", { class: error ? "notice error" : "notice" }, element("span", {}, text));
  made.append(
    element("button", { type: "button", class: "plain", onclick: () => made.remove(), "aria-label": t("notice.close") }, "×"),
  );
  while (place.children.length > 2) place.firstChild.remove();
  place.append(made);
  if (!error) setTimeout(() => made.remove(), 6000);
  return made;
}

// Of these the server's words say more than the kind does.
const DETAILED = new Set(["slide_unreadable", "bad_input", "cannot_say", "not_installed", "storage"]);

/** An error as one line for people: the text of its code where there is one, else the server's own. */
export function explain(error) {
  const known = error.code && t(`error.${error.code}`, error.values, "");
  if (known && DETAILED.has(error.code) && error.message) return `${known} (${error.message})`;
  return known || error.message || t("error.unknown");
}

export function noticeError(error) {
  return notice(explain(error), { error: true });
}
