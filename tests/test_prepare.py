"""prepare: layouts, sizes, ids, instances, what is written, and what a second run does."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pix2pixhd_cli.boundary import boundary_map
from pix2pixhd_cli.data.dataset import DatasetSpec, read_example, read_spec
from pix2pixhd_cli.errors import DataProblems, Interrupted, P2PHDError
from pix2pixhd_cli.pipeline.prepare import prepare
from pix2pixhd_cli.settings import Settings
from tests.conftest import Command, read, save


def prepared(source: Path, **options: object) -> tuple[Path, DatasetSpec]:
    dataset = source.with_name("made")
    return dataset, prepare(source, dataset, Settings(prepare=options))


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Three pairs of 10x14 in the public code's folders, ids 0 … 4."""
    rng = np.random.default_rng(0)
    for n in range(3):
        ids = rng.integers(0, 5, (5, 7)).repeat(2, 0).repeat(2, 1).astype(np.uint8)
        save(tmp_path / "flat" / "train_label" / f"{n}.png", ids)
        save(tmp_path / "flat" / "train_img" / f"{n}.jpg", rng.integers(0, 255, (10, 14, 3)).astype(np.uint8))
    return tmp_path / "flat"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def interrupt(source: Path, **options: object) -> None:
    """Press Ctrl-C in the middle of preparing."""
    import pix2pixhd_cli.pipeline.prepare as module

    original, calls = module._convert, []

    def convert(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_convert", convert)
        with pytest.raises(Interrupted, match="the same command goes on"):
            prepared(source, **options)


def test_cityscapes(city: Path, dataset: Path) -> None:
    spec = read_spec(dataset)
    assert (spec.labels, spec.ignored, spec.has_instances, spec.input) == (35, (255,), True, "labels")
    assert [len(spec.splits[s]) for s in ("train", "val")] == [6, 3]
    for entry in spec.splits["train"]:
        example = read_example(dataset, spec, "train", entry)
        raw = city / "gtFine/train/toytown" / entry.stem
        np.testing.assert_array_equal(example.label, read(Path(f"{raw}_gtFine_labelIds.png")))
        np.testing.assert_array_equal(example.instance, read(Path(f"{raw}_gtFine_instanceIds.png")))
        photo = city / "leftImg8bit/train/toytown" / f"{entry.stem}_leftImg8bit.png"
        np.testing.assert_array_equal(example.photo, read(photo))
        boundary = read(dataset / "train" / "boundary" / f"{entry.stem}.png")
        np.testing.assert_array_equal(boundary, boundary_map(example.instance) * 255)
    pixels = sum(int((read(p) == 7).sum()) for p in (dataset / "train" / "label").iterdir())
    assert spec.pixels["train"][7] == pixels
    assert read(dataset / "contact_sheet.png").shape[2] == 3


def test_a_second_run_does_nothing_and_a_change_redoes_only_itself(city: Path, tmp_path: Path) -> None:
    source = tmp_path / "city"
    shutil.copytree(city, source)
    dataset, _ = prepared(source)
    first = {p: p.stat().st_mtime_ns for p in (dataset / "train").rglob("*.png")}
    before = snapshot(dataset)
    prepared(source)
    assert {p: p.stat().st_mtime_ns for p in (dataset / "train").rglob("*.png")} == first
    assert snapshot(dataset) == before
    changed = sorted((source / "leftImg8bit/train/toytown").iterdir())[2]
    save(changed, 255 - read(changed))
    prepared(source)
    redone = {p.stem for p, t in first.items() if p.stat().st_mtime_ns != t}
    assert redone == {"toytown_000002_000019"}
    for kind in ("labelIds", "instanceIds"):
        next((source / "gtFine/train/toytown").glob(f"*000003_000019_gtFine_{kind}.png")).unlink()
    (source / "leftImg8bit/train/toytown/toytown_000003_000019_leftImg8bit.png").unlink()
    _, spec = prepared(source)
    assert len(spec.splits["train"]) == 5
    assert not list(dataset.rglob("toytown_000003*"))


def test_an_interrupted_run_leaves_the_same_bytes(city: Path, tmp_path: Path) -> None:
    source = tmp_path / "city"
    shutil.copytree(city, source)
    interrupt(source)
    assert not (tmp_path / "made").exists()
    dataset, _ = prepared(source)
    again = tmp_path / "again"
    prepare(source, again)
    assert snapshot(dataset) == snapshot(again)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "city", "made"]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"width": 32}, (32, 32)),  # 16 rounds to the nearest multiple above zero
        ({"width": 128}, (64, 128)),
        ({"size": "96x64"}, (96, 64)),
        ({"width": 40, "multiple": 4}, (20, 40)),
        ({"width": 41, "multiple": 1}, (20, 41)),
        ({}, (32, 64)),
    ],
)
def test_sizes(city: Path, tmp_path: Path, options: dict[str, object], size: tuple[int, int]) -> None:
    source = tmp_path / "city"
    source.symlink_to(city)
    dataset, spec = prepared(source, limit=1, **options)
    entry = spec.splits["train"][0]
    assert (entry.height, entry.width) == size
    example = read_example(dataset, spec, "train", entry)
    assert example.label.shape == example.instance.shape == size == example.photo.shape[:2]  # type: ignore[union-attr]
    assert set(np.unique(example.label)) <= {7, 8, 11, 23, 26}


