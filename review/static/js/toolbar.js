// The buttons over the slide: magnification, rotation, colour profile, drawing, link, full screen.

import { element } from "./dom.js";
import { t } from "./i18n.js";
import { notice } from "./notices.js";

const MAGNIFICATIONS = [5, 10, 20, 40];

function button(text, label, onclick, attributes = {}) {
  return element("button", { type: "button", title: label, "aria-label": label, onclick, ...attributes }, text);
}

const SVG = "http://www.w3.org/2000/svg";

/** Not every hospital's fonts have the sign for full screen. */
function corners() {
  const picture = document.createElementNS(SVG, "svg");
  for (const [name, value] of Object.entries({ viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true" })) picture.setAttribute(name, value);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", "M1 6V1h5M10 1h5v5M15 10v5h-5M6 15H1v-5");
  for (const [name, value] of Object.entries({ fill: "none", stroke: "currentColor", "stroke-width": 2 })) path.setAttribute(name, value);
  picture.append(path);
  return picture;
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
      button(corners(), t("tools.full"), full),
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
