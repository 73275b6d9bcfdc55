"""Pictures for people: colour maps, boundary lines, sheets of many. All arrays are uint8 RGB [H, W, 3]."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pix2pixhd_cli.data.labels import LabelClass, distinct_colour
from pix2pixhd_cli.data.pictures import PictureError, read_noted, write_picture

Picture = NDArray[np.uint8]
PAPER, INK, GAP, LINE = 255, (40, 40, 40), 4, 16
MOST_ON_A_SHEET = 1 << 28  # Pixels.
Side = Annotated[int, Field(ge=0, le=MOST_ON_A_SHEET)]


class Place(BaseModel):
    """Where a picture is on a sheet, in pixels, and what stands below it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top: Side
    left: Side
    height: Side
    width: Side
    caption: str = ""


class Places(BaseModel):
    """All pictures of a sheet by row and column. scale: a pixel of theirs has so many of the sheet, each way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: int = Field(ge=1)
    columns: tuple[str, ...]
    names: tuple[str, ...]
    cells: tuple[tuple[Place | None, ...], ...]


@dataclass(frozen=True)
class Sheet:
    """Pictures in rows, as one picture, uint8 [H, W, 3], and where each of them is."""

    picture: Picture
    places: Places

    def cell(self, row: int, column: int) -> Picture | None:
        """One of its pictures, of its own size; None for an empty cell."""
        place = self.places.cells[row][column]
        if place is None:
            return None
        bottom, right = place.top + place.height, place.left + place.width
        step = self.places.scale
        return self.picture[place.top : bottom : step, place.left : right : step]

    def save(self, path: Path) -> None:
        """Write it as a PNG that knows its places."""
        write_picture(path, self.picture, self.places.model_dump_json())


def read_sheet(path: Path) -> Sheet:
    """Read what `Sheet.save` wrote; raises `PictureError` for anything else."""
    picture, note = read_noted(path, MOST_ON_A_SHEET)
    try:
        places = Places.model_validate_json(note)
    except ValidationError:
        raise PictureError(path, "does not know where its pictures are; it was not made by this version") from None
    height, width = picture.shape[:2]
    for place in (place for row in places.cells for place in row if place is not None):
        if place.top + place.height > height or place.left + place.width > width or not place.height * place.width:
            raise PictureError(path, "is damaged: its pictures lie outside of it")
    return Sheet(picture, places)


def colour_labels(label: NDArray[np.integer], classes: Sequence[LabelClass]) -> Picture:
    """A label map [H, W] in its classes' colours; ids without a class are black. RGB inputs pass through."""
    if label.ndim == 3:
        return label.astype(np.uint8)
    size = max([int(label.max(initial=0)), *(c.id for c in classes)]) + 1
    table = np.zeros((size, 3), np.uint8)
    for c in classes:
        # Cityscapes draws its rare classes in black; any colour of their own tells more.
        table[c.id] = c.color if any(c.color) or not c.id else distinct_colour(c.id)
    return table[label]


def from_mask(mask: NDArray[np.bool_]) -> Picture:
    """A mask [H, W] as white on black."""
    return np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=-1)


def to_uint8(picture: NDArray[np.floating]) -> Picture:
    """Float [..., H, W, 3] in [-1, 1] to the nearest 8-bit level."""
    levels = np.add(picture, 1.0, dtype=np.float64)
    levels *= 127.5
    np.rint(levels, out=levels)
    return np.clip(levels, 0, 255, out=levels).astype(np.uint8)


def is_flat(picture: Picture) -> bool:
    """Whether it is of one colour, or all but black and white."""
    colours = picture.reshape(-1, 3)
    return bool(np.ptp(colours, 0).max() <= 2 or ((picture == 0) | (picture == 255)).mean() > 0.99)


def fit(picture: Picture, height: int, width: int, *, exact: bool = False) -> Picture:
    """Scale to height x width; `exact` keeps ids' colours unmixed."""
    method = Image.Resampling.NEAREST if exact else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((width, height), method))


