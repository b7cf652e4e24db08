// The slide on the screen: OpenSeadragon over the server's tiles. All coordinates given and taken are level-0 pixels.

import { tileAddress } from "./api.js";
import { reducedMotion } from "./dom.js";
import { t } from "./i18n.js";

const { OpenSeadragon } = window;

// OpenSeadragon adds a style element of its own unless there is one of this name; the page's policy forbids inline styles.
// An element of that name in no namespace holds the place and is no style.
const placeholder = document.createElementNS(null, "style");
placeholder.setAttribute("data-openseadragon-mobile-css", "");
document.head.append(placeholder);

// The objective of 40x is taken as 0.25 µm on one pixel of the screen, the usage of scanners.
const UM_PX_AT_1X = 10;

/** The slide's stored levels, as they are: any factor between them, each with a tile size of its own. */
function tileSource(slide, icc) {
  const levels = slide.levels;
  const last = levels.length - 1;
  const source = new OpenSeadragon.TileSource({
    width: slide.width,
    height: slide.height,
    tileSize: levels[0].tile,
    minLevel: 0,
    maxLevel: last,
    // OpenSeadragon counts from the smallest level on, the server from the largest.
    getTileUrl: (level, column, row) => tileAddress(slide.key, last - level, column, row, icc),
  });
  source.getTileWidth = (level) => levels[last - level].tile;
  source.getTileHeight = (level) => levels[last - level].tile_height ?? levels[last - level].tile;
  source.getLevelScale = (level) => 1 / levels[last - level].downsample;
  source.getNumTiles = (level) =>
    new OpenSeadragon.Point(
      Math.ceil(levels[last - level].width / source.getTileWidth(level)),
      Math.ceil(levels[last - level].height / source.getTileHeight(level)),
    );
  return source;
}

/**
 * A level is used down to this size of its pixels on the screen; below, the next one, whose pixels must not be enlarged by
 * more than a fifth. OpenSeadragon's own 0.5 is for levels that halve: at 20x, a slide with levels of a quarter would be
 * shown from the one that was made for 10x.
 */
function sharpness(levels) {
  const gap = Math.max(2, ...levels.slice(1).map((level, i) => level.downsample / levels[i].downsample));
  return Math.max(0.25, Math.min(0.49, 1.2 / gap));
}

