// The model's answers for one slide: the binary heat data of the server, unpacked into planes that are quick to colour.

export const PENDING = 0;
export const INFERRED = 1;
export const FAILED = 2;
const NOT_PLANNED = -1;
const MAGIC = 0x31485353; // "SSH1", read little-endian

export class HeatData {
  constructor(grid, classes) {
    this.grid = grid;
    this.classes = classes;
    this.next = 0;
    this.growing = false; // whether the slide is still being read
    this.known = false; // whether the server has said anything of the patches yet
    this.clear();
  }

  clear() {
    const cells = this.grid.columns * this.grid.rows;
    this.place = new Int32Array(cells).fill(NOT_PLANNED); // cell → position in the lists below
    this.count = 0;
    this.cells = new Int32Array(0);
    this.state = new Uint8Array(0);
    this.planes = this.classes.map(() => new Uint8Array(0));
    this.counts = [0, 0, 0];
  }

  grow(room) {
    if (room <= this.cells.length) return;
    const size = Math.max(room, 2 * this.cells.length);
    const larger = (old, Type) => {
      const made = new Type(size);
      made.set(old);
      return made;
    };
    this.cells = larger(this.cells, Int32Array);
    this.state = larger(this.state, Uint8Array);
    this.planes = this.planes.map((plane) => larger(plane, Uint8Array));
  }

  /** Takes an answer of the server. Gives how many patches changed; throws where it is none. */
  apply(buffer) {
    const head = new DataView(buffer);
    if (buffer.byteLength < 20 || head.getUint32(0, true) !== MAGIC) throw new Error("heat data: not of this format");
    const [version, n, classes, next] = [4, 8, 12, 16].map((at) => head.getUint32(at, true));
    if (version !== 1 || classes !== this.classes.length) throw new Error(`heat data: version ${version}, ${classes} classes`);
    const columns = new Int32Array(buffer, 20, n);
    const rows = new Int32Array(buffer, 20 + 4 * n, n);
    const state = new Uint8Array(buffer, 20 + 8 * n, n);
    const values = new Uint8Array(buffer, 20 + 8 * n + 4 * Math.ceil(n / 4), n * classes);
    this.grow(this.count + n);
    for (let i = 0; i < n; i++) {
      if (columns[i] < 0 || columns[i] >= this.grid.columns || rows[i] < 0 || rows[i] >= this.grid.rows) continue;
      const cell = rows[i] * this.grid.columns + columns[i];
      let at = this.place[cell];
      if (at === NOT_PLANNED) {
        at = this.place[cell] = this.count++;
        this.cells[at] = cell;
      } else this.counts[this.state[at]] -= 1;
      this.state[at] = state[i];
      this.counts[state[i]] += 1;
      for (let c = 0; c < classes; c++) this.planes[c][at] = values[i * classes + c];
    }
    this.next = next;
    this.known = true;
    return n;
  }

  /** The patch at a level-0 pixel: {column, row, state, probabilities}, or null where none is planned. */
  at(x, y) {
    const { grid } = this;
    const column = Math.floor((x - grid.origin_x - shift(grid.patch_width, grid.step_x)) / grid.step_x);
    const row = Math.floor((y - grid.origin_y - shift(grid.patch_height, grid.step_y)) / grid.step_y);
    if (column < 0 || row < 0 || column >= grid.columns || row >= grid.rows) return null;
    const at = this.place[row * grid.columns + column];
    if (at === NOT_PLANNED) return null;
    return { column, row, state: this.state[at], probabilities: this.planes.map((plane) => plane[at] / 255) };
  }
}

/** A cell is one step of the grid; with overlap it is the middle of its patch. */
export const shift = (patch, step) => (patch - step) / 2;

/** Edges between planned and other cells, as [x0, y0, x1, y1] in cells; runs are joined. */
export function borders({ place, grid: { columns, rows } }) {
  const planned = (x, y) => x >= 0 && y >= 0 && x < columns && y < rows && place[y * columns + x] !== NOT_PLANNED;
  const edges = [];
  const run = (outer, inner, differs, add) => {
    for (let a = 0; a <= outer; a++) {
      let start = -1;
      for (let b = 0; b <= inner; b++) {
        const edge = b < inner && differs(a, b);
        if (edge && start < 0) start = b;
        if (!edge && start >= 0) {
          add(a, start, b);
          start = -1;
        }
      }
    }
  };
  run(rows, columns, (y, x) => planned(x, y - 1) !== planned(x, y), (y, from, to) => edges.push([from, y, to, y]));
  run(columns, rows, (x, y) => planned(x - 1, y) !== planned(x, y), (x, from, to) => edges.push([x, from, x, to]));
  return edges;
}
