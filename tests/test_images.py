"""Sheets of pictures: what is laid out is found again, and nothing else is taken for one."""

from pathlib import Path

import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pix2pixhd_cli import images
from pix2pixhd_cli.data.pictures import PictureError
from pix2pixhd_cli.images import Sheet, read_sheet
from tests.conftest import read


def noise(chance: Generator, height: int, width: int) -> NDArray[np.uint8]:
    return chance.integers(0, 256, (height, width, 3), dtype=np.uint8)


def cell(sheet: Sheet, row: int, column: int) -> NDArray[np.uint8]:
    found = sheet.cell(row, column)
    assert found is not None
    return found


@pytest.mark.parametrize("scale", [1, 3])
def test_a_sheet_knows_its_pictures(tmp_path: Path, scale: int) -> None:
    chance = np.random.default_rng(1)
    rows: list[list[NDArray[np.uint8] | None]] = [
        [noise(chance, 9, 20), None, noise(chance, 30, 40)],
        [noise(chance, 12, 60)],
    ]
    names, captions = ["über", "unter"], [["a", "", "c"], ["d"]]
    images.grid(rows, ["one", "two"], names, scale, captions).save(tmp_path / "sheet.png")
    sheet = read_sheet(tmp_path / "sheet.png")
    assert np.array_equal(read(tmp_path / "sheet.png"), sheet.picture)
    assert sheet.places.columns == ("one", "two") and sheet.places.names == tuple(names)
    for n, row in enumerate(rows):
        for m, picture in enumerate(row):
            place = sheet.places.cells[n][m]
            if picture is None:
                assert sheet.cell(n, m) is None and place is None
            else:
                assert np.array_equal(cell(sheet, n, m), picture)
                assert place is not None and place.caption == captions[n][m]


def test_what_is_no_sheet(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    sheet = images.grid([[np.zeros((4, 4, 3), np.uint8)]])
    inside = sheet.places.model_dump_json()
    for note, why in (
        ("", "does not know"),
        ("[]", "does not know"),
        (inside.replace('"scale":1', '"scale":0'), "does not know"),
        (inside.replace('"left":4', '"left":9'), "lie outside"),
        (inside.replace('"left":4', '"left":-1'), "does not know"),
        (inside.replace('"height":4', '"height":0'), "lie outside"),
    ):
        text = PngInfo()
        text.add_itxt("p2phd", note)
        Image.fromarray(sheet.picture).save(path, pnginfo=text)
        with pytest.raises(PictureError, match=why):
            read_sheet(path)
