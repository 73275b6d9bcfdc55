"""What a run outlives: kills, losses of power, full disks, damaged checkpoints, other processes, losses that are no numbers."""

import errno
import itertools
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pix2pixhd_cli import engine
from pix2pixhd_cli.coarse_to_fine import start_from
from pix2pixhd_cli.data import files
from pix2pixhd_cli.data.arrays import open_arrays
from pix2pixhd_cli.errors import Interrupted, P2PHDError, SettingsError
from pix2pixhd_cli.pipeline.train import train
from pix2pixhd_cli.runs import Run
from pix2pixhd_cli.sealed import read_sealed, seal
from pix2pixhd_cli.settings import load_settings
from pix2pixhd_cli.training import Trainer
from tests.conftest import WORKS, Command, kill_all, tiny_settings, tree
from tests.power import Death
from tests.test_training import metrics, same_run


def flip_a_bit(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("file", "damage"), [("networks.npz", flip_a_bit), ("networks.npz", cut), ("training.npz", cut)]
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    p2phd: Command, packed: Path, run: Path, begun: Path, file: str, damage: Callable[[Path], None]
) -> None:
    damage(begun / "checkpoints/step-00000004" / file)
    outcome = p2phd("train", packed, begun, "--resume")
    assert outcome.code == 0, outcome.err
    assert f"step-00000004/{file}: damaged" in outcome.err
    assert "going on after step 2 of 6" in outcome.out
    same_run(begun, run)


def test_a_run_without_a_whole_checkpoint_is_left_alone(p2phd: Command, packed: Path, begun: Path) -> None:
    for checkpoint in (begun / "checkpoints").iterdir():
        (checkpoint / "networks.npz").unlink()
    outcome = p2phd("train", packed, begun, "--resume")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].endswith("no checkpoint is whole; train a new run, or bring one back")
    assert len(list((begun / "checkpoints").iterdir())) == 2


DEAF = """
import hashlib, os, signal, sys, threading
from pix2pixhd_cli.cli import main
from pix2pixhd_cli.training import Trainer

def stuck(*_):
    for seconds in (1, 2):
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # Minutes in which the interpreter hears nothing.

Trainer.step = stuck
main(sys.argv[1:])
"""


