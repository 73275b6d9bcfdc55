// Draws a scene and its picture at any zoom, pixel by pixel, and knows which pixel is under a pointer.

const MOST_ZOOM = 64;
const MARGIN = 12;

export class View extends EventTarget {
  constructor(canvas) {
    super();
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.mode = "both"; // labels, picture, both (side by side) or wipe.
    this.wipe = 0.5;
    this.boundaries = true;
    this.zoom = 1;
    this.origin = [0, 0]; // Of the first pane's map, in canvas pixels.
    this.outlines = []; // What is drawn on top: selection, brush, rectangle, lasso.
    new ResizeObserver(() => this.#resize()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  show(scene) {
    this.scene = scene;
    this.labels = layer(scene.width, scene.height);
    this.lines = layer(scene.width, scene.height);
    this.picture = null;
    scene.addEventListener("draw", ({ detail }) => this.scene === scene && this.#paintLabels(detail));
    scene.addEventListener("change", () => this.scene === scene && this.#coloursChanged());
    this.#coloursChanged();
    this.fit();
  }

  showPicture(pixels) {
    this.picture = layer(pixels.width, pixels.height);
    this.picture.getContext("2d").putImageData(pixels, 0, 0);
    this.redraw();
  }

  set(values) {
    Object.assign(this, values);
    if ("mode" in values) this.fit();
    this.redraw();
  }

  // Where things are

  /** Panes: what is in each, its sides, and where the map's first pixel lies; two are put where they can be larger. */
  panes() {
    const [x, y] = this.origin, { width, height } = this.canvas;
    if (this.mode !== "both") return [{ what: this.mode, x, y, left: 0, top: 0, right: width, bottom: height }];
    const { scene } = this, below = Math.min(width / scene.width, height / 2 / scene.height) > Math.min(width / 2 / scene.width, height / scene.height);
    const [right, bottom] = below ? [width, Math.floor(height / 2) - 1] : [Math.floor(width / 2) - 1, height];
    const [left, top] = below ? [0, bottom + 2] : [right + 2, 0];
    return [
      { what: "labels", x, y, left: 0, top: 0, right, bottom },
      { what: "picture", x: x + left, y: y + top, left, top, right: width, bottom: height },
    ];
  }

  #paneAt(x, y) {
    const panes = this.panes();
    return panes.findLast((pane) => x >= pane.left && y >= pane.top) ?? panes[0];
  }

  /** Take pointers to be in the pane that this one is in, wherever they go, until they are let go. */
  hold(event) {
    const pane = event && this.#paneAt(...this.#inside(event));
    this.held = event ? this.panes().findIndex(({ what }) => what === pane.what) : null;
  }

  /** Where a pointer is, in pixels of the canvas. */
  #inside(event) {
    const box = this.canvas.getBoundingClientRect(), ratio = this.canvas.width / box.width;
    return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
  }

  /** The pixel under a pointer, which may lie outside of the map; exact, with its place within the pixel, if asked for. */
  pixel(event, exact = false) {
    const [x, y] = this.#inside(event), pane = this.panes()[this.held] ?? this.#paneAt(x, y);
    const place = [(x - pane.x) / this.zoom, (y - pane.y) / this.zoom];
    return exact ? place : place.map(Math.floor);
  }

  /** Zoom out or in until all of the scene is seen; by whole numbers where pixels are enlarged. */
  fit() {
    if (!this.scene || !this.canvas.width) return;
    const pane = this.panes()[0], wide = pane.right - 2 * MARGIN, tall = pane.bottom - 2 * MARGIN;
    const zoom = Math.max(0.05, Math.min(wide / this.scene.width, tall / this.scene.height));
    this.zoom = zoom > 1 ? Math.floor(zoom) : zoom;
    this.origin = [
      Math.round((pane.right - this.scene.width * this.zoom) / 2),
      Math.round((pane.bottom - this.scene.height * this.zoom) / 2),
    ];
    this.redraw();
  }

  /** Zoom by a factor, keeping what is under a pointer (or the middle) where it is. */
  zoomBy(factor, event = null) {
    const before = this.zoom, wanted = before * factor;
    this.zoom = Math.min(MOST_ZOOM, Math.max(0.05, wanted > 1 ? (factor > 1 ? Math.ceil(wanted) : Math.floor(wanted)) : wanted));
    const [first] = this.panes(), at = event ? this.#inside(event) : [first.right / 2, first.bottom / 2];
    const pane = this.#paneAt(...at), [ox, oy] = this.origin;
    const x = at[0] - (pane.x - ox), y = at[1] - (pane.y - oy);
    this.origin = [Math.round(x - ((x - ox) / before) * this.zoom), Math.round(y - ((y - oy) / before) * this.zoom)];
    this.redraw();
  }

  panBy(dx, dy) {
    const ratio = this.canvas.width / this.canvas.getBoundingClientRect().width;
    this.origin = [Math.round(this.origin[0] + dx * ratio), Math.round(this.origin[1] + dy * ratio)];
    this.redraw();
  }

  /** Move the view so that a pixel is seen. */
  reveal([x, y]) {
    const pane = this.panes()[0], cx = pane.x + (x + 0.5) * this.zoom, cy = pane.y + (y + 0.5) * this.zoom;
    const into = (at, end) => Math.min(end - MARGIN, Math.max(MARGIN, at)) - at, dx = into(cx, pane.right), dy = into(cy, pane.bottom);
    this.origin = [Math.round(this.origin[0] + dx), Math.round(this.origin[1] + dy)];
    this.redraw();
  }

  // Drawing

  redraw() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      this.#draw();
    });
  }

  #resize() {
    const ratio = devicePixelRatio || 1, { clientWidth, clientHeight } = this.canvas;
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    this.fit();
    this.#draw();
  }

  #coloursChanged() {
    const { objects } = this.scene.state;
    if (objects === this.coloured) return;
    this.coloured = objects;
    this.palette = Uint32Array.from(objects, ({ label }) => {
      const [r, g, b] = this.scene.run.byId.get(label)?.color ?? [0, 0, 0];
      return (255 << 24) | (b << 16) | (g << 8) | r;
    });
    this.#paintLabels({ left: 0, top: 0, right: this.scene.width, bottom: this.scene.height });
  }

  /** Bring a rectangle of the label layer and of the boundaries up to date. */
  #paintLabels(box) {
    const { map, width, height, state } = this.scene;
    if (state.objects !== this.coloured) return this.#coloursChanged();
    const left = Math.max(0, box.left - 1), top = Math.max(0, box.top - 1);
    const right = Math.min(width, box.right + 1), bottom = Math.min(height, box.bottom + 1);
    const wide = right - left, colours = new ImageData(wide, bottom - top), lines = new ImageData(wide, bottom - top);
    const pixels = new Uint32Array(colours.data.buffer), marks = new Uint32Array(lines.data.buffer);
    for (let row = top, n = 0; row < bottom; row++) {
      for (let at = row * width + left, end = at + wide; at < end; at++, n++) {
        const own = map[at];
        pixels[n] = this.palette[own];
        const column = at - row * width;
        // As the networks see it: wherever one of four neighbours is of another instance.
        if ((column && map[at - 1] !== own) || (column + 1 < width && map[at + 1] !== own) ||
            (row && map[at - width] !== own) || (row + 1 < height && map[at + width] !== own)) marks[n] = 0xffffffff;
      }
    }
    this.labels.getContext("2d").putImageData(colours, left, top);
    this.lines.getContext("2d").putImageData(lines, left, top);
    this.redraw();
  }

  #draw() {
    const { context: c, canvas } = this;
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.scene) return;
    c.imageSmoothingEnabled = false;
    for (const pane of this.panes()) {
      c.save();
      c.beginPath();
      c.rect(pane.left, pane.top, pane.right - pane.left, pane.bottom - pane.top);
      c.clip();
      this.#pane(pane);
      c.restore();
    }
  }

  #pane({ what, x, y }) {
    const { context: c, zoom, scene } = this;
    c.setTransform(zoom, 0, 0, zoom, x, y);
    const shown = what === "wipe" ? "picture" : what;
    c.drawImage((shown === "picture" && this.picture) || this.labels, 0, 0);
    if (what === "wipe") {
      c.save();
      c.beginPath();
      c.rect(0, 0, Math.round(scene.width * this.wipe), scene.height);
      c.clip();
      c.drawImage(this.labels, 0, 0);
      c.restore();
    }
    c.globalAlpha = what === "labels" ? 0.7 : 0.3;
    if (this.boundaries) c.drawImage(this.lines, 0, 0);
    c.globalAlpha = 1;
    c.lineWidth = 1 / zoom;
    c.strokeStyle = "#888";
    c.strokeRect(-0.5 / zoom, -0.5 / zoom, scene.width + 1 / zoom, scene.height + 1 / zoom);
    if (what === "wipe") this.#trace(along([[scene.width * this.wipe, 0], [scene.width * this.wipe, scene.height]]));
    for (const outline of this.outlines) this.#outline(outline);
  }

  /** One outline, in pixels of the map: {points} joined by lines, a {mask} along its edges with {handles}, or a {cross}. */
  #outline({ points, closed, mask, handles, cross }) {
    if (points) this.#trace(along(points, closed));
    if (mask) this.#trace((mask.path ??= edges(mask)));
    for (const place of handles ?? []) this.#handle(place);
    if (cross) this.#trace(crosshair(cross));
  }

  /** Black with white dashes, to be seen on everything. */
  #trace(path) {
    const { context: c } = this, unit = (devicePixelRatio || 1) / this.zoom;
    c.lineWidth = 2 * unit;
    c.strokeStyle = "#000";
    c.stroke(path);
    c.setLineDash([4 * unit, 4 * unit]);
    c.strokeStyle = "#fff";
    c.stroke(path);
    c.setLineDash([]);
  }

  #handle([x, y]) {
    const { context: c } = this, unit = (devicePixelRatio || 1) / this.zoom, side = 5 * unit;
    c.fillStyle = "#fff";
    c.strokeStyle = "#000";
    c.lineWidth = unit;
    c.fillRect(x - side, y - side, 2 * side, 2 * side);
    c.strokeRect(x - side, y - side, 2 * side, 2 * side);
  }
}

function along(points, closed = false) {
  const path = new Path2D();
  points.forEach(([x, y], n) => path[n ? "lineTo" : "moveTo"](x, y));
  if (closed) path.closePath();
  return path;
}

/** The lines between the pixels of a mask and all others. */
function edges({ left, top, width, height, pixels }) {
  const path = new Path2D(), at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && pixels[y * width + x] === 1;
  const draw = (x0, y0, x1, y1) => {
    path.moveTo(left + x0, top + y0);
    path.lineTo(left + x1, top + y1);
  };
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x <= width; x++) {
      if (at(x, y) !== at(x, y - 1)) draw(x, y, x + 1, y);
      if (at(x, y) !== at(x - 1, y)) draw(x, y, x, y + 1);
    }
  }
  return path;
}

/** A pixel, and lines that lead to it. */
function crosshair([x, y]) {
  const path = along([[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]], true);
  for (const [from, to] of [[[-2, 0.5], [0, 0.5]], [[1, 0.5], [3, 0.5]], [[0.5, -2], [0.5, 0]], [[0.5, 1], [0.5, 3]]]) {
    path.moveTo(x + from[0], y + from[1]);
    path.lineTo(x + to[0], y + to[1]);
  }
  return path;
}

function layer(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}
