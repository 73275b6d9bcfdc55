// Keeps the picture at the scene: a newer edit overtakes an older one, and what the picture shows is always said.

import { paint } from "./api.js";

const AGAIN = 1500; // Milliseconds until the next try.

export class Painter extends EventTarget {
  constructor() {
    super();
    Object.assign(this, { shown: -1, codes: {}, milliseconds: 0 });
  }

  show(scene) {
    this.scene = scene;
    this.shown = -1;
    this.codes = {};
    scene.addEventListener("change", () => this.scene === scene && this.ask());
    this.ask();
  }

  /** Ask for a picture of the scene as it is. One is asked for while another is made; the server drops those in between. */
  async ask() {
    const { scene } = this, wanted = scene.edits, started = performance.now();
    clearTimeout(this.retry);
    this.#say("painting");
    try {
      const made = await paint(scene);
      if (scene !== this.scene || made.edit <= this.shown) return;
      this.shown = made.edit;
      this.codes = made.codes;
      this.milliseconds = performance.now() - started;
      this.dispatchEvent(new CustomEvent("picture", { detail: made.pixels }));
      this.#say(made.edit === scene.edits ? "current" : "painting");
    } catch (error) {
      if (scene !== this.scene || error.status === 409 || wanted !== scene.edits) return;
      this.#say("failed", error.message);
      if (!error.status || error.status === 503) this.retry = setTimeout(() => this.ask(), AGAIN);
    }
  }

  #say(state, message = "") {
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, message } }));
  }
}
