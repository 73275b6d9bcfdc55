// Keeps the picture at the scene: a newer edit overtakes an older one, and what the picture shows is always said.

import { paint } from "./api.js";

const AGAIN = 1500; // Milliseconds until the next try.
const MOST_ASKED = 2; // One that is painted, and one that waits.

export class Painter extends EventTarget {
  constructor() {
    super();
    Object.assign(this, { shown: -1, codes: {}, milliseconds: 0, asked: 0, more: false });
  }

  show(scene) {
    this.scene = scene;
    this.shown = -1;
    this.codes = {};
    scene.addEventListener("change", () => this.scene === scene && this.ask());
    this.ask();
  }

  /** Ask for a picture of the scene as it is. One may wait while another is made, and is overtaken by what is edited then. */
  async ask() {
    const { scene } = this, wanted = scene.edits;
    clearTimeout(this.retry);
    this.#say("painting");
    if (this.asked === MOST_ASKED) return void (this.more = true);
    this.asked++;
    try {
      this.#take(scene, await paint(scene));
    } catch (error) {
      if (scene !== this.scene || wanted !== scene.edits) return;
      this.#say("failed", error.message);
      if (!error.status || error.status === 503) this.retry = setTimeout(() => this.ask(), AGAIN);
    } finally {
      this.asked--;
      if (this.more) {
        this.more = false;
        this.ask();
      }
    }
  }

  /** Show a picture, if it is of this scene and not of an older edit than the last. */
  #take(scene, made) {
    if (made === null || scene !== this.scene || made.edit <= this.shown) return;
    this.shown = made.edit;
    this.codes = made.codes;
    this.milliseconds = made.milliseconds;
    this.dispatchEvent(new CustomEvent("picture", { detail: made.pixels }));
    this.#say(made.edit === scene.edits ? "current" : "painting");
  }

  #say(state, message = "") {
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, message } }));
  }
}
