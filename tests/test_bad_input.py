"""What users get wrong: each mistake ends in one clear line with the file or flag and the way out, and leaves nothing behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Command, read, save

Breaker = Callable[[Path], None]


def maps(city: Path, kind: str, split: str = "train") -> list[Path]:
    return sorted((city / "gtFine" / split).glob(f"*/*_{kind}.png"))


def photos(city: Path, split: str = "train") -> list[Path]:
    return sorted((city / "leftImg8bit" / split).glob("*/*"))


def size_mismatch(city: Path) -> None:
    save(photos(city)[0], np.zeros((30, 64, 3), np.uint8))


def instance_size_mismatch(city: Path) -> None:
    save(maps(city, "instanceIds")[0], np.zeros((32, 60), np.uint16))


def id_out_of_range(city: Path) -> None:
    ids = read(maps(city, "labelIds")[0]).copy()
    ids[2, 3] = 77
    save(maps(city, "labelIds")[0], ids)


def largest_id(city: Path) -> None:
    label = np.full((32, 64), 7, np.uint16)
    label[2, 3] = 65535
    save(maps(city, "labelIds")[0], label)


def instance_map_as_label_map(city: Path) -> None:
    shutil.copy(maps(city, "instanceIds")[0], maps(city, "labelIds")[0])


def rgb_label(city: Path) -> None:
    save(maps(city, "labelIds")[0], np.zeros((32, 64, 3), np.uint8))


def jpeg_label(city: Path) -> None:
    path = maps(city, "labelIds")[0]
    save(path.with_suffix(".jpg"), np.zeros((32, 64), np.uint8)).rename(path)


def shallow_instances(city: Path) -> None:
    save(maps(city, "instanceIds")[0], np.zeros((32, 64), np.uint8))


def truncated_png(city: Path) -> None:
    photos(city)[0].write_bytes(photos(city)[0].read_bytes()[:-400])


def empty_file(city: Path) -> None:
    photos(city)[0].write_bytes(b"")


def deep_photo(city: Path) -> None:
    save(photos(city)[0], np.zeros((32, 64), np.uint16))


def grey_photo(city: Path) -> None:
    save(photos(city)[0], np.zeros((32, 64), np.uint8))


def label_without_photo(city: Path) -> None:
    photos(city)[0].unlink()


def photo_without_label(city: Path) -> None:
    maps(city, "labelIds", "val")[0].unlink()


def label_without_instances(city: Path) -> None:
    maps(city, "instanceIds")[0].unlink()


def empty_split(city: Path) -> None:
    for path in [*maps(city, "labelIds", "val"), *maps(city, "instanceIds", "val"), *photos(city, "val")]:
        path.unlink()


@pytest.mark.parametrize(
    ("breaker", "file", "message"),
    [
        (size_mismatch, "000000_000019_leftImg8bit.png", "is 30x64, but its label map is 32x64"),
        (instance_size_mismatch, "000000_000019_gtFine_instanceIds.png", "is 32x60, but its label map is 32x64"),
        (
            id_out_of_range,
            "000000_000019_gtFine_labelIds.png",
            "id 77 at row 2, column 3 (1 pixels in all) is in no class table",
        ),
        (largest_id, "000000_000019_gtFine_labelIds.png", "id 65535 at row 2, column 3 (1 pixels in all)"),
        (instance_map_as_label_map, "000000_000019_gtFine_labelIds.png", "is it an instance map?"),
        (rgb_label, "000000_000019_gtFine_labelIds.png", "is a RGB picture, not a map of class ids"),
        (jpeg_label, "000000_000019_gtFine_labelIds.png", "is a JPEG picture, which changes ids"),
        (shallow_instances, "000000_000019_gtFine_instanceIds.png", "is an 8-bit picture"),
        (truncated_png, "000000_000019_leftImg8bit.png", "truncated or damaged"),
        (empty_file, "000000_000019_leftImg8bit.png", "is not a picture that can be read"),
        (deep_photo, "000000_000019_leftImg8bit.png", "has 16 bits per channel"),
        (grey_photo, "000000_000019_leftImg8bit.png", "has 1 channel (L); a photo needs three"),
        (label_without_photo, "000000_000019_gtFine_labelIds.png", "label map without a photo"),
        (photo_without_label, "000000_000019_leftImg8bit.png", "photo without a label map"),
        (label_without_instances, "000000_000019_gtFine_labelIds.png", "no instance map has the stem"),
        (empty_split, "val", "this split is empty"),
    ],
)
def test_prepare_refuses(p2phd: Command, city: Path, tmp_path: Path, breaker: Breaker, file: str, message: str) -> None:
    source = tmp_path / "city"
    shutil.copytree(city, source)
    breaker(source)
    outcome = p2phd("prepare", source, tmp_path / "made")
    assert outcome.code == 1
    line = next(line for line in outcome.err.splitlines() if message in line)
    assert file in line
    assert outcome.err.splitlines()[-1].startswith("error:") and "nothing was written" in outcome.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["city"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "{tmp}/nowhere", "{tmp}/made"], "nowhere: no such folder"),
        (["prepare", "{tmp}", "{tmp}/made"], "no folder gtFine here; is it a Cityscapes tree? See --layout"),
        (["prepare", "{tmp}", "{tmp}/made", "--layout", "pix2pixhd"], "no folder SPLIT_label or SPLIT_A"),
        (
            ["prepare", "{tmp}", "{tmp}/made", "--layout", "pairs"],
            "labels: no such folder; name it with --label-folder",
        ),
        (["prepare", "{city}", "{tmp}/made", "--width", "64", "--size", "32x64"], "--width and --size"),
        (["prepare", "{city}", "{tmp}/made", "--remap", "7"], "--remap 7: write OLD=NEW"),
        (["prepare", "{city}", "{tmp}/made", "--classes", "{tmp}/no.toml"], "--classes {tmp}/no.toml: no such file"),
        (
            ["prepare", "{city}", "{tmp}/made", "--instances", "components", "--component-class", "ufo"],
            "--component-class ufo",
        ),
        (["prepare", "{city}", "{city}"], "{city}: holds other files"),
        (["prepare", "{city}", "{tmp}/small.png/sub"], "small.png"),
        (["prepare", "{city}", "."], ".: holds other files"),
        (
            ["prepare", "{city}", "{tmp}/made", "--remap", "7=70000"],
            "--remap 7=70000: write OLD=NEW with two ids of 0 … 65535",
        ),
        (["pack", "{dataset}", "{tmp}/small.png"], "small.png: holds other files"),
        (["train", "{packed}", "{tmp}/small.png"], "small.png"),
        (["generate", "{run}", "{dataset}/val/label", "{dataset}/val/label"], "would be painted over, and is an input"),
        (["pack", "{tmp}", "{tmp}/made"], "no prepared data set here"),
        (["pack", "{dataset}", "{tmp}/made", "--split", "test"], "there is no split 'test' here; there are train, val"),
        (["pack", "{dataset}", "{city}"], "{city}: holds other files"),
        (["train", "{tmp}/nowhere", "{tmp}/made"], "nowhere: no packed data set here (pack.json is missing)"),
        (["train", "{dataset}", "{tmp}/made"], "this is a data set, `p2phd pack` it first"),
        (
            ["train", "{packed}", "{tmp}/made", "--split", "test"],
            "there is no split 'test' here; packed are train, val",
        ),
        (["train", "{packed}", "{tmp}/made", "--generator-downsamplings", "6"], "cannot be halved 6 times"),
        (["train", "{packed}", "{tmp}/made", "--crop", "64x64"], "--crop 64x64: larger than a picture of 32x64"),
        (["train", "{packed}", "{run}"], "a run is here already; go on with --resume"),
        (["train", "{packed}", "{tmp}/made", "--resume"], "no trained run here"),
        (["encode", "{tmp}"], "no trained run here (settings.json is missing)"),
        (["encode", "{run}", "{tmp}/nowhere"], "nowhere: no packed data set here"),
        (["cluster", "{tmp}"], "no trained run here"),
        (["cluster", "{run}", "--name", "road:99=x"], "--name road:99=x: road has styles 0"),
        (["generate", "{tmp}", "{dataset}", "{tmp}/out"], "no trained run here"),
        (["generate", "{run}", "{tmp}/nowhere", "{tmp}/out"], "nowhere: no such file or folder"),
        (["generate", "{run}", "{tmp}/empty", "{tmp}/out"], "empty: no label maps here"),
        (["generate", "{run}", "{dataset}", "{tmp}/out", "--split", "test"], "there is no split 'test' here"),
        (["generate", "{run}", "{dataset}", "{tmp}/out", "--feature-code", "dragon=1"], "there is no class 'dragon'"),
        (
            ["generate", "{run}", "{dataset}", "{tmp}/out", "--feature-code", "car=99"],
            "--feature-code car=99: there is no style '99'; there are 0",
        ),
        (
            ["generate", "{run}", "{dataset}", "{tmp}/out", "--feature-code", "26000=99"],
            "--feature-code 26000=99: there is no style '99'",
        ),
        (
            ["generate", "{run}", "{dataset}", "{tmp}/out", "--all-codes", "dragon"],
            "--all-codes dragon: there is no class",
        ),
        (["generate", "{run}", "{label}", "{tmp}/out", "--feature-code", "car=photo"], "has no photo"),
        (["generate", "{run}", "{label}", "{tmp}/out", "--feature-gain", "0.5"], "has no photo"),
        (
            ["generate", "{run}", "{label}", "{tmp}/out", "--instance-map", "{tmp}/no.png"],
            "--instance-map {tmp}/no.png: no such file",
        ),
        (["generate", "{run}", "{label}", "{tmp}/out", "--instance-map", "{tmp}/empty"], "nothing here has the stem"),
        (
            ["generate", "{run}", "{label}", "{tmp}/out", "--instance-map", "{tmp}/small.png"],
            "small.png: is not of its label map's size",
        ),
        (["generate", "{run}", "{tmp}/small.png", "{tmp}/out"], "small.png: id 99 at row 0, column 0 is no class of"),
        (["generate", "{run}", "{dataset}", "{label}"], "is a file; name a folder"),
    ],
)
def test_one_line_and_exit_one(
    p2phd: Command,
    city: Path,
    dataset: Path,
    packed: Path,
    run: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    save(tmp_path / "small.png", np.full((8, 8), 99, np.uint8))
    label = dataset / "val" / "label" / "toyville_000000_000019.png"
    names = {"tmp": tmp_path, "city": city, "dataset": dataset, "packed": packed, "run": run, "label": label}
    before = sorted(tmp_path.rglob("*"))
    outcome = p2phd(*(argument.format(**names) for argument in arguments))
    assert outcome.code == 1, outcome
    errors = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and outcome.err.splitlines()[-1] == errors[0]
    assert message.format(**names) in errors[0]
    assert sorted(tmp_path.rglob("*")) == before, "nothing half-written stays"


def test_a_code_for_an_absent_class_is_a_warning(p2phd: Command, run: Path, tmp_path: Path) -> None:
    save(tmp_path / "labels" / "x.png", np.full((32, 64), 7, np.uint8))
    outcome = p2phd("generate", run, tmp_path / "labels", tmp_path / "out", "--feature-code", "car=0")
    assert outcome.code == 0
    assert "warning: --feature-code car=0: nothing to apply it to in x" in outcome.err
    assert (tmp_path / "out" / "x.png").exists()


def test_a_run_without_a_model(p2phd: Command, run: Path, dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    outcome = p2phd("generate", tmp_path / "run", dataset, tmp_path / "out")
    assert (
        outcome.code == 1
        and "has no trained model yet (generator.weights.h5 is missing); train it first" in outcome.err
    )
    assert not (tmp_path / "out").exists()


def test_a_run_without_an_encoder(p2phd: Command, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "settings.json"
    settings = json.loads(path.read_text())
    settings["encoder"]["enabled"] = False
    path.write_text(json.dumps(settings))
    outcome = p2phd("encode", tmp_path / "run")
    assert outcome.code == 1 and "was trained without an encoder" in outcome.err


def test_packed_data_of_other_classes(p2phd: Command, run: Path, city: Path, tmp_path: Path) -> None:
    p2phd("prepare", city, tmp_path / "ds", "--ignore-id", "255", "--ignore-id", "26")
    p2phd("pack", tmp_path / "ds", tmp_path / "packed")
    for verb in (["encode", run, tmp_path / "packed"], ["train", tmp_path / "packed", run, "--resume"]):
        outcome = p2phd(*verb)
        assert outcome.code == 1
        assert "its ignored differ from those that" in outcome.err
    assert "its ignored differ" in p2phd("generate", run, tmp_path / "ds", tmp_path / "out").err


def test_training_on_a_split_without_photos(p2phd: Command, city: Path, tmp_path: Path) -> None:
    source = tmp_path / "city"
    shutil.copytree(city, source)
    shutil.rmtree(source / "leftImg8bit")
    prepared = p2phd("prepare", source, tmp_path / "ds")
    assert prepared.code == 0 and "train: 6 examples, no photos" in prepared.out
    p2phd("pack", tmp_path / "ds", tmp_path / "packed")
    outcome = p2phd("train", tmp_path / "packed", tmp_path / "run")
    assert outcome.code == 1 and "6 examples of 'train' have no photo, the first is toytown_000000" in outcome.err
    assert not (tmp_path / "run").exists()


def test_pictures_of_different_sizes(p2phd: Command, tmp_path: Path) -> None:
    for n, side in enumerate((64, 96)):
        save(tmp_path / "src/train_label" / f"{n}.png", np.zeros((64, side), np.uint8))
        save(tmp_path / "src/train_img" / f"{n}.png", np.zeros((64, side, 3), np.uint8))
    p2phd("prepare", tmp_path / "src", tmp_path / "ds", "--layout", "pix2pixhd")
    p2phd("pack", tmp_path / "ds", tmp_path / "packed")
    outcome = p2phd("train", tmp_path / "packed", tmp_path / "run", "--batch-size", 2)
    assert outcome.code == 1 and "2 different sizes (64x64, 64x96 …); use --batch-size 1, --crop" in outcome.err


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_damaged_shard(p2phd: Command, packed: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(packed, tmp_path / "packed")
    shard = next((tmp_path / "packed").glob("train*"))
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-10])
    outcome = p2phd("train", tmp_path / "packed", tmp_path / "run")
    assert outcome.code == 1 and f"{shard}: " in outcome.err and "pack again" in outcome.err


def test_unknown_toml_key_and_wrong_type_in_the_environment(
    p2phd: Command, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[train]\nepoks = 3\n")
    outcome = p2phd("train", packed, tmp_path / "run", "--config", file)
    assert outcome.code == 2 and f"[train] epoks in {file}: unknown; known are epochs" in outcome.err
    monkeypatch.setenv("P2PHD_TRAIN__BATCH_SIZE", "two")
    outcome = p2phd("train", packed, tmp_path / "run")
    assert outcome.code == 2 and "P2PHD_TRAIN__BATCH_SIZE: input should be a valid integer" in outcome.err


def test_an_environment_that_contradicts_the_run(
    p2phd: Command, run: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2PHD_GENERATOR__FILTERS", "99")
    outcome = p2phd("generate", run, dataset, tmp_path / "out")
    assert outcome.code == 2 and "P2PHD_GENERATOR__FILTERS is 99, but the run was trained with 4" in outcome.err