def test_a_second_ctrl_c_leaves_at_once(packed: Path, run: Path, begun: Path) -> None:
    command = [sys.executable, "-c", DEAF, "train", str(packed), str(begun), "--resume"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 130
    *_, first, second = done.stdout.splitlines()
    assert first == "finishing the step and saving; once more leaves at once"
    assert second == f"stopped at once; `p2phd train {packed} {begun} --resume` goes on after step 4"
    train(packed, begun, load_settings(run=begun, resume=True), resume=True)
    same_run(begun, run)


def test_the_newest_and_the_best_checkpoints_are_kept(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distances = iter([3.0, 1.0, 2.0, 2.5, 2.5, 2.5])
    monkeypatch.setattr(Trainer, "distance", lambda _: next(distances))
    folder = Run(tmp_path / "run")
    train(packed, folder.folder, tiny_settings(train={"checkpoint_every": 1, "model": "best"}))
    assert [path.name[-1] for path in folder.checkpoints()] == ["2", "5", "6"]
    best = folder.best_checkpoint()
    assert best is not None and best.name == "step-00000002"
    assert folder.model_step() == 2
    newest = load_settings({"train": {"model": "newest"}}, run=folder.folder, resume=True)
    train(packed, folder.folder, newest, resume=True)
    assert folder.model_step() == 6


def rewrite(**arrays: Any) -> Callable[[Path], None]:
    """Write other arrays into a file, with right checksums; None takes one away."""

    def change(path: Path) -> None:
        with np.load(path) as file:
            kept = {**file, **arrays}
        np.savez(path, **{name: array for name, array in kept.items() if array is not None})

    return change


NO_NUMBERS = [
    rewrite(**{"generator/000": np.zeros(0)}),
    rewrite(**{"generator/000": np.array(["text"])}),
    rewrite(step=np.array(np.inf)),
    rewrite(step=None),
]


@pytest.mark.parametrize("damage", [flip_a_bit, cut, Path.unlink, *NO_NUMBERS])
def test_a_damaged_model_is_made_anew_from_its_checkpoint(
    p2phd: Command, packed: Path, run: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    damage(tmp_path / "run/model/weights.npz")
    assert p2phd("train", packed, tmp_path / "run", "--resume").code == 0
    same_run(tmp_path / "run", run)


def test_a_checkpoint_whose_score_is_damaged_is_kept_and_told_of(p2phd: Command, packed: Path, begun: Path) -> None:
    cut_short, damaged = (begun / f"checkpoints/step-0000000{step}" for step in (2, 4))
    (cut_short / "score.json").write_text("")
    shutil.copytree(damaged, begun / "checkpoints/step-00000003")
    (begun / "checkpoints/step-00000003/score.json").write_text(seal({"distance": 0.0}))
    cut(begun / "checkpoints/step-00000003/networks.npz")
    outcome = p2phd("train", packed, begun, "--resume", "--keep-checkpoints", 1, "--model", "best")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("step-00000002/score.json: damaged") == 1
    assert "step-00000003/networks.npz: damaged" in outcome.err
    assert cut_short.exists()


def failing_for(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """The operation, but for paths that hold this name, which a broken disk gives no more."""

    def fail(path: Path, *arguments: Any, **keywords: Any) -> Any:
        if name in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return original(path, *arguments, **keywords)

    return fail


def test_an_old_score_on_a_broken_disk_stops_no_save(
    p2phd: Command, packed: Path, run: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pix2pixhd_cli.runs.read_sealed", failing_for("step-00000002/score.json", read_sealed))
        outcome = p2phd("train", packed, begun, "--resume")
    assert outcome.code == 0
    assert outcome.err.count("step-00000002/score.json: Input/output error; this checkpoint is kept") == 1
    shutil.rmtree(begun / "checkpoints/step-00000002")
    same_run(begun, run)


def test_a_best_checkpoint_on_a_broken_disk_gives_way(
    p2phd: Command, packed: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (begun / "checkpoints/step-00000002/score.json").write_text(seal({"distance": 0.0}))
    with monkeypatch.context() as patch:
        patch.setattr("pix2pixhd_cli.runs.open_arrays", failing_for("step-00000002/networks", open_arrays))
        outcome = p2phd("train", packed, begun, "--resume", "--model", "best")
    assert outcome.code == 0 and "step-00000002/networks.npz: Input/output error" in outcome.err


def test_an_old_checkpoint_that_stays_is_told_of_and_harms_nothing(
    p2phd: Command, packed: Path, run: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pix2pixhd_cli.runs._delete", failing_for("step-00000002", lambda path: shutil.rmtree(path, ignore_errors=True))
    )
    outcome = p2phd("train", packed, begun, "--resume")
    assert outcome.code == 0 and "step-00000002 could not be deleted" in outcome.err
    shutil.rmtree(begun / "checkpoints/step-00000002")
    same_run(begun, run)


def test_another_number_of_threads_is_told_of(
    p2phd: Command, packed: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = engine.threads()
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", str(here + 1))
    outcome = p2phd("train", packed, begun, "--resume")
    assert outcome.code == 0
    assert f"was trained by {here} threads, and here are {here + 1}" in outcome.err
    assert f"with TF_NUM_INTRAOP_THREADS={here} in the environment it will" in outcome.err


def test_other_versions_are_told_of(p2phd: Command, packed: Path, begun: Path) -> None:
    sources = Run(begun).sources()
    assert sources.environment == engine.environment() and sources.environment["keras"] == keras.__version__
    older = {**sources.environment, "tensorflow": "2.0.0"}
    Run(begun).save_sources(sources.model_copy(update={"environment": older}))
    outcome = p2phd("train", packed, begun, "--resume")
    assert outcome.code == 0 and "was trained with tensorflow 2.0.0, and here is 2." in outcome.err
    assert Run(begun).sources() == sources, "from now on it is this one"


def test_threads_are_counted_where_no_system_tells_of_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert engine.threads() == os.cpu_count()


def test_the_best_model_may_be_asked_for_on_resuming(packed: Path, run: Path, begun: Path) -> None:
    (begun / "checkpoints/step-00000002/score.json").write_text(seal({"distance": 0.0}))
    settings = load_settings({"train": {"model": "best"}}, run=begun, resume=True)
    train(packed, begun, settings, resume=True)
    assert Run(begun).model_step() == 2
    with np.load(begun / "model/weights.npz") as model, np.load(Run(begun).checkpoints()[0] / "networks.npz") as best:
        assert all((model[name] == best[name]).all() for name in model.files)
    last = "checkpoints/step-00000006"
    assert tree(begun / last) == tree(run / last), "choosing a model leaves no trace in the training"


def test_a_stop_between_two_checkpoints_changes_no_best(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, folders = tiny_settings(train={"model": "best"}), (tmp_path / "stopped", tmp_path / "undisturbed")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, "step", signalling(3))
        train(packed, folders[0], settings)
    for folder in folders:
        train(packed, folder, settings, resume=folder.exists())
    same_run(*folders)


def signalling(step: int) -> Callable[..., dict[str, float]]:
    """`Trainer.step`, with a SIGTERM in the one of this number."""
    original, steps = Trainer.step, itertools.count(1)

    def signalled(*arguments: Any) -> dict[str, float]:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    return signalled


def test_a_stop_in_the_last_step_changes_nothing(
    packed: Path, run: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "step", signalling(2))
    train(packed, begun, load_settings(run=begun, resume=True), resume=True)
    same_run(begun, run)


def test_a_sealed_file_may_be_changed_by_hand_aloud(p2phd: Command, packed: Path, begun: Path) -> None:
    path = begun / "settings.json"
    text = path.read_text()
    path.write_text(text.replace('"epochs": 1', '"epochs": 2'))
    outcome = p2phd("train", packed, begun, "--resume", "--dry-run")
    assert (
        outcome.code == 1 and "settings.json: damaged (it does not fit its checksum; if you changed it" in outcome.err
    )
    path.write_text(re.sub(',\n "checksum": .*', "", text))
    assert "does not fit its checksum" in p2phd("train", packed, begun, "--resume", "--dry-run").err
    path.write_text(text.replace('"epochs": 1', '"epochs": 2'))
    path.write_text(re.sub('"checksum": .*', '"checksum": null', path.read_text()))
    assert p2phd("train", packed, begun, "--resume", "--dry-run").code == 0


def test_checkpoints_by_the_clock(packed: Path, tmp_path: Path) -> None:
    often: dict[str, object] = {
        "checkpoint_every": 100,
        "checkpoint_minutes": 1e-9,
        "keep_checkpoints": 9,
        "decay_epochs": 0,
    }
    train(packed, tmp_path / "run", tiny_settings(train=often))
    assert len(Run(tmp_path / "run").checkpoints()) == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_for_a_while_costs_nothing(
    number: int,
    packed: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original, folder = files.sync, tmp_path / "run"

    def fail_twice(path: Path) -> None:
        if "step-00000002" in str(path) or "step-00000004" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        original(path)

    monkeypatch.setattr(files, "sync", fail_twice)
    train(packed, folder, tiny_settings())
    said = capsys.readouterr().err
    assert said.count("not written. Training goes on") == 2 and os.strerror(number) in said
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000006"]
    monkeypatch.undo()
    shutil.copytree(run / "checkpoints/step-00000004", folder / "checkpoints/step-00000004")
    same_run(folder, run)


def test_a_disk_that_stays_full_ends_the_training_with_the_way_to_go_on(
    packed: Path, run: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch, pytest.raises(P2PHDError, match=r"steps 5 to 6 could not be saved.*--resume"):
        patch.setattr("pix2pixhd_cli.data.arrays.whole_file", lambda path, **_: fail(path))
        train(packed, begun, load_settings(run=begun, resume=True), resume=True)
    train(packed, begun, load_settings(run=begun, resume=True), resume=True)
    same_run(begun, run)


def test_a_training_that_nobody_can_hear_goes_on(packed: Path, run: Path, begun: Path) -> None:
    reader, pipe = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "pix2pixhd_cli", "train", str(packed), str(begun), "--resume"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=pipe, timeout=120, check=False)
    os.close(pipe)
    assert done.returncode == 0
    same_run(begun, run)


def test_a_full_disk_under_tensorboard_costs_only_that(
    packed: Path, run: Path, begun: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "events: No space left on device")

    monkeypatch.setattr("pix2pixhd_cli.training._summarise", fail)
    train(packed, begun, load_settings({"train": {"tensorboard": True}}, run=begun, resume=True), resume=True)
    assert capsys.readouterr().err.count("No space left on device; not written. Training goes on") == 2
    same_run(begun, run)


def test_metrics_that_could_not_be_written_follow_later(tmp_path: Path) -> None:
    folder = Run(tmp_path)
    folder.log({"step": 1})
    folder.metrics.rename(tmp_path / "away")
    folder.metrics.mkdir()
    with pytest.raises(IsADirectoryError):
        folder.log({"step": 2})
    folder.metrics.rmdir()
    (tmp_path / "away").rename(folder.metrics)
    folder.save_checkpoint({"generator": [tf.Variable(0.0)]}, 2, keep=1)
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2]
    folder.log({"step": 3})
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3]
    with folder.metrics.open("ab") as file:
        file.write(b'\xad\n{"step": 4}\n{"step": 5, ')
    folder.start_metrics(4)
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_line_that_was_half_written_is_taken_back(tmp_path: Path) -> None:
    folder, (_, most) = Run(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    folder.log({"step": 1})
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (folder.metrics.stat().st_size + 5, most))
    try:
        with pytest.raises(OSError, match="File too large") as failure:
            folder.log({"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        signal.signal(signal.SIGXFSZ, before)
    assert failure.value.filename == str(folder.metrics)
    assert [line["step"] for line in metrics(tmp_path)] == [1]
    folder.log({"step": 3})
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3]


def _hold(folder: str, ready: "multiprocessing.synchronize.Event", done: "multiprocessing.synchronize.Event") -> None:
    with Run(Path(folder)).lock():
        ready.set()
        done.wait(60)


@pytest.mark.parametrize("verb", ["train", "encode", "cluster"])
def test_two_processes_do_not_write_to_one_run(
    p2phd: Command, packed: Path, run: Path, tmp_path: Path, verb: str
) -> None:
    shutil.copytree(run, tmp_path / "run")
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path / "run"), ready, done))
    other.start()
    assert ready.wait(60)
    arguments = [packed, tmp_path / "run", "--resume"] if verb == "train" else [tmp_path / "run"]
    outcome = p2phd(verb, *arguments)
    assert outcome.code == 1
    assert f"process {other.pid} on {os.uname().nodename} is writing here" in outcome.err
    other.kill()
    other.join()
    assert p2phd(verb, *arguments).code == 0, "a lock of the dead holds nobody"


def test_a_lock_that_is_taken_away_meanwhile_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda *_: (tmp_path / ".lock").unlink())
    with pytest.raises(P2PHDError, match="has just left it; run the command again"), Run(tmp_path).lock():
        pass


def test_resuming_takes_over_what_is_harmless_and_refuses_the_rest(p2phd: Command, packed: Path, begun: Path) -> None:
    for flag, value in (("--learning-rate", 0.1), ("--loss-gan", "vanilla"), ("--pool-size", 2), ("--beta1", 0.1)):
        outcome = p2phd("train", packed, begun, "--resume", flag, value)
        assert outcome.code == 2 and f"{flag} is" in outcome.err and "was trained with" in outcome.err
    outcome = p2phd("train", packed, begun, "--resume", "--decay-epochs", 0, "--sample-every", 2)
    assert outcome.code == 0, outcome.err
    assert "--decay-epochs is 0 from now on; it was 1" in outcome.out
    changes = Run(begun).sources().changes
    assert {"after_step": 4, "setting": "--sample-every", "from": 100, "to": 2} in changes
    assert load_settings(run=begun).train.decay_epochs == 0


def test_a_change_is_recorded_once_though_the_run_is_killed_over_it(
    packed: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings({"train": {"sample_every": 2, "log_every": 2}}, run=begun, resume=True)
    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr(Run, "save_settings", die)
        train(packed, begun, settings, resume=True)
    train(packed, begun, settings, resume=True)
    assert [change["setting"] for change in Run(begun).sources().changes] == ["--log-every", "--sample-every"]


def die(*_: object) -> None:
    raise Death


def test_a_start_from_another_run_is_from_one_step_of_it(
    p2phd: Command, packed: Path, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"

    def goes_on(*arguments: Any) -> int:
        """The source, which is training still, saves another step just after it was read."""
        step = start_from(*arguments)
        shutil.copytree(begun / "checkpoints/step-00000004", begun / "checkpoints/step-00000005")
        return step

    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr(Trainer, "fit", die)
        patch.setattr("pix2pixhd_cli.pipeline.train.start_from", goes_on)
        train(packed, killed, tiny_settings(), init_from=begun)
    assert Run(killed).sources().init_step == 4, "though step 5 came meanwhile"
    shutil.rmtree(begun / "checkpoints/step-00000005")
    for folder in (killed, undisturbed):
        train(packed, folder, tiny_settings(), init_from=begun, resume=folder.exists())
    same_run(killed, undisturbed)
    shutil.rmtree(killed / "checkpoints")
    shutil.rmtree(begun / "checkpoints/step-00000004")
    outcome = p2phd("train", packed, killed, "--resume")
    assert outcome.code == 1
    assert f"{begun}: was trained on since {killed} started from it; start a new run" in outcome.err


def test_training_works_in_a_thread_that_hears_no_signals(packed: Path, run: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as thread:
        thread.submit(train, packed, tmp_path / "run", tiny_settings()).result()
    same_run(tmp_path / "run", run)


def test_other_settings_are_refused_from_python_too(packed: Path, run: Path, begun: Path) -> None:
    before = {name: data for name, data in tree(begun).items() if name != ".lock"}
    refused: dict[str, dict[str, dict[str, object]]] = {
        "--learning-rate is 0.1": {"train": {"learning_rate": 0.1, "keep_checkpoints": 1}},
        "--generator-filters is 8": {"generator": {"filters": 8}},
        "--pool-size is 3": {"train": {"pool_size": 3}},
    }
    for flag, sections in refused.items():
        with pytest.raises(SettingsError, match=f"{flag}, but the run was trained with"):
            train(packed, begun, tiny_settings(**sections), resume=True)
    assert {name: data for name, data in tree(begun).items() if name != ".lock"} == before
    with pytest.raises(SettingsError, match=f"--init-from {run}: the run started from nothing; leave it out"):
        train(packed, begun, init_from=run, resume=True)
    train(packed, begun, resume=True)
    same_run(begun, run)


def test_resuming_where_nothing_is_starts_anew(p2phd: Command, packed: Path, tmp_path: Path) -> None:
    flags = ["--generator-filters", 4, "--generator-blocks", 1, "--discriminator-filters", 4, "--epochs", 1]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/dataset.json").write_text("{")  # Died while it was made.
    outcome = p2phd("train", packed, tmp_path / "run", "--resume", "--decay-epochs", 0, "--batch-size", 6, *flags)
    assert outcome.code == 0, outcome.err
    assert "starting anew" in outcome.err
    assert Run(tmp_path / "run").model_step() == 1


def test_a_loss_that_is_no_number_stops_before_it_does_harm(
    packed: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.portions

    def poisoned(self: Trainer, start: int) -> Iterator[tuple[int, int, object]]:
        for step, epoch, [[portion]] in original(self, start):
            batch = portion.batch._replace(photo=portion.batch.photo * np.nan) if step == 6 else portion.batch
            yield step, epoch, [[portion._replace(batch=batch)]]

    kept: dict[str, Any] = {}

    def remember(self: Trainer, *arguments: object) -> dict[str, float]:
        kept["trainer"] = self
        kept["weights"] = [v.numpy().copy() for v in self.state["generator"]]
        return step(self, *arguments)  # type: ignore[arg-type]

    step = Trainer.step
    monkeypatch.setattr(Trainer, "portions", poisoned)
    monkeypatch.setattr(Trainer, "step", remember)
    with pytest.raises(P2PHDError, match=r"step 6: g_\w+ is nan, on \w+, \w+; the checkpoint of step 4 is kept"):
        train(packed, begun, load_settings(run=begun, resume=True), resume=True)
    after = [v.numpy() for v in kept["trainer"].state["generator"]]
    assert all((a == b).all() for a, b in zip(kept["weights"], after, strict=True))
    assert len(Run(begun).checkpoints()) == 2


def test_gradients_that_are_too_large_stop_it_too(packed: Path, tmp_path: Path) -> None:
    settings = tiny_settings(loss={"feature_matching": 1e30}, train={"checkpoint_every": 1})
    with pytest.raises(
        P2PHDError, match=r"step 1: the losses' gradients are too large for numbers, on .*nothing was saved"
    ):
        train(packed, tmp_path / "run", settings)
    assert not Run(tmp_path / "run").checkpoints()


def test_weights_that_are_no_numbers_are_not_saved_over_good_ones(
    packed: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def spoil(self: Trainer, *arguments: object) -> dict[str, float]:
        losses = step(self, *arguments)  # type: ignore[arg-type]
        self.state["generator"][0].assign(self.state["generator"][0] * np.nan)
        return losses

    monkeypatch.setattr(Trainer, "step", spoil)
    monkeypatch.setattr(Trainer, "distance", lambda _: 1.0)
    with pytest.raises(
        P2PHDError, match=r"step 5: the generator holds .* no numbers, on \w+, \w+; the checkpoint of step 4 is"
    ):
        train(packed, begun, load_settings({"train": {"checkpoint_every": 1}}, run=begun, resume=True), resume=True)
    assert Run(begun).checkpoints()[-1].name == "step-00000004"


def test_pictures_of_one_colour_are_told_of(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = Trainer._samples
    monkeypatch.setattr(
        Trainer, "_samples", lambda self: (s._replace(fake=np.full_like(s.fake, -1)) for s in samples(self))
    )
    train(packed, tmp_path / "run", tiny_settings(train={"sample_every": 1}))
    assert capsys.readouterr().err.count("step 3: the last 3 samples are of one colour") == 1
    monkeypatch.setattr(
        Trainer, "_samples", lambda self: (s._replace(fake=s.fake * 0, photo=s.photo * 0) for s in samples(self))
    )
    train(packed, tmp_path / "grey", tiny_settings(train={"sample_every": 1}))
    assert "of one colour" not in capsys.readouterr().err, "photos of one colour are to be learnt as they are"


@pytest.mark.slow
def test_fifty_kills_of_every_verb(tmp_path: Path) -> None:
    for line in kill_all(tmp_path, list(WORKS), kills=50, seed=0):
        assert line.endswith("and everything is the same")
