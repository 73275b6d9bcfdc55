"""What users get wrong: each mistake ends in one clear line with the file or flag and the way out, and leaves nothing behind."""

import os
import shlex
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pix2pixhd_cli.sealed import seal, unseal
from tests.conftest import Command, read, save

Breaker = Callable[[Path], object]  # Gets a folder of its own, with copies of what it breaks.


@dataclass(frozen=True)
class Mistake:
    """A command, and the line and the exit code it must end with; `copies` are made in `{tmp}`, for `breaker` to break."""

    command: str
    message: str
    code: int = 1
    copies: str = ""
    breaker: Breaker = lambda _: None

    def __str__(self) -> str:
        return f"{self.command.split()[0]}: {self.message}"


def maps(city: Path, kind: str, split: str = "train") -> list[Path]:
    return sorted((city / "gtFine" / split).glob(f"*/*_{kind}.png"))


def photos(city: Path, split: str = "train") -> list[Path]:
    return sorted((city / "leftImg8bit" / split).glob("*/*"))


def first(tmp: Path, kind: str) -> Path:
    return (photos(tmp / "city") if kind == "photo" else maps(tmp / "city", kind))[0]


def in_source(message: str, breaker: Breaker) -> Mistake:
    """Something wrong in a Cityscapes tree."""
    return Mistake("prepare {tmp}/city {tmp}/made", message, copies="city", breaker=breaker)


def picture(kind: str, array: NDArray[Any]) -> Breaker:
    """Put this in the place of the first photo, label map or instance map."""
    return lambda tmp: save(first(tmp, kind), array)


def with_id(identity: int) -> NDArray[np.uint16]:
    label = np.full((32, 64), 7, np.uint16)
    label[2, 3] = identity
    return label


def large_ids(tmp: Path) -> None:
    write = np.full((32, 64), 70_000, np.int32)
    Image.fromarray(write).save(first(tmp, "labelIds"), format="TIFF")


def jpeg_label(tmp: Path) -> None:
    path = first(tmp, "labelIds")
    save(path.with_suffix(".jpg"), np.zeros((32, 64), np.uint8)).rename(path)


def huge_claim(tmp: Path) -> None:
    """A PNG whose header says 100,000 x 100,000, with its checksum right."""
    data = bytearray(first(tmp, "photo").read_bytes())
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    first(tmp, "photo").write_bytes(data)


def dangling(tmp: Path) -> None:
    path = first(tmp, "photo")
    path.unlink()
    path.symlink_to(tmp / "gone.png")


def empty_split(tmp: Path) -> None:
    city = tmp / "city"
    for path in [*maps(city, "labelIds", "val"), *maps(city, "instanceIds", "val"), *photos(city, "val")]:
        path.unlink()


def bell(tmp: Path) -> None:
    path = first(tmp, "labelIds")
    path.rename(path.with_name("a\ab_gtFine_labelIds.png"))


def polygons(text: str) -> Breaker:
    """Put a polygon file in the place of the first label map."""

    def breaker(tmp: Path) -> None:
        path = first(tmp, "labelIds")
        path.unlink()
        path.with_name(path.name.replace("labelIds.png", "polygons.json")).write_text(text)

    return breaker


def text(name: str, content: str) -> Breaker:
    return lambda tmp: (tmp / name).write_text(content)


def without(name: str) -> Breaker:
    return lambda tmp: (tmp / name).unlink()


def loop(tmp: Path) -> None:
    (tmp / "loop").symlink_to(tmp / "loop")


def arrays(name: str, /, **changes: Callable[[NDArray[Any]], NDArray[Any]]) -> Breaker:
    """Change arrays in a file of the run."""

    def breaker(tmp: Path) -> None:
        with np.load(tmp / "run" / name) as file:
            found = dict(file)
        for array, change in changes.items():
            found[array] = change(found[array])
        np.savez(tmp / "run" / name, allow_pickle=True, **found)

    return breaker


def own_limits(tmp: Path) -> None:
    """A stranger's run shall not decide how large a picture may be."""
    settings = unseal((tmp / "run/settings.json").read_text())
    (tmp / "run/settings.json").write_text(seal(settings | {"generate": {"max_pixels": 1 << 60}}))


