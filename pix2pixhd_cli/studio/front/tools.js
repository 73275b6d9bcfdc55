// What a pointer, or the keys in its place, does to the scene: paint, fill, rectangle, lasso, select and move, pan.

import { fillSpans, flood, line, mirrored, polygon, rectangle, scaled, stroke } from "./raster.js";

export const TOOLS = {
  select: { key: "v", title: "Select and move", icon: "M3 2l9 5-4 1.2L6 13z" },
  brush: { key: "b", title: "Brush", icon: "M12.5 2l1.5 1.5-6 6L6.5 8zM5.5 9L7 10.5C6.5 13 4 14 2 13.5 3.5 12.5 3 10 5.5 9z" },
  fill: { key: "g", title: "Fill a region", icon: "M7 2l6 6-5 5-6-6 5-5zm0 2L4 7h7zM13.5 10c1 1.5 1 3 0 3.5-1-.5-1-2 0-3.5z" },
  rectangle: { key: "r", title: "Rectangle", icon: "M2 4h12v8H2zm1.5 1.5v5h9v-5z" },
  lasso: { key: "l", title: "Polygon lasso: click corners, Enter or double click closes", icon: "M8 2l6 4-2 7H4L2 6zm0 1.8L3.800 6.600 5.200 11.5h5.600l1.400-4.900z" },
  pan: { key: "h", title: "Move the view (or hold space)", icon: "M8 1l2 2.500H8.700v3.800h3.800V6L15 8l-2.500 2V8.700H8.700v3.800H10L8 15l-2-2.500h1.300V8.700H3.5V10L1 8l2.500-2v1.300h3.800V3.5H6z" },
};
export const LARGEST_BRUSH = 256;
const HANDLE = 9; // CSS pixels around a corner that take hold of it.

export class Tools extends EventTarget {
  constructor(view) {
    super();
    Object.assign(this, { view, tool: "brush", size: 8, classId: null, paintAs: "stuff", selected: null, hole: null });
    this.pointers = new Map();
    this.cursor = null; // Of the keys.
    const { canvas } = view;
    for (const [name, handle] of Object.entries({
      pointerdown: this.#down, pointermove: this.#move, pointerup: this.#up, pointercancel: this.#up,
      pointerleave: this.#leave, dblclick: this.#double, wheel: this.#wheel,
    })) canvas.addEventListener(name, handle.bind(this), { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  show(scene) {
    this.scene = scene;
    this.cursor = [scene.width >> 1, scene.height >> 1];
    this.corners = null;
    this.select(null);
    scene.addEventListener("change", () => this.scene === scene && this.#refresh());
  }

  set(values) {
    Object.assign(this, values);
    if ("tool" in values) this.corners = null;
    if (values.classId !== undefined) this.paintAs = this.#usual();
    this.#outline();
    this.dispatchEvent(new Event("change"));
  }

  /** What a class is usually painted as. */
  #usual() {
    const { run } = this.scene;
    return run.instances && run.byId.get(this.classId)?.thing ? "new" : "stuff";
  }

  select(number) {
    this.selected = number;
    this.mask = number === null ? null : this.scene.mask(number);
    if (!this.mask) this.selected = null;
    if (this.selected === null && this.paintAs === "selected") this.paintAs = this.#usual();
    this.#outline();
    this.dispatchEvent(new Event("select"));
  }

  /** After an undo the selected object may be elsewhere, or gone. */
  #refresh() {
    if (this.selected !== null) this.select(this.scene.object(this.selected) ? this.selected : null);
  }

  // What is painted with

  /** The object that a stroke paints, made if it is to be new; within an edit. */
  #brushObject() {
    if (this.paintAs === "selected" && this.selected !== null) return this.selected;
    return this.paintAs === "new" ? this.scene.newInstance(this.classId) : this.scene.stuff(this.classId);
  }

  #painted(number) {
    if (this.paintAs === "new") this.paintAs = "selected";
    this.select(this.paintAs === "selected" ? number : null);
    this.dispatchEvent(new Event("change"));
  }

  paint(what, spans) {
    this.scene.begin();
    const number = this.#brushObject();
    if (this.scene.fill(what, spans, number)) this.#painted(number);
  }

  /** What takes an object's place: what the user chose, or what borders it most. */
  holeOf(number) {
    if (this.hole !== null) return this.scene.stuff(this.hole);
    return this.scene.neighbour(number) ?? this.scene.stuff(this.scene.object(number).label);
  }

  // Pointers

