"""From nothing to streets in the style you ask for: draws a toy city and runs the six verbs on it, as you would.

    python examples/quickstart.py            # about ten minutes on two cores; everything goes to ./quickstart

It ends in `quickstart/contact_sheet.png` and in numbers that say whether it worked: do the styles that were found agree with
the paints and road surfaces that were drawn, and does choosing a style do what it says? It exits with 1 if one falls short.
Run it again and it goes on where it was stopped.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from toy_city import BUILDING, CAR, ROAD, draw_city

from pix2pixhd_cli import engine

engine.start()

from pix2pixhd_cli import images  # noqa: E402
from pix2pixhd_cli.data.dataset import Example, read_example, read_spec  # noqa: E402
from pix2pixhd_cli.features import FeatureClusters, FeatureCodes, Styler, parse_rules  # noqa: E402
from pix2pixhd_cli.painting import Painter  # noqa: E402

RECIPE = Path(__file__).with_name("toy_city.toml")
SHEET_STREETS = 4


def main() -> None:
    """Draw, run the verbs, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="folder for everything it makes")
    out = parser.parse_args().out
    judge = make_run(out)
    chosen = ("--feature-code", "road=cobbles", "--feature-code", "car=red")
    p2phd("generate", judge.run, judge.dataset, out / "painted", *chosen, "--all-codes", "car", "--grid")
    judge.contact_sheet().save(out / "contact_sheet.png")
    passed = report(judge)
    print(f"look at {out / 'contact_sheet.png'} and {judge.run / 'clusters.png'}")
    sys.exit(0 if passed else 1)


def make_run(out: Path, *, streets: int = 200, train: Sequence[object] = (), cluster: Sequence[object] = ()) -> "Judge":
    """Draw the city and run the verbs that make a run with named styles, with these flags more; go on where that was stopped."""
    city, dataset, packed, run = (out / name for name in ("city", "dataset", "packed", "run"))
    if not (city / "truth.json").exists():
        print(f"drawing a toy city into {city}")
        draw_city(city, train=streets, val=12, seed=0)
    p2phd("prepare", city, dataset)
    p2phd("pack", dataset, packed)
    resume = ["--resume"] if (run / "settings.json").exists() else []
    p2phd("train", packed, run, "--config", RECIPE, *train, *resume)
    p2phd("encode", run)
    p2phd("cluster", run, *cluster)
    judge = Judge(city, dataset, run)
    p2phd("cluster", run, *cluster, *(part for name in judge.style_names() for part in ("--name", name)))
    return Judge(city, dataset, run)