def linked_lock(tmp: Path) -> None:
    """What the lock is a link to must not be written to."""
    (tmp / "run/.lock").unlink(missing_ok=True)
    (tmp / "run/.lock").symlink_to(tmp / "small.png")


def escaping_shard(tmp: Path) -> None:
    spec = unseal((tmp / "packed/pack.json").read_text())
    spec["shards"]["train"][0]["file"] = "../outside"
    (tmp / "packed/pack.json").write_text(seal(spec))


def twice_named_shard(tmp: Path) -> None:
    spec = unseal((tmp / "packed/pack.json").read_text())
    spec["shards"]["val"] = spec["shards"]["train"] * 1000
    (tmp / "packed/pack.json").write_text(seal(spec))


def escaping_stem(tmp: Path) -> None:
    spec = unseal((tmp / "dataset/dataset.json").read_text())
    spec["splits"]["val"][0]["stem"] = "../../outside"
    (tmp / "dataset/dataset.json").write_text(seal(spec))


def other_filters(tmp: Path) -> None:
    settings = unseal((tmp / "run/settings.json").read_text())
    settings["generator"]["filters"] = 1024
    (tmp / "run/settings.json").write_text(seal(settings))


CAR = '{"imgHeight": %s, "imgWidth": 64, "objects": [{"label": "%s", "polygon": [[1, 1], [9, 1], [9, 9]]}]}'
PAINT, TRAIN = "generate {run} {dataset} {tmp}/out", "train {packed} {tmp}/made"
IN_SOURCE = [
    in_source("is 30x64, but its label map is 32x64", picture("photo", np.zeros((30, 64, 3), np.uint8))),
    in_source("is 32x60, but its label map is 32x64", picture("instanceIds", np.zeros((32, 60), np.uint16))),
    in_source("id 77 at row 2, column 3 (1 pixels in all) is in no class table", picture("labelIds", with_id(77))),
    in_source("id 65535 at row 2, column 3 (1 pixels in all)", picture("labelIds", with_id(65535))),
    in_source(
        "id 70000 at row 0, column 0 is over 65535; is it an instance map?",
        large_ids,
    ),
    in_source("is it an instance map?", lambda tmp: shutil.copy(first(tmp, "instanceIds"), first(tmp, "labelIds"))),
    in_source("is a RGB picture, not a map of class ids", picture("labelIds", np.zeros((32, 64, 3), np.uint8))),
    in_source("is a JPEG picture, which changes ids", jpeg_label),
    in_source("is an 8-bit picture", picture("instanceIds", np.zeros((32, 64), np.uint8))),
    in_source(
        "truncated or damaged", lambda tmp: first(tmp, "photo").write_bytes(first(tmp, "photo").read_bytes()[:-400])
    ),
    in_source("is not a picture that can be read", lambda tmp: first(tmp, "photo").write_bytes(b"")),
    in_source("is not a picture that can be read", lambda tmp: first(tmp, "labelIds").write_bytes(b"")),
    in_source("is not a picture that can be read", lambda tmp: first(tmp, "instanceIds").write_bytes(b"")),
    in_source(
        "is not a picture that can be read", lambda tmp: first(tmp, "photo").write_bytes(b"%!PS-Adobe-3.0 EPSF\n")
    ),
    in_source("is 100000x100000, more than 268,435,456 pixels", huge_claim),
    in_source("has 16 bits per channel", picture("photo", np.zeros((32, 64), np.uint16))),
    in_source("has 1 channel (L); a photo needs three", picture("photo", np.zeros((32, 64), np.uint8))),
    in_source("label map without a photo", lambda tmp: first(tmp, "photo").unlink()),
    in_source("cannot be read (No such file or directory)", dangling),
    in_source("photo without a label map", lambda tmp: maps(tmp / "city", "labelIds", "val")[0].unlink()),
    in_source("no instance map has the stem", lambda tmp: first(tmp, "instanceIds").unlink()),
    in_source("this split is empty", empty_split),
    in_source("a\\x07b_gtFine_labelIds.png", bell),
    in_source("is not a Cityscapes polygon file", polygons("{}")),
    in_source("object 'ufo' is in no class table", polygons(CAR % (32, "ufo"))),
    in_source("is 1000000000x64; pictures have one to 268,435,456 pixels", polygons(CAR % (10**9, "car"))),
    in_source("Expecting value", polygons("")),
]
IN_FLAGS = [
    Mistake("prepare {tmp}/nowhere {tmp}/made", "nowhere: no such folder"),
    Mistake("prepare {tmp} {tmp}/made", "no folder gtFine here; is it a Cityscapes tree? See --layout"),
    Mistake("prepare {tmp}/loop {tmp}/made", "loop: ", breaker=loop),
    Mistake("prepare {tmp} {tmp}/made --layout pix2pixhd", "no folder SPLIT_label or SPLIT_A"),
    Mistake("prepare {tmp} {tmp}/made --layout pairs", "labels: no such folder; name it with --label-folder"),
    Mistake("prepare {city} {tmp}/made --width 64 --size 32x64", "--width and --size"),
    Mistake("prepare {city} {tmp}/made --size 0x64", "--size: '0x64' is not HEIGHTxWIDTH", code=2),
    Mistake("prepare {city} {tmp}/made --size 65536x65536", "would become 65536x65536, more than 268,435,456 pixels"),
    Mistake("prepare {city} {tmp}/made --max-pixels 100", "is 32x64, more than 100 pixels"),
    Mistake("prepare {city} {tmp}/made --remap 7", "--remap 7: write OLD=NEW"),
    Mistake("prepare {city} {tmp}/made --remap 7=70000", "--remap 7=70000: write OLD=NEW with two ids of 0 … 65535"),
    Mistake("prepare {city} {tmp}/made --ignore-id 99999999999999999999", "--ignore-id: input should be", code=2),
    Mistake("prepare {city} {tmp}/made --classes {tmp}/no.toml", "--classes {tmp}/no.toml: no such file"),
    Mistake("prepare {city} {tmp}/made --classes {tmp}/a.csv", "a.csv: holds no class", breaker=text("a.csv", "")),
    Mistake("prepare {city} {tmp}/made --instances components --component-class ufo", "--component-class ufo"),
    Mistake("prepare {city} {city}", "{city}: holds other files"),
    Mistake("prepare {city} {tmp}/small.png/sub", "small.png"),
    Mistake("prepare {city} .", ".: holds other files"),
    Mistake("pack {dataset} {tmp}/small.png", "small.png: holds other files"),
    Mistake("pack {tmp} {tmp}/made", "no prepared data set here"),
    Mistake("pack {dataset} {tmp}/made --split test", "there is no split 'test' here; there are train, val"),
    Mistake("pack {dataset} {city}", "{city}: holds other files"),
    Mistake("pack {tmp}/dataset {tmp}/made", "damaged (", copies="dataset", breaker=text("dataset/dataset.json", "")),
    Mistake(
        "pack {tmp}/dataset {tmp}/made",
        "splits.val.0.stem: must be a file's plain name",
        copies="dataset",
        breaker=escaping_stem,
    ),
    Mistake(
        "pack {tmp}/dataset {tmp}/made",
        "toyville_000000_000019.png: no such file",
        copies="dataset",
        breaker=without("dataset/val/label/toyville_000000_000019.png"),
    ),
    Mistake("train {packed} {tmp}/small.png", "small.png: is no folder; name another place"),
    Mistake("train {packed} {tmp}/small.png/run", "small.png: is no folder; name another place"),
    Mistake("train {packed} {tmp}/loop", "loop: is no folder; name another place", breaker=loop),
    Mistake("encode {tmp}/small.png", "small.png: no trained run here"),
    Mistake("train {tmp}/nowhere {tmp}/made", "nowhere: no packed data set here (pack.json is missing)"),
    Mistake("train {dataset} {tmp}/made", "this is a data set, `p2phd pack` it first"),
    Mistake("train {packed} {tmp}/made --split test", "there is no split 'test' here; packed are train, val"),
    Mistake(f"{TRAIN} --generator-downsamplings 6", "cannot be halved 6 times"),
    Mistake(f"{TRAIN} --crop 64x64", "--crop 64x64: larger than a picture of 32x64"),
    Mistake(f"{TRAIN} --crop 0x32", "--crop: '0x32' is not HEIGHTxWIDTH", code=2),
    Mistake(f"{TRAIN} --learning-rate nan", "--learning-rate", code=2),
    Mistake(f"{TRAIN} --seed 99999999999999999999", "--seed", code=2),
    Mistake(f"{TRAIN} --config {{tmp}}/a.toml", "[trian] in", code=2, breaker=text("a.toml", "[trian]\nepochs = 3\n")),
    Mistake(f"{TRAIN} --init-from {{tmp}}", "no trained run here"),
    Mistake(f"{TRAIN} --perceptual-weights {{tmp}}/small.png", "is no .h5, .weights.h5, .pth or .npz file"),
    Mistake("train {packed} {run}", "a run is here already; go on with --resume"),
    Mistake(
        "train {tmp}/packed {tmp}/made", "pack.json: damaged", copies="packed", breaker=text("packed/pack.json", "")
    ),
    Mistake("train {tmp}/packed {tmp}/made", "must be a file's plain name", copies="packed", breaker=escaping_shard),
    Mistake("train {tmp}/packed {tmp}/made", "a shard is named twice", copies="packed", breaker=twice_named_shard),
    Mistake("encode {tmp}", "no trained run here (settings.json is missing)"),
    Mistake("encode {run} {tmp}/nowhere", "nowhere: no packed data set here"),
    Mistake("encode {tmp}/run", "settings.json: damaged", copies="run", breaker=text("run/settings.json", "")),
    Mistake("cluster {tmp}", "no trained run here"),
    Mistake("cluster {run} --name road:99=x", "--name road:99=x: road has styles 0"),
    Mistake("generate {tmp} {dataset} {tmp}/out", "no trained run here"),
    Mistake("generate {run} {tmp}/nowhere {tmp}/out", "nowhere: no such file or folder"),
    Mistake("generate {run} {tmp}/empty {tmp}/out", "empty: no label maps here"),
    Mistake("generate {run} {dataset}/val/label {dataset}/val/label", "would be painted over, and is an input"),
    Mistake(f"{PAINT} --split test", "there is no split 'test' here"),
    Mistake(f"{PAINT} --feature-code dragon=1", "there is no class 'dragon'"),
    Mistake(f"{PAINT} --feature-code car=99", "--feature-code car=99: there is no style '99'; there are 0"),
    Mistake(f"{PAINT} --feature-code car=nan,0,0", "a code here is 3 finite numbers"),
    Mistake(f"{PAINT} --feature-code car=1e39,0,0", "a code here is 3 finite numbers"),
    Mistake(f"{PAINT} --feature-code car=3e38,3e38,3e38", "paints no numbers; choose smaller codes"),
    Mistake(f"{PAINT} --feature-code {'9' * 5000}=0", "there is no class '999"),
    Mistake(f"{PAINT} --feature-code 26000=99", "--feature-code 26000=99: there is no style '99'"),
    Mistake(f"{PAINT} --feature-gain inf", "--feature-gain", code=2),
    Mistake(f"{PAINT} --all-codes dragon", "--all-codes dragon: there is no class"),
    Mistake("generate {run} {label} {tmp}/out --feature-code car=photo", "has no photo"),
    Mistake("generate {run} {label} {tmp}/out --feature-gain 0.5", "has no photo"),
    Mistake(
        "generate {run} {label} {tmp}/out --instance-map {tmp}/no.png", "--instance-map {tmp}/no.png: no such file"
    ),
    Mistake("generate {run} {label} {tmp}/out --instance-map {tmp}/empty", "nothing here has the stem"),
    Mistake(
        "generate {run} {label} {tmp}/out --instance-map {tmp}/small.png", "small.png: is not of its label map's size"
    ),
    Mistake("generate {run} {tmp}/small.png {tmp}/out", "small.png: id 99 at row 0, column 0 is no class of"),
    Mistake("generate {run} {tmp}/small.png {tmp}/out --max-pixels 9", "small.png: is 8x8, more than 9 pixels"),
    Mistake(f"{PAINT} --max-pixels 9", "toyville_000000_000019.png: is 32x64, more than 9 pixels"),
    Mistake("generate {run} {dataset} {label}", "is a file; name a folder"),
    Mistake(
        "generate {tmp}/run {dataset} {tmp}/out",
        "clusters.npz: damaged (centre is not what it must be)",
        copies="run",
        breaker=arrays("clusters.npz", centre=lambda a: a * np.nan),
    ),
    Mistake(
        "generate {tmp}/run {dataset} {tmp}/out",
        "clusters.npz: damaged",
        copies="run",
        breaker=arrays("clusters.npz", name=lambda a: a.astype(object)),
    ),
    *(
        Mistake(
            "cluster {tmp}/run",
            "clusters.npz: damaged (it holds names that styles cannot have)",
            copies="run",
            breaker=arrays("clusters.npz", name=partial(np.full_like, fill_value=name)),
        )
        for name in ("twice", "7")
    ),
    Mistake(
        "generate {tmp}/run {dataset} {tmp}/out",
        "clusters.npz: not of this run; cluster again",
        copies="run",
        breaker=arrays("clusters.npz", centre=lambda a: a[:, :2], class_mean=lambda a: a[:, :2]),
    ),
    Mistake(
        "generate {tmp}/run {dataset} {tmp}/out",
        "weights.npz: is too small for this run's settings",
        copies="run",
        breaker=other_filters,
    ),
    Mistake(
        "cluster {tmp}/run",
        "features.npz: damaged (stem is not what it must be)",
        copies="run",
        breaker=arrays("features.npz", stem=lambda a: (a.view(np.uint32) + 0x110000).view(a.dtype)),
    ),
    Mistake(
        "generate {tmp}/run {dataset} {tmp}/out",
        "settings.json: damaged (runs keep no section 'generate')",
        copies="run",
        breaker=own_limits,
    ),
    Mistake("encode {tmp}/run", "/run/.lock: ", copies="run", breaker=linked_lock),
    Mistake("export {tmp} {tmp}/made", "no trained run here"),
    Mistake("export {run} {dataset}", "{dataset}: holds other files"),
    Mistake("import {tmp}/empty {tmp}/made", "latest_net_G.pth: no such file"),
    Mistake("import {tmp}/empty {run}", "{run}: holds other files"),
    Mistake("config init {tmp}/small.png", "small.png: exists already; name another file"),
]
IN_PATHS = [
    Mistake("generate {run} {tmp}/'Straße 東 ä' {tmp}/out", "Straße 東 ä: no such file or folder"),
    Mistake("prepare {tmp}/'a b [red]' {tmp}/made", "a b [red]: no such folder"),
]
# What may look like a mistake and is none.
NO_MISTAKES = [
    Mistake(
        "prepare {tmp}/'город 東 [x]' {tmp}/'a b'",
        "wrote",
        0,
        "city",
        lambda t: (t / "city").rename(t / "город 東 [x]"),
    ),
    Mistake("prepare {tmp}/link {tmp}/made", "wrote", 0, breaker=lambda tmp: (tmp / "link").symlink_to(SHARED["city"])),
    Mistake("pack {tmp}/link {tmp}/made", "wrote", 0, breaker=lambda tmp: (tmp / "link").symlink_to(SHARED["dataset"])),
    Mistake("prepare {city} {tmp}/empty", "wrote", 0),
    Mistake("prepare {tmp} {tmp}/made --layout pairs", "1x1 -> 32x32", 0, breaker=lambda tmp: pair(tmp, 1, 1)),
    Mistake(
        "prepare {tmp} {tmp}/made --layout pairs", "2x20000 -> 32x20000", 0, breaker=lambda tmp: pair(tmp, 2, 20_000)
    ),
    Mistake("generate {run} {tmp}/x.png {tmp}/out", "painted 1", 0, breaker=lambda tmp: road(tmp / "x.png", 1, 1)),
    Mistake("generate {run} {tmp}/x.png {tmp}/out", "painted 1", 0, breaker=lambda tmp: road(tmp / "x.png", 2, 20_000)),
]
SHARED: dict[str, Path] = {}


