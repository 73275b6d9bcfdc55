"""Reading label maps, instance maps and photos strictly, and writing them.

Every reader takes `most`, the pixels that a picture may have, and compares before it decodes.

Pillow happily drops a 16-bit instance map to 8 bits or turns colours into ids; these readers refuse instead. Every
reader raises `PictureError`, which names the file and what is wrong with it.
"""

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from pix2pixhd_cli.data.arrays import DAMAGE
from pix2pixhd_cli.data.files import whole_file
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.settings import MOST_PIXELS

Image.MAX_IMAGE_PIXELS = None  # The readers here compare for themselves.
# What Pillow has to say of a damaged picture, beside raising, helps nobody.
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
logging.getLogger("PIL").setLevel(logging.CRITICAL)
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # All that is opened: others may start programs.
LOSSY = ("JPEG", "MPO", "WEBP")
JPEG_SCAN, MOST_SCANS = b"\xff\xda", 100  # Each scan goes over the whole picture; encoders make ten.
MOST_TILE = 1 << 20  # Pixels; a tile is unpacked whole, however small the picture.
INTEGER_MODES = ("1", "L", "P", "I;16", "I;16B", "I;16L", "I")
NOTE, IDS32 = "p2phd", "ids32"  # The name of our notes in a PNG, and the one that makes four channels an id.
# Pillow stretches grey levels of fewer than 8 bits to 0 … 255; dividing gives the ids back.
STRETCH = {"L;2": 85, "L;4": 17}


class PictureError(P2PHDError):
    """A picture file that cannot be used."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.path = path
        self.what = what


def read_label_map(path: Path, most: int = MOST_PIXELS) -> NDArray[np.uint16]:
    """Read class ids, uint16 [H, W]; palette pictures are read as indices."""
    with _opened(path, most) as picture:
        _refuse_lossy(path, picture, "a label map")
        if picture.mode not in INTEGER_MODES:
            raise PictureError(
                path,
                f"is a {picture.mode} picture, not a map of class ids; if its colours stand for classes, use --palette",
            )
        ids = _ids(path, picture)
        if ids.max(initial=0) >= 1 << 16:
            row, column = np.unravel_index((ids >= 1 << 16).argmax(), ids.shape)
            raise PictureError(
                path, f"id {ids[row, column]} at row {row}, column {column} is over 65535; is it an instance map?"
            )
        return ids.astype(np.uint16)


def read_colour_map(path: Path, most: int = MOST_PIXELS) -> NDArray[np.uint8]:
    """Read a label map drawn in colours, uint8 [H, W, 3]."""
    with _opened(path, most) as picture:
        _refuse_lossy(path, picture, "a label map")
        if picture.mode not in ("RGB", "RGBA", "P"):
            raise PictureError(path, f"is a {picture.mode} picture without colours; leave --palette out")
        return np.asarray(picture.convert("RGB"))


def read_instance_map(path: Path, most: int = MOST_PIXELS, *, deep: bool = False) -> NDArray[np.int32]:
    """Read instance ids, int32 [H, W]. `deep` refuses 8-bit files, in which Cityscapes' ids cannot be."""
    with _opened(path, most) as picture:
        _refuse_lossy(path, picture, "an instance map")
        if picture.mode == "RGBA" and picture.info.get(NOTE) == IDS32:
            return _checked(path, np.ascontiguousarray(np.asarray(picture)).view("<i4")[..., 0])
        if picture.mode not in INTEGER_MODES:
            raise PictureError(path, f"is a {picture.mode} picture, not a map of instance ids")
        if deep and picture.mode in ("1", "L", "P"):
            raise PictureError(path, "is an 8-bit picture: ids over 255 were lost; instance maps here need 16 bits")
        return _ids(path, picture).astype(np.int32)


def read_photo(path: Path, most: int = MOST_PIXELS) -> NDArray[np.uint8]:
    """Read an 8-bit RGB photo, uint8 [H, W, 3]."""
    with _opened(path, most) as picture:
        if "16" in _raw_mode(picture) or picture.mode in ("I", "I;16", "F"):
            raise PictureError(path, "has 16 bits per channel; save the photo with 8")
        if picture.mode != "RGB":
            channels = len(picture.getbands())
            raise PictureError(
                path, f"has {channels} channel{'s' * (channels > 1)} ({picture.mode}); a photo needs three (RGB)"
            )
        return np.asarray(picture)


def write_ids(path: Path, ids: NDArray[np.integer]) -> None:
    """Write ids [H, W] losslessly with as many bits as they need: a grey PNG of 8 or 16 bits, beyond that 32 in RGBA."""
    largest = int(ids.max(initial=0))
    if largest < 1 << 16:
        _write_png(path, Image.fromarray(ids.astype(np.uint8 if largest < 1 << 8 else np.uint16)))
        return
    picture = Image.fromarray(np.ascontiguousarray(ids.astype("<i4")).view(np.uint8).reshape(*ids.shape, 4), "RGBA")
    _write_png(path, picture, IDS32)


