// A scene: which object each pixel is of, what the objects are, in which styles; and every edit of it, to be undone.

import { commonestNeighbour, cutOut, difference, fillSpans, spansOf, union } from "./raster.js";

const MOST_OBJECTS = 65536;

export class Scene extends EventTarget {
  /** `opened` is what the server sends of a scene, `map` its numbers, `run` what it says of the run. */
  constructor(opened, map, run) {
    super();
    Object.assign(this, { run, map, width: opened.width, height: opened.height });
    // All but the map is replaced whole when it changes, so that undoing is putting the old one back.
    this.state = {
      stem: opened.stem,
      objects: opened.objects.map(([label, instance]) => ({ label, instance })),
      styles: readStyles(opened.styles, run), // "class:26", "instance:26003" or "*" -> what stands right of the `=`.
      locked: new Set(readTargets(opened.locked, run)),
      seed: opened.seed,
    };
    this.undone = [];
    this.done = [];
    this.edits = 0; // Grows with every change of what is to be painted.
    this.savedAt = 0;
  }

  // What is where

  at(x, y) {
    return x >= 0 && y >= 0 && x < this.width && y < this.height ? this.map[y * this.width + x] : null;
  }

  object(number) {
    return this.state.objects[number];
  }

  get stem() {
    return this.state.stem;
  }

  classOf(number) {
    return this.run.byId.get(this.object(number).label);
  }

  mask(number) {
    return cutOut(this.map, this.width, this.height, number);
  }

  /** The object that stands for a class as stuff, made where there is none yet. */
  stuff(label) {
    return this.#numberOf(label, label);
  }

  /** A new instance of a class, with an id that nothing else has, by Cityscapes' rule: class x 1000 + n. */
  newInstance(label) {
    const taken = new Set([...this.state.objects.map((o) => o.instance), ...this.run.byId.keys()]);
    let instance = label * 1000;
    while (taken.has(instance)) instance++;
    return this.#numberOf(label, instance);
  }