def road(path: Path, height: int, width: int) -> None:
    save(path, np.full((height, width), 7, np.uint8))


def pair(tmp: Path, height: int, width: int) -> None:
    save(tmp / "labels/a.png", np.zeros((height, width), np.uint8))
    save(tmp / "photos/a.png", np.zeros((height, width, 3), np.uint8))


@pytest.fixture
def places(city: Path, dataset: Path, packed: Path, run: Path, tmp_path: Path) -> dict[str, Path]:
    SHARED.update(city=city, dataset=dataset, packed=packed, run=run)
    (tmp_path / "empty").mkdir()
    save(tmp_path / "small.png", np.full((8, 8), 99, np.uint8))
    return {**SHARED, "tmp": tmp_path, "label": dataset / "val" / "label" / "toyville_000000_000019.png"}


@pytest.mark.parametrize("mistake", [*IN_SOURCE, *IN_FLAGS, *IN_PATHS, *NO_MISTAKES], ids=str)
def test_one_line_says_what_is_wrong(p2phd: Command, places: dict[str, Path], mistake: Mistake) -> None:
    tmp = places["tmp"]
    for name in mistake.copies.split():
        shutil.copytree(SHARED[name], tmp / name)
    mistake.breaker(tmp)
    before = sorted(tmp.rglob("*"))
    outcome = p2phd(*(word.format(**places) for word in shlex.split(mistake.command)))
    assert outcome.code == mistake.code, outcome
    assert mistake.message.format(**places) in outcome.err + outcome.out * (not mistake.code)
    errors = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert len(errors) == bool(mistake.code)
    if mistake.code:
        assert outcome.err.splitlines()[-1] == errors[0] and "Traceback" not in outcome.err
        assert sorted(tmp.rglob("*")) == before, "nothing half-written stays"


