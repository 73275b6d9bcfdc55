"""Class tables, palettes, remapping, connected components: everything about what ids mean."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pix2pixhd_cli.data.files import check_text
from pix2pixhd_cli.data.pictures import PictureError
from pix2pixhd_cli.errors import P2PHDError, check_regular
from pix2pixhd_cli.settings import MOST_PIXELS, MOST_SIDE, read_toml, whole_number

MAX_CLASSES = 1024
MAX_ID = 65535
MOST_EFFORT = 10**9  # Corners times rows, and pixels, of all polygons in a picture; Cityscapes' take a tenth of it.
FARTHEST = 1 << 20  # Pixels that a polygon may reach beyond its picture.


Level = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Level, Level, Level]
ClassName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(check_text)]


class LabelClass(BaseModel):
    """One class: `thing` says that it comes in instances (cars), not as stuff (sky)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int = Field(ge=0, lt=MAX_CLASSES)
    name: ClassName
    color: Colour
    thing: bool = False


def _cityscapes() -> tuple[LabelClass, ...]:
    stuff = """0 unlabeled 0 0 0;1 ego vehicle 0 0 0;2 rectification border 0 0 0;3 out of roi 0 0 0;4 static 0 0 0;
    5 dynamic 111 74 0;6 ground 81 0 81;7 road 128 64 128;8 sidewalk 244 35 232;9 parking 250 170 160;
    10 rail track 230 150 140;11 building 70 70 70;12 wall 102 102 156;13 fence 190 153 153;14 guard rail 180 165 180;
    15 bridge 150 100 100;16 tunnel 150 120 90;17 pole 153 153 153;18 polegroup 153 153 153;19 traffic light 250 170 30;
    20 traffic sign 220 220 0;21 vegetation 107 142 35;22 terrain 152 251 152;23 sky 70 130 180"""
    things = """24 person 220 20 60;25 rider 255 0 0;26 car 0 0 142;27 truck 0 0 70;28 bus 0 60 100;29 caravan 0 0 90;
    30 trailer 0 0 110;31 train 0 80 100;32 motorcycle 0 0 230;33 bicycle 119 11 32"""
    classes = []
    for text, thing in ((stuff, False), (things, True)):
        for line in text.split(";"):
            identity, *name, red, green, blue = line.split()
            color = (int(red), int(green), int(blue))
            classes.append(LabelClass(id=int(identity), name=" ".join(name), color=color, thing=thing))
    return tuple(classes)


CITYSCAPES = _cityscapes()
CITYSCAPES_LABELS = 35  # One-hot channels: the reference counts one more than there are ids.


def plain_classes(largest: int) -> tuple[LabelClass, ...]:
    """Classes 0 … `largest` called `class 17`, in colours that are easily told apart."""
    return tuple(LabelClass(id=n, name=f"class {n}", color=distinct_colour(n)) for n in range(largest + 1))


