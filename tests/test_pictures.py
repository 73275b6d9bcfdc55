"""Strict readers: bits and ids survive, everything else is refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pix2pixhd_cli.data import pictures
from pix2pixhd_cli.data.files import whole_file, write_text
from pix2pixhd_cli.data.pictures import PictureError
from tests.conftest import save


def write_png(path: Path, width: int, bits: int, colour_type: int, row: bytes) -> None:
    """A PNG of one row, at depths that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, 1, bits, colour_type, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(row)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize("largest", [255, 65535, 2**31 - 1])
def test_ids_survive_at_any_depth(tmp_path: Path, largest: int) -> None:
    ids = np.random.default_rng(0).integers(0, largest, (5, 7), endpoint=True).astype(np.int32)
    ids[0, 0] = largest
    pictures.write_ids(tmp_path / "ids.png", ids)
    np.testing.assert_array_equal(pictures.read_instance_map(tmp_path / "ids.png"), ids)


def test_palette_pictures_are_read_as_indices(tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    picture = Image.fromarray(ids, "P")
    picture.putpalette([n for n in range(256) for _ in range(3)][::-1])
    picture.save(tmp_path / "p.png")
    np.testing.assert_array_equal(pictures.read_label_map(tmp_path / "p.png"), ids)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_is_not_stretched(tmp_path: Path, bits: int) -> None:
    row = {2: bytes([0, 0b00011011]), 4: bytes([0, 0x01, 0x2F])}[bits]
    write_png(tmp_path / "g.png", 4, bits, 0, row)
    expected = {2: [0, 1, 2, 3], 4: [0, 1, 2, 15]}[bits]
    assert pictures.read_label_map(tmp_path / "g.png").tolist() == [expected]


def test_16_bit_label_maps(tmp_path: Path) -> None:
    ids = np.array([[0, 300], [65535, 7]], np.uint16)
    np.testing.assert_array_equal(pictures.read_label_map(save(tmp_path / "l.png", ids)), ids)


def test_refusals(tmp_path: Path) -> None:
    rgb = save(tmp_path / "rgb.png", np.zeros((4, 4, 3), np.uint8))
    jpeg = save(tmp_path / "j.jpg", np.zeros((4, 4), np.uint8))
    grey = save(tmp_path / "grey.png", np.zeros((4, 4), np.uint8))
    deep = save(tmp_path / "deep.png", np.zeros((4, 4), np.uint16))
    with pytest.raises(PictureError, match=r"rgb.png: is a RGB picture.*--palette"):
        pictures.read_label_map(rgb)
    with pytest.raises(PictureError, match=r"j.jpg: is a JPEG picture"):
        pictures.read_label_map(jpeg)
    with pytest.raises(PictureError, match="8-bit"):
        pictures.read_instance_map(grey, deep=True)
    assert pictures.read_instance_map(grey).dtype == np.int32
    with pytest.raises(PictureError, match=r"1 channel \(L\)"):
        pictures.read_photo(grey)
    with pytest.raises(PictureError, match="16 bits"):
        pictures.read_photo(deep)
    with pytest.raises(PictureError, match="no such file"):
        pictures.read_photo(tmp_path / "none.png")


def test_a_16_bit_rgb_photo_is_not_read_as_8_bit(tmp_path: Path) -> None:
    write_png(tmp_path / "p.png", 2, 16, 2, bytes(13))
    with pytest.raises(PictureError, match="16 bits per channel"):
        pictures.read_photo(tmp_path / "p.png")


def test_truncated_pictures(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    path = save(tmp_path / "t.png", noise)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(PictureError, match=r"t.png: cannot be read, it is truncated"):
        pictures.read_photo(path)
    path.write_bytes(b"not a picture")
    with pytest.raises(PictureError, match="is not a picture"):
        pictures.read_photo(path)


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.txt") as beside:
        beside.write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    write_text(tmp_path / "sub" / "a.txt", "whole")
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["a.txt"]
