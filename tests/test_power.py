"""The power may fail between any two file operations, and the disk keep no more than it must."""

import shutil
from pathlib import Path
from typing import get_args

import pytest
import tensorflow as tf

from pix2pixhd_cli.data import files
from pix2pixhd_cli.pipeline.export import export
from pix2pixhd_cli.pipeline.pack import pack
from pix2pixhd_cli.pipeline.prepare import prepare
from pix2pixhd_cli.pipeline.train import train
from pix2pixhd_cli.runs import Run, State
from pix2pixhd_cli.settings import Settings, load_settings
from tests.conftest import draw_city, tree
from tests.power import Death, Names, Power, failing_power
from tests.test_training import metrics, same_run

every_kind = pytest.mark.parametrize("names", get_args(Names))


@every_kind
@pytest.mark.parametrize("old", ["", "old"])
def test_a_file_is_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, names: Names
) -> None:
    path = tmp_path / "here/new/file"

    def start() -> None:
        shutil.rmtree(tmp_path / "here", ignore_errors=True)
        (tmp_path / "here").mkdir()
        if old:
            files.write_text(path, old)

    start()
    found = []
    for _ in failing_power(tmp_path / "here", lambda: files.write_text(path, "new"), monkeypatch, names):
        found.append(path.read_text() if path.exists() else "")
        start()
    assert found == sorted(found, key=["", "old", "new"].index) and set(found) == {old, "new"}


@every_kind
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("last", [0, 2])
def test_power_may_fail_anywhere_in_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int, seed: int, names: Names
) -> None:
    """A step is saved over the ones before it; what comes next goes on from the last or, once that is through, from the new."""
    folder = tmp_path / "run"
    variable = tf.Variable([0.0, 0.0])
    state: State = {"generator": [variable], "pool": [variable]}

    def save(run: Run, step: int) -> None:
        variable.assign([step, -step])
        run.log({"step": step})
        run.save_checkpoint(state, step, keep=max(1, last - step + 1), distance=float(step))

    def start() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "checkpoints").mkdir(parents=True)  # As a save leaves it that the disk was too full for.
        for step in range(1, last + 1):
            save(Run(folder), step)

    start()
    steps = []
    for _ in failing_power(folder, lambda: save(Run(folder), last + 1), monkeypatch, names, seed):
        variable.assign([0, 0])
        with Run(folder).lock():
            steps.append(Run(folder).restore_checkpoint(state))
            Run(folder).start_metrics(steps[-1])
        assert all(len(list(path.iterdir())) == 3 for path in Run(folder).checkpoints()), "none is ever half there"
        assert variable.numpy().tolist() == [steps[-1], -steps[-1]]
        assert (metrics(folder) if steps[-1] else []) == [{"step": step + 1} for step in range(steps[-1])]
        assert not list(folder.rglob("*.partial"))
        start()
    assert len(steps) > 15 and steps == sorted(steps) and set(steps) == {last, last + 1}


@every_kind
def test_power_may_fail_anywhere_in_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Names) -> None:
    """A data set is made anew with other settings, when that was tried before; what comes after, gives what it would have."""
    city, made = tmp_path / "city", tmp_path / "here/dataset"
    draw_city(city, train=1, val=1, seed=1, height=32, width=64)
    kinds = [Settings(prepare={"width": width}) for width in (64, 32, 128)]
    clean = []
    for number, settings in enumerate(kinds):
        prepare(city, tmp_path / str(number), settings)
        clean.append({f"dataset/{name}": data for name, data in tree(tmp_path / str(number)).items()})
    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr("pix2pixhd_cli.pipeline.prepare._publish", lambda *_: die())
        prepare(city, tmp_path / "dataset", kinds[2])

    def start() -> None:
        shutil.rmtree(made.parent, ignore_errors=True)
        shutil.copytree(tmp_path / "0", made)
        shutil.copytree(tmp_path / ".dataset.p2phd-partial", made.parent / ".dataset.p2phd-partial")

    start()
    power = failing_power(tmp_path / "here", lambda: prepare(city, made, kinds[1]), monkeypatch, names)
    for tries, done in enumerate(power):
        kind = 1 if done else tries % 3
        left = {**clean[1], **tree(made.parent)}
        if left["dataset/dataset.json"] == clean[1]["dataset/dataset.json"]:
            assert left["dataset/contact_sheet.png"] == clean[1]["dataset/contact_sheet.png"], "it shows others"
        if done:
            shutil.rmtree(made.parent / ".dataset.p2phd-partial", ignore_errors=True)  # It may have come back.
        else:
            prepare(city, made, kinds[kind])
        assert tree(made.parent) == clean[kind]
        start()


def test_an_export_outlives_a_loss_of_power(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow writes it, so that the power can fail after it alone."""
    here = tmp_path / "here"
    here.mkdir()
    with monkeypatch.context() as patch:
        power = Power(here, patch, 1_000_000)
        export(run, here / "model")
    whole = tree(here)
    power.lose("lost", 0)
    assert tree(here) == whole and len(whole) > 3


def die() -> None:
    raise Death


@every_kind
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("old", [None, 3])
def test_power_may_fail_anywhere_in_pack(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: int | None, seed: int, names: Names
) -> None:
    made, wanted = tmp_path / "here/packed", Settings(pack={"shards": 2})
    pack(dataset, tmp_path / "clean", wanted)

    def start() -> None:
        shutil.rmtree(made.parent, ignore_errors=True)
        made.mkdir(parents=True)
        if old is not None:
            pack(dataset, made, Settings(pack={"shards": old}))

    start()
    power = failing_power(tmp_path / "here", lambda: pack(dataset, made, wanted), monkeypatch, names, seed)
    for done in power:
        if not done:
            pack(dataset, made, wanted)
        assert tree(made) == tree(tmp_path / "clean")
        start()


@pytest.mark.slow
@every_kind
def test_power_may_fail_anywhere_in_a_training(
    packed: Path, run: Path, begun: Path, monkeypatch: pytest.MonkeyPatch, names: Names
) -> None:
    settings, before = load_settings(run=begun, resume=True), begun.with_name("before")
    shutil.copytree(begun, before)
    power = failing_power(begun, lambda: train(packed, begun, settings, resume=True), monkeypatch, names)
    for done in power:
        assert not done or Run(begun).checkpoints()[-1].name == "step-00000006"
        train(
            packed, begun, settings, resume=True
        )  # Even if it was done: checkpoints that were deleted may have come back.
        same_run(begun, run)
        shutil.rmtree(begun)
        shutil.copytree(before, begun)
