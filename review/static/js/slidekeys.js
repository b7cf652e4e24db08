// What each key does on the page of a slide.

const PAN = 120; // CSS px

export function slideKeys(page) {
  const { regions, viewer } = page;
  const { drawing } = page.sketch;
  const turn = (name, by) => () => page.setHeat({ [name]: page.panel.settings[name] + by });
  const canvasHasFocus = () => viewer.osd.canvas.contains(document.activeElement) || document.activeElement === document.getElementById("main") || document.activeElement === document.body;
  const pan = (x, y) => () => (canvasHasFocus() ? page.pan(x, y) : false);
  return [
    { keys: ["n"], text: "keys.next", run: () => regions.step(1) },
    { keys: ["p"], text: "keys.previous", run: () => regions.step(-1) },
    { keys: ["a"], text: "keys.accept", run: () => regions.judge("accepted") },
    { keys: ["r"], text: "keys.reject", run: () => regions.judge("rejected") },
    { keys: ["u"], text: "keys.unsure", run: () => regions.judge("unsure") },
    { keys: ["c"], text: "keys.comment", run: () => regions.focusComment() },
    { keys: ["d"], text: "keys.draw", run: () => page.sketch.toggle() },
    { keys: ["Enter"], text: "keys.finish", run: () => (drawing.active ? drawing.finish() : false) },
    { keys: ["Backspace"], text: "keys.back_corner", run: () => (drawing.active ? drawing.back() : false) },
    { keys: ["z"], text: "keys.undo", run: () => (drawing.active ? drawing.back() : page.review.act("undo")) },
    { keys: ["s"], text: "keys.sign", run: () => page.signoff.askSign() },
    { keys: ["h"], text: "keys.heatmap", run: () => page.setHeat({ shown: !page.panel.settings.shown }) },
    { keys: ["["], text: "keys.threshold_down", run: turn("threshold", -0.05) },
    { keys: ["]"], text: "keys.threshold_up", run: turn("threshold", 0.05) },
    { keys: ["-"], text: "keys.opacity_down", run: turn("opacity", -0.1) },
    { keys: ["+", "="], text: "keys.opacity_up", run: turn("opacity", 0.1) },
    {
      keys: ["1", "2", "3", "4", "5", "6", "7", "8", "9"].slice(0, Math.max(1, page.data.classes.length)),
      text: "keys.class",
      run: ({ key }) => Number(key) <= page.data.classes.length && page.setHeat({ class: Number(key) - 1 }),
    },
    { keys: ["0"], text: "keys.fit", run: () => viewer.fit() },
    { keys: ["i"], text: "keys.zoom_in", run: () => viewer.zoomBy(1.5) },
    { keys: ["o"], text: "keys.zoom_out", run: () => viewer.zoomBy(1 / 1.5) },
    { keys: ["ArrowLeft"], text: "keys.pan", run: pan(-PAN, 0) },
    { keys: ["ArrowRight"], text: "keys.pan", run: pan(PAN, 0) },
    { keys: ["ArrowUp"], text: "keys.pan", run: pan(0, -PAN) },
    { keys: ["ArrowDown"], text: "keys.pan", run: pan(0, PAN) },
    { keys: ["f"], text: "keys.full", run: () => page.fullScreen() },
    { keys: ["Escape"], text: "keys.worklist", run: () => page.back() },
  ];
}
