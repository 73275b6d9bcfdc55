"""A tiny toy city and everything the six verbs make of it, once per session."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pix2pixhd_cli import engine

engine.start()
os.environ.pop("COLUMNS", None)  # The console would keep to it, whatever a test says.
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from kill_harness import WORKS as WORKS  # noqa: E402
from kill_harness import kill_all as kill_all  # noqa: E402
from toy_city import draw_city as draw_city  # noqa: E402

from pix2pixhd_cli.cli import main  # noqa: E402
from pix2pixhd_cli.settings import Settings  # noqa: E402
from tests.power import Death  # noqa: E402

TINY = {
    "generator": {"filters": 4, "downsamplings": 2, "blocks": 1},
    "discriminator": {"filters": 4, "layers": 2, "scales": 2},
    "encoder": {"filters": 4, "downsamplings": 2},
    "train": {
        "epochs": 1,
        "decay_epochs": 1,
        "batch_size": 2,
        "sample_every": 100,
        "checkpoint_every": 2,
        "log_every": 1,
        "report": False,
    },
}


class Outcome(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def tiny_settings(**sections: dict[str, object]) -> Settings:
    """`TINY`, with sections changed key by key."""
    merged = {name: {**TINY.get(name, {}), **sections.get(name, {})} for name in {*TINY, *sections}}
    return Settings(**merged)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("P2PHD_") and "__" in name:
            monkeypatch.delenv(name)


@pytest.fixture
def p2phd(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command line in this process."""
    monkeypatch.setenv("COLUMNS", "500")

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 + 3 streets of 32x64 in Cityscapes' tree."""
    folder = tmp_path_factory.mktemp("toy") / "city"
    draw_city(folder, train=6, val=3, seed=1, height=32, width=64)
    return folder


@pytest.fixture(scope="session")
def dataset(city: Path) -> Path:
    from pix2pixhd_cli.pipeline.prepare import prepare

    folder = city.with_name("dataset")
    prepare(city, folder)
    return folder


@pytest.fixture(scope="session")
def packed(dataset: Path) -> Path:
    from pix2pixhd_cli.pipeline.pack import pack

    folder = dataset.with_name("packed")
    pack(dataset, folder)
    return folder


@pytest.fixture(scope="session")
def run(packed: Path) -> Path:
    """A run of six steps with feature codes and styles. Tests that change it work on a copy."""
    from pix2pixhd_cli.pipeline.cluster import cluster
    from pix2pixhd_cli.pipeline.encode import encode
    from pix2pixhd_cli.pipeline.train import train

    folder = packed.with_name("run")
    train(packed, folder, tiny_settings())
    encode(folder)
    cluster(folder, names=["road:0=asphalt", "car:0=red"])
    return folder


@pytest.fixture(scope="session")
def died(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died after four of its six steps, with checkpoints of steps 2 and 4."""
    from pix2pixhd_cli.pipeline.train import train
    from pix2pixhd_cli.training import Trainer

    folder, original = tmp_path_factory.mktemp("died") / "run", Trainer.step
    steps: list[int] = []

    def die(self: Trainer, batch: object, epoch: int) -> dict[str, float]:
        steps.append(1)
        if len(steps) == 5:
            raise Death
        return original(self, batch, epoch)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Death):
        patch.setattr(Trainer, "step", die)
        train(packed, folder, tiny_settings())
    return folder


@pytest.fixture
def begun(died: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(died, tmp_path / "begun")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> NDArray[np.generic]:
    """A picture's pixels."""
    with Image.open(path) as picture:
        return np.asarray(picture)


def save(path: Path, array: NDArray[np.generic], mode: str | None = None) -> Path:
    """Write a picture, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, mode).save(path)
    return path
