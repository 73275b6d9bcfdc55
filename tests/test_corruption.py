"""Damaged files are refused by name, or the damage does not matter; see `tests/fuzz.py`, which can go on for an hour."""

import random
from pathlib import Path

import pytest

from tests.fuzz import Format, attack, formats

NAMES = (
    "label.png", "instance.png", "photo.png", "photo.jpg", "dataset.json", "pack.json", "shard", "settings.json", "sources.json",
    "dataset.json of a run", "weights.npz", "networks.npz", "training.npz", "features.npz", "clusters.npz", "scene.p2phd",
    "score.json", "record of prepare", "metrics.jsonl", "polygons.json", "photo.webp", "photo.tif", "photo.bmp", "photo.gif",
    "legacy.pth", "net_G.pth", "features.npy", "vgg.h5", "vgg.npz", "opt.txt", "classes.toml", "classes.csv", "config.toml",
)  # fmt: skip
DAMAGES = 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def known(folder: Path, dataset: Path, packed: Path, run: Path) -> dict[str, Format]:
    return formats(folder, dataset, packed, run)


def test_every_format_is_attacked(known: dict[str, Format]) -> None:
    assert tuple(known) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_refused_or_harmless(name: str, folder: Path, known: dict[str, Format]) -> None:
    found = attack(name, known[name], folder, random.Random(name), DAMAGES)
    assert sum(found.values()) == DAMAGES and (found["refused"] or not known[name].exact)
