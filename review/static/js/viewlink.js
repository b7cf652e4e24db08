// The part of the address that says exactly what is on the screen: place, magnification, rotation, heatmap, region.

const round = (value, digits) => String(Number(value.toFixed(digits)));

export function toValues(view, heat, classes, region) {
  const values = new URLSearchParams({
    x: round(view.x, 0), y: round(view.y, 0), s: view.scale.toPrecision(5), r: round(view.rotation, 1),
    h: heat.shown ? "1" : "0", c: classes[heat.class] ?? "", t: round(heat.threshold, 2), o: round(heat.opacity, 2), m: heat.map,
  });
  if (region) values.set("g", region);
  return values;
}

/** {view or null, heat: what the address says of the heatmap, region} */
export function fromValues(values, classes) {
  const [x, y, scale, rotation] = ["x", "y", "s", "r"].map((name) => Number(values.get(name) ?? NaN));
  const view = [x, y, scale].every(Number.isFinite) && scale > 0 ? { x, y, scale, rotation: Number.isFinite(rotation) ? rotation : 0 } : null;
  const heat = {};
  if (values.has("h")) heat.shown = values.get("h") !== "0";
  const at = classes.indexOf(values.get("c"));
  if (at >= 0) heat.class = at;
  for (const [name, short] of [["threshold", "t"], ["opacity", "o"]]) {
    const value = Number(values.get(short) ?? NaN);
    if (value >= 0 && value <= 1) heat[name] = value;
  }
  if (values.has("m")) heat.map = values.get("m");
  return { view, heat, region: values.get("g") };
}
