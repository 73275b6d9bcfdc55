"""What a report tells of one run: its pictures, curves, numbers and styles, and the commands that made them."""

import shlex
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pix2pixhd_cli import console, overview
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.evaluation import Evaluation, read_evaluations
from pix2pixhd_cli.features import FeatureClusters, FeatureCodes
from pix2pixhd_cli.images import Sheet, read_sheet
from pix2pixhd_cli.page import Shown, embedded
from pix2pixhd_cli.runs import Run, step_of
from pix2pixhd_cli.settings import NETWORK_SECTIONS, flags, settings_of_run

FRAMES = 24  # Steps whose samples are shown, at the most.
WIDEST, SMALL = 1024, 256  # Of pictures to compare, and of all others, in pixels.
EXACT = ("label", "seen in ")  # What pictures in classes' colours are called, or begin with.
Gallery = list[tuple[str, list[tuple[str, Shown]]]]  # By class: pictures with their captions.


class Reel(NamedTuple):
    """One example's samples: its label map, its photo, and what was made of it after each step."""

    label: Shown
    photo: Shown
    fakes: dict[int, Shown]


class Chapter:
    """A run in a report.

    Args:
        number: of the run, from 0.
        name: what it is called.
        place: where it is, as the user named it.
        run: it, or its copy.
    """

    def __init__(self, number: int, name: str, place: str, run: Run) -> None:
        self.number, self.name, self.place = number, name, place
        self.run = run
        self.settings, self.spec, self.sources = settings_of_run(run.folder), run.spec(), run.sources()
        self.progress = overview.progress(run)
        self.classes = overview.class_shares(self.spec)
        self.evaluations = read_evaluations(run.folder)

    @cached_property
    def facts(self) -> dict[str, str]:
        """What it is, in words."""
        sources, best = self.sources, self.run.best_checkpoint()
        found = {
            "trained": str(self.progress),
            "networks": overview.networks(self.settings),
            "inputs": overview.inputs(self.spec),
            "checkpoints": ", ".join(
                f"{step_of(path)}{' (the best)' * (path == best)}" for path in self.run.checkpoints()
            ),
            "later verbs use": f"step {self.run.model_step()}" if self.run.model.exists() else "",
            "made from": str(sources.imported or sources.packed or ""),
            "started from": f"{sources.init_from}, step {sources.init_step}" if sources.init_from is not None else "",
            "changed on the way": "; ".join(
                f"{one['setting']} from {one['from']} to {one['to']} after step {one['after_step']}"
                for one in sources.changes
            ),
        }
        return {name: text for name, text in found.items() if text}

    @property
    def environment(self) -> dict[str, str]:
        """What it was trained with, and checksums of what it was trained on."""
        found, sources = dict(self.sources.environment), self.sources
        if sources.threads is not None:
            found["threads"] = str(sources.threads)
        if sources.perceptual is not None:
            found[sources.perceptual["file"]] = f"SHA-256 {sources.perceptual['sha256']}"
        if sources.examples is not None:
            found["examples"] = f"SHA-256 {sources.examples}"
        return found

    @cached_property
    def sample_files(self) -> list[Path]:
        """Every sheet of samples, oldest first."""
        return sorted((self.run.folder / "samples").glob("step-*.png"))

    @cached_property
    def reels(self) -> dict[str, Reel]:
        """Samples by stem, after steps that are spread over the training."""
        files = self.sample_files
        chosen = np.unique(np.linspace(0, len(files) - 1, min(FRAMES, len(files))).round().astype(int))
        found: dict[str, Reel] = {}
        for path in (files[n] for n in chosen[::-1]):
            for stem, cells in _rows(path):
                if {"label", "fake", "photo"} <= cells.keys():
                    found.setdefault(stem, Reel(cells["label"], cells["photo"], {}))
                    found[stem].fakes[step_of(path.with_suffix(""))] = cells["fake"]
        return found

    @property
    def sampled(self) -> int:
        """After how many steps samples are shown."""
        return len({step for reel in self.reels.values() for step in reel.fakes})

    def pictures(self, evaluation: Evaluation) -> dict[str, dict[str, Shown]]:
        """The examples that an evaluation shows: by stem, pictures by title."""
        return dict(_rows(evaluation.path(self.run.folder, ".png")))

    def strips(self, evaluation: Evaluation) -> Gallery:
        """Each class in all of its styles, as an evaluation shows it."""
        return _gallery(evaluation.path(self.run.folder, "-strips.png"))

    @cached_property
    def styles(self) -> Gallery:
        """Real instances of each style."""
        return _gallery(self.run.folder / "clusters.png")

    @cached_property
    def logged(self) -> dict[str, tuple[list[float], list[float]]]:
        """Steps and values of all that was logged, by name; what was always 0 is left out."""
        found: dict[str, tuple[list[float], list[float]]] = {}
        for line in self.run.logged():
            values = overview.numbers(line)
            step = values.pop("step")
            if step == 1:
                values.pop("seconds", None)  # Most of these went into building the graph.
            for name, value in values.items():
                steps, known = found.setdefault(name, ([], []))
                steps.append(step)
                known.append(value)
        return {name: pair for name, pair in found.items() if any(pair[1]) and name != "epoch"}

    @cached_property
    def commands(self) -> dict[str, str]:
        """The command that made each thing; for what is not there, the one that would."""
        sources, settings = self.sources, self.settings
        packed = str(sources.packed or "PACKED")
        start = ["--init-from", str(sources.init_from)] if sources.init_from is not None else []
        made = ["train", packed, self.place, *start, *flags(settings, "train", *NETWORK_SECTIONS, "loss")]
        if sources.imported is not None:
            made = ["import", str(sources.imported), self.place]
        found = {"train": made}
        if settings.encoder.enabled:
            found["encode"] = ["encode", self.place, *self._encoded]
            found["cluster"] = ["cluster", self.place, *flags(settings, "cluster"), *self._names]
        plain = {name: shlex.join(["p2phd", *words]) for name, words in found.items()}
        return plain | {"evaluate": self.evaluating(self.evaluations[-1] if self.evaluations else None)}

    def evaluating(self, evaluation: Evaluation | None) -> str:
        """The command that found this; without it, or where it is not known, the one that would."""
        known = evaluation.arguments if evaluation is not None else ()
        return shlex.join(["p2phd", "evaluate", self.place, *(known or ("DATASET",))])

    @property
    def _encoded(self) -> list[str]:
        if not self.run.features.exists():
            return []
        codes = FeatureCodes.load(self.run.features)
        return ["--split", str(codes.split)] if str(codes.split) not in ("", "train") else []

    @property
    def _names(self) -> list[str]:
        """The names that styles were given."""
        if not self.run.clusters.exists():
            return []
        styles = FeatureClusters.load(self.run.clusters).classes
        named = [(i, n, name) for i, one in styles.items() for n, name in enumerate(one.names) if name]
        return [word for i, n, name in named for word in ("--name", f"{self.spec.class_name(i)}:{n}={name}")]

    @property
    def missing(self) -> dict[str, str]:
        """What the report cannot show of this run, with what would add it."""
        found = {}
        if not self.sample_files:
            found["samples over time"] = "training writes them (--sample-every)"
        if not self.evaluations:
            found["numbers, and generated pictures beside real ones"] = self.commands["evaluate"]
        for one in self.evaluations[-1:]:
            found |= one.left_out
        if self.settings.encoder.enabled and not self.styles:
            found["styles"] = f"{self.commands['encode']} && {self.commands['cluster']}"
        return found


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Shown]]]:
    """A sheet's rows: their names, and their pictures by column."""
    sheet = _sheet(path)
    if sheet is None:
        return
    for n, name in enumerate(sheet.places.names):
        cells = {title: sheet.cell(n, m) for m, title in enumerate(sheet.places.columns)}
        shown = {title: cell for title, cell in cells.items() if cell is not None}
        yield name, {title: embedded(cell, WIDEST, exact=title.startswith(EXACT)) for title, cell in shown.items()}


def _gallery(path: Path) -> Gallery:
    """A sheet's rows: their names, and their pictures with captions."""
    sheet = _sheet(path)
    if sheet is None:
        return []
    return [
        (
            name,
            [
                (place.caption, embedded(cell, SMALL))
                for m, place in enumerate(sheet.places.cells[n])
                if place is not None and (cell := sheet.cell(n, m)) is not None
            ],
        )
        for n, name in enumerate(sheet.places.names)
    ]


def _sheet(path: Path) -> Sheet | None:
    """A sheet, if it is there; of one that cannot be read the user hears."""
    try:
        return read_sheet(path) if path.exists() else None
    except P2PHDError as error:
        console.warn(f"{error}; the report goes without it")
        return None
