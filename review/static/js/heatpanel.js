// The controls of the heatmap and its legend. All of them work without asking the server.

import { COLOUR_MAPS, colourMap } from "./colourmaps.js";
import { choice, element, field, refill } from "./dom.js";
import { number } from "./format.js";
import { FAILED, PENDING } from "./heatdata.js";
import { t } from "./i18n.js";

const STORED = "slidestream.heatmap";

/** Opacity, colours and outline are a person's habit; class and threshold belong to the slide. */
export function habits() {
  try {
    const { opacity = 0.5, map = "viridis", outline = true } = JSON.parse(localStorage.getItem(STORED) ?? "{}");
    return { opacity, map: COLOUR_MAPS.includes(map) ? map : "viridis", outline };
  } catch {
    return { opacity: 0.5, map: "viridis", outline: true };
  }
}

export class HeatPanel {
  /** onChange(settings) draws; onApply() takes class, threshold and smallest area (µm²) over for the regions. */
  constructor(data, settings, { least, onChange, onApply, onLeast }) {
    this.data = data;
    this.settings = settings;
    this.onChange = onChange;
    const set = (values) => this.set(values);
    this.shown = element("input", { type: "checkbox", id: "heat-shown", onchange: (event) => set({ shown: event.target.checked }) });
    this.classes = choice(data.classes.map((name, i) => [String(i), name]), String(settings.class), (value) => set({ class: Number(value) }), { id: "heat-class" });
    this.threshold = this.slider("heat-threshold", 0.01, (value) => set({ threshold: value }));
    this.opacity = this.slider("heat-opacity", 0.05, (value) => set({ opacity: value }));
    this.maps = choice(COLOUR_MAPS.map((name) => [name, t(`map.${name}`)]), settings.map, (map) => set({ map }), { id: "heat-map" });
    this.outline = element("input", { type: "checkbox", id: "heat-outline", onchange: (event) => set({ outline: event.target.checked }) });
    this.least = element("input", { type: "number", min: 0, step: 100, value: least, onchange: () => onLeast(Math.max(0, Number(this.least.value) || 0)) });
    this.thresholdText = element("output", { for: "heat-threshold" });
    this.opacityText = element("output", { for: "heat-opacity" });
    this.ramp = element("canvas", { width: 256, height: 12, "aria-hidden": "true" });
    this.legend = element("ul", { class: "legend" });
    this.apply = element("button", { type: "button", onclick: onApply });
    this.element = element(
      "section",
      { class: "panel", "aria-labelledby": "heat-title" },
      element("div", { class: "line" }, element("h2", { id: "heat-title" }, t("heat.title")), element("span", { class: "grow" }), element("label", { class: "check" }, this.shown, t("heat.shown"))),
      this.legend,
      element("div", { class: "slider" }, element("label", { for: "heat-class" }, t("heat.class")), this.classes),
      element("div", { class: "slider" }, element("label", { for: "heat-threshold" }, t("heat.threshold")), this.threshold, this.thresholdText),
      element("div", { class: "ramp" }, this.ramp, element("div", { class: "ticks", "aria-hidden": "true" }, element("span", {}, "0"), element("span", {}, "0.5"), element("span", {}, "1"))),
      this.apply,
      element("div", { class: "slider" }, element("label", { for: "heat-opacity" }, t("heat.opacity")), this.opacity, this.opacityText),
      element(
        "details", {},
        element("summary", {}, t("heat.more")),
        field(t("heat.map"), this.maps),
        element("label", { class: "check" }, this.outline, t("heat.outline")),
        field(t("heat.least"), this.least),
      ),
    );
    this.update();
  }

  slider(id, step, change) {
    return element("input", { type: "range", id, min: 0, max: 1, step, oninput: (event) => change(Number(event.target.value)) });
  }

  set(values) {
    const settings = { ...this.settings, ...values };
    settings.threshold = Math.min(1, Math.max(0, Math.round(settings.threshold * 100) / 100));
    settings.opacity = Math.min(1, Math.max(0, Math.round(settings.opacity * 100) / 100));
    this.settings = settings;
    const { opacity, map, outline } = settings;
    localStorage.setItem(STORED, JSON.stringify({ opacity, map, outline }));
    this.update();
    this.onChange(settings);
  }

  /** Shows the settings as they are. */
  update() {
    const { settings } = this;
    this.shown.checked = settings.shown;
    this.classes.value = String(settings.class);
    this.threshold.value = settings.threshold;
    this.opacity.value = settings.opacity;
    this.maps.value = settings.map;
    this.outline.checked = settings.outline;
    this.thresholdText.textContent = number(settings.threshold, 2);
    this.opacityText.textContent = `${number(100 * settings.opacity)} %`;
    this.drawRamp();
    this.showCounts();
  }

  drawRamp() {
    const context = this.ramp.getContext("2d");
    const map = colourMap(this.settings.map);
    context.clearRect(0, 0, 256, 12);
    for (let p = 0; p < 256; p++) {
      const under = p < this.settings.threshold * 255 - 0.5;
      context.fillStyle = under ? "#8883" : `rgb(${map[3 * p]}, ${map[3 * p + 1]}, ${map[3 * p + 2]})`;
      context.fillRect(p, under ? 5 : 0, 1, under ? 2 : 12);
    }
  }

  showCounts() {
    const { counts, count, known, growing, classes } = this.data;
    const nothing = !growing && (known || !classes.length);
    const line = (name, n) => (n ? element("li", { class: `key-${name}` }, element("span", { class: `swatch ${name}`, "aria-hidden": "true" }), t(`heat.${name}`, { n: number(n) })) : null);
    refill(this.legend, line("failed", counts[FAILED]), line("pending", counts[PENDING]), count ? null : element("li", {}, t(nothing ? "heat.nothing" : "heat.not_yet")));
  }

  /** Somebody has set it: not into the hand of who is typing another. */
  showLeast(least) {
    if (document.activeElement !== this.least) this.least.value = least;
  }

  /** The regions were found with other settings than those of the picture: offer to find them again. */
  offer(differs, text) {
    this.apply.hidden = !differs;
    this.apply.textContent = text;
  }
}
