// The heatmap over the slide. One pixel a patch, coloured through a table and scaled by the canvas: class, threshold,
// colours and opacity change without asking the server. What failed or was not read is hatched: no finding is not no tumour.

import { colourMap } from "./colourmaps.js";
import { FAILED, INFERRED, PENDING, borders, shift } from "./heatdata.js";

const SMALLEST_FAILED = 7; // CSS px: a failed patch is never too small to notice
const MOST_SINGLE = 3000;

function pattern(draw, size) {
  const tile = new OffscreenCanvas(size, size);
  const context = tile.getContext("2d");
  draw(context, size);
  return tile;
}

const line = (context, size, colour, width, rising) => {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.lineCap = "square";
  for (const by of [-size, 0, size]) {
    context.beginPath();
    context.moveTo(by, rising ? size : 0);
    context.lineTo(by + size, rising ? 0 : size);
    context.stroke();
  }
};

// Failed: black on white, both ways. Not read yet: thin grey lines one way over a light veil.
const FAILED_TILE = (ratio) =>
  pattern((context, size) => {
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, size, size);
    line(context, size, "#000000", 2 * ratio, true);
  }, Math.round(8 * ratio));
const PENDING_TILE = (ratio) =>
  pattern((context, size) => {
    context.fillStyle = "rgba(255, 255, 255, 0.35)";
    context.fillRect(0, 0, size, size);
    line(context, size, "rgba(70, 80, 90, 0.75)", ratio, false);
  }, Math.round(12 * ratio));

const tiles = new Map();
const once = (make, ratio) => {
  const key = `${make.name} ${ratio}`;
  if (!tiles.has(key)) tiles.set(key, make(ratio));
  return tiles.get(key);
};

export class Heatmap {
  constructor(data) {
    this.data = data;
    this.settings = { shown: true, class: 0, threshold: 0.5, opacity: 0.5, map: "viridis", outline: true };
    const { columns, rows } = data.grid;
    this.grid = new OffscreenCanvas(columns, rows);
    this.image = new ImageData(columns, rows);
    this.pixels = new Uint32Array(this.image.data.buffer);
    this.masks = { [PENDING]: new OffscreenCanvas(columns, rows), [FAILED]: new OffscreenCanvas(columns, rows) };
    this.canvas = document.createElement("canvas");
    this.canvas.className = "overlay heat";
    this.scratch = document.createElement("canvas");
    this.hatched = document.createElement("canvas");
    this.changed();
  }

  /** After new data. */
  changed() {
    this.hatchedFor = "";
    this.recolour();
    for (const [state, mask] of Object.entries(this.masks)) this.drawMask(mask, Number(state));
    this.edges = borders(this.data);
    this.failed = [];
    for (let i = 0; i < this.data.count && this.data.counts[FAILED] <= MOST_SINGLE; i++)
      if (this.data.state[i] === FAILED) this.failed.push(this.data.cells[i]);
  }

  /** New settings; colours are computed again only where they depend on them. */
  set(settings) {
    const before = this.settings;
    this.settings = { ...before, ...settings };
    if (["class", "threshold", "map"].some((name) => before[name] !== this.settings[name])) this.recolour();
  }

  recolour() {
    const { data, pixels, settings } = this;
    const map = colourMap(settings.map);
    const table = new Uint32Array(256);
    const first = Math.max(0, Math.ceil(settings.threshold * 255 - 0.5));
    for (let p = first; p < 256; p++) table[p] = 0xff000000 | (map[3 * p + 2] << 16) | (map[3 * p + 1] << 8) | map[3 * p];
    const plane = data.planes[settings.class];
    for (let i = 0; i < data.count; i++) pixels[data.cells[i]] = data.state[i] === INFERRED ? table[plane[i]] : 0;
    this.grid.getContext("2d").putImageData(this.image, 0, 0);
  }