def test_rounding_is_said_aloud(city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(city, tmp_path / "made", Settings(prepare={"width": 100, "limit": 1}))
    assert "2 pictures 32x64 -> 64x96 (asked: 50x100; sides go to multiples of 32)" in capsys.readouterr().out


def test_limit_takes_the_first_of_each_split(city: Path, tmp_path: Path) -> None:
    source = tmp_path / "city"
    source.symlink_to(city)
    _, spec = prepared(source, limit=2)
    assert {s: [e.stem[-13:] for e in entries] for s, entries in spec.splits.items()} == {
        "train": ["000000_000019", "000001_000019"],
        "val": ["000000_000019", "000001_000019"],
    }


def test_flat_folders_without_a_class_table(flat: Path) -> None:
    dataset, spec = prepared(flat, layout="pix2pixhd", multiple=2, ignore_id=(4,))
    assert [c.name for c in spec.classes] == [f"class {n}" for n in range(4)]
    assert (spec.labels, spec.has_instances, spec.ignored) == (4, False, (4,))
    entry = spec.splits["train"][0]
    assert entry.photo == ".jpg"
    copied = dataset / "train" / "photo" / "0.jpg"
    assert copied.read_bytes() == (flat / "train_img" / "0.jpg").read_bytes(), "an unscaled JPEG is untouched"
    assert not (dataset / "train" / "instance").exists()


def test_instance_maps_and_components(flat: Path) -> None:
    for n in range(3):
        save(flat / "train_inst" / f"{n}.png", np.full((10, 14), n, np.uint16))
    _, spec = prepared(flat, layout="pix2pixhd", multiple=2, instances="components", component_class=("1", "3"))
    assert spec.has_instances
    example = read_example(flat.with_name("made"), spec, "train", spec.splits["train"][0])
    assert (example.instance[np.isin(example.label, [0, 2, 4])] < 5).all()
    assert (example.instance[np.isin(example.label, [1, 3])] >= 1024).all()


def test_what_may_be_a_mistake_is_told_and_kept(flat: Path, p2phd: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """Instances over several classes, and 255 as a class; `show` tells of them again."""
    ids = np.zeros((10, 14), np.uint8)
    ids[:, 9:], ids[0, 0] = 1, 255
    for n in range(3):
        save(flat / "train_inst" / f"{n}.png", np.full((10, 14), n, np.uint16))
    save(flat / "train_label" / "0.png", ids)
    dataset, spec = prepared(flat, layout="pix2pixhd", multiple=2, ignore_id=(9,))
    assert spec.warnings == (
        "id 255 is taken for a class; if it means nothing, add --ignore-id 255",
        "3 instances of several classes; each is taken for its majority class",
    )
    told = capsys.readouterr().err
    assert read_spec(dataset) == spec and sum(spec.instances["train"].values()) == 3 and spec.instances["train"][0] >= 1
    for warning in spec.warnings:
        assert f"warning: {warning}" in told and f"prepare warned: {warning}" in p2phd("show", dataset).out


def test_instances_none_and_maps(flat: Path) -> None:
    with pytest.raises(P2PHDError, match="--instances maps: there are none"):
        prepared(flat, layout="pix2pixhd", instances="maps")
    for n in range(3):
        save(flat / "train_inst" / f"{n}.png", np.full((10, 14), 40000 + n, np.uint16))
    _, spec = prepared(flat, layout="pix2pixhd", multiple=2, instances="none")
    assert not spec.has_instances
    dataset, spec = prepared(flat, layout="pix2pixhd", multiple=2)
    assert spec.has_instances
    assert (read_example(dataset, spec, "train", spec.splits["train"][1]).instance == 40001).all()


def test_pairs_with_a_class_table_and_colours(tmp_path: Path) -> None:
    source = tmp_path / "pairs"
    colours = np.zeros((32, 32, 3), np.uint8)
    colours[:16] = (10, 20, 30)
    for split in ("train", "val"):
        save(source / "masks" / split / "a.png", colours)
        save(source / "photos" / split / "a.png", colours)
    table = tmp_path / "t.csv"
    table.write_text("id,name,color\n0,ground,#000000\n5,roof,#0a141e\n")
    dataset, spec = prepared(source, layout="pairs", label_folder="masks", classes=table, palette=True)
    assert (list(spec.splits), spec.labels) == (["train", "val"], 6)
    assert np.unique(read(dataset / "val" / "label" / "a.png")).tolist() == [0, 5]


def test_rgb_to_rgb(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (32, 64, 3)).astype(np.uint8)
    for side in "AB":
        save(tmp_path / "src" / f"train_{side}" / "x.png", picture)
    dataset, spec = prepared(tmp_path / "src", layout="pix2pixhd")
    assert (spec.input, spec.labels, spec.classes) == ("rgb", 0, ())
    np.testing.assert_array_equal(read_example(dataset, spec, "train", spec.splits["train"][0]).label, picture)


def test_polygons_stand_in_for_missing_maps(tmp_path: Path) -> None:
    folder = tmp_path / "src" / "gtFine" / "val" / "town"
    folder.mkdir(parents=True)
    box = [[0, 0], [31, 0], [31, 31], [0, 31]]
    objects = [{"label": "road", "polygon": box}, {"label": "car", "polygon": [[4, 4], [9, 4], [9, 9], [4, 9]]}]
    document = {"imgWidth": 32, "imgHeight": 32, "objects": objects}
    (folder / "a_gtFine_polygons.json").write_text(json.dumps(document))
    dataset, spec = prepared(tmp_path / "src")
    entry = spec.splits["val"][0]
    assert entry.photo is None
    example = read_example(dataset, spec, "val", entry)
    assert np.unique(example.instance).tolist() == [7, 26000]
    assert np.unique(example.label).tolist() == [7, 26]


def test_all_problems_are_shown_and_nothing_is_written(city: Path, tmp_path: Path) -> None:
    source = tmp_path / "city"
    shutil.copytree(city, source)
    maps = sorted((source / "gtFine/train/toytown").glob("*labelIds.png"))
    photos = sorted((source / "leftImg8bit/train/toytown").iterdir())
    save(maps[0], np.zeros((32, 64, 3), np.uint8))
    bad = read(maps[1]).copy()
    bad[3, 5] = 99
    save(maps[1], bad)
    save(photos[2], np.zeros((16, 64, 3), np.uint8))
    photos[3].write_bytes(photos[3].read_bytes()[:500])
    save(maps[4].with_name(maps[4].name.replace("labelIds", "instanceIds")), np.zeros((32, 64), np.uint8))
    with pytest.raises(DataProblems) as caught:
        prepared(source)
    text = "\n".join(f"{p.where}: {p.what}" for p in caught.value.problems)
    assert len(caught.value.problems) == 5
    for part in (
        "gtFine/train/toytown/toytown_000000_000019_gtFine_labelIds.png: is a RGB picture",
        "toytown_000001_000019_gtFine_labelIds.png: id 99 at row 3, column 5 (1 pixels in all)",
        "toytown_000002_000019_leftImg8bit.png: is 16x64, but its label map is 32x64",
        "toytown_000003_000019_leftImg8bit.png: cannot be read",
        "toytown_000004_000019_gtFine_instanceIds.png: is an 8-bit picture",
    ):
        assert part in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["city"]


def test_leftovers_of_other_settings_never_reach_the_data_set(city: Path, tmp_path: Path) -> None:
    source = tmp_path / "city"
    shutil.copytree(city, source)
    dataset, _ = prepared(source, width=64)
    before = snapshot(dataset)
    interrupt(source, width=96)
    prepared(source, width=64)
    assert snapshot(dataset) == before


def test_a_file_lost_from_the_data_set_is_made_again_and_strangers_are_left_alone(city: Path, tmp_path: Path) -> None:
    source = tmp_path / "city"
    shutil.copytree(city, source)
    dataset, _ = prepared(source)
    before = snapshot(dataset)
    (dataset / "notes.txt").write_text("mine")
    next((dataset / "train" / "label").iterdir()).unlink()
    prepared(source)
    assert snapshot(dataset) == before | {"notes.txt": b"mine"}
    _, spec = prepared(source, width=128)
    assert (dataset / "notes.txt").exists() and spec.splits["train"][0].width == 128


def test_a_split_without_instance_maps_among_others_is_refused(flat: Path) -> None:
    for n in range(3):
        save(flat / "train_inst" / f"{n}.png", np.full((10, 14), n, np.uint16))
    save(flat / "val_label" / "9.png", np.zeros((10, 14), np.uint8))
    with pytest.raises(DataProblems) as caught:
        prepared(flat, layout="pix2pixhd", multiple=2)
    assert "has no instance map, but others have one" in caught.value.problems[0].what


def test_ignored_classes_take_no_channel(flat: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("id,name\n" + "".join(f"{n},c{n}\n" for n in (0, 1, 2, 3, 4, 255)))
    _, spec = prepared(flat, layout="pix2pixhd", multiple=2, classes=table)
    assert spec.labels == 5 and len(spec.classes) == 5


def test_splits_without_label_maps_are_left_out_aloud(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "city"
    shutil.copytree(city, source)
    save(source / "leftImg8bit/test/berlin/a_leftImg8bit.png", np.zeros((32, 64, 3), np.uint8))
    _, spec = prepared(source)
    assert list(spec.splits) == ["train", "val"]
    assert "test: 1 photos without any label map; this split is left out" in capsys.readouterr().err


def test_pairs_sorted_in_two_ways_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "src/labels/train/a.png", np.zeros((32, 32), np.uint8))
    save(tmp_path / "src/photos/a.png", np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(P2PHDError, match="holds pictures, but there are folders of splits too"):
        prepared(tmp_path / "src", layout="pairs")
    (tmp_path / "src/photos/a.png").rename(tmp_path / "src/labels/b.png")
    with pytest.raises(P2PHDError, match="nope: no such folder; name it with --instance-folder"):
        prepared(tmp_path / "src", layout="pairs", instance_folder="nope")
