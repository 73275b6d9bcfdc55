// The studio's page: wires the scene, its view, the tools, the painter and the panels together.

import * as api from "./api.js";
import { Painter } from "./painter.js";
import { Scene } from "./scene.js";
import { StylePanel } from "./styles.js";
import { LARGEST_BRUSH, TOOLS, Tools } from "./tools.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);
const MODES = { labels: "1", picture: "2", both: "3", wipe: "4" };
const KEYS = [
  ...Object.values(TOOLS).map(({ key, title }) => [key, title]),
  ["[ ]", "Smaller, larger brush"],
  ["s  i  n", "Paint stuff, into the selected object, a new instance"],
  ["arrows", "On the canvas: move the cross, or with the select tool the selected object; with Shift, 8 pixels"],
  ["space, Enter", "On the canvas: paint, fill or select at the cross; Enter closes a lasso or ends a rectangle"],
  ["Esc", "Leave what was begun, or select nothing"],
  ["m  ,  .", "Mirror, smaller, larger: the selected object"],
  ["Ctrl+D  Del", "Copy, delete the selected object"],
  ["x", "Another style at random"],
  ["/", "Search classes"],
  ["1 2 3 4", "Labels, picture, side by side, wipe"],
  ["o", "Boundaries"],
  ["+ - 0", "Zoom in, out, to all of it"],
  ["Ctrl+Z  Ctrl+Shift+Z", "Undo, redo"],
  ["Ctrl+S  Ctrl+O  Ctrl+E", "Save, open, export"],
];

const view = new View($("stage")), tools = new Tools(view), painter = new Painter();
const style = new StylePanel(tools, painter, say);
let run, scene, shown;

async function start() {
  try {
    run = await api.readRun();
    $("run").textContent = `${run.name}, step ${run.step}`;
    $("scenes").replaceChildren(...run.scenes.map((name, n) => new Option(name, n)), new Option("(empty canvas)", "blank"));
    buildPalette();
    buildChoices();
    const first = run.scenes.length ? "0" : "blank";
    show(await api.readScene(first), first);
  } catch (error) {
    say(error.message, "failed");
  }
}

/** Make a scene the one that is worked on; `place` is its own in the list, if it comes from there. */
function show(opened, place = null) {
  $("scenes").value = shown = place;
  scene = new Scene(opened, opened.map, run);
  tools.show(scene);
  if (tools.classId === null) tools.set({ classId: commonestThing(), tool: scene.used().length > 1 ? "select" : "brush" });
  style.show(scene);
  view.show(scene);
  scene.addEventListener("change", refresh);
  painter.show(scene);
  refresh();
  if (opened.warning) say(`this scene ${opened.warning}`);
}

/** What one most likely wants to paint first: a class that comes in instances and has styles. */
function commonestThing() {
  const rank = (c) => 2 * c.thing + (c.styles.length > 0);
  return [...run.classes].sort((a, b) => rank(b) - rank(a))[0]?.id ?? null;
}

async function leave() {
  return scene.edits === scene.savedAt || confirm("The scene is not saved. Leave it?");
}

// What is shown

function refresh() {
  $("stem").value = scene.stem;
  $("undo").disabled = !scene.done.length;
  $("redo").disabled = !scene.undone.length;
  $("undo").title = `Undo ${scene.done.at(-1)?.what ?? ""} (Ctrl+Z)`;
  $("redo").title = `Redo ${scene.undone.at(-1)?.what ?? ""} (Ctrl+Shift+Z)`;
  document.title = `${scene.edits === scene.savedAt ? "" : "• "}${scene.stem} – p2phd studio`;
}

function say(message, state = null) {
  if (state) $("state").dataset.state = state;
  $("state").textContent = message;
}

painter.addEventListener("state", ({ detail: { state, message } }) => {
  const said = {
    painting: painter.shown < 0 ? "painting the first picture …" : "painting your last edit; the picture shows an older one …",
    current: `the picture shows the scene (${Math.round(painter.milliseconds)} ms)`,
    failed: `the picture is not of this scene: ${message}`,
  };
  say(said[state], state);
});
painter.addEventListener("picture", ({ detail }) => view.showPicture(detail));

function refreshTools() {
  for (const button of $("tool").children) button.setAttribute("aria-pressed", String(button.dataset.tool === tools.tool));
  for (const button of $("classes").children) button.setAttribute("aria-pressed", String(Number(button.dataset.id) === tools.classId));
  for (const input of document.getElementsByName("paintas")) {
    input.checked = input.value === tools.paintAs;
    input.disabled = input.value === "selected" ? tools.selected === null : input.value === "new" && !run.instances;
  }
  $("stage").dataset.tool = tools.tool;
  $("sized").textContent = $("size").value = tools.size;
}