def test_there_are_enough_mistakes() -> None:
    assert len({(m.command, m.message) for m in (*IN_SOURCE, *IN_FLAGS, *IN_PATHS)}) >= 60


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything; this process shall not."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_an_unreadable_folder(p2phd: Command, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    with as_nobody():
        outcome = p2phd("prepare", tmp_path / "locked", tmp_path / "made")
    assert outcome.code == 1 and outcome.err.startswith(f"error: {tmp_path}")
    assert outcome.err.rstrip().endswith("Permission denied") and outcome.err.count("\n") == 1


@pytest.mark.parametrize("scene", ["one class", "one instance"])
def test_the_smallest_data_sets_go_all_the_way(p2phd: Command, tmp_path: Path, scene: str) -> None:
    """One picture of one class, whose only instance is all of it, or with a single thing in it; and a batch of five."""
    label = np.full((32, 64), 7, np.uint8)
    if scene == "one instance":
        label[8:24, 16:40] = 26
    source = tmp_path / "source"
    save(source / "train_label/a.png", label)
    save(source / "train_inst/a.png", np.where(label == 26, 26000, 7).astype(np.uint16))
    save(source / "train_img/a.png", np.repeat(label[..., None] * 7, 3, 2))
    tiny = "--generator-filters 4 --generator-downsamplings 2 --generator-blocks 1 --discriminator-filters 4 --encoder-filters 4"
    for command in (
        "prepare {tmp}/source {tmp}/dataset --layout pix2pixhd",
        "pack {tmp}/dataset {tmp}/packed",
        f"train {{tmp}}/packed {{tmp}}/run --batch-size 5 --epochs 2 --decay-epochs 0 {tiny} --encoder-downsamplings 2",
        "encode {tmp}/run",
        "cluster {tmp}/run",
        "generate {tmp}/run {tmp}/dataset {tmp}/out --split train",
    ):
        outcome = p2phd(*(word.format(tmp=tmp_path) for word in shlex.split(command)))
        assert outcome.code == 0 and "Traceback" not in outcome.err, outcome
    assert read(tmp_path / "out/a.png").shape == (32, 64, 3)


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
    assert outcome.code == 1 and "has no trained model yet (weights.npz is missing); train it first" in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_run_without_an_encoder(p2phd: Command, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "settings.json"
    settings = unseal(path.read_text())
    settings["encoder"]["enabled"] = False
    path.write_text(seal(settings))
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
    assert outcome.code == 1 and "6 examples of 'train' without a photo, the first is toytown_000000" in outcome.err
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
