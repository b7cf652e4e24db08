// The buttons over the slide: magnification, rotation, colour profile, drawing, link, full screen.

import { element } from "./dom.js";
import { t } from "./i18n.js";
import { notice } from "./notices.js";

const MAGNIFICATIONS = [5, 10, 20, 40];

function button(text, label, onclick, attributes = {}) {
  return element("button", { type: "button", title: label, "aria-label": label, onclick, ...attributes }, text);
}

export async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    notice(t("tools.link_copied"));
  } catch {
    // Without TLS or permission there is no clipboard: then the link is shown, to be copied by hand.
    notice(location.href);
  }
}

export class Toolbar {
  /** viewer: Viewer; draw(): begins or ends drawing; full(): full screen */
  constructor(viewer, { mayDraw, draw, full }) {
    this.viewer = viewer;
    const { slide } = viewer;
    this.magnifications = MAGNIFICATIONS.map((m) => {
      const made = button(`${m}×`, t("tools.magnify", { m }), () => viewer.setMagnification(m), { "aria-pressed": "false" });
      made.disabled = !slide.mpp;
      return made;
    });
    this.drawButton = button(t("tools.draw"), t("tools.draw_long"), draw, { "aria-pressed": "false" });
    this.drawButton.disabled = !mayDraw;
    const icc = slide.icc
      ? button(t("tools.icc"), t("tools.icc_long"), () => {
          viewer.setIcc(!viewer.icc);
          icc.setAttribute("aria-pressed", String(viewer.icc));
        }, { "aria-pressed": String(viewer.icc) })
      : null;
    this.element = element(
      "div",
      { class: "toolbar", role: "group", "aria-label": t("tools.title") },
      button(t("tools.fit"), t("tools.fit_long"), () => viewer.fit()),
      this.magnifications,
      button("−", t("tools.out"), () => viewer.zoomBy(1 / 1.5)),
      button("+", t("tools.in"), () => viewer.zoomBy(1.5)),
      button("↺", t("tools.left"), () => viewer.rotateBy(-15)),
      button("↻", t("tools.right"), () => viewer.rotateBy(15)),
      icc,
      this.drawButton,
      button(t("tools.link"), t("tools.link_long"), copyLink),
      button("⛶", t("tools.full"), full),
    );
  }

  update() {
    const now = this.viewer.magnification();
    MAGNIFICATIONS.forEach((m, i) => this.magnifications[i].setAttribute("aria-pressed", String(now !== null && Math.abs(now / m - 1) < 0.02)));
  }

  drawing(active) {
    this.drawButton.setAttribute("aria-pressed", String(active));
  }
}
