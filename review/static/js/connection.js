// Says that the server tells nothing any more: what is shown may be old. Not of every blink, and not while the page begins.

import { element } from "./dom.js";
import { t } from "./i18n.js";

const BLINK_MS = 3000;

export class Connection {
  /** well: what is said while all is well */
  constructor(well = "") {
    this.well = well;
    this.element = element("p", { class: "quiet connection", role: "status" });
  }

  /** An event of live.js. */
  hear({ type, connected }) {
    if (type !== "connection") return;
    clearTimeout(this.timer);
    if (connected) this.say(this.well, true);
    else this.timer = setTimeout(() => this.say(t("live.off"), false), BLINK_MS);
  }

  say(text, well) {
    this.element.textContent = text;
    this.element.classList.toggle("lost", !well);
  }

  stop() {
    clearTimeout(this.timer);
  }
}