  drawMask(mask, state) {
    const context = mask.getContext("2d");
    context.clearRect(0, 0, mask.width, mask.height);
    if (!this.data.counts[state]) return;
    const image = new ImageData(mask.width, mask.height);
    const pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < this.data.count; i++) if (this.data.state[i] === state) pixels[this.data.cells[i]] = 0xff000000;
    context.putImageData(image, 0, 0);
  }

  /** matrix: level-0 px → CSS px; width, height in CSS px. */
  draw(matrix, width, height) {
    const ratio = devicePixelRatio;
    fit(this.canvas, width, height, ratio);
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.settings.shown) return;
    const cells = this.cellMatrix(matrix, ratio);
    context.imageSmoothingEnabled = false;
    context.globalAlpha = this.settings.opacity;
    context.setTransform(cells);
    context.drawImage(this.grid, 0, 0);
    context.globalAlpha = 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    if (this.data.counts[PENDING] || this.data.counts[FAILED]) context.drawImage(this.hatching(cells, ratio), 0, 0);
    if (this.settings.outline) this.drawOutline(context, cells, ratio);
  }

  /** Cells of the grid → device px. */
  cellMatrix(matrix, ratio) {
    const { grid } = this.data;
    return new DOMMatrix([ratio, 0, 0, ratio, 0, 0])
      .multiply(new DOMMatrix(matrix))
      .translate(grid.origin_x + shift(grid.patch_width, grid.step_x), grid.origin_y + shift(grid.patch_height, grid.step_y))
      .scale(grid.step_x, grid.step_y);
  }

  /** The hatching of this view; it is the dearest part to draw, and stays while only threshold, class or opacity change. */
  hatching(cells, ratio) {
    const { hatched, canvas } = this;
    const wanted = [cells.toString(), canvas.width, canvas.height].join();
    if (this.hatchedFor === wanted) return hatched;
    this.hatchedFor = wanted;
    [hatched.width, hatched.height] = [canvas.width, canvas.height]; // clears it
    const context = hatched.getContext("2d");
    this.hatch(context, cells, PENDING, once(PENDING_TILE, ratio));
    this.hatch(context, cells, FAILED, once(FAILED_TILE, ratio));
    return hatched;
  }

  hatch(context, cells, state, tile) {
    if (!this.data.counts[state]) return;
    const { scratch, canvas } = this;
    if (scratch.width !== canvas.width || scratch.height !== canvas.height) [scratch.width, scratch.height] = [canvas.width, canvas.height];
    const drawn = scratch.getContext("2d");
    drawn.setTransform(1, 0, 0, 1, 0, 0);
    drawn.globalCompositeOperation = "copy";
    drawn.imageSmoothingEnabled = false;
    drawn.setTransform(cells);
    drawn.drawImage(this.masks[state], 0, 0);
    drawn.globalCompositeOperation = "source-over";
    if (state === FAILED) this.enlarge(drawn, cells);
    drawn.setTransform(1, 0, 0, 1, 0, 0);
    drawn.globalCompositeOperation = "source-in";
    const pattern = drawn.createPattern(tile, "repeat");
    // The hatching moves with the slide; it would seem to swim otherwise.
    pattern.setTransform(new DOMMatrix([1, 0, 0, 1, Math.round(cells.e % tile.width), Math.round(cells.f % tile.height)]));
    drawn.fillStyle = pattern;
    drawn.fillRect(0, 0, scratch.width, scratch.height);
    context.drawImage(scratch, 0, 0);
  }

  enlarge(drawn, cells) {
    const size = Math.hypot(cells.a, cells.b);
    const least = SMALLEST_FAILED * devicePixelRatio;
    if (size >= least) return;
    drawn.setTransform(1, 0, 0, 1, 0, 0);
    drawn.fillStyle = "#000000";
    const { columns } = this.data.grid;
    for (const cell of this.failed) {
      const middle = cells.transformPoint(new DOMPoint((cell % columns) + 0.5, Math.floor(cell / columns) + 0.5));
      drawn.fillRect(middle.x - least / 2, middle.y - least / 2, least, least);
    }
  }

  drawOutline(context, cells, ratio) {
    const path = new Path2D();
    for (const [x0, y0, x1, y1] of this.edges) {
      path.moveTo(x0, y0);
      path.lineTo(x1, y1);
    }
    const onScreen = new Path2D();
    onScreen.addPath(path, cells);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.lineCap = "square";
    for (const [colour, width] of [["rgba(255, 255, 255, 0.55)", 3], ["rgba(30, 64, 110, 0.8)", 1]]) {
      context.strokeStyle = colour;
      context.lineWidth = width * ratio;
      context.stroke(onScreen);
    }
  }
}

/** Gives a canvas the size of its place, in device px. */
export function fit(canvas, width, height, ratio) {
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w) canvas.width = w;
  if (canvas.height !== h) canvas.height = h;
}
