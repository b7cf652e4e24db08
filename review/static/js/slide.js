// The page of one slide: viewer, heatmap, regions and sign-off, put together and kept up to date.

import * as api from "./api.js";
import { debounce, element, refill } from "./dom.js";
import { number } from "./format.js";
import { HeatData } from "./heatdata.js";
import { Heatmap } from "./heatmap.js";
import { HeatPanel, habits } from "./heatpanel.js";
import { t } from "./i18n.js";
import { useKeys } from "./keys.js";
import { listen } from "./live.js";
import { Missing } from "./missing.js";
import { whenLookedAt } from "./looking.js";
import { explain, notice, noticeError } from "./notices.js";
import { Outlines } from "./outlines.js";
import { Readout } from "./readout.js";
import { Regions } from "./regions.js";
import { Review } from "./review.js";
import { ScaleBar } from "./scalebar.js";
import * as session from "./session.js";
import { SignOff } from "./signoff.js";
import { Sketch } from "./sketch.js";
import { slideKeys } from "./slidekeys.js";
import { SlideInfo } from "./slideinfo.js";
import { SlideResults } from "./slideresults.js";
import { Toolbar } from "./toolbar.js";
import { Viewer } from "./viewer.js";
import { fromValues, toValues } from "./viewlink.js";
import { listAddress } from "./worklist.js";

const UNFINISHED = ["waiting", "running"];

class SlidePage {
  constructor(key, values) {
    this.name = "slide";
    this.slide = key;
    this.values = values;
    this.left = false;
    this.frameAsked = 0;
    this.stops = [];
  }

  async enter(root) {
    const detail = await api.slideDetail(this.slide);
    if (this.left) return;
    this.detail = detail;
    document.title = `${detail.id} – slidestream`;
    this.review = new Review(detail.key, detail.review);
    this.result = this.review.document.result;
    this.info = new SlideInfo(detail);
    this.data = new HeatData(detail.grid ?? { columns: 1, rows: 1, origin_x: 0, origin_y: 0, step_x: 1, step_y: 1, patch_width: 1, patch_height: 1 }, detail.classes ?? []);
    this.data.growing = UNFINISHED.includes(detail.state);
    if (!detail.width || !detail.levels?.length) return this.enterWithoutPicture(root);
    this.link = fromValues(this.values, this.data.classes);
    this.settings = this.reviewSettings();
    const heat = { ...habits(), shown: true, class: Math.max(0, this.data.classes.indexOf(this.settings.class)), threshold: this.settings.threshold, ...this.link.heat };
    this.build(root, heat);
    this.stops.push(whenLookedAt(() => this.begin()));
    this.stops.push(listen((event) => this.hear(event)));
    // What there is to sign must be here before it is signed.
    this.signoff.loaded = Promise.all([this.results.loadHeat(), this.results.loadRegions()]);
    await Promise.all([this.opened(), this.signoff.loaded]);
  }

  /** The review has begun, if no act has begun it before. */
  begin() {
    const may = session.mayAct() && !UNFINISHED.includes(this.detail.state);
    if (may && this.review.document.state !== "signed") this.review.act("open");
  }

  /** A slide that could not be opened has no picture: what is known of it is said, and it can be signed as such. */
  enterWithoutPicture(root) {
    this.regions = { items: [] };
    this.signoff = new SignOff(this.detail, this.review, this.regions, this.data);
    this.why = element("div", { class: "verdict", role: "status" }, this.whyNoPicture());
    useKeys([
      { keys: ["s"], text: "keys.sign", run: () => this.signoff.askSign() },
      { keys: ["Escape"], text: "keys.worklist", run: () => this.back() },
    ]);
    root.append(element("div", { class: "no-slide" }, this.info.element, this.why, this.signoff.element));
    this.stops.push(listen((event) => this.hear(event)));
    if (this.detail.problem?.code === "storage") this.retry = setTimeout(() => dispatchEvent(new CustomEvent("slidestream-reload")), 20000);
  }

  /** A slide that was never examined, and one that was and cannot be opened from here any more, are not the same. */
  whyNoPicture() {
    const { problem, patches } = this.detail;
    const words = patches.inferred ? "slide.not_openable" : UNFINISHED.includes(this.detail.state) ? "slide.not_begun" : "slide.no_picture";
    return [element("p", {}, t(words)), problem?.error && words === "slide.not_openable" ? element("p", { class: "reason" }, explain({ message: problem.error, code: problem.code })) : null].filter(Boolean);
  }

  reviewSettings() {
    const { document: doc } = this.review;
    const name = doc.class ?? this.detail.heatmap_class ?? this.data.classes.at(-1);
    return { class: name, threshold: doc.threshold ?? 0.5, min_um2: doc.min_um2 ?? 0 };
  }