def p2phd(*arguments: object) -> None:
    """Print a command and run it."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ p2phd {shlex.join(words)}", flush=True)
    finished = subprocess.run([sys.executable, "-m", "pix2pixhd_cli", *words], env=os.environ, check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


@dataclass
class Judge:
    """Compares what the run found and paints with how the city was drawn."""

    city: Path
    dataset: Path
    run: Path

    def __post_init__(self) -> None:
        self.truth = json.loads((self.city / "truth.json").read_text())
        self.spec = read_spec(self.dataset)
        self.codes = FeatureCodes.load(self.run / "features.npz")
        self.clusters = FeatureClusters.load(self.run / "clusters.npz")
        self.painter = Painter(self.run)
        self.streets = [read_example(self.dataset, self.spec, "val", entry) for entry in self.spec.entries("val")]

    def appearance(self, stem: str, instance: int) -> str:
        """The paint, plaster or surface that an instance was drawn with."""
        street = self.truth[stem]
        return str(street["surface"] if instance == ROAD else (street["paints"] | street["plasters"])[str(instance)])

    def members(self, class_id: int) -> list[Counter[str]]:
        """For each style of a class, how many instances of which appearance are nearest to it."""
        centres = self.clusters.classes[class_id].centres
        found: list[Counter[str]] = [Counter() for _ in centres]
        for n in np.flatnonzero(self.codes.label == class_id):
            nearest = int(np.linalg.norm(centres - self.codes.code[n], axis=1).argmin())
            found[nearest][self.appearance(str(self.codes.stem[n]), int(self.codes.instance[n]))] += 1
        return found

    def majorities(self, class_id: int) -> list[str]:
        """Each style's true appearance, by majority."""
        return [members.most_common(1)[0][0] if members else "" for members in self.members(class_id)]

    def purity(self, class_id: int) -> float:
        """The share of instances whose style's majority has their own appearance."""
        members = self.members(class_id)
        return sum(max(m.values(), default=0) for m in members) / sum(m.total() for m in members)

    def style_names(self) -> list[str]:
        """`--name` arguments that call the largest style of each appearance by its name."""
        names = []
        for class_id, name in ((ROAD, "road"), (CAR, "car"), (BUILDING, "building")):
            best: dict[str, tuple[int, int]] = {}
            for index, members in enumerate(self.members(class_id)):
                for appearance, count in members.most_common(1):
                    best[appearance] = max(best.get(appearance, (0, 0)), (count, index))
            names += [f"{name}:{index}={appearance}" for appearance, (_, index) in sorted(best.items())]
        return names

    def paint(self, street: Example, *choices: str) -> NDArray[np.uint8]:
        """Paint a street with these `--feature-code` choices, everything else drawn from seed 0."""
        rules = parse_rules(choices, self.spec, self.clusters, self.painter.channels)
        styler = Styler(rules, self.clusters, channels=self.painter.channels)
        gates = styler.gates(street.stem, self.painter.instances(street.label, street.instance))
        return self.painter.paint(street.label, street.instance, codes={i: gate.code for i, gate in gates.items()})

    @cached_property
    def paint_colours(self) -> dict[str, NDArray[np.float64]]:
        """What a car of each paint looks like on average in the training photos, windows and tyres included."""
        pixels: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
        for entry in self.spec.entries("train"):
            street = read_example(self.dataset, self.spec, "train", entry)
            assert street.photo is not None
            for instance in np.unique(street.instance[street.label == CAR]):
                own = street.photo[street.instance == instance]
                pixels[self.appearance(street.stem, int(instance))].append(own.mean(0))
        return {paint: np.mean(colours, 0) for paint, colours in pixels.items()}

    def car_choices(self) -> tuple[float, float]:
        """Shares of (street, car style) choices that move the cars' mean colour toward the style's true paint, compared
        with the average over all styles, and that bring it nearer to that paint than to any other.
        """
        moved, nearest, paints = [], [], self.majorities(CAR)
        for street in self.streets:
            colours = [self.paint(street, f"car={n}")[street.label == CAR].mean(0) for n in range(len(paints))]
            average = np.mean(colours, 0)
            for colour, paint in zip(colours, paints, strict=True):
                distances = {p: float(np.linalg.norm(colour - c)) for p, c in self.paint_colours.items()}
                moved.append(distances[paint] < np.linalg.norm(average - self.paint_colours[paint]))
                nearest.append(min(distances, key=distances.__getitem__) == paint)
        return float(np.mean(moved)), float(np.mean(nearest))

    def road_choices(self) -> float:
        """The share of (street, asphalt style, cobbles style) in which cobbles have the higher local contrast."""
        surfaces, right = self.majorities(ROAD), []
        for street in self.streets:
            contrasts = [
                local_contrast(self.paint(street, f"road={n}"), street.label == ROAD) for n in range(len(surfaces))
            ]
            rough = [c for c, surface in zip(contrasts, surfaces, strict=True) if surface == "cobbles"]
            smooth = [c for c, surface in zip(contrasts, surfaces, strict=True) if surface == "asphalt"]
            right += [r > s for r in rough for s in smooth]
        return float(np.mean(right)) if right else 0.0

    def contact_sheet(self) -> images.Sheet:
        """Label map, photo, reconstruction, then the same street in every named road style and car paint."""
        choices = [
            f"{name}={style}"
            for class_id, name in ((ROAD, "road"), (CAR, "car"))
            for style in sorted(filter(None, self.clusters.classes[class_id].names))
        ]
        rows = []
        for street in self.streets[:SHEET_STREETS]:
            assert street.photo is not None
            again = self.painter.paint(street.label, street.instance, gains=1.0, photo=street.photo)
            row = [images.colour_labels(street.label, self.spec.classes), street.photo, again]
            rows.append(row + [self.paint(street, choice, *held(choice)) for choice in choices])
        return images.grid(rows, ["label map", "photo", "reconstruction", *choices], scale=2)


def held(choice: str) -> Sequence[str]:
    """What stays the same while one thing is chosen, so that the eye can compare."""
    return ["car=white"] if choice.startswith("road") else ["road=asphalt"]


def local_contrast(picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """Mean absolute difference of neighbouring grey values where both pixels lie in the mask."""
    grey = picture.astype(np.float64).mean(-1)
    across = np.abs(np.diff(grey, axis=1))[mask[:, 1:] & mask[:, :-1]]
    down = np.abs(np.diff(grey, axis=0))[mask[1:] & mask[:-1]]
    return float(np.concatenate([across, down]).mean())


def report(judge: Judge) -> bool:
    """Print every number with its goal; returns whether all were met."""
    moved, nearest = judge.car_choices()
    goals = [
        ("purity of car styles against true paints", judge.purity(CAR), 0.9),
        ("purity of road styles against true surfaces", judge.purity(ROAD), 0.95),
        ("car choices that move the colour toward the style's paint", moved, 0.9),
        ("road choices that change the local contrast the right way", judge.road_choices(), 1.0),
    ]
    print()
    for what, value, goal in goals:
        print(f"{'ok' if value >= goal else 'SHORT':5}  {value:.3f} (goal {goal:.2f})  {what}")
    print(f"       {nearest:.3f}              car choices whose colour is nearest to the style's own paint")
    return all(value >= goal for _, value, goal in goals)


if __name__ == "__main__":
    main()
