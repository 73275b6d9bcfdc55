"""What was found of a checkpoint's pictures: rows of numbers, each with its protocol, as `RUN/evaluation/` keeps them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

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


def read_evaluations(run: Path) -> Sequence[Evaluation]:
    """All that were made of a run, by split and step; raises `P2PHDError` for a damaged one."""
    return [read_sealed(path, Evaluation) for path in sorted((run / FOLDER).glob("*-step-*.json"))]
