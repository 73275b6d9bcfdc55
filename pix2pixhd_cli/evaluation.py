"""What was found of a checkpoint's pictures: rows of numbers, each with its protocol, as `RUN/evaluation/` keeps them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from pix2pixhd_cli.data.files import remove, write_text
from pix2pixhd_cli.images import Sheet
from pix2pixhd_cli.sealed import read_sealed, seal

FOLDER = "evaluation"
Codes = Literal["photo", "sampled", "none", "real"]


class Frozen(BaseModel):
    """What does not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(Frozen):
    """One number.

    metric: its name, with its unit. codes: of the pictures: found in the photo by the encoder, sampled from the styles, none
    (zero, or no encoder); `real` stands for the photos themselves. deviation: its standard deviation, where it is an estimate.
    better: which way. by_class: what it is the mean of, if of classes. protocol: all that another number must have in common
    to be compared with it.
    """

    metric: str
    codes: Codes
    value: float
    deviation: float | None = None
    better: Literal["higher", "lower", ""] = ""
    by_class: dict[str, float] = {}
    protocol: dict[str, str]

    @property
    def shown(self) -> str:
        """The number, with its deviation."""
        return f"{self.value:.4g}" + (f" ± {self.deviation:.2g}" if self.deviation is not None else "")

    @property
    def shown_protocol(self) -> str:
        """How it was found, in a line; the file has checksums whole."""
        return ", ".join(f"{name} {text[:12] if name == 'sha256' else text}" for name, text in self.protocol.items())


class Confusion(Frozen):
    """Pixels by what they are and what they were seen as, in the order of `classes`; the last of each row is something else."""

    codes: Codes
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class Evaluation(Frozen):
    """A checkpoint's numbers on a split.

    step: of the training. model: what tells its weights from others. averaged: the averaged generator painted. arguments: what
    `p2phd evaluate RUN` takes to find the same. examples: PSNR by stem, of the first codes. left_out: what has no row, with the
    flag or command that would add it.
    """

    version: str
    step: int
    model: str
    averaged: bool
    split: str
    data: str
    arguments: tuple[str, ...] = ()
    rows: tuple[Row, ...]
    confusions: tuple[Confusion, ...] = ()
    examples: dict[str, float] = {}
    left_out: dict[str, str] = {}

    def path(self, run: Path, kind: Literal[".json", ".png", "-strips.png"] = ".json") -> Path:
        """Where a run keeps it, its sheet of pictures, and its strips of styles."""
        return run / FOLDER / f"{self.split}-step-{self.step:08d}{kind}"

    def save(self, run: Path, sheet: Sheet, strips: Sheet | None = None) -> Path:
        """Write it into the run, with a sheet of pictures beside it and, if there are any, strips of styles."""
        remove(self.path(run, "-strips.png"))
        sheet.save(self.path(run, ".png"))
        if strips is not None:
            strips.save(self.path(run, "-strips.png"))
        write_text(self.path(run), seal(self.model_dump(mode="json")))
        return self.path(run)


class Line(NamedTuple):
    """A number of several evaluations. rows: it, as each of them has it. best: which of them has the best, if one can tell."""

    metric: str
    codes: Codes
    rows: tuple[Row | None, ...]
    best: int | None

    @property
    def shown(self) -> list[str]:
        """Each value, the best one with a star."""
        stars = [" *" if n == self.best else "" for n in range(len(self.rows))]
        return [row.shown + star if row is not None else "" for row, star in zip(self.rows, stars, strict=True)]


def side_by_side(found: Sequence[Evaluation]) -> list[Line]:
    """Every number that an evaluation has; there is no best one of those found by other protocols or on other examples."""
    lines = []
    for metric, codes in dict.fromkeys((row.metric, row.codes) for one in found for row in one.rows):
        rows = [next((r for r in one.rows if (r.metric, r.codes) == (metric, codes)), None) for one in found]
        known = {n: row for n, row in enumerate(rows) if row is not None}
        first = next(iter(known.values()))
        alike = all(row.protocol == first.protocol and found[n].data == found[0].data for n, row in known.items())
        sign, best = {"higher": 1, "lower": -1, "": 0}[first.better], None
        if sign and alike and codes != "real" and len(known) > 1:
            ranks = {n: sign * row.value for n, row in known.items()}
            leaders = [n for n, rank in ranks.items() if rank == max(ranks.values())]
            best = leaders[0] if len(leaders) == 1 else None
        lines.append(Line(metric, codes, tuple(rows), best))
    return lines


def read_evaluations(run: Path) -> Sequence[Evaluation]:
    """All that were made of a run, by split and step; raises `P2PHDError` for a damaged one."""
    return [read_sealed(path, Evaluation) for path in sorted((run / FOLDER).glob("*-step-*.json"))]
