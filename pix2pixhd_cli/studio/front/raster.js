// Shapes on a grid of numbers. Everything is in whole pixels: no antialiasing, no colours, only which object a pixel is of.
//
// A shape is a list of spans [row, from, to), which `fillSpans` writes into a map; a mask is the pixels of one object, cut out.

/** Spans of a disk of a diameter in pixels whose middle is the pixel (x, y). */
export function disk(x, y, diameter) {
  const spans = [], radius = diameter / 2, top = y - Math.floor((diameter - 1) / 2), left = x - Math.floor((diameter - 1) / 2);
  for (let row = 0; row < diameter; row++) {
    const reach = Math.sqrt(Math.max(0, radius * radius - (row + 0.5 - radius) ** 2));
    const from = Math.ceil(radius - reach - 0.5), to = Math.floor(radius + reach - 0.5) + 1;
    if (to > from) spans.push([top + row, left + from, left + to]);
  }
  return spans;
}

/** The pixels of a straight line, both ends among them (Bresenham). */
export function line(x0, y0, x1, y1) {
  const pixels = [], dx = Math.abs(x1 - x0), dy = -Math.abs(y1 - y0), sx = Math.sign(x1 - x0), sy = Math.sign(y1 - y0);
  let error = dx + dy, x = x0, y = y0;
  for (;;) {
    pixels.push([x, y]);
    if (x === x1 && y === y1) return pixels;
    const twice = 2 * error;
    if (twice >= dy) { error += dy; x += sx; }
    if (twice <= dx) { error += dx; y += sy; }
  }
}

/** Spans of a brush drawn from one pixel to another. */
export function stroke(x0, y0, x1, y1, diameter) {
  const stamp = disk(0, 0, diameter), rows = new Map();
  for (const [x, y] of line(x0, y0, x1, y1)) {
    for (const [row, from, to] of stamp) {
      const old = rows.get(y + row);
      if (!old) rows.set(y + row, [x + from, x + to]);
      else { old[0] = Math.min(old[0], x + from); old[1] = Math.max(old[1], x + to); }
    }
  }
  return [...rows].map(([row, [from, to]]) => [row, from, to]);
}

/** Spans of the rectangle that has two pixels in opposite corners. */
export function rectangle(x0, y0, x1, y1) {
  const spans = [], from = Math.min(x0, x1), to = Math.max(x0, x1) + 1;
  for (let row = Math.min(y0, y1); row <= Math.max(y0, y1); row++) spans.push([row, from, to]);
  return spans;
}

/** Spans of the pixels whose middles lie in a polygon of points [x, y] (even-odd rule). */
export function polygon(points) {
  const spans = [], ys = points.map((p) => p[1]);
  for (let row = Math.floor(Math.min(...ys)); row <= Math.ceil(Math.max(...ys)); row++) {
    const middle = row + 0.5, crossings = [];
    points.forEach(([x0, y0], n) => {
      const [x1, y1] = points[(n + 1) % points.length];
      if (y0 <= middle !== y1 <= middle) crossings.push(x0 + ((middle - y0) * (x1 - x0)) / (y1 - y0));
    });
    crossings.sort((a, b) => a - b);
    for (let n = 0; n + 1 < crossings.length; n += 2) {
      const from = Math.ceil(crossings[n] - 0.5), to = Math.ceil(crossings[n + 1] - 0.5);
      if (to > from) spans.push([row, from, to]);
    }
  }
  return spans;
}

/** Spans of the pixels that are reached from (x, y) over neighbours, up, down, left or right, of the same number. */
export function flood(map, width, height, x, y) {
  const wanted = map[y * width + x], seen = new Uint8Array(width * height), spans = [], stack = [[x, y]];
  while (stack.length) {
    const [px, row] = stack.pop(), start = row * width;
    if (seen[start + px]) continue;
    let from = px, to = px + 1;
    while (from > 0 && map[start + from - 1] === wanted) from--;
    while (to < width && map[start + to] === wanted) to++;
    seen.fill(1, start + from, start + to);
    spans.push([row, from, to]);
    for (const next of [row - 1, row + 1]) {
      if (next < 0 || next >= height) continue;
      for (let c = from; c < to; c++) {
        const at = next * width + c;
        if (map[at] === wanted && !seen[at] && (c === from || map[at - 1] !== wanted)) stack.push([c, next]);
      }
    }
  }
  return spans;
}