def read_noted(path: Path, most: int = MOST_PIXELS) -> tuple[NDArray[np.uint8], str]:
    """Read a picture, uint8 [H, W, 3], and the note that `write_picture` gave it; empty if there is none."""
    with _opened(path, most) as picture:
        return np.asarray(picture.convert("RGB")), str(picture.info.get(NOTE, ""))


def write_picture(path: Path, picture: NDArray[np.uint8], note: str = "") -> None:
    """Write uint8 [H, W] or [H, W, 3] as a PNG; the note is text in it that is not seen."""
    _write_png(path, Image.fromarray(picture), note)


def _write_png(path: Path, picture: Image.Image, note: str = "") -> None:
    notes = PngInfo()
    if note:
        notes.add_itxt(NOTE, note)
    with whole_file(path) as beside:
        picture.save(beside, format="PNG", compress_level=1, compress_type=zlib.Z_RLE, pnginfo=notes)


@contextmanager
def _opened(path: Path, most: int) -> Iterator[Image.Image]:
    """Open and decode a picture of `most` pixels or fewer; what Pillow raises becomes a `PictureError`."""
    if path.exists() and not path.is_file():
        raise PictureError(path, "is no file")
    try:
        picture = _decode(path, most)
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(path, "no such file") from None
    except UnidentifiedImageError:
        raise PictureError(path, "is not a picture that can be read") from None
    except (*DAMAGE, ZeroDivisionError, AssertionError) as error:
        raise PictureError(path, f"cannot be read, it is truncated or damaged ({error})") from None
    with picture:
        yield picture


def _decode(path: Path, most: int) -> Image.Image:
    with Image.open(path, formats=FORMATS) as picture:
        if picture.width * picture.height > most:
            what = f"is {picture.height}x{picture.width}, more than {most:,} pixels"
            raise PictureError(path, f"{what}; if that is right, raise --max-pixels")
        if picture.format == "PNG":
            _check_png(path)
        if picture.format == "TIFF" and _tile(picture) > max(picture.width * picture.height, MOST_TILE):
            raise ValueError("its tiles are much larger than it")
        if picture.format in ("JPEG", "MPO") and path.read_bytes().count(JPEG_SCAN) > MOST_SCANS:
            raise ValueError("it is made of too many scans")
        raw_mode = _raw_mode(picture)
        picture.load()
        picture.info["raw_mode"] = raw_mode
        return picture


def _tile(picture: Image.Image) -> int:
    """The pixels of a TIFF's tiles, 0 if it has none."""
    tags = getattr(picture, "tag_v2", {})
    return int(tags.get(322, 0)) * int(tags.get(323, 0))


def _check_png(path: Path) -> None:
    """Compare the checksum of every chunk: Pillow passes over those of pixels. Raises `ValueError`."""
    with path.open("rb") as file:
        file.seek(8)
        while head := file.read(8):
            (length,) = struct.unpack(">I", head[:4])
            if length > path.stat().st_size:
                raise ValueError("a part of it claims to be longer than the file")
            data, checksum = file.read(length), file.read(4)
            if zlib.crc32(head[4:] + data) != int.from_bytes(checksum, "big"):
                raise ValueError("a checksum in it is wrong")
            if head[4:] == b"IEND":
                return


def _raw_mode(picture: Image.Image) -> str:
    """How the file itself stores a pixel, such as `RGB;16B`; gone once the picture is loaded."""
    known = picture.info.get("raw_mode")
    tiles = getattr(picture, "tile", ())
    return str(known) if known is not None else " ".join(str(tile[3]) for tile in tiles)


def _refuse_lossy(path: Path, picture: Image.Image, what: str) -> None:
    if picture.format in LOSSY:
        raise PictureError(path, f"is a {picture.format} picture, which changes ids; {what} must be lossless (PNG)")


def _ids(path: Path, picture: Image.Image) -> NDArray[np.integer]:
    ids = np.asarray(picture)
    if stretched := STRETCH.get(_raw_mode(picture)):
        ids = ids.astype(np.int64) // stretched
    return ids if ids.dtype in (np.uint8, np.uint16) else _checked(path, ids)


def _checked(path: Path, ids: NDArray[Any]) -> NDArray[Any]:
    if ids.min(initial=0) < 0 or ids.max(initial=0) >= 1 << 31:
        raise PictureError(path, f"holds ids from {ids.min()} to {ids.max()}; they must lie within 0 … 2147483647")
    return ids