def distinct_colour(number: int) -> Colour:
    """A colour for a number, by bit reversal as in the PASCAL VOC palette; 0 is black."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= ((number >> (3 * bit + channel)) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]


def read_class_table(path: Path) -> tuple[LabelClass, ...]:
    """Read a class table.

    TOML: `[[classes]]` with `id`, `name`, and optionally `color = [r, g, b]` (or "#rrggbb") and `thing = true`. CSV: a
    header with `id`, `name` and optionally `color` (#rrggbb) or `r`, `g`, `b`, and `thing`. Raises `P2PHDError`.
    """
    try:
        toml = path.suffix.lower() == ".toml"
        rows = read_toml(path)["classes"] if toml else _read_csv(path)
        if len(rows) > MAX_CLASSES:
            raise ValueError(f"it has {len(rows)} classes, more than {MAX_CLASSES}")
        classes = tuple(sorted((_read_class(dict(row)) for row in rows), key=lambda c: c.id))
    except FileNotFoundError:
        raise P2PHDError(f"--classes {path}: no such file") from None
    except KeyError as error:
        raise P2PHDError(f"--classes {path}: {error} is missing; needed are id and name of every class") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise P2PHDError(f"--classes {path}: {where} {problem['input']!r}: {problem['msg']}") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise P2PHDError(f"--classes {path}: is no class table ({str(error).splitlines()[0]})") from None
    _check_classes(path, classes)
    return classes


def _read_csv(path: Path) -> list[dict[str, Any]]:
    check_regular(path)
    return list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))


def _read_class(row: dict[str, Any]) -> LabelClass:
    unknown = sorted(set(map(str, row)) - {"id", "name", "color", "r", "g", "b", "thing"})
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; known are id, name, color or r, g, b, and thing")
    identity = int(row["id"])
    colour = row.get("color") or ([row["r"], row["g"], row["b"]] if "r" in row else distinct_colour(identity))
    if isinstance(colour, str):
        digits = colour.removeprefix("#")
        if len(digits) != 6:
            raise ValueError(f"color {colour!r} of class {identity} is not #rrggbb")
        colour = [int(digits[n : n + 2], 16) for n in (0, 2, 4)]
    red, green, blue = map(int, colour)
    thing = str(row.get("thing", "")).strip().lower() in ("1", "true", "yes")
    return LabelClass(id=identity, name=str(row["name"] or "").strip(), color=(red, green, blue), thing=thing)


def _check_classes(path: Path, classes: Sequence[LabelClass]) -> None:
    if not classes:
        raise P2PHDError(f"--classes {path}: holds no class")
    for what in ("id", "name"):
        values = [getattr(c, what) for c in classes]
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise P2PHDError(f"--classes {path}: {what} {twice[0]!r} stands there twice")


def find_class(classes: Iterable[LabelClass], text: str) -> LabelClass | None:
    """The class of this name or, failing that, of this id."""
    table = list(classes)
    named = next((c for c in table if c.name == text), None)
    return named or next((c for c in table if str(c.id) == text), None)


def parse_remap(texts: Iterable[str]) -> dict[int, int]:
    """Read `OLD=NEW` pairs of ids; raises `P2PHDError`."""
    mapping = {}
    for text in texts:
        old, _, new = text.partition("=")
        ids = whole_number(old), whole_number(new)
        if ids[0] is None or ids[1] is None or max(ids[0], ids[1]) > MAX_ID:
            raise P2PHDError(f"--remap {text}: write OLD=NEW with two ids of 0 … {MAX_ID}, such as --remap 34=255")
        mapping[ids[0]] = ids[1]
    return mapping


def remap_ids(label: NDArray[np.uint16], mapping: dict[int, int]) -> NDArray[np.uint16]:
    """Replace ids, all at once: `{1: 2, 2: 1}` swaps."""
    if not mapping:
        return label
    table = np.arange(1 << 16, dtype=np.uint16)
    for old, new in mapping.items():
        table[old] = new
    return table[label]


class UnknownColours(Exception):
    """Pixels whose colour no class has: `count` of them in `colours` colours, first at (row, column)."""

    def __init__(self, count: int, colours: list[tuple[str, int]], row: int, column: int) -> None:
        shown = ", ".join(f"{name} ({pixels} pixels)" for name, pixels in colours[:3])
        more = f" and {len(colours) - 3} more colours" if len(colours) > 3 else ""
        super().__init__(f"{count} pixels have no class's colour: {shown}{more}; first at row {row}, column {column}")


def ids_from_colours(picture: NDArray[np.uint8], classes: Iterable[LabelClass]) -> NDArray[np.uint16]:
    """Turn a label map drawn in the table's colours, uint8 [H, W, 3], into ids; raises `UnknownColours`.

    Where two classes share a colour, the first in the table wins.
    """
    packed = picture.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    known: dict[int, int] = {}
    for c in classes:
        known.setdefault((c.color[0] << 16) | (c.color[1] << 8) | c.color[2], c.id)
    colours, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    unknown = np.array([int(colour) not in known for colour in colours])
    if unknown.any():
        bad = unknown[inverse].reshape(packed.shape)
        row, column = first_place(bad)
        listed = [(f"#{int(colours[n]):06x}", int(counts[n])) for n in np.flatnonzero(unknown)]
        raise UnknownColours(int(bad.sum()), sorted(listed, key=lambda entry: -entry[1]), int(row), int(column))
    table = np.array([known[int(colour)] for colour in colours], np.uint16)
    return table[inverse].reshape(packed.shape)


def first_place(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Row and column of the first pixel of a mask [H, W] that has one."""
    row, column = np.unravel_index(mask.argmax(), mask.shape)
    return int(row), int(column)


def components(label: NDArray[np.uint16], classes: Iterable[int]) -> NDArray[np.int32]:
    """Instance ids from a label map: 1024, 1025 … for the connected regions of `classes`, elsewhere the class id.

    Regions touch by their sides; they are numbered class by class, from top left.
    """
    from scipy import ndimage

    instance = label.astype(np.int32)
    following = MAX_CLASSES
    for identity in classes:
        regions, count = ndimage.label(label == identity)
        inside = regions > 0
        instance[inside] = regions[inside] - 1 + following
        following += count
    return instance


def read_polygons(
    path: Path, classes: Iterable[LabelClass], most: int = MOST_PIXELS
) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
    """Label and instance map from a file, as `draw_polygons` draws them; raises `PictureError`."""
    try:
        check_regular(path)
        return draw_polygons(json.loads(path.read_text(encoding="utf-8")), classes, most)
    except (OSError, ValueError, RecursionError) as error:
        raise PictureError(path, str(error)) from None


def draw_polygons(
    document: Any, classes: Iterable[LabelClass], most: int = MOST_PIXELS
) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
    """Label and instance map from a `*_gtFine_polygons.json`; raises `ValueError` for what it does not know.

    Objects are drawn in file order; `deleted` ones and the licence plate are skipped; a group takes its class's id; each
    thing takes `class * 1000 + k`, k counting from 0 per class; pixels never drawn are 0.
    """
    by_name = {c.name: c for c in classes}
    try:
        size = width, height = int(document["imgWidth"]), int(document["imgHeight"])
        if min(size) < 1 or max(size) > MOST_SIDE or width * height > most:
            raise ValueError(f"is {height}x{width}; pictures have one to {most:,} pixels, see --max-pixels")
        label, instance = Image.new("I", size, 0), Image.new("I", size, 0)
        counts: dict[str, int] = {}
        effort = 0
        for thing in document["objects"]:
            name = str(thing["label"])
            if thing.get("deleted") or name.startswith("license plate") or len(thing["polygon"]) < 3:
                continue
            group = name not in by_name and name.endswith("group")
            found = by_name.get(name.removesuffix("group") if group else name)
            if found is None:
                raise ValueError(f"object {name!r} is in no class table")
            identity = found.id
            if found.thing and not group:
                identity = found.id * 1000 + counts.get(found.name, 0)
                counts[found.name] = counts.get(found.name, 0) + 1
            outline = [(float(x), float(y)) for x, y in thing["polygon"]]
            if not all(abs(side) < FARTHEST for point in outline for side in point):
                raise ValueError(f"a corner of {name!r} is nowhere near the picture")
            effort += len(outline) * height + width * height // 8
            if effort > MOST_EFFORT:
                raise ValueError("has so many corners that it would take for ever to draw")
            ImageDraw.Draw(label).polygon(outline, fill=found.id)
            ImageDraw.Draw(instance).polygon(outline, fill=identity)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"is not a Cityscapes polygon file ({error})") from None
    return np.asarray(label).astype(np.uint16), np.asarray(instance).astype(np.int32)