function refreshObject() {
  const number = tools.selected, there = number !== null, movable = there && scene.isInstance(number);
  refreshTools();
  $("object-tools").hidden = !there;
  for (const id of ["copy", "mirror", "smaller", "bigger", "delete", "hole"]) $(id).disabled = !movable;
  if (!there) return void ($("object-title").textContent = "Nothing selected: click an object with the arrow (V)");
  const { label, instance } = scene.object(number), pixels = tools.mask.pixels.reduce((a, b) => a + b, 0);
  $("object-title").textContent = `${scene.classOf(number)?.name ?? label}${movable ? ` ${instance}` : ""}, ${pixels.toLocaleString()} pixels`;
  $("object-class").value = label;
  const by = movable && tools.hole === null ? scene.classOf(scene.neighbour(number) ?? number)?.name : null;
  $("hole").options[0].textContent = by ? `what borders it most (${by})` : "what borders it most";
}

tools.addEventListener("select", refreshObject);
tools.addEventListener("change", refreshTools);
tools.addEventListener("cursor", () => {
  const [x, y] = tools.cursor, number = scene.at(x, y), { instance } = scene.object(number);
  $("cursor").textContent = `row ${y}, column ${x}: ${scene.classOf(number)?.name ?? "?"}${scene.isInstance(number) ? ` ${instance}` : ""}`;
});
$("stage").addEventListener("pointermove", (event) => {
  const [x, y] = view.pixel(event), number = scene?.at(x, y) ?? null;
  $("cursor").textContent = number === null ? "" : `row ${y}, column ${x}: ${scene.classOf(number)?.name ?? "?"}${scene.isInstance(number) ? ` ${scene.object(number).instance}` : ""}`;
});

// Panels

function buildPalette() {
  // Those that were seen in training come first.
  const seen = [...run.classes].sort((a, b) => (b.mean !== null) - (a.mean !== null) || a.id - b.id);
  $("classes").replaceChildren(...seen.map((c) => {
    const button = document.createElement("button"), chip = document.createElement("span");
    chip.className = "chip";
    chip.style.background = `rgb(${c.color.join(" ")})`;
    button.append(chip, c.name);
    button.dataset.id = c.id;
      button.title = `id ${c.id}${c.styles.length ? `, ${c.styles.length} styles` : ""}`;
    button.onclick = () => chooseClass(c.id);
    return button;
  }));
  const search = $("search");
  search.oninput = () => {
    const wanted = search.value.trim().toLowerCase();
    for (const button of $("classes").children) button.hidden = !`${button.textContent} ${button.dataset.id}`.toLowerCase().includes(wanted);
  };
  search.onkeydown = (event) => {
    if (event.key !== "Enter") return;
    [...$("classes").children].find((button) => !button.hidden)?.click();
    search.value = "";
    search.oninput();
    $("stage").focus();
  };
}

/** Paint with a class from now on; what was selected is left. */
function chooseClass(classId) {
  tools.select(null);
  tools.set({ classId, ...(tools.tool === "select" || tools.tool === "pan" ? { tool: "brush" } : {}) });
}

function buildChoices() {
  const options = () => run.classes.map((c) => new Option(c.name, c.id));
  $("object-class").replaceChildren(...options());
  $("hole").replaceChildren(new Option("what borders it most", ""), ...options());
  $("object-class").onchange = ({ target }) => tools.select(scene.reclassify(tools.selected, Number(target.value)));
  $("hole").onchange = ({ target }) => {
    tools.hole = target.value === "" ? null : Number(target.value);
    refreshObject();
  };
}

