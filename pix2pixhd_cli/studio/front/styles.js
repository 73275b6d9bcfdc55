// The style panel: swatches, sliders, blends and photos, for the selected object or for all of its class.

import { encode, swatch } from "./api.js";

const $ = (id) => document.getElementById(id);
const SPARE = 0.5; // How far sliders go beyond the styles' codes, in terms of their range.

export class StylePanel {
  constructor(tools, painter, say) {
    Object.assign(this, { tools, painter, say, photo: null, gesture: 0 });
    this.pictures = new Map(); // Swatches' addresses, by class and style.
    tools.addEventListener("select", () => this.refresh());
    tools.addEventListener("change", () => this.refresh());
    painter.addEventListener("picture", () => this.refresh());
    for (const input of document.getElementsByName("scope")) input.onchange = () => this.refresh();
    $("drawn").onclick = () => this.#apply("as drawn", null);
    $("random").onclick = () => this.random();
    $("mean").onclick = () => this.#apply("mean style", "mean");
    $("blend").oninput = () => this.#blend();
    $("blend-a").onchange = $("blend-b").onchange = () => this.#blend();
    $("lock").onchange = () => this.scene.lock(this.number, this.#codeOf(this.number));
    $("same").onclick = () => this.#sameForAll();
    $("photo").onclick = () => $("photo-file").click();
    $("photo-file").onchange = ({ target }) => target.files[0] && this.usePhoto(target.files[0]).finally(() => (target.value = ""));
    $("gain").oninput = () => this.#applyPhoto();
    $("seed").onchange = () => this.#seed(Number($("seed").value));
    $("reroll").onclick = () => this.#seed(Math.floor(Math.random() * 1e6));
    // Sliders that are let go end a gesture, which is undone at once.
    $("style").addEventListener("change", () => this.gesture++);
  }

  show(scene) {
    this.scene = scene;
    this.photo = null;
    scene.addEventListener("change", () => this.scene === scene && this.refresh());
    this.refresh();
  }

  // Whose style it is

  /** The class that is spoken of: the selected object's, or the palette's. */
  get label() {
    return this.number !== null ? this.scene.object(this.number).label : this.tools.classId;
  }

  get number() {
    return this.tools.selected;
  }

  /** Whether all of the class is meant. */
  get whole() {
    return this.number === null || this.scene.run.pooled_by_label || document.querySelector("[name=scope]:checked").value === "class";
  }

  get #info() {
    return this.scene.run.byId.get(this.label);
  }