  #numberOf(label, instance) {
    const found = this.state.objects.findIndex((o) => o.label === label && o.instance === instance);
    if (found >= 0) return found;
    const objects = [...this.state.objects];
    let number = objects.length;
    if (number === MOST_OBJECTS) {
      const used = new Set(this.map);
      number = objects.findIndex((_, n) => !used.has(n));
      if (number < 0) throw new Error("there are too many objects");
    }
    objects[number] = { label, instance };
    this.state = { ...this.state, objects };
    return number;
  }

  /** Whether it is an instance, and not a class's stuff. */
  isInstance(number) {
    const { label, instance } = this.object(number);
    return this.run.instances && label !== instance;
  }

  // Edits. Between `begin` and `commit` the map may be changed in any way; `show` says where, for those that draw it.

  begin() {
    if (!this.before) this.before = { map: this.map.slice(), state: this.state };
  }

  show(box) {
    this.dirty = union(this.dirty, box);
    if (box) this.dispatchEvent(new CustomEvent("draw", { detail: box }));
  }

  /** Take back what was done since `begin`, to try something else. */
  rewind() {
    this.map.set(this.before.map);
    this.show(this.dirty ?? null);
  }

  cancel() {
    if (!this.before) return;
    this.rewind();
    this.state = this.before.state;
    this.before = this.dirty = null;
  }

  /** End an edit; changes of the state alone that are of one `gesture` are undone together. Returns whether anything changed. */
  commit(what, gesture = null) {
    const { map, state } = this.before, runs = difference(map, this.map), last = this.done.at(-1);
    this.before = this.dirty = null;
    if (!runs.length && same(state, this.state)) {
      this.state = state; // Objects may have been made for nothing.
      return false;
    }
    if (gesture && last?.gesture === gesture) last.after = this.state;
    else this.done.push({ what, gesture, runs, before: state, after: this.state });
    this.undone = [];
    this.#changed();
    return true;
  }

  /** One edit that changes the map by spans, or the state by what `change` returns of it. */
  fill(what, spans, number) {
    this.begin();
    this.show(fillSpans(this.map, this.width, this.height, spans, number));
    return this.commit(what);
  }

  change(what, changes, gesture = null) {
    this.begin();
    this.state = { ...this.state, ...changes };
    return this.commit(what, gesture);
  }

  undo() {
    return this.#step(this.done, this.undone, "before", 2);
  }

  redo() {
    return this.#step(this.undone, this.done, "after", 3);
  }

  #step(from, to, which, value) {
    const edit = this.before ? null : from.pop(); // Not while an edit is under way.
    if (!edit) return null;
    const { runs } = edit;
    for (let n = 0; n < runs.length; n += 4) this.map.fill(runs[n + value], runs[n], runs[n] + runs[n + 1]);
    this.state = edit[which];
    to.push(edit);
    this.show({ left: 0, top: 0, right: this.width, bottom: this.height });
    this.dirty = null;
    this.#changed();
    return edit.what;
  }

  #changed() {
    this.edits++;
    this.dispatchEvent(new Event("change"));
  }

  // Objects

  /** What takes an object's place where it goes away: the neighbour that borders it most, or its own class as stuff. */
  neighbour(number) {
    return commonestNeighbour(this.map, this.width, this.height, number);
  }

  /** Put a mask of an object somewhere, after what it leaves became `hole`; within an edit, so that it can be tried again. */
  place(number, lifted, mask, hole) {
    let box = null;
    if (lifted) box = fillSpans(this.map, this.width, this.height, spansOf(lifted), hole);
    this.show(union(box, fillSpans(this.map, this.width, this.height, spansOf(mask), number)));
  }

  /** Make an object one of another class; an instance stays one, under a new id. */
  reclassify(number, label) {
    this.begin();
    const becomes = this.isInstance(number) ? this.newInstance(label) : this.stuff(label), { map } = this;
    for (let n = 0; n < map.length; n++) if (map[n] === number) map[n] = becomes;
    this.show({ left: 0, top: 0, right: this.width, bottom: this.height });
    this.commit(`make it ${this.run.byId.get(label).name}`);
    return becomes;
  }

  // Styles

  /** What an object's style is chosen by: its own target and that of its class. */
  targets(number) {
    const { label, instance } = this.object(number);
    return { own: this.run.pooled_by_label ? `class:${label}` : `instance:${instance}`, ofClass: `class:${label}` };
  }

  /** The choice that holds for an object, and the target that it stands with. */
  chosen(number) {
    const { own, ofClass } = this.targets(number), { styles } = this.state;
    const target = [own, ofClass, "*"].find((t) => styles.has(t));
    return { target: target ?? null, choice: target ? styles.get(target) : null };
  }

  isLocked(number) {
    return this.state.locked.has(this.targets(number).own);
  }

  /** Give objects choices, as [target, choice]; null takes one away. */
  style(what, pairs, gesture = null) {
    const styles = new Map(this.state.styles);
    for (const [target, choice] of pairs) {
      if (choice === null) styles.delete(target);
      else styles.set(target, choice);
    }
    return this.change(what, { styles }, gesture);
  }

  /** Give a whole class a choice; instances with one of their own lose it, but for the locked. */
  styleClass(what, label, choice, gesture = null) {
    const styles = new Map(this.state.styles);
    for (const { label: of, instance } of this.state.objects) {
      const target = `instance:${instance}`;
      if (of === label && !this.state.locked.has(target)) styles.delete(target);
    }
    if (choice === null) styles.delete(`class:${label}`);
    else styles.set(`class:${label}`, choice);
    return this.change(what, { styles }, gesture);
  }

  lock(number, codes) {
    const { own } = this.targets(number), locked = new Set(this.state.locked), styles = new Map(this.state.styles);
    if (!locked.delete(own)) {
      locked.add(own);
      // What was drawn, or comes from its class, must stay as it is.
      if (!styles.has(own) && codes) styles.set(own, codes.join(","));
    }
    return this.change("lock", { locked, styles });
  }

  /** The `--feature-code` texts, those of classes before those of instances. */
  texts() {
    const order = (target) => ["*", "class", "instance"].indexOf(target.split(":")[0]);
    const used = new Set(this.used().map((number) => `instance:${this.object(number).instance}`));
    return [...this.state.styles]
      .filter(([target]) => !target.startsWith("instance:") || used.has(target))
      .sort(([a], [b]) => order(a) - order(b))
      .map(([target, choice]) => `${spellTarget(target, this.run)}=${choice}`);
  }

  /** The numbers of the objects that are in the map, as it was after the last edit. */
  used() {
    if (this.countedAt !== this.edits) Object.assign(this, { counted: [...new Set(this.map)], countedAt: this.edits });
    return this.counted;
  }

  /** What the server is told of it, but for the map. */
  body() {
    const { stem, objects, seed, locked } = this.state;
    return {
      stem, height: this.height, width: this.width, seed, styles: this.texts(),
      objects: objects.map((o) => [o.label, o.instance]),
      locked: [...locked].map((target) => spellTarget(target, this.run)),
    };
  }
}

function same(a, b) {
  return ["stem", "styles", "locked", "seed"].every((key) => a[key] === b[key]);
}

function spellTarget(target, run) {
  const [kind, id] = target.split(":");
  if (kind !== "class") return target;
  const { name } = run.byId.get(Number(id));
  return /[=:]|^\d+$|^\*$/.test(name) ? id : name;
}

function readTarget(text, run) {
  if (text === "*" || text.startsWith("instance:")) return text;
  const found = run.classes.find((c) => c.name === text) ?? run.classes.find((c) => String(c.id) === text);
  return found ? `class:${found.id}` : `instance:${text}`;
}

function readTargets(texts, run) {
  return texts.map((text) => readTarget(text, run));
}

function readStyles(texts, run) {
  const pairs = texts.map((text) => [text.slice(0, text.indexOf("=")), text.slice(text.indexOf("=") + 1)]);
  return new Map(pairs.map(([target, choice]) => [readTarget(target, run), choice]));
}