$("tool").replaceChildren(...Object.entries(TOOLS).map(([name, { key, title, icon }]) => {
  const button = Object.assign(document.createElement("button"), { title: `${title} (${key.toUpperCase()})`, ariaLabel: title });
  button.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="${icon}" fill-rule="evenodd"/></svg>`;
  button.dataset.tool = name;
  button.onclick = () => tools.set({ tool: name });
  return button;
}));
$("mode").replaceChildren(...Object.entries(MODES).map(([name, key]) => {
  const button = Object.assign(document.createElement("button"), { textContent: name === "both" ? "side by side" : name, title: `${key}` });
  button.dataset.mode = name;
  button.onclick = () => setMode(name);
  return button;
}));

function setMode(mode) {
  for (const button of $("mode").children) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
  $("wiping").hidden = mode !== "wipe";
  view.set({ mode });
}

$("size").oninput = ({ target }) => tools.set({ size: target.valueAsNumber });
for (const input of document.getElementsByName("paintas")) input.onchange = () => tools.set({ paintAs: input.value });
$("wipe").oninput = ({ target }) => view.set({ wipe: target.valueAsNumber / 100 });
$("boundaries").onchange = ({ target }) => view.set({ boundaries: target.checked });
$("in").onclick = () => view.zoomBy(1.25);
$("out").onclick = () => view.zoomBy(0.8);
$("fit").onclick = () => view.fit();
$("copy").onclick = () => tools.copy();
$("mirror").onclick = () => tools.mirror();
$("smaller").onclick = () => tools.scaleBy(0.9);
$("bigger").onclick = () => tools.scaleBy(1.1);
$("delete").onclick = () => tools.remove();
$("undo").onclick = () => scene.undo();
$("redo").onclick = () => scene.redo();
$("theme").onclick = () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
};

// Files

$("stem").onchange = ({ target }) => {
  const stem = target.value.trim().replace(/[/\\\p{Cc}]/gu, "_");
  if (stem && stem !== "." && stem !== "..") scene.change("name", { stem });
  refresh();
};
$("scenes").onchange = async ({ target }) => {
  const { value } = target;
  target.value = shown; // Until it is there.
  if (await leave()) await attempt(async () => show(await api.readScene(value), value));
};
$("open").onclick = () => $("scene-file").click();
$("scene-file").onchange = ({ target }) => target.files[0] && openFile(target.files[0]).finally(() => (target.value = ""));
$("save").onclick = () => attempt(async () => {
  const { edits } = scene;
  download(await api.save(scene), `${scene.stem}.p2phd`);
  scene.savedAt = edits;
  refresh();
});
$("export").onclick = () => attempt(async () => download(await api.exported(scene), `${scene.stem}.zip`));
$("commands").onclick = () => attempt(async () => {
  const commands = await api.commands(scene);
  $("command-scene").textContent = commands.scene;
  $("command-maps").textContent = commands.maps;
  $("command-dialog").showModal();
});
$("help").onclick = () => $("help-dialog").showModal();
$("keys").replaceChildren(...KEYS.flatMap(([key, what]) => [
  Object.assign(document.createElement("dt"), { textContent: key }), Object.assign(document.createElement("dd"), { textContent: what }),
]));

async function openFile(file) {
  if (await leave()) await attempt(async () => show(await api.openFile(file)));
}

async function attempt(what) {
  try {
    await what();
  } catch (error) {
    say(error.message);
  }
}

function download(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file?.name.endsWith(".p2phd")) openFile(file);
  else if (file) style.usePhoto(file);
});
addEventListener("beforeunload", (event) => {
  if (scene && scene.edits !== scene.savedAt) event.preventDefault();
});

// Keys

const COMMANDS = { z: () => scene.undo(), y: () => scene.redo(), s: () => $("save").click(), o: () => $("open").click(), e: () => $("export").click(), d: () => tools.copy() };
const PLAIN = {
  "[": () => tools.set({ size: Math.max(1, Math.floor(tools.size / 1.25)) }),
  "]": () => tools.set({ size: Math.min(LARGEST_BRUSH, Math.ceil(tools.size * 1.25)) }),
  s: () => tools.set({ paintAs: "stuff" }),
  i: () => tools.selected !== null && tools.set({ paintAs: "selected" }),
  n: () => run.instances && tools.set({ paintAs: "new" }),
  m: () => tools.mirror(), ",": () => tools.scaleBy(0.9), ".": () => tools.scaleBy(1.1),
  x: () => style.random(), o: () => $("boundaries").click(), "/": () => $("search").focus(), "?": () => $("help").click(),
  "+": () => view.zoomBy(1.25), "=": () => view.zoomBy(1.25), "-": () => view.zoomBy(0.8), 0: () => view.fit(),
  Delete: () => tools.remove(), Backspace: () => tools.remove(), Escape: () => tools.escape(),
  ...Object.fromEntries(Object.entries(TOOLS).map(([tool, { key }]) => [key, () => tools.set({ tool })])),
  ...Object.fromEntries(Object.entries(MODES).map(([mode, key]) => [key, () => setMode(mode)])),
};
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

addEventListener("keydown", (event) => {
  if (!scene || document.querySelector("dialog[open]")) return;
  const typing = event.target.matches("input:not([type=range], [type=checkbox], [type=radio]), select, textarea");
  const act = keyed(event, typing);
  if (!act) return;
  event.preventDefault();
  act();
});
addEventListener("keyup", (event) => event.key === " " && (tools.space = false));

/** What a key does, if anything. */
function keyed(event, typing) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (key === "z" && event.shiftKey) return () => scene.redo();
    return typing && key in { z: 1, y: 1 } ? null : COMMANDS[key];
  }
  if (typing || event.altKey) return null;
  if (event.target === $("stage")) {
    const by = ARROWS[key], far = event.shiftKey ? 8 : 1;
    if (by && tools.tool === "select" && tools.selected !== null && tools.mask) return () => tools.nudge(by[0] * far, by[1] * far);
    if (by) return () => tools.keyMove(by[0] * far, by[1] * far);
    if (key === "Enter" && tools.corners) return () => tools.close();
    if (key === "Enter" || key === " ") return () => (tools.hover && !tools.byKeys && key === " " ? (tools.space = true) : tools.keyPress());
  }
  return PLAIN[key];
}

setMode("both");
window.studio = { view, tools, painter, get scene() { return scene; } }; // For those who look from outside, as tests do.
await start();