  #down(event) {
    this.view.canvas.focus();
    this.view.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
    this.view.hold(event);
    if (this.pointers.size === 2) return this.#cancel(); // Two fingers move the view.
    if (event.button === 1 || this.tool === "pan" || this.space) this.panning = true;
    else if (event.button === 0) this.start(this.view.pixel(event), event);
  }

  #move(event) {
    const before = this.pointers.get(event.pointerId);
    if (before) this.pointers.set(event.pointerId, event);
    if (this.pointers.size === 2 && before) return this.#pinch(event, before);
    if (this.panning && before) return this.view.panBy(event.clientX - before.clientX, event.clientY - before.clientY);
    this.byKeys = false;
    this.hover = this.view.pixel(event);
    // A fast pointer goes far between two frames; all of its way counts.
    const way = this.drag ? (event.getCoalescedEvents?.() ?? []) : [];
    for (const place of way.length ? way : [event]) this.go(this.view.pixel(place), event);
  }

  #up(event) {
    this.pointers.delete(event.pointerId);
    this.panning = false;
    this.view.hold(null);
    this.finish();
  }

  #leave() {
    if (!this.drag) this.hover = null;
    this.#outline();
  }

  #double(event) {
    event.preventDefault();
    if (this.tool === "lasso") this.close();
  }

  #wheel(event) {
    event.preventDefault();
    this.view.zoomBy(event.deltaY < 0 ? 1.25 : 0.8, event);
  }

  #pinch(event, before) {
    const other = [...this.pointers.values()].find((p) => p.pointerId !== event.pointerId);
    const gap = (p) => Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY);
    this.view.panBy((event.clientX - before.clientX) / 2, (event.clientY - before.clientY) / 2);
    this.pinched = (this.pinched ?? 1) * (gap(event) / Math.max(1, gap(before)));
    if (Math.abs(Math.log2(this.pinched)) > 0.25) {
      this.view.zoomBy(this.pinched, event);
      this.pinched = 1;
    }
  }

  #cancel() {
    this.drag = null;
    this.scene.cancel();
    this.#outline();
  }

  // The tools. Pointers and keys both `start` at a pixel, `go` to others, and `finish`.

  start([x, y], event = null) {
    const { scene } = this;
    if (this.tool === "select") return this.#startSelect([x, y], event);
    if (this.classId === null) return;
    if (this.tool === "fill") {
      if (scene.at(x, y) !== null) this.paint("fill", flood(scene.map, scene.width, scene.height, x, y));
    } else if (this.tool === "lasso") {
      this.corners = [...(this.corners ?? []), [x, y]];
      this.hover = [x, y];
    } else if (this.tool === "brush") {
      scene.begin();
      this.drag = { tool: "brush", last: [x, y], number: this.#brushObject() };
      this.#brush([x, y]);
    } else if (this.tool === "rectangle") {
      this.drag = { tool: "rectangle", first: [x, y], last: [x, y] };
    }
    this.#outline();
  }

  go([x, y]) {
    const { drag } = this;
    if (drag?.tool === "brush") this.#brush([x, y]);
    else if (drag?.tool === "rectangle") drag.last = [x, y];
    else if (drag?.tool === "move") this.#drop([x, y]);
    this.#outline();
  }

  finish() {
    const { drag } = this;
    this.drag = null;
    if (drag?.tool === "brush") {
      if (this.scene.commit("brush")) this.#painted(drag.number);
    } else if (drag?.tool === "rectangle") {
      this.paint("rectangle", rectangle(...drag.first, ...drag.last));
    } else if (drag?.tool === "move") {
      this.scene.commit(drag.corner ? "scale" : "move");
      this.select(this.selected);
    }
    this.#outline();
  }

  /** Paint the lasso's polygon. */
  close() {
    const { corners } = this;
    this.corners = null;
    if (corners?.length > 2) this.paint("lasso", polygon(corners.map(([x, y]) => [x + 0.5, y + 0.5])));
    this.#outline();
  }

  #brush([x, y]) {
    const { drag, scene } = this, spans = stroke(...drag.last, x, y, this.size);
    drag.last = [x, y];
    scene.show(fillSpans(scene.map, scene.width, scene.height, spans, drag.number));
  }

  // Selected objects

  #startSelect([x, y], event) {
    const corner = this.mask && event && this.#corner(event);
    if (!corner) {
      const number = this.scene.at(x, y);
      if (number !== this.selected) this.select(number);
    }
    if (this.selected === null || !this.scene.isInstance(this.selected)) return;
    this.scene.begin();
    const hole = this.holeOf(this.selected);
    this.drag = { tool: "move", first: [x, y], corner, mask: this.mask, hole, moved: false };
  }

  /** Which corner of the selected object's box a pointer is at: [left or right, top or bottom] as -1 or 1. */
  #corner(event) {
    const [x, y] = this.view.pixel(event, true), near = (HANDLE * (devicePixelRatio || 1)) / this.view.zoom;
    const { left, top, width, height } = this.mask;
    for (const [sx, sy] of [[-1, -1], [1, -1], [1, 1], [-1, 1]]) {
      const cx = sx < 0 ? left : left + width, cy = sy < 0 ? top : top + height;
      if (Math.abs(x - cx) <= near && Math.abs(y - cy) <= near) return [sx, sy];
    }
    return null;
  }

  #drop([x, y]) {
    const { drag, scene } = this, { mask, first, corner } = drag, dx = x - first[0], dy = y - first[1];
    if (!drag.moved && !dx && !dy) return;
    drag.moved = true;
    scene.rewind();
    this.mask = corner ? stretched(mask, corner, dx, dy) : { ...mask, left: mask.left + dx, top: mask.top + dy };
    scene.place(this.selected, mask, this.mask, drag.hole);
  }

  /** Change where the selected object is, or what it looks like, at once. */
  #rework(what, change) {
    if (this.selected === null || !this.scene.isInstance(this.selected)) return;
    this.scene.begin();
    const hole = this.holeOf(this.selected);
    this.scene.place(this.selected, this.mask, change(this.mask), hole);
    this.scene.commit(what);
    this.select(this.selected);
  }

  nudge(dx, dy) {
    this.#rework("move", (mask) => ({ ...mask, left: mask.left + dx, top: mask.top + dy }));
  }

  scaleBy(factor) {
    this.#rework("scale", (mask) => {
      const width = Math.max(1, Math.round(mask.width * factor)), height = Math.max(1, Math.round(mask.height * factor));
      // It stands where it stood.
      const left = mask.left + Math.round((mask.width - width) / 2), top = mask.top + mask.height - height;
      return { ...scaled(mask, width, height), left, top };
    });
  }

  mirror() {
    this.#rework("mirror", mirrored);
  }

  /** A copy of the selected object beside it, in its style. */
  copy() {
    const { scene, selected, mask } = this;
    if (selected === null || !scene.isInstance(selected)) return;
    const { choice, target } = scene.chosen(selected), { own } = scene.targets(selected);
    scene.begin();
    const number = scene.newInstance(scene.object(selected).label);
    const step = mask.left + mask.width * 2 <= scene.width ? mask.width : mask.left >= mask.width ? -mask.width : 2;
    scene.place(number, null, { ...mask, left: mask.left + step }, null);
    if (target === own) {
      const styles = new Map(scene.state.styles).set(scene.targets(number).own, choice);
      scene.state = { ...scene.state, styles };
    }
    scene.commit("copy");
    this.select(number);
  }

  remove() {
    if (this.selected === null || !this.scene.isInstance(this.selected)) return;
    const { scene, selected } = this;
    scene.begin();
    const hole = this.holeOf(selected);
    scene.place(hole, null, this.mask, null);
    scene.commit("delete");
    this.select(null);
  }

  // Outlines

  #outline() {
    const outlines = [], { tool, drag, hover, view } = this;
    if (this.mask && tool === "select") {
      const { left, top, width, height } = this.mask, right = left + width, bottom = top + height;
      const movable = this.scene.isInstance(this.selected);
      outlines.push({ mask: this.mask, handles: movable ? [[left, top], [right, top], [right, bottom], [left, bottom]] : [] });
    } else if (this.mask) outlines.push({ mask: this.mask });
    if (drag?.tool === "rectangle") {
      const [xs, ys] = [0, 1].map((n) => [Math.min(drag.first[n], drag.last[n]), Math.max(drag.first[n], drag.last[n]) + 1]);
      outlines.push({ points: [[xs[0], ys[0]], [xs[1], ys[0]], [xs[1], ys[1]], [xs[0], ys[1]]], closed: true });
    }
    if (this.corners) {
      const points = [...this.corners, ...(hover ? [hover] : [])].map(([x, y]) => [x + 0.5, y + 0.5]);
      outlines.push({ points, closed: points.length > 2 });
    }
    if (tool === "brush" && hover) outlines.push({ points: circle(hover, this.size), closed: true });
    if (this.byKeys) outlines.push({ cross: this.cursor });
    view.set({ outlines });
  }

  // Keys in a pointer's place: arrows move a cross, space does what a button would.

  keyMove(dx, dy) {
    this.byKeys = true;
    const [x, y] = this.cursor, { width, height } = this.scene;
    const to = [Math.min(width - 1, Math.max(0, x + dx)), Math.min(height - 1, Math.max(0, y + dy))];
    this.cursor = to;
    if (this.drag) for (const place of line(x, y, ...to)) this.go(place);
    this.hover = to;
    this.view.reveal(to);
    this.#outline();
    this.dispatchEvent(new Event("cursor"));
  }

  keyPress() {
    this.byKeys = true;
    if (this.drag) this.finish();
    else {
      this.start(this.cursor);
      if (this.tool === "brush") this.finish();
      if (this.tool === "select") this.#cancel();
    }
    this.dispatchEvent(new Event("cursor"));
  }

  /** Leave what was begun; says whether there was anything. */
  escape() {
    const begun = this.drag || this.corners || this.selected !== null;
    this.corners = null;
    if (this.drag) this.#cancel();
    else this.select(null);
    return Boolean(begun);
  }
}

function stretched(mask, [sx, sy], dx, dy) {
  const width = Math.max(1, mask.width + sx * dx), height = Math.max(1, mask.height + sy * dy);
  const left = sx < 0 ? mask.left + mask.width - width : mask.left, top = sy < 0 ? mask.top + mask.height - height : mask.top;
  return { ...scaled(mask, width, height), left, top };
}

function circle([x, y], size) {
  const middle = size % 2 ? 0.5 : 1, points = [];
  for (let n = 0; n < 32; n++) {
    const angle = (n * Math.PI) / 16;
    points.push([x + middle + (Math.cos(angle) * size) / 2, y + middle + (Math.sin(angle) * size) / 2]);
  }
  return points;
}
