"""Pictures for people: colour maps, boundary lines, labelled grids. All arrays are uint8 RGB [H, W, 3]."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pix2pixhd_cli.data.labels import LabelClass, distinct_colour

Picture = NDArray[np.uint8]
PAPER, INK, GAP = 255, (40, 40, 40), 4


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
    rows: Sequence[Sequence[Picture | None]], columns: Sequence[str] = (), names: Sequence[str] = (), scale: int = 1
) -> Picture:
    """Lay pictures out in rows, with a heading per column and a name before each row; None leaves a cell empty."""
    cells = [[_enlarge(cell, scale) for cell in row] for row in rows]
    count = max(len(row) for row in cells)
    widths = [
        max((cell.shape[1] for row in cells for cell in row[n : n + 1] if cell is not None), default=0)
        for n in range(count)
    ]
    heights = [max((cell.shape[0] for cell in row if cell is not None), default=0) for row in cells]
    font = ImageFont.load_default(12)
    margin = GAP + int(max((font.getlength(name) for name in names), default=-GAP)) + GAP
    top = GAP + (16 if columns else 0)
    sheet = Image.new(
        "RGB", (margin + sum(widths) + GAP * count, top + sum(heights) + GAP * len(cells)), (PAPER, PAPER, PAPER)
    )
    draw = ImageDraw.Draw(sheet)
    lefts = [margin + sum(widths[:n]) + GAP * n for n in range(count)]
    for left, text in zip(lefts, columns, strict=False):
        draw.text((left, 2), text, fill=INK, font=font)
    for number, row in enumerate(cells):
        y = top + sum(heights[:number]) + GAP * number
        if number < len(names):
            draw.text((GAP, y + heights[number] // 2 - 7), names[number], fill=INK, font=font)
        for left, cell in zip(lefts, row, strict=False):
            if cell is not None:
                sheet.paste(Image.fromarray(cell), (left, y))
    return np.asarray(sheet)


def _enlarge(cell: Picture | None, scale: int) -> Picture | None:
    return cell if cell is None or scale == 1 else cell.repeat(scale, 0).repeat(scale, 1)


def caption(picture: Picture, text: str) -> Picture:
    """Add a line of text below a picture."""
    height, width = picture.shape[:2]
    sheet = Image.new("RGB", (width, height + 16), (PAPER, PAPER, PAPER))
    sheet.paste(Image.fromarray(picture), (0, 0))
    ImageDraw.Draw(sheet).text((1, height + 1), text, fill=INK, font=ImageFont.load_default(11))
    return np.asarray(sheet)


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
