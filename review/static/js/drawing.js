// Drawing a missed region by hand: drag along its edge, or click corner by corner; with the keyboard alone, Enter takes the
// middle of the view.

const APART = 4; // CSS px between two points of a dragged line
const CLOSE = 12; // CSS px: a click this near to the first corner closes the outline

export class Drawing {
  /** viewer: Viewer; onChange(points); onDone(points or null) */
  constructor(viewer, place, { onChange, onDone }) {
    this.viewer = viewer;
    this.place = place;
    this.onChange = onChange;
    this.onDone = onDone;
    this.active = false;
    this.points = [];
    this.dragging = false;
    this.handlers = {
      pointerdown: (event) => this.down(event),
      pointermove: (event) => this.move(event),
      pointerup: (event) => this.up(event),
      dblclick: (event) => this.swallow(event),
    };
  }

  /** points: an outline that was drawn already and could not be kept */
  begin(points = []) {
    if (this.active) return;
    this.active = true;
    this.points = points;
    this.viewer.osd.setMouseNavEnabled(false);
    for (const [name, handler] of Object.entries(this.handlers)) this.place.addEventListener(name, handler, true);
    this.onChange(this.points);
  }

  end(points) {
    if (!this.active) return;
    this.active = false;
    this.dragging = false;
    this.points = [];
    this.viewer.osd.setMouseNavEnabled(true);
    for (const [name, handler] of Object.entries(this.handlers)) this.place.removeEventListener(name, handler, true);
    this.onChange([]);
    this.onDone(points);
  }

  cancel() {
    this.end(null);
  }

  /** Enter: close what is drawn; where nothing is, a rectangle in the middle of the view. */
  finish() {
    if (this.points.length >= 3) this.end(this.points);
    else if (this.points.length === 0) this.end(this.middle());
  }

  back() {
    this.points.pop();
    this.onChange(this.points);
  }

  middle() {
    const { width, height } = this.viewer.size;
    return [[0.3, 0.3], [0.7, 0.3], [0.7, 0.7], [0.3, 0.7]].map(([x, y]) => this.viewer.imagePoint(x * width, y * height));
  }

  at(event) {
    const box = this.place.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  swallow(event) {
    event.preventDefault();
    event.stopPropagation();
  }

  down(event) {
    if (event.button !== 0) return;
    this.swallow(event);
    this.place.setPointerCapture?.(event.pointerId);
    const here = this.at(event);
    this.dragging = true;
    this.moved = 0;
    this.last = here;
    this.closes = this.points.length >= 3 && this.apart(here, this.first) <= CLOSE;
    if (this.closes) return;
    if (!this.points.length) this.first = here;
    this.add(here);
  }

  move(event) {
    if (!this.dragging) return;
    this.swallow(event);
    const here = this.at(event);
    if (this.closes || this.apart(here, this.last) < APART) return;
    this.moved += this.apart(here, this.last);
    this.last = here;
    this.add(here);
  }

  up(event) {
    if (!this.dragging) return;
    this.swallow(event);
    this.dragging = false;
    // A line that was dragged is the whole outline; clicks are corners until the first is met again, or Enter.
    if (this.closes || (this.moved > 4 * CLOSE && this.points.length >= 3)) this.end(this.points);
  }

  apart([x0, y0], [x1, y1]) {
    return Math.hypot(x1 - x0, y1 - y0);
  }

  add([x, y]) {
    this.points.push(this.viewer.imagePoint(x, y).map((value) => Math.round(value)));
    this.onChange(this.points);
  }
}