class Tally(NamedTuple):
    """How many pixels each pair of instance and label has: three int64 [N]."""

    instance: NDArray[np.int64]
    label: NDArray[np.int64]
    pixels: NDArray[np.int64]


def tally(instance: NDArray[np.integer], label: NDArray[np.integer]) -> Tally:
    """Count pixels per (instance id, class id), both [H, W]; by runs, for these maps are nearly constant."""
    key = (instance.astype(np.int64).ravel() << 16) | label.astype(np.int64).ravel()
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    lengths = np.diff(np.append(starts, key.size))
    pairs, inverse = np.unique(key[starts], return_inverse=True)
    pixels = np.bincount(inverse, weights=lengths).astype(np.int64)
    return Tally(pairs >> 16, pairs & MAX_ID, pixels)


def shared_colours(classes: Iterable[LabelClass]) -> list[tuple[str, str]]:
    """Pairs of classes of one colour, which `ids_from_colours` cannot tell apart."""
    first: dict[Colour, str] = {}
    return [(kept, c.name) for c in classes if (kept := first.setdefault(c.color, c.name)) != c.name]


def majority_classes(counts: Tally) -> tuple[dict[int, int], int]:
    """The class under each instance by majority (the smaller id on a tie), and how many instances span classes."""
    order = np.lexsort((-counts.label, counts.pixels))
    classes = {int(counts.instance[n]): int(counts.label[n]) for n in order}
    spanning = int((np.unique(counts.instance, return_counts=True)[1] > 1).sum())
    return dict(sorted(classes.items())), spanning