def fit_width(picture: Picture, width: int) -> Picture:
    """Shrink or stretch to a width, keeping the ratio; enlarging is by nearest neighbour, so that pixels stay visible."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return fit(picture, height, width, exact=width >= picture.shape[1])


def grid(
    rows: Sequence[Sequence[Picture | None]],
    columns: Sequence[str] = (),
    names: Sequence[str] = (),
    scale: int = 1,
    captions: Sequence[Sequence[str]] = (),
) -> Sheet:
    """Lay pictures out in rows, with a heading per column, a name before each row, and captions below the pictures.

    None leaves a cell empty.
    """
    cells = [[_enlarge(cell, scale) for cell in row] for row in rows]
    font = ImageFont.load_default(12)
    margin = GAP + int(max((font.getlength(name) for name in names), default=-GAP)) + GAP
    lefts = _edges(margin, [[cell.shape[1] for cell in column if cell is not None] for column in zip_longest(*cells)])
    below = LINE if captions else 0
    heights = [[cell.shape[0] + below for cell in row if cell is not None] for row in cells]
    tops = _edges(GAP + (LINE if columns else 0), heights)
    sheet = Image.new("RGB", (lefts[-1], tops[-1]), (PAPER, PAPER, PAPER))
    draw = ImageDraw.Draw(sheet)
    for left, text in zip(lefts, columns, strict=False):
        draw.text((left, 2), text, fill=INK, font=font)
    for top, bottom, name in zip(tops, tops[1:], names, strict=False):
        draw.text((GAP, (top + bottom - GAP) // 2 - 7), name, fill=INK, font=font)
    texts = captions or [[""] * len(row) for row in cells]
    places = tuple(
        tuple(_put(sheet, cell, top, left, text) for cell, left, text in zip(row, lefts, said, strict=False))
        for row, top, said in zip(cells, tops, texts, strict=False)
    )
    return Sheet(np.asarray(sheet), Places(scale=scale, columns=tuple(columns), names=tuple(names), cells=places))


def _edges(first: int, lengths: Sequence[Sequence[int]]) -> list[int]:
    """Where rows or columns begin that hold pictures of such lengths, and where the sheet ends."""
    return list(accumulate((max(one, default=0) + GAP for one in lengths), initial=first))


def _enlarge(cell: Picture | None, scale: int) -> Picture | None:
    return cell if cell is None or scale == 1 else cell.repeat(scale, 0).repeat(scale, 1)


def _put(sheet: Image.Image, cell: Picture | None, top: int, left: int, caption: str) -> Place | None:
    """Put a picture on a sheet, if there is one, with its caption in a line as wide as itself."""
    if cell is None:
        return None
    height, width = cell.shape[:2]
    sheet.paste(Image.fromarray(cell), (left, top))
    if caption:
        line = Image.new("RGB", (width, LINE), (PAPER, PAPER, PAPER))
        ImageDraw.Draw(line).text((1, 1), caption, fill=INK, font=ImageFont.load_default(11))
        sheet.paste(line, (left, top + height))
    return Place(top=top, left=left, height=height, width=width, caption=caption)


def mosaic(pictures: Sequence[Picture], side: int, count: int) -> Picture:
    """Up to `count` pictures in a square of tiles as wide as `side`, each scaled to fit, the rest left white."""
    across = int(np.ceil(np.sqrt(count)))
    rows = []
    for start in range(0, count, across):
        tiles = [_fit_into(picture, side) for picture in pictures[start : min(start + across, count)]]
        row = np.full((max([1, *(tile.shape[0] for tile in tiles)]), across * side, 3), PAPER, np.uint8)
        for n, tile in enumerate(tiles):
            row[: tile.shape[0], n * side : n * side + tile.shape[1]] = tile
        rows.append(row)
    return np.concatenate(rows)


def _fit_into(picture: Picture, side: int) -> Picture:
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    return fit(picture, max(1, int(height * scale)), max(1, int(width * scale)), exact=scale > 1)
