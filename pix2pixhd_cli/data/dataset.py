"""A prepared data set: `dataset.json`, and its examples as arrays.

dataset/   dataset.json   SPLIT/{label,instance,boundary,photo}/STEM.png
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator

from pix2pixhd_cli.data.files import PlainName
from pix2pixhd_cli.data.labels import MAX_CLASSES, MAX_ID, LabelClass, find_class
from pix2pixhd_cli.data.pictures import PictureError, read_instance_map, read_label_map, read_photo
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.sealed import read_sealed
from pix2pixhd_cli.settings import MOST_PIXELS, MOST_SIDE

MOST_IGNORED = 256
MOST_WARNINGS = 100
InputKind = Literal["labels", "rgb"]


class ExampleEntry(BaseModel):
    """One example of a split: its stem, its sides, and its photo's suffix (None without a photo)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stem: PlainName
    height: int = Field(ge=1, le=MOST_SIDE)
    width: int = Field(ge=1, le=MOST_SIDE)
    photo: Literal[".png", ".jpg"] | None

    @model_validator(mode="after")
    def _check_pixels(self) -> Self:
        if self.height * self.width > MOST_PIXELS:
            raise ValueError(
                f"is {self.height}x{self.width}; prepared pictures have {MOST_PIXELS:,} pixels at the most"
            )
        return self


class DatasetSpec(BaseModel):
    """What is in a data set; a copy of it goes with the packed shards and with every run.

    classes: the class table, empty for RGB input.
    labels: one-hot channels; 0 for RGB input.
    ignored: ids that become an all-zero one-hot.
    has_instances: there are instance maps; without them, regions of a class are its only instance.
    splits: the examples of each split, sorted by stem.
    pixels, instances: per split, pixels and instances of each class id.
    warnings: what `prepare` found odd, and went on with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    input: InputKind = "labels"
    classes: Annotated[tuple[LabelClass, ...], FailFast()]
    labels: int = Field(ge=0, le=MAX_CLASSES)
    ignored: tuple[Annotated[int, Field(ge=0, le=MAX_ID)], ...] = Field(max_length=MOST_IGNORED)
    has_instances: bool
    splits: dict[PlainName, Annotated[tuple[ExampleEntry, ...], FailFast()]]
    pixels: dict[PlainName, dict[int, int]]
    instances: dict[PlainName, dict[int, int]] = {}
    warnings: tuple[str, ...] = Field((), max_length=MOST_WARNINGS)

    def entries(self, split: str) -> tuple[ExampleEntry, ...]:
        """The examples of a split; raises `P2PHDError` if there is no such split or it is empty."""
        if not self.splits.get(split):
            raise P2PHDError(f"there is no split {split!r} here; there are {', '.join(self.splits) or 'none'}")
        return self.splits[split]

    def class_named(self, text: str) -> LabelClass | None:
        """The class of this name or id."""
        return find_class(self.classes, text)

    def class_name(self, identity: int) -> str:
        """A class id's name, or the id itself where the table has none."""
        found = next((c for c in self.classes if c.id == identity), None)
        return found.name if found is not None else str(identity)


@dataclass(frozen=True)
class Example:
    """One pair.

    label: class ids, uint16 [H, W], or an RGB input, uint8 [H, W, 3].
    instance: instance ids, int32 [H, W]; the label map where there are no instances.
    photo: uint8 [H, W, 3], or None.
    codes: feature codes [C] of instances that bring theirs along, as those of the studio's scenes do.
    """

    stem: str
    label: NDArray[np.integer]
    instance: NDArray[np.int32]
    photo: NDArray[np.uint8] | None
    codes: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)


def read_spec(folder: Path) -> DatasetSpec:
    """Read `dataset.json` of a data set or a run; raises `P2PHDError`."""
    path = folder / "dataset.json"
    try:
        return read_sealed(path, DatasetSpec)
    except FileNotFoundError:
        raise P2PHDError(
            f"{folder}: no prepared data set here (dataset.json is missing); `p2phd prepare` makes one"
        ) from None


def map_path(dataset: Path, split: str, kind: Literal["label", "instance", "boundary"], stem: str) -> Path:
    """Where a data set keeps one of an example's maps."""
    return dataset / split / kind / f"{stem}.png"


def photo_path(dataset: Path, split: str, entry: ExampleEntry) -> Path | None:
    """Where a data set keeps an example's photo, if it has one."""
    return dataset / split / "photo" / f"{entry.stem}{entry.photo}" if entry.photo else None


def read_example(dataset: Path, spec: DatasetSpec, split: str, entry: ExampleEntry) -> Example:
    """Read one example whole; raises `PictureError`."""
    label_file = map_path(dataset, split, "label", entry.stem)
    photo_file = photo_path(dataset, split, entry)
    sides = (entry.height, entry.width)
    label = read_photo(label_file) if spec.input == "rgb" else read_label_map(label_file)
    instance_file = map_path(dataset, split, "instance", entry.stem)
    instance = read_instance_map(instance_file) if spec.has_instances else whole(label)
    photo = read_photo(photo_file) if photo_file is not None else None
    for path, array in ((label_file, label), (instance_file, instance), (photo_file, photo)):
        if path is not None and array is not None and array.shape[:2] != sides:
            raise PictureError(path, f"is not {sides[0]}x{sides[1]}, as dataset.json has it; prepare again")
    return Example(entry.stem, label, instance, photo)


def whole(label: NDArray[np.integer]) -> NDArray[np.int32]:
    """The instance map of an input without instances: its label map, or one instance under an RGB picture."""
    return label.astype(np.int32) if label.ndim == 2 else np.zeros(label.shape[:2], np.int32)
