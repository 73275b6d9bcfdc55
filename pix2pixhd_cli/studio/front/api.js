// Calls to the studio's server. A map travels deflated and in base64; a picture comes back as it is, with a line of JSON before it.

const token = new URLSearchParams(location.hash.slice(1)).get("token");
const client = crypto.getRandomValues(new Uint32Array(3)).join("-");

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function call(path, body) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  if (body) headers["content-type"] = "application/json";
  const method = body ? "POST" : "GET";
  let response;
  try {
    response = await fetch(`/api/${path}`, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Refused(0, "the studio does not answer; is p2phd still running?");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  const detail = typeof said.detail === "string" ? said.detail : JSON.stringify(said.detail ?? response.statusText);
  throw new Refused(response.status, detail);
}

export async function pack(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"));
  return toBase64(new Uint8Array(await new Response(stream).arrayBuffer()));
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
}

function toBase64(bytes) {
  let text = "";
  for (let n = 0; n < bytes.length; n += 0x8000) text += String.fromCharCode(...bytes.subarray(n, n + 0x8000));
  return btoa(text);
}

async function withMap(scene) {
  return { ...scene.body(), map: await pack(scene.map) };
}

async function opened(response) {
  const scene = await response.json();
  return { ...scene, map: new Uint16Array(await unpack(scene.map)) };
}

export const readRun = async () => {
  const run = await (await call("run")).json();
  const ignored = run.ignored.map((id) => ({ id, name: `ignored ${id}`, color: [0, 0, 0], thing: false, styles: [], mean: null }));
  return { ...run, byId: new Map([...ignored, ...run.classes].map((c) => [c.id, c])) };
};
export const readScene = async (which) => opened(await call(`scenes/${which}`));
export const openFile = async (file) => opened(await call("open", { file: toBase64(new Uint8Array(await file.arrayBuffer())) }));
export const save = async (scene) => (await call("save", await withMap(scene))).blob();
export const exported = async (scene) => (await call("export", await withMap(scene))).blob();

export const commands = async (scene) => {
  const { stem, seed, styles } = scene.body();
  return (await call("command", { stem, seed, styles })).json();
};

/** A swatch's address, for an <img>. */
export const swatch = async (classId, style) =>
  URL.createObjectURL(await (await call(`swatches/${classId}/${style}`)).blob());

/** Feature codes by instance id of a photo, RGB bytes of the scene's size. */
export const encode = async (scene, rgb) => {
  const { height, width, objects } = scene.body();
  const body = { height, width, objects, map: await pack(scene.map), photo: await pack(rgb) };
  return (await (await call("encode", body)).json()).codes;
};

/** Paint a scene: {edit, height, width, codes, milliseconds, pixels: ImageData}, or null if a newer edit overtook this one. */
export async function paint(scene) {
  const edit = scene.edits, started = performance.now(); // Before anything is awaited: the map may change meanwhile.
  const body = { ...scene.body(), client, edit };
  body.map = await pack(scene.map.slice());
  const response = await call("paint", body);
  if (response.status === 204) return null;
  const bytes = new Uint8Array(await response.arrayBuffer());
  const end = bytes.indexOf(10), head = JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)));
  const rgba = new Uint8ClampedArray(bytes.buffer, end + 1);
  return { ...head, milliseconds: performance.now() - started, pixels: new ImageData(rgba, head.width, head.height) };
}