  /** Objects that are spoken of, but for locked ones. */
  #numbers() {
    if (!this.whole) return [this.number];
    return this.scene.used().filter((n) => this.scene.object(n).label === this.label && !this.scene.isLocked(n));
  }

  /** The key by which the server gives an object's code. */
  #key(number) {
    const { label, instance } = this.scene.object(number);
    return this.scene.run.pooled_by_label ? label : instance;
  }

  /** The code that an object was painted with in the picture that is shown. */
  #codeOf(number) {
    return this.painter.codes[this.#key(number)] ?? null;
  }

  /** The code of what is spoken of; null where there are several, or none. */
  #code() {
    const codes = this.#numbers().map((number) => this.#codeOf(number));
    return codes.every((code) => code && String(code) === String(codes[0])) ? (codes[0] ?? null) : null;
  }

  // Choosing

  #apply(what, choice, gesture = null) {
    if (this.label === null) return;
    if (this.whole) this.scene.styleClass(what, this.label, choice, gesture);
    else if (this.scene.isLocked(this.number)) this.say("this object is locked; unlock it to change its style");
    else this.scene.style(what, [[this.scene.targets(this.number).own, choice]], gesture);
  }

  /** How a style is called on a command line: by its name, where that can be told; an instance's by its index. */
  #spell(index) {
    return (this.whole && this.#info.styles[index].name) || String(index);
  }

  random() {
    const { styles } = this.#info ?? { styles: [] };
    if (!styles.length) return;
    const now = this.#active(), others = styles.map((_, n) => n).filter((n) => n !== now);
    const pool = others.length ? others : [0];
    this.#apply("random style", this.#spell(pool[Math.floor(Math.random() * pool.length)]));
  }

  #blend() {
    const { styles } = this.#info, [a, b] = [$("blend-a"), $("blend-b")].map((s) => styles[Number(s.value)].code);
    const share = $("blend").valueAsNumber / 100;
    this.#apply("blend", spell(a.map((x, n) => x + (b[n] - x) * share)), `blend${this.gesture}`);
  }

  #sameForAll() {
    const { choice } = this.scene.chosen(this.number), code = this.#codeOf(this.number);
    if (choice !== null || code) this.scene.styleClass("the same for all", this.label, choice ?? code.join(","));
  }

  #slide() {
    const code = [...$("code").querySelectorAll("input")].map((input) => input.valueAsNumber);
    this.#apply("code", spell(code), `code${this.gesture}`);
  }

  #seed(seed) {
    if (Number.isSafeInteger(seed) && seed >= 0) this.scene.change("draw anew", { seed });
    else this.refresh();
  }

  // Photos

  /** Encode a photo of any size under the scene's maps, and take its codes. */
  async usePhoto(file) {
    const { scene } = this, { width, height } = scene;
    try {
      const bitmap = await createImageBitmap(file, { resizeWidth: width, resizeHeight: height, resizeQuality: "high" });
      const context = new OffscreenCanvas(width, height).getContext("2d");
      context.drawImage(bitmap, 0, 0);
      const { data } = context.getImageData(0, 0, width, height), rgb = new Uint8Array(3 * width * height);
      for (let n = 0; n < width * height; n++) rgb.set(data.subarray(4 * n, 4 * n + 3), 3 * n);
      this.photo = { name: file.name, codes: await encode(scene, rgb) };
    } catch (error) {
      return this.say(`${file.name}: ${error.message || "is no picture that this browser reads"}`);
    }
    $("gain").value = 100;
    $("photo-details").open = true;
    $("offsets").replaceChildren();
    this.refresh();
    if (this.label !== null) this.#applyPhoto();
    return undefined;
  }

  #applyPhoto() {
    const k = $("gain").valueAsNumber / 100, b = [...$("offsets").querySelectorAll("input")].map((input) => input.valueAsNumber);
    const pairs = [];
    for (const number of this.#numbers()) {
      const found = this.photo.codes[this.#key(number)];
      if (found) pairs.push([this.scene.targets(number).own, spell(found.map((x, n) => k * x + b[n]))]);
    }
    if (pairs.length) this.scene.style("from a photo", pairs, `photo${this.gesture}`);
    else this.say("this object was not there when the photo was read; drop it again");
    this.refresh();
  }

  // What is shown

  /** Which style holds, chosen or drawn; null for any other code. */
  #active() {
    const code = this.#code();
    if (!code) return null;
    const index = this.#info.styles.findIndex((style) => style.code.every((x, n) => x === code[n]));
    return index < 0 ? null : index;
  }

  refresh() {
    if (!this.scene) return;
    const { scene, number } = this, { run } = scene, info = this.#info;
    $("seed").value = scene.state.seed;
    $("style-tools").hidden = !run.channels || !info;
    $("style-note").textContent = !run.channels ? "This run was trained without an encoder: it has no styles."
      : !info ? "Select an object, or a class, to choose its style."
      : !info.styles.length ? "This class has no styles of its own; the mean, and codes, can be chosen." : "";
    if (!run.channels || !info) return;
    $("style-title").textContent = this.whole ? `Style of all ${info.name}` : `Style of ${info.name} ${scene.object(number).instance}`;
    $("scope-class").textContent = $("same-class").textContent = info.name;
    $("scope").hidden = number === null || run.pooled_by_label;
    $("lock").checked = number !== null && scene.isLocked(number);
    $("lock").disabled = $("same").disabled = number === null;
    this.#swatches(info);
    this.#sliders($("code"), () => this.#slide(), this.#code() ?? info.mean ?? Array(run.channels).fill(0));
    this.#photoRows(run.channels);
    this.#blends(info);
  }

  #swatches(info) {
    const active = this.#active(), drawn = this.number === null ? false : this.scene.chosen(this.number).choice === null;
    if (this.swatched !== info) {
      this.swatched = info;
      $("swatches").replaceChildren(...info.styles.map((style, n) => this.#swatch(info, style, n)));
    }
    [...$("swatches").children].forEach((button, n) => {
      button.setAttribute("aria-pressed", String(n === active));
      button.classList.toggle("drawn", n === active && drawn);
    });
  }

  #swatch(info, style, n) {
    const button = document.createElement("button"), title = `${n} ${style.name}`.trim();
      button.title = `style ${title}, of ${style.count} instances`;
    button.append(Object.assign(document.createElement("span"), { textContent: title }));
    button.onclick = () => this.#apply(`style ${title}`, this.#spell(n));
    if (style.pictured) {
      const image = Object.assign(new Image(), { alt: "" });
      button.prepend(image);
      this.#picture(info.id, n).then((address) => (image.src = address), () => image.remove());
    }
    return button;
  }

  #picture(classId, n) {
    const key = `${classId}/${n}`;
    if (!this.pictures.has(key)) this.pictures.set(key, swatch(classId, n));
    return this.pictures.get(key);
  }

  /** A slider per number of a code. */
  #sliders(place, moved, values) {
    const codes = this.#info.styles.map((style) => style.code), held = place.contains(document.activeElement);
    if (place.childElementCount !== values.length) {
      place.replaceChildren(...values.map((_, n) => {
        const label = document.createElement("label"), input = document.createElement("input");
        Object.assign(input, { type: "range", step: "any", oninput: moved, ariaLabel: `number ${n + 1} of the code` });
        label.append(String(n + 1), input, document.createElement("output"));
        return label;
      }));
    }
    values.forEach((value, n) => {
      const [, input, output] = [null, ...place.children[n].children], ours = codes.map((code) => code[n]);
      const low = Math.min(-1, ...ours), high = Math.max(1, ...ours), spare = (high - low) * SPARE;
      Object.assign(input, { min: low - spare, max: high + spare });
      if (!held) input.value = value;
      output.textContent = input.valueAsNumber.toFixed(2);
    });
  }

  #photoRows(channels) {
    const there = this.photo !== null;
    $("gain-row").hidden = $("offsets").hidden = !there;
    $("photo").textContent = there ? `${this.photo.name}: choose another` : "Choose a photo, or drop it here";
    $("gained").textContent = ($("gain").valueAsNumber / 100).toFixed(2);
    if (there) {
      const old = [...$("offsets").querySelectorAll("input")].map((input) => input.valueAsNumber);
      this.#sliders($("offsets"), () => this.#applyPhoto(), old.length === channels ? old : Array(channels).fill(0));
    }
  }

  #blends(info) {
    for (const [id, first] of [["blend-a", 0], ["blend-b", 1]]) {
      const select = $(id);
      if (select.dataset.of === String(info.id)) continue;
      select.dataset.of = info.id;
      select.replaceChildren(...info.styles.map((style, n) => new Option(`${n} ${style.name}`.trim(), n)));
      select.value = Math.min(first, info.styles.length - 1);
    }
    $("blend").closest("details").hidden = info.styles.length < 2;
  }
}

/** A code as `--feature-code` takes it. */
function spell(code) {
  // A lone whole number would be the index of a style.
  return code.map((x) => Number(x.toPrecision(7))).map((x) => (Number.isInteger(x) ? x.toFixed(1) : String(x))).join(",");
}
