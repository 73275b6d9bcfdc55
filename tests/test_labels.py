"""What ids mean: class tables, palettes, remapping, components, polygons, tallies."""

from pathlib import Path

import numpy as np
import pytest

from pix2pixhd_cli.data import labels
from pix2pixhd_cli.errors import P2PHDError


def test_cityscapes_table() -> None:
    by_name = {c.name: c for c in labels.CITYSCAPES}
    assert [c.id for c in labels.CITYSCAPES] == list(range(34))
    assert by_name["road"].id == 7 and by_name["car"].color == (0, 0, 142)
    assert {c.name for c in labels.CITYSCAPES if c.thing} == {
        "person", "rider", "car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle",
    }  # fmt: skip


def test_class_tables(tmp_path: Path) -> None:
    toml, csv = tmp_path / "t.toml", tmp_path / "t.csv"
    toml.write_text(
        '[[classes]]\nid = 1\nname = "car"\ncolor = [1, 2, 255]\nthing = true\n[[classes]]\nid = 0\nname = "sky"\n'
    )
    csv.write_text("id,name,color,thing\n1,car,#0102ff,yes\n0,sky,#000000,\n")
    assert labels.read_class_table(toml) == labels.read_class_table(csv)
    csv.write_text("id,name,r,g,b\n1,car,1,2,255\n")
    assert labels.read_class_table(csv)[0].color == (1, 2, 255)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "id,colour\n1,red\n", "unknown key 'colour'"),
        ("t.csv", "id\n1\n", "'name' is missing"),
        ("t.csv", "id,name,r,g,b\n1,a,300,0,0\n", "color.0 300: Input should be less than or equal to 255"),
        ("t.csv", "id,name\n1,\n", "should have at least 1 character"),
        ("t.csv", "id,name\n1,a\n1,b\n", "id 1 stands there twice"),
        ("t.csv", "id,name\n1,a\n2,a\n", "name 'a' stands there twice"),
        ("t.csv", "id,name\n-1,a\n", "id -1: Input should be greater than or equal to 0"),
        ("t.csv", "id,name\nx,a\n", "invalid literal"),
        ("t.csv", "id,name\n", "holds no class"),
        ("t.csv", "id,name,color\n1,a,red\n", "#rrggbb"),
        ("t.toml", "classes", "t.toml"),
        ("t.toml", "[[klasses]]\nid = 1", "'classes' is missing"),
    ],
)
def test_bad_class_tables(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(P2PHDError, match=message):
        labels.read_class_table(path)


def test_remap_is_simultaneous() -> None:
    ids = np.array([[1, 2, 3]], np.uint16)
    assert labels.remap_ids(ids, labels.parse_remap(["1=2", "2=1"])).tolist() == [[2, 1, 3]]
    with pytest.raises(P2PHDError, match="--remap 1:2"):
        labels.parse_remap(["1:2"])


def test_colours_become_ids() -> None:
    picture = np.zeros((2, 3, 3), np.uint8)
    picture[0, 0] = (128, 64, 128)
    picture[1, 2] = (70, 130, 180)
    picture[picture.sum(-1) == 0] = (0, 0, 142)
    assert labels.ids_from_colours(picture, labels.CITYSCAPES).tolist() == [[7, 26, 26], [26, 26, 23]]


def test_unknown_colours_are_counted_and_placed() -> None:
    picture = np.full((2, 3, 3), (128, 64, 128), np.uint8)
    picture[0, 2] = picture[1, 1] = (1, 2, 3)
    picture[1, 2] = (9, 9, 9)
    with pytest.raises(
        labels.UnknownColours, match=r"3 pixels .*#010203 \(2 pixels\), #090909 \(1 pixels\); first at row 0, column 2"
    ):
        labels.ids_from_colours(picture, labels.CITYSCAPES)


def test_components() -> None:
    ids = np.array([[1, 0, 1], [1, 0, 0], [0, 1, 2]], np.uint16)
    assert labels.components(ids, [1]).tolist() == [[1024, 0, 1025], [1024, 0, 0], [0, 1026, 2]]
    assert labels.components(ids, [0, 1]).tolist() == [[1026, 1024, 1027], [1026, 1024, 1024], [1025, 1028, 2]]


def test_polygons() -> None:
    def square(label: str, x: int, **more: object) -> dict[str, object]:
        return {"label": label, "polygon": [[x, 0], [x + 1, 0], [x + 1, 9], [x, 9]], **more}

    document = {
        "imgWidth": 14,
        "imgHeight": 10,
        "objects": [
            {"label": "road", "polygon": [[0, 0], [11, 0], [11, 9], [0, 9]]},
            square("car", 0),
            square("car", 2, deleted=1),
            square("cargroup", 4),
            square("car", 6),
            square("license plate", 6),
            square("person", 8),
        ],
    }
    label, instance = labels.draw_polygons(document, labels.CITYSCAPES)
    assert label[5].tolist() == [26, 26, 7, 7, 26, 26, 26, 26, 24, 24, 7, 7, 0, 0]
    assert instance[5].tolist() == [26000, 26000, 7, 7, 26, 26, 26001, 26001, 24000, 24000, 7, 7, 0, 0]
    with pytest.raises(ValueError, match="'dragon' is in no class table"):
        labels.draw_polygons({**document, "objects": [square("dragon", 0)]}, labels.CITYSCAPES)
    with pytest.raises(ValueError, match="not a Cityscapes polygon file"):
        labels.draw_polygons({"objects": []}, labels.CITYSCAPES)


def test_tally_and_majority() -> None:
    rng = np.random.default_rng(0)
    instance, label = rng.integers(0, 5, (20, 30)), rng.integers(0, 3, (20, 30))
    counts = labels.tally(instance, label)
    for i, c, n in zip(*counts, strict=True):
        assert n == ((instance == i) & (label == c)).sum()
    classes, spanning = labels.majority_classes(counts)
    assert spanning == 5
    assert classes == {i: int(np.bincount(label[instance == i]).argmax()) for i in range(5)}
    tie = labels.majority_classes(labels.tally(np.zeros((1, 2), int), np.array([[4, 3]])))
    assert tie == ({0: 3}, 1)
