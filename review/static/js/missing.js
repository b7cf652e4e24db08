// Says that tiles did not come: their place is as empty as one without tissue, and must not be taken for it.

import { element } from "./dom.js";
import { t } from "./i18n.js";

export class Missing {
  constructor(viewer) {
    this.element = element("div", { class: "missing", role: "alert" });
    viewer.onMissing(() => {
      if (!this.element.firstChild) this.element.append(t("slide.tiles_missing"), " ", this.button);
    });
    this.button = element("button", { type: "button", onclick: () => {
      this.element.replaceChildren();
      viewer.loadAgain();
    } }, t("slide.load_again"));
  }
}