export class Viewer {
  constructor(place, slide, { icc = true } = {}) {
    this.slide = slide;
    this.icc = icc;
    const still = reducedMotion();
    this.osd = new OpenSeadragon.Viewer({
      element: place,
      drawer: "canvas",
      tileSources: tileSource(slide, icc),
      showNavigationControl: false,
      showNavigator: true,
      navigatorPosition: "BOTTOM_RIGHT",
      navigatorSizeRatio: 0.17,
      navigatorMaintainSizeRatio: false,
      navigatorAutoFade: false,
      navigatorDisplayRegionColor: "#c2410c",
      navigatorRotate: true,
      maxZoomPixelRatio: 8,
      // A window that changes its size shows more or less, not another magnification.
      preserveImageSizeOnResize: true,
      minPixelRatio: sharpness(slide.levels),
      visibilityRatio: 0.2,
      animationTime: still ? 0 : 0.35,
      springStiffness: 9,
      // A browser has six connections to a server: tiles that hang must leave room for the page itself.
      imageLoaderLimit: 4,
      maxImageCacheCount: 600,
      placeholderFillStyle: null,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true, flickEnabled: false },
      gestureSettingsTouch: { clickToZoom: false, flickEnabled: false },
      gestureSettingsPen: { clickToZoom: false },
    });
    // The page has its own keys; OpenSeadragon's letters would turn and flip the slide beside them.
    this.osd.innerTracker.keyDownHandler = null;
    this.osd.innerTracker.keyHandler = null;
    const { canvas } = this.osd;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", t("viewer.label", { slide: slide.id }));
    const navigator = this.osd.navigator?.element;
    if (navigator) {
      navigator.setAttribute("aria-hidden", "true");
      for (const inner of [navigator, ...navigator.querySelectorAll("[tabindex]")]) inner.tabIndex = -1;
    }
    this.ready = new Promise((resolve, reject) => {
      this.osd.addOnceHandler("open", resolve);
      this.osd.addOnceHandler("open-failed", (event) => reject(new Error(event.message)));
    });
  }

  get viewport() {
    return this.osd.viewport;
  }

  get size() {
    return { width: this.osd.canvas.clientWidth, height: this.osd.canvas.clientHeight };
  }

  /** call() whenever the view has moved and must be drawn again; settled() when it has come to rest. */
  onView(call, settled) {
    this.osd.addHandler("update-viewport", call);
    this.osd.addHandler("resize", () => requestAnimationFrame(call));
    this.osd.addHandler("animation-finish", settled);
  }

  /** [a, b, c, d, e, f] of a canvas: level-0 px → CSS px of the viewer; holds rotation. */
  matrix() {
    const corner = (x, y) => this.viewport.imageToViewerElementCoordinates(new OpenSeadragon.Point(x, y));
    const { width, height } = this.slide;
    const [o, x, y] = [corner(0, 0), corner(width, 0), corner(0, height)];
    return [(x.x - o.x) / width, (x.y - o.y) / width, (y.x - o.x) / height, (y.y - o.y) / height, o.x, o.y];
  }

  /** The level-0 px under a place of the viewer's element (CSS px). */
  imagePoint(x, y) {
    const point = this.viewport.viewerElementToImageCoordinates(new OpenSeadragon.Point(x, y));
    return [point.x, point.y];
  }

  /** {x, y: level-0 px in the middle, scale: CSS px per level-0 px, rotation: degrees} */
  view() {
    const centre = this.viewport.viewportToImageCoordinates(this.viewport.getCenter(false));
    return { x: centre.x, y: centre.y, scale: this.viewport.viewportToImageZoom(this.viewport.getZoom(false)), rotation: this.viewport.getRotation() };
  }

  show({ x, y, scale, rotation = 0 }, immediately = false) {
    const now = immediately || reducedMotion();
    this.viewport.setRotation(rotation, now);
    this.viewport.zoomTo(this.viewport.imageToViewportZoom(scale), null, now);
    this.viewport.panTo(this.viewport.imageToViewportCoordinates(new OpenSeadragon.Point(x, y)), now);
  }

  /** Whole region in view, with surroundings, but never closer than 20x. */
  showBox([x, y, w, h], immediately = false) {
    const { width, height } = this.size;
    const fitting = Math.min((0.6 * width) / Math.max(1, w), (0.6 * height) / Math.max(1, h));
    const closest = this.slide.mpp ? this.scaleOf(20) : 1;
    this.show({ x: x + w / 2, y: y + h / 2, scale: Math.min(fitting, closest), rotation: this.viewport.getRotation() }, immediately);
  }

  fit() {
    this.viewport.goHome(reducedMotion());
  }

  zoomBy(factor) {
    this.viewport.zoomBy(factor, null, reducedMotion());
    this.viewport.applyConstraints();
  }

  panBy(right, down) {
    const delta = this.viewport.deltaPointsFromPixels(new OpenSeadragon.Point(right, down).rotate(-this.viewport.getRotation()));
    this.viewport.panBy(delta, reducedMotion());
    this.viewport.applyConstraints();
  }

  rotateBy(degrees) {
    this.viewport.setRotation((this.viewport.getRotation() + degrees + 360) % 360, reducedMotion());
  }

  /** CSS px per level-0 px at a magnification. */
  scaleOf(magnification) {
    return (this.slide.mpp * magnification) / UM_PX_AT_1X / devicePixelRatio;
  }

  magnification() {
    return this.slide.mpp ? (this.viewport.viewportToImageZoom(this.viewport.getZoom(true)) * devicePixelRatio * UM_PX_AT_1X) / this.slide.mpp : null;
  }

  setMagnification(magnification) {
    this.show({ ...this.view(), scale: this.scaleOf(magnification) });
  }

  /** The same view, with or without the slide's colour profile. */
  setIcc(icc) {
    this.icc = icc;
    this.osd.addTiledImage({ tileSource: tileSource(this.slide, icc), index: 0, replace: true });
  }

  /** call() when a tile could not be had: its place is as empty as one without tissue. */
  onMissing(call) {
    // What is given up on the way to other tiles (another profile) is not missing.
    this.osd.addHandler("tile-load-failed", ({ tiledImage }) => this.osd.world.getIndexOfItem(tiledImage) >= 0 && call());
  }

  /** Everything anew. */
  loadAgain() {
    this.setIcc(this.icc);
  }

  destroy() {
    this.osd.destroy();
  }
}
