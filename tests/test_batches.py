"""Pictures painted and encoded in batches, on one device and on several, are those that come one by one."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pix2pixhd_cli.data.records import PackedSplit
from pix2pixhd_cli.features import FeatureCodes
from pix2pixhd_cli.painting import Painter, Request, gathered
from pix2pixhd_cli.pipeline.train import train
from tests.conftest import Command, tiny_settings, tree
from tests.on_devices import codes_and_pictures
from tests.test_devices import ENVIRONMENT, ROOT


def test_items_that_are_alike_are_gathered() -> None:
    groups = list(gathered("abcaadbacb", lambda letter: letter, 2))
    assert groups == [["a", "a"], ["b", "b"], ["a", "a"], ["c", "c"], ["d"], ["b"]]
    assert list(gathered("abab", lambda letter: letter, 1)) == [["a"], ["b"], ["a"], ["b"]]


def test_few_items_wait_for_their_like() -> None:
    taken = 0

    def coming() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    groups = gathered(coming(), lambda number: number, 3)
    assert next(groups) == [0] and taken == 12
    assert next(groups) == [1] and taken == 13


def test_batches_do_not_change_what_is_painted(run: Path, packed: Path) -> None:
    one_by_one, together = (codes_and_pictures(Painter(run, batch_size=size), packed) for size in (1, 4))
    same(one_by_one, together)


def test_pictures_that_a_batch_would_normalise_come_one_by_one(packed: Path, tmp_path: Path) -> None:
    train(packed, tmp_path / "run", tiny_settings(generator={"norm": "batch"}, train={"epochs": 1, "decay_epochs": 0}))
    same(*(codes_and_pictures(Painter(tmp_path / "run", batch_size=size), packed) for size in (1, 4)))


def test_devices_do_not_change_what_is_painted(run: Path, packed: Path, tmp_path: Path) -> None:
    """Of six pictures, two devices take two each, and then one each."""
    subprocess.run(
        [sys.executable, "-m", "tests.on_devices", "2", packed, tmp_path],
        input=json.dumps({"painted": {"paint": str(run), "batch_size": 2, "devices": "2"}}),
        env=ENVIRONMENT, cwd=ROOT, text=True, timeout=300, check=True,
    )  # fmt: skip
    with np.load(tmp_path / "painted.npz") as there:
        same(codes_and_pictures(Painter(run), packed), dict(there))


def same(ours: dict[str, NDArray[np.floating]], theirs: dict[str, NDArray[np.floating]]) -> None:
    assert ours.keys() == theirs.keys() and len(ours) == 12
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], atol=1e-5)


def test_pictures_of_several_sizes_find_their_like(run: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = [(32, 64), (30, 50), (48, 64), (32, 64), (47, 63), (16, 16)]
    requests = [Request(rng.choice([7, 8, 11], size)) for size in sizes]
    requests += [
        Request(rng.choice([7, 8, 11], (30, 40)), gains=1.0, photo=rng.integers(0, 256, (30, 40, 3), np.uint8))
        for _ in range(3)
    ]
    one_by_one, together = (Painter(run, batch_size=size).paint_all(requests) for size in (1, 3))
    for request, ours, theirs in zip(requests, one_by_one, together, strict=True):
        assert ours.shape == (*request.label.shape, 3)
        assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_generate_in_batches(p2phd: Command, run: Path, dataset: Path, tmp_path: Path) -> None:
    flags = ("--split", "train", "--grid", "--all-codes", "car", "--feature-code", "road=photo")
    for name, size in (("one", 1), ("four", 4)):
        assert p2phd("generate", run, dataset, tmp_path / name, "--batch-size", size, *flags).code == 0
    pictures = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.png"))
    assert len(pictures) > 12 and tree(tmp_path / "one").keys() == tree(tmp_path / "four").keys()
    for path in pictures:
        ours, theirs = (np.asarray(Image.open(tmp_path / name / path)).astype(int) for name in ("one", "four"))
        assert np.abs(ours - theirs).max() <= 1


def test_encode_in_batches(p2phd: Command, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    assert p2phd("encode", tmp_path / "run", "--batch-size", 4).code == 0
    ours, theirs = FeatureCodes.load(run / "features.npz"), FeatureCodes.load(tmp_path / "run" / "features.npz")
    np.testing.assert_allclose(ours.code, theirs.code, atol=1e-5)
    for name in ("label", "instance", "stem", "share", "box"):
        assert (getattr(ours, name) == getattr(theirs, name)).all()
    assert len(np.unique(ours.stem)) == len(PackedSplit(Path(str(ours.packed)), "train"))


@pytest.mark.parametrize("verb", ["encode", "generate"])
def test_devices_that_are_not_there(p2phd: Command, verb: str, run: Path, dataset: Path, tmp_path: Path) -> None:
    words = (dataset, tmp_path / "out") if verb == "generate" else ()
    outcome = p2phd(verb, run, *words, "--devices", 2)
    assert (outcome.code, outcome.err) == (
        2,
        "error: --devices 2: there are no GPUs here; leave it out to work on the CPU\n",
    )
    assert not (tmp_path / "out").exists()
