"""Disks that are full, broken, read-only or forbidden, and files that vanish: one line names the file, and nothing is lost."""

import builtins
import errno
import io
import os
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pix2pixhd_cli.pipeline.train import train
from pix2pixhd_cli.training import Trainer
from tests.conftest import Command, tiny_settings, tree
from tests.test_import import lay_out

NUMBERS = [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS]
QUICK = {
    "prepare": ("prepare", "{city}", "{tmp}/out"),
    "pack": ("pack", "{dataset}", "{tmp}/out"),
    "cluster": ("cluster", "{tmp}/run"),
}
SLOW = {
    "encode": ("encode", "{tmp}/run"),
    "generate": ("generate", "{tmp}/run", "{dataset}", "{tmp}/out", "--limit", "1"),
    "export": ("export", "{tmp}/run", "{tmp}/out"),
    "import": ("import", "{tmp}/reference", "{tmp}/out"),
}


@pytest.fixture
def places(city: Path, dataset: Path, packed: Path, run: Path, tmp_path: Path) -> dict[str, Path]:
    shutil.copytree(run, tmp_path / "run")
    lay_out("train_labels_only", tmp_path / "reference")
    return {"city": city, "dataset": dataset, "packed": packed, "tmp": tmp_path}


def failing(operation: Callable[..., Any], number: int, after: int) -> Callable[..., Any]:
    """The operation, until it fails as the system lets it, without a file's name."""
    calls = [0]

    def fail(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(number, os.strerror(number))
        return operation(*arguments, **keywords)

    return fail


def after_a_signal(number: int) -> Callable[..., None]:
    """`os.replace`, before which, once, the process has got a signal."""
    original, said = os.replace, [0]

    def replace(*arguments: Any) -> None:
        said[0] += 1
        if said[0] == 1:
            os.kill(os.getpid(), number)
        original(*arguments)

    return replace


@pytest.mark.parametrize(
    ("verb", "number"),
    [*((verb, number) for verb in QUICK for number in NUMBERS), *((verb, errno.ENOSPC) for verb in SLOW)],
)
@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_what_cannot_be_written(
    p2phd: Command,
    places: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    number: int,
    operation: str,
) -> None:
    words = [word.format(**places) for word in (QUICK | SLOW)[verb]]
    before = tree(places["tmp"])
    with monkeypatch.context() as patch:
        patch.setattr(os, operation, failing(getattr(os, operation), number, after=0))
        outcome = p2phd(*words)
    assert outcome.code == 1
    *others, last = outcome.err.splitlines()
    assert last.startswith("error: /") and os.strerror(number) in last
    assert not [line for line in others if not line.startswith("warning:")]
    after = {name: data for name, data in tree(places["tmp"]).items() if not name.startswith(".out.p2phd-partial")}
    after.pop("run/.lock", None)
    before.pop("run/.lock", None)
    assert after == before
    assert p2phd(*words).code == 0
    assert not list(places["tmp"].rglob("*partial"))


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C is heard, even where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("verb", QUICK | SLOW)
def test_a_verb_that_is_asked_to_stop_does_so_and_can_be_run_again(
    p2phd: Command, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, verb: str, number: signal.Signals
) -> None:
    words = [word.format(**places) for word in (QUICK | SLOW)[verb]]
    before = tree(places["tmp"])

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", after_a_signal(number))
        outcome = p2phd(*words)
    assert outcome.code == 128 + number
    assert outcome.err.splitlines()[-1].startswith("stopped; the same command ")
    after = {name: data for name, data in tree(places["tmp"]).items() if not name.startswith(".out.p2phd-partial")}
    after.pop("run/.lock", None)
    before.pop("run/.lock", None)
    assert after == before
    assert p2phd(*words).code == 0
    assert not list(places["tmp"].rglob("*partial"))


NETWORKS = """--generator-filters 4 --generator-downsamplings 2 --generator-blocks 1 --discriminator-filters 4
--discriminator-layers 2 --encoder-filters 4 --encoder-downsamplings 2"""
READ = {
    "settings.json": ("generate", "{tmp}/run", "{dataset}", "{tmp}/out"),
    "weights.npz": ("generate", "{tmp}/run", "{dataset}", "{tmp}/out"),
    "clusters.npz": ("generate", "{tmp}/run", "{dataset}", "{tmp}/out"),
    "features.npz": ("cluster", "{tmp}/run"),
    "sources.json": ("encode", "{tmp}/run"),
    "dataset.json": ("pack", "{dataset}", "{tmp}/out"),
    "toyville_000000_000019.png": ("pack", "{dataset}", "{tmp}/out"),
    "pack.json": ("train", "{packed}", "{tmp}/out"),
    "train-00000-of-00001.tfrecord": ("train", "{packed}", "{tmp}/out"),
    "networks.npz": ("train", "{packed}", "{tmp}/out", "--init-from", "{tmp}/run"),
    "latest_net_G.pth": ("import", "{tmp}/reference", "{tmp}/out"),
    "toytown_000000_000019_gtFine_labelIds.png": ("prepare", "{city}", "{tmp}/out"),
}


@pytest.mark.parametrize("name", READ)
def test_what_cannot_be_read(
    p2phd: Command, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    words = [word.format(**places) for word in READ[name]]
    if name == "networks.npz":
        words += shlex.split(NETWORKS)
    original = io.open

    def broken(path: Any, *arguments: Any, **keywords: Any) -> Any:
        if isinstance(path, str | Path) and Path(path).name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(path, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", broken)
        patch.setattr(builtins, "open", broken)
        outcome = p2phd(*words)
    assert outcome.code == 1
    assert name in outcome.err and os.strerror(errno.EIO) in outcome.err and "Traceback" not in outcome.err
    assert not (places["tmp"] / "out").exists()


def test_a_shard_that_vanishes_while_training(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "packed")
    shard = next((tmp_path / "packed").glob("train*"))
    original = Trainer.step

    def vanish(self: Trainer, *arguments: Any) -> dict[str, float]:
        shard.unlink(missing_ok=True)
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(FileNotFoundError) as failure:
        patch.setattr(Trainer, "step", vanish)
        train(tmp_path / "packed", tmp_path / "run", tiny_settings(train={"epochs": 50}))
    assert failure.value.filename == str(shard)
