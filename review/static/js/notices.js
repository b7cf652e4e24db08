// Short messages at the foot of the page, read aloud by screen readers. Errors stay until they are put away.

import { element } from "./dom.js";
import { t } from "./i18n.js";

/** Over a dialog and over the full screen too: both lie above all else of the page, the later one above the earlier. */
function showOnTop(place) {
  if (!place.showPopover) return;
  place.popover = "manual";
  const open = place.matches(":popover-open");
  if (open && (document.fullscreenElement || document.querySelector("dialog[open]"))) place.hidePopover();
  if (!place.matches(":popover-open")) place.showPopover();
}

export function notice(text, { error = false } = {}) {
  const place = document.getElementById("notices");
  for (const same of [...place.children]) if (same.firstChild.textContent === text) same.remove();
  const made = element("div", { class: error ? "notice error" : "notice" }, element("span", {}, text));
  made.append(
    element("button", { type: "button", class: "plain", onclick: () => made.remove(), "aria-label": t("notice.close") }, "×"),
  );
  // An error waits for its reader; it is not pushed out by what comes after it, unless that is many more.
  while (place.children.length > 3) (place.querySelector(".notice:not(.error)") ?? place.firstChild).remove();
  place.append(made);
  showOnTop(place);
  if (!error) setTimeout(() => made.remove(), 6000);
  return made;
}

export function clearNotices() {
  document.getElementById("notices").replaceChildren();
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
