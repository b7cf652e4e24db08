// Regions over the slide: outlines with their rank, the current one strong; and the outline that a hand is drawing.

import { fit } from "./heatmap.js";

const DASHES = { rejected: [3, 4], unsure: [9, 5] };

export class Outlines {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.canvas.className = "overlay outlines";
    this.items = [];
    this.current = null;
    this.drawn = []; // level-0 points of the drawing under way
    this.shown = true;
    this.size = 1; // of lines and letters: a 4K screen has larger ones, as the rest of the page
  }

  draw(matrix, width, height) {
    const ratio = devicePixelRatio;
    this.size = parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
    fit(this.canvas, width, height, ratio);
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const [a, b, c, d, e, f] = matrix;
    const place = ([x, y]) => [a * x + c * y + e, b * x + d * y + f];
    context.lineJoin = "round";
    if (this.shown) {
      for (const item of this.items) if (item.id !== this.current) this.region(context, item, place, false);
      const current = this.items.find((item) => item.id === this.current);
      if (current) this.region(context, current, place, true);
    }
    if (this.drawn.length) this.sketch(context, this.drawn.map(place));
  }

  region(context, item, place, strong) {
    const rings = item.rings.map((ring) => ring.map(place));
    if (!rings.length || !rings[0].length) return;
    context.beginPath();
    for (const points of rings) trace(context, points, true);
    context.setLineDash([]);
    context.strokeStyle = "rgba(255, 255, 255, 0.9)";
    context.lineWidth = (strong ? 6 : 4) * this.size;
    context.stroke();
    context.setLineDash(DASHES[item.verdict] ?? []);
    context.strokeStyle = strong ? "#b3410a" : "#1c1c1c";
    context.lineWidth = (strong ? 3 : 1.75) * this.size;
    context.stroke();
    context.setLineDash([]);
    this.label(context, item, rings[0], strong);
  }

  label(context, item, points, strong) {
    // On the topmost corner, the left one of two: with any rotation that lies on the outline.
    const [x, y] = points.reduce((best, point) => (point[1] < best[1] - 0.5 || (point[1] < best[1] + 0.5 && point[0] < best[0]) ? point : best));
    const { size } = this;
    context.font = `600 ${13 * size}px system-ui, sans-serif`;
    const width = context.measureText(item.label).width + 10 * size;
    context.fillStyle = strong ? "#b3410a" : "#1c1c1c";
    context.fillRect(x, y - 20 * size, width, 19 * size);
    context.fillStyle = "#ffffff";
    context.textBaseline = "middle";
    context.fillText(item.label, x + 5 * size, y - 10 * size);
  }

  sketch(context, points) {
    context.beginPath();
    trace(context, points, false);
    context.strokeStyle = "rgba(255, 255, 255, 0.9)";
    context.lineWidth = 5;
    context.stroke();
    context.strokeStyle = "#b3410a";
    context.lineWidth = 2.5;
    context.stroke();
    context.fillStyle = "#b3410a";
    for (const [x, y] of [points[0], points[points.length - 1]]) context.fillRect(x - 4, y - 4, 8, 8);
  }
}

function trace(context, points, closed) {
  points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  if (closed) context.closePath();
}

/** Rings of an outline: the server gives one ring of points, or several rings. */
export function rings(outline) {
  if (!outline?.length) return [];
  return typeof outline[0][0] === "number" ? [outline] : outline;
}

export function boxOf(outline) {
  const points = rings(outline).flat();
  const xs = points.map((point) => point[0]);
  const ys = points.map((point) => point[1]);
  const [x, y] = [Math.min(...xs), Math.min(...ys)];
  return [x, y, Math.max(...xs) - x, Math.max(...ys) - y];
}