  build(root, heat) {
    this.heatmap = new Heatmap(this.data);
    this.heatmap.set(heat);
    this.outlines = new Outlines();
    this.panel = new HeatPanel(this.data, this.heatmap.settings, {
      least: this.settings.min_um2,
      onChange: (settings) => this.heatChanged(settings),
      onApply: () => this.applySettings(),
      onLeast: (least) => {
        this.least = least;
        this.offer();
      },
    });
    this.regions = new Regions(this.detail, this.review, {
      may: () => this.mayAct(),
      onChoose: (item, look) => look && this.viewer.showBox(item.bbox),
      onItems: (items, current) => this.showItems(items, current),
    });
    this.signoff = new SignOff(this.detail, this.review, this.regions, this.data);
    this.results = new SlideResults(this);
    this.review.onChange(() => this.reviewChanged());
    const place = element("div", { class: "slide-place" });
    this.stage = element("div", { class: "stage" }, place);
    const side = element("aside", { class: "side", "aria-label": t("slide.side") }, this.info.element, this.regions.panel, this.panel.element, this.signoff.element);
    this.whole = element("div", { class: "slide-page" }, this.stage, side, this.regions.strip);
    root.append(this.whole);
    // Only now, as OpenSeadragon measures its place once: a view from a link would be of another size otherwise.
    this.viewer = new Viewer(place, this.detail);
    this.viewer.osd.canvas.append(this.heatmap.canvas, this.outlines.canvas);
    this.readout = new Readout(this.detail, this.data);
    this.scaleBar = new ScaleBar();
    this.sketch = new Sketch(this, place);
    this.toolbar = new Toolbar(this.viewer, { mayDraw: session.mayAct(), draw: () => this.sketch.toggle(), full: () => this.fullScreen() });
    this.stage.prepend(this.toolbar.element);
    this.stage.append(this.sketch.hint, element("div", { class: "corner" }, this.scaleBar.element, this.readout.element));
    this.viewer.onView(() => this.redraw(), () => this.remember());
    this.stage.append(new Missing(this.viewer).element);
    place.addEventListener("pointermove", (event) => this.point(event));
    place.addEventListener("pointerleave", () => this.readout.clear());
    this.rememberSoon = debounce(200, () => this.remember());
    useKeys(slideKeys(this));
    this.offer();
  }

  async opened() {
    try {
      await this.viewer.ready;
    } catch (error) {
      noticeError(error);
      return;
    }
    if (this.link.view) this.viewer.show(this.link.view, true);
    this.redraw();
  }

  /** Draws all that lies over the slide, once for the next picture of the screen. */
  redraw() {
    if (this.frameAsked || this.left) return;
    this.frameAsked = requestAnimationFrame(() => {
      this.frameAsked = 0;
      this.draw();
    });
  }

  draw() {
    if (this.left || !this.viewer?.osd.isOpen()) return;
    const matrix = this.viewer.matrix();
    const { width, height } = this.viewer.size;
    this.heatmap.draw(matrix, width, height);
    this.outlines.draw(matrix, width, height);
    this.scaleBar.update(this.detail.mpp, Math.hypot(matrix[0], matrix[1]), this.viewer.magnification());
    this.toolbar.update();
  }

  point(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const place = [event.clientX - box.left, event.clientY - box.top];
    if (this.viewer.osd.isOpen()) this.readout.at(...this.viewer.imagePoint(...place));
  }

  pan(right, down) {
    this.viewer.panBy(right, down);
    const { x, y } = this.viewer.view();
    this.readout.at(x, y);
  }

  heatChanged(settings) {
    this.heatmap.set(settings);
    this.redraw();
    this.offer();
    this.rememberSoon();
  }

  setHeat(values) {
    this.panel.set({ ...this.panel.settings, ...values });
  }

  /** Regions stay as they were found until the person asks: rows that jump at every touch of a slider help nobody. */
  offer() {
    const { settings } = this.panel;
    const name = this.data.classes[settings.class];
    const least = (this.least ?? this.settings.min_um2) !== this.settings.min_um2;
    const differs = name !== undefined && (name !== this.settings.class || Math.abs(settings.threshold - this.settings.threshold) > 0.001 || least);
    this.panel.offer(differs && !this.review.signed, t("heat.apply", { class: name, threshold: number(settings.threshold, 2) }));
  }

  async applySettings() {
    const { settings } = this.panel;
    const wanted = { class: this.data.classes[settings.class], threshold: settings.threshold, min_um2: this.least ?? this.settings.min_um2 };
    if (session.mayAct()) await this.review.act("settings", wanted);
    else this.takeSettings(wanted);
  }

  takeSettings(settings) {
    this.settings = settings;
    this.least = settings.min_um2;
    this.panel.showLeast(settings.min_um2);
    this.offer();
    this.results.loadRegions();
  }