/** Write a number into all spans, as far as they lie in the map; returns the rectangle that was touched, or null. */
export function fillSpans(map, width, height, spans, value) {
  let box = null;
  for (const [row, start, end] of spans) {
    const from = Math.max(0, start), to = Math.min(width, end);
    if (row < 0 || row >= height || to <= from) continue;
    map.fill(value, row * width + from, row * width + to);
    box = union(box, { left: from, top: row, right: to, bottom: row + 1 });
  }
  return box;
}

/** The smallest rectangle around two; null stands for none. */
export function union(a, b) {
  if (!a || !b) return a || b;
  return {
    left: Math.min(a.left, b.left), top: Math.min(a.top, b.top),
    right: Math.max(a.right, b.right), bottom: Math.max(a.bottom, b.bottom),
  };
}

/** The pixels of one number: {left, top, width, height, pixels: Uint8Array}, or null if there are none. */
export function cutOut(map, width, height, value) {
  let box = null;
  for (let row = 0; row < height; row++) {
    const of = map.subarray(row * width, (row + 1) * width), from = of.indexOf(value);
    if (from >= 0) box = union(box, { left: from, top: row, right: of.lastIndexOf(value) + 1, bottom: row + 1 });
  }
  if (!box) return null;
  const mask = { left: box.left, top: box.top, width: box.right - box.left, height: box.bottom - box.top };
  mask.pixels = new Uint8Array(mask.width * mask.height);
  for (let row = 0; row < mask.height; row++) {
    for (let c = 0; c < mask.width; c++) {
      mask.pixels[row * mask.width + c] = map[(box.top + row) * width + box.left + c] === value ? 1 : 0;
    }
  }
  return mask;
}

/** A mask of another size, by the nearest pixel. */
export function scaled(mask, width, height) {
  const pixels = new Uint8Array(width * height);
  for (let row = 0; row < height; row++) {
    const from = Math.floor(((row + 0.5) * mask.height) / height) * mask.width;
    for (let c = 0; c < width; c++) pixels[row * width + c] = mask.pixels[from + Math.floor(((c + 0.5) * mask.width) / width)];
  }
  return { ...mask, width, height, pixels };
}

/** A mask with left and right changed. */
export function mirrored(mask) {
  const pixels = mask.pixels.slice();
  for (let row = 0; row < mask.height; row++) pixels.subarray(row * mask.width, (row + 1) * mask.width).reverse();
  return { ...mask, pixels };
}

/** The spans of a mask. */
export function spansOf(mask) {
  const spans = [];
  for (let row = 0; row < mask.height; row++) {
    for (let c = 0; c < mask.width; c++) {
      if (!mask.pixels[row * mask.width + c]) continue;
      const from = c;
      while (c < mask.width && mask.pixels[row * mask.width + c]) c++;
      spans.push([mask.top + row, mask.left + from, mask.left + c]);
    }
  }
  return spans;
}

/** What differs between two maps of one size, as runs [start, length, before, after, …]. */
export function difference(before, after) {
  const runs = [];
  for (let n = 0; n < before.length; n++) {
    if (before[n] === after[n]) continue;
    const start = n, [old, now] = [before[n], after[n]];
    while (n + 1 < before.length && before[n + 1] === old && after[n + 1] === now) n++;
    runs.push(start, n - start + 1, old, now);
  }
  return Uint32Array.from(runs);
}

/** The number next to an object that borders it most, or null: what a hole would best become. */
export function commonestNeighbour(map, width, height, value) {
  const counts = new Map();
  const meet = (a, b) => {
    if (a !== b && (a === value || b === value)) counts.set(a === value ? b : a, (counts.get(a === value ? b : a) || 0) + 1);
  };
  for (let n = 0; n < map.length; n++) {
    if ((n + 1) % width) meet(map[n], map[n + 1]);
    if (n + width < map.length) meet(map[n], map[n + width]);
  }
  return [...counts].sort((a, b) => b[1] - a[1]).map(([number]) => number)[0] ?? null;
}
