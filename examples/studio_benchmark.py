"""How fast the studio is, with the model in the box and a headless Chromium: one JSON line per question.

    python examples/studio_benchmark.py              # needs the extras studio and test, and Chromium

edit   From the end of a stroke to its picture on the screen, beside one forward pass, in turn.
start  From the command to the first picture, beside importing TensorFlow and one forward pass, in turn.
brush  Frames per second while a brush is drawn over a map of 512x1024, of the 60 that a screen shows.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
RUN, STREETS = HERE / "toy_run", HERE / "streets"
PORT = 18765
ROAD, SIDEWALK = 7, 8
URL = f"http://127.0.0.1:{PORT}"
EDITS, STARTS, SECONDS = 40, 3, 4.0
LARGE = 8  # Times the streets' size, for the brush.
FORWARD = """
import sys, time
from pathlib import Path
from pix2pixhd_cli import engine
engine.start()
from pix2pixhd_cli.data.dataset import read_example, read_spec
from pix2pixhd_cli.painting import Painter
run, streets = map(Path, sys.argv[1:])
painter, spec = Painter(run), read_spec(streets)
street = read_example(streets, spec, "val", spec.entries("val")[0])
painter.paint(street.label, street.instance)
for _ in sys.stdin:
    start = time.perf_counter()
    painter.paint(street.label, street.instance)
    print(time.perf_counter() - start, flush=True)
"""
IMPORT = "import tensorflow"
# From the end of a stroke to the frame after its picture was drawn.
EDIT = """(label) => new Promise((done) => {
  const { tools, painter } = window.studio, start = performance.now();
  tools.set({ tool: "brush", classId: label });
  painter.addEventListener("picture", () => requestAnimationFrame(() => done(performance.now() - start)), { once: true });
  tools.start([20, 45]); tools.go([60, 50]); tools.finish();
})"""
BRUSH = """(seconds) => new Promise((done) => {
  const { tools, view, scene } = window.studio, start = performance.now();
  const box = view.canvas.getBoundingClientRect();
  const at = (t) => ({
    clientX: box.left + box.width * (0.5 + 0.3 * Math.sin(t / 150)),
    clientY: box.top + box.height * (0.25 + 0.15 * Math.cos(t / 210)),
  });
  const frames = [];
  tools.set({ tool: "brush", size: 24 });
  tools.start(view.pixel(at(0)));
  const frame = (now) => {
    frames.push(now);
    tools.go(view.pixel(at(now - start)));
    if (now - start < 1000 * seconds) requestAnimationFrame(frame);
    else { tools.finish(); done(frames); }
  };
  requestAnimationFrame(frame);
})"""


def main() -> None:
    """Measure all three."""
    for measure in (edit, start, brush):
        print(json.dumps({"what": measure.__name__, **measure()}), flush=True)


def edit() -> dict[str, float]:
    """Milliseconds, medians of runs in turn."""
    words = [sys.executable, "-c", FORWARD, str(RUN), str(STREETS)]
    forward: list[float] = []
    shown: list[float] = []
    with (
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as passes,
        page(STREETS) as open_page,
    ):
        assert passes.stdin is not None and passes.stdout is not None
        for number in range(EDITS):
            print(file=passes.stdin, flush=True)
            forward.append(1e3 * float(passes.stdout.readline()))
            shown.append(open_page.evaluate(EDIT, (ROAD, SIDEWALK)[number % 2]))
            open_page.wait_for_timeout(100)
        passes.stdin.close()
    one, all_of_it = statistics.median(forward), statistics.median(shown)
    return {"forward_ms": one, "edit_to_picture_ms": all_of_it, "allowed_ms": 1.3 * one + 30}


def start() -> dict[str, float]:
    """Seconds, medians of runs in turn."""
    imports, pictures = [], []
    for _ in range(STARTS):
        imports.append(_seconds(lambda: subprocess.run([sys.executable, "-c", IMPORT], check=True, env=_quiet())))
        pictures.append(_first_picture())
    one, all_of_it = statistics.median(imports), statistics.median(pictures)
    return {"import_s": one, "first_picture_s": all_of_it, "allowed_s": 1.5 * one}


def brush() -> dict[str, float]:
    """Frames of a stroke that goes all over a large map."""
    with (
        tempfile.TemporaryDirectory() as folder,
        page(_enlarged(Path(folder)), Path(folder) / "instance.png") as open_page,
    ):
        frames = open_page.evaluate(BRUSH, SECONDS)
    gaps = [b - a for a, b in pairwise(frames)]
    late = sum(gap > 1.5 * 1000 / 60 for gap in gaps)
    return {"frames_per_s": 1000 / statistics.mean(gaps), "late_frames": late, "frames": len(gaps)}


@contextmanager
def page(labels: Path, instances: Path | None = None) -> Iterator[Page]:
    """The studio's page, with its first picture."""
    more = ["--instance-map", str(instances)] if instances else []
    with _studio(labels, *more), sync_playwright() as engine:
        path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        browser = engine.chromium.launch(executable_path=path)
        found = browser.new_page(viewport={"width": 1280, "height": 800})
        found.goto(URL)
        found.wait_for_selector("#state[data-state=current]", timeout=60_000)
        yield found
        browser.close()


@contextmanager
def _studio(labels: Path, *more: str) -> Iterator[None]:
    words = [
        sys.executable,
        "-m",
        "pix2pixhd_cli",
        "studio",
        str(RUN),
        str(labels),
        "--no-open",
        "--port",
        str(PORT),
        *more,
    ]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as server:
        try:
            _until(lambda: urllib.request.urlopen(f"{URL}/api/run").read())
            yield
        finally:
            server.terminate()


def _first_picture() -> float:
    """Seconds from the command to the answer with its first picture."""
    begun = time.perf_counter()
    with _studio(STREETS):
        scene = json.loads(urllib.request.urlopen(f"{URL}/api/scenes/0").read())
        del scene["warning"]
        body = json.dumps({**scene, "client": "a", "edit": 0}).encode()
        request = urllib.request.Request(f"{URL}/api/paint", body, {"content-type": "application/json"})
        urllib.request.urlopen(request).read()
        return time.perf_counter() - begun


def _enlarged(folder: Path) -> Path:
    """A street's label map at a multiple of its size; its instance map goes beside it."""
    from PIL import Image

    for kind in ("label", "instance"):
        with Image.open(next((STREETS / "val" / kind).glob("*.png"))) as picture:
            size = (picture.width * LARGE, picture.height * LARGE)
            picture.resize(size, Image.Resampling.NEAREST).save(folder / f"{kind}.png")
    return folder / "label.png"


def _until(tried: Callable[[], object]) -> None:
    while True:
        try:
            tried()
            return
        except OSError:
            time.sleep(0.02)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _quiet() -> dict[str, str]:
    return os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}


if __name__ == "__main__":
    main()