  reviewChanged() {
    const now = this.reviewSettings();
    if (["class", "threshold", "min_um2"].some((name) => now[name] !== this.settings[name])) this.takeSettings(now);
    this.offer();
  }

  /** The region that the address names, once it is there. */
  regionsFound() {
    const { region, view } = this.link;
    if (!region || !this.regions.items.some(({ id }) => id === region)) return;
    this.regions.choose(region, { look: !view });
    this.link.region = null;
  }

  showItems(items, current) {
    this.outlines.items = items;
    this.outlines.current = current;
    this.redraw();
    this.rememberSoon?.();
    this.signoff?.itemsChanged();
  }

  dataChanged() {
    this.heatmap.changed();
    this.panel.showCounts();
    this.readout.refresh();
    this.redraw();
  }

  hear(event) {
    this.info.connection.hear(event);
    if (event.type === "caught-up" || event.type === "resync") {
      this.growSoon();
      this.review.refresh().catch(() => {});
      this.results?.again();
      return;
    }
    if (event.key !== this.slide) return;
    if (event.type === "slide" && event.from === 0) this.results?.begunAnew();
    if (event.type === "slide" || event.type === "worklist") this.growSoon(event);
    else if (event.type === "presence") this.info.present((event.users ?? []).filter((name) => name !== session.user().user));
    else if (event.type === "review" && event.revision !== this.review.document.revision) this.review.refresh().catch(noticeError);
  }

  growSoon() {
    if (this.growing) return;
    this.growing = setTimeout(async () => {
      this.growing = 0;
      await this.grow();
    }, 400);
  }

  async grow() {
    if (this.left) return;
    try {
      const before = this.detail;
      const now = await api.slideDetail(this.slide);
      if (this.left) return;
      // A slide that is only now opened gets its picture; one that was done again begins anew.
      if (!before.width !== !now.width || JSON.stringify(before.grid) !== JSON.stringify(now.grid)) {
        dispatchEvent(new CustomEvent("slidestream-reload"));
        return;
      }
      const { state } = before;
      Object.assign(this.detail, now);
      this.info.show(this.detail);
      this.data.growing = UNFINISHED.includes(now.state);
      const another = this.anotherResult(now.review);
      this.review.take(now.review);
      this.signoff.show();
      if (this.why) refill(this.why, this.whyNoPicture());
      if (!this.viewer) return;
      await this.results.loadHeat();
      const live = now.state === "running";
      if (state !== now.state || another || live) this.results.regionsSoon(live ? 3000 : 0);
    } catch (error) {
      if (!this.left) console.warn(explain(error));
    }
  }

  /** Analysed again while somebody is at it: what was judged was the earlier result. */
  anotherResult({ result }) {
    if (!result || result === this.result) return false;
    if (this.result) notice(t("slide.again"), { error: true });
    this.result = result;
    return true;
  }

  fullScreen() {
    // With the regions: a verdict that is given must be seen.
    if (document.fullscreenElement) document.exitFullscreen();
    else this.whole.requestFullscreen().catch(noticeError);
  }

  back() {
    if (this.sketch?.active) this.sketch.drawing.cancel();
    else location.hash = listAddress();
  }

  mayAct() {
    return session.mayAct() && !this.review.signed;
  }

  /** Something would be lost with the window. */
  unsaved() {
    return Boolean(this.regions?.comment?.unsaved || this.sketch?.unsaved);
  }

  remember() {
    // On the way to another page the address is that page's already.
    if (this.left || !this.viewer?.osd.isOpen() || !location.hash.startsWith(`#/slide/${this.slide}`)) return;
    const values = toValues(this.viewer.view(), this.heatmap.settings, this.data.classes, this.regions.current);
    history.replaceState(null, "", `#/slide/${this.slide}?${values}`);
  }

  /** Another address of the same slide: go there without loading it again. */
  goTo(values) {
    if (!this.viewer?.osd.isOpen()) return false;
    const { view, heat, region } = fromValues(values, this.data.classes);
    this.setHeat(heat);
    if (region && this.regions.items.some(({ id }) => id === region)) this.regions.choose(region, { look: !view });
    if (view) this.viewer.show(view);
    return true;
  }

  leave() {
    this.left = true;
    this.regions?.comment?.leave();
    for (const stop of this.stops) stop();
    this.info?.connection.stop();
    this.rememberSoon?.cancel();
    clearTimeout(this.growing);
    clearTimeout(this.retry);
    this.results?.stop();
    cancelAnimationFrame(this.frameAsked);
    this.sketch?.drawing.cancel();
    this.viewer?.destroy();
  }
}

export function slidePage(key, values) {
  return new SlidePage(key, values);
}
