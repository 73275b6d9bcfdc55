"""Training: the schedule, what a run holds, and going on exactly where it stopped."""

import io
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from pix2pixhd_cli.data.batches import Deal
from pix2pixhd_cli.errors import Interrupted, P2PHDError
from pix2pixhd_cli.pipeline.train import train
from pix2pixhd_cli.settings import Settings, TrainSettings, load_settings
from pix2pixhd_cli.training import Schedule, Trainer, learning_rate
from tests.conftest import Command, read, tiny_settings


def arrays(run: Path) -> dict[str, bytes]:
    """The model and the checkpoints, byte by byte."""
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.npz")) if path.parent != run}


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def same_run(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b)
    first, second = arrays(a), arrays(b)
    assert list(first) == list(second) and first
    assert [name for name in first if first[name] != second[name]] == []
    samples = [sorted((run / "samples").iterdir()) for run in (a, b)]
    assert [p.name for p in samples[0]] == [p.name for p in samples[1]]
    for one, other in zip(*samples, strict=True):
        np.testing.assert_array_equal(read(one), read(other))


def test_learning_rate() -> None:
    settings = TrainSettings(epochs=3, decay_epochs=4, learning_rate=0.8)
    assert [learning_rate(settings, e) for e in range(1, 8)] == pytest.approx([0.8, 0.8, 0.8, 0.8, 0.6, 0.4, 0.2])
    assert learning_rate(TrainSettings(epochs=2, decay_epochs=0), 2) == 2e-4
    assert Schedule(TrainSettings(epochs=3, decay_epochs=4), 10, Deal(4)).steps == 21
    assert Schedule(TrainSettings(epochs=3, decay_epochs=4), 10, Deal(1, turns=2, replicas=2)).steps == 21


def test_what_a_run_holds(run: Path) -> None:
    log = metrics(run)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in log] == [1, 1, 1, 2, 2, 2]
    assert [line["learning_rate"] for line in log] == [2e-4] * 6
    assert list(log[0]) == ["step", "epoch", "g_gan", "g_feat", "g_vgg", "g_rec", "d_real", "d_fake", "learning_rate"]
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["step-00000000.png", "step-00000006.png"]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    assert sorted(p.name for p in (run / "model").iterdir()) == ["weights.npz"]
    assert load_settings(run=run).encoder.enabled is True


def test_a_resumed_run_is_bit_identical(
    packed: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, steps = tmp_path / "run", []
    original = Trainer.step

    def stop_after_three(self: Trainer, batch: object, epoch: int) -> dict[str, float]:
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, epoch)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "step", stop_after_three)
    with pytest.raises(Interrupted, match=r"saved at step 3 of 6; go on with `p2phd train .* --resume`") as caught:
        train(packed, stopped, tiny_settings())
    assert caught.value.exit_code == 143
    monkeypatch.setattr(Trainer, "step", original)
    train(packed, stopped, tiny_settings(), resume=True)
    same_run(stopped, run)


def test_a_run_that_died_without_saving_goes_on_from_its_last_checkpoint(
    packed: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Death(BaseException):
        pass

    died, original, steps = tmp_path / "run", Trainer.step, []

    def die(self: Trainer, batch: object, epoch: int) -> dict[str, float]:
        steps.append(1)
        if len(steps) in (2, 7):
            raise Death
        return original(self, batch, epoch)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "step", die)
    with pytest.raises(Death):
        train(packed, died, tiny_settings())
    assert not (died / "checkpoints").exists(), "nothing was saved yet: it starts anew"
    with pytest.raises(Death):
        train(packed, died, tiny_settings(), resume=True)
    assert [line["step"] for line in metrics(died)] == [1, 2, 3, 4]
    train(packed, died, tiny_settings(), resume=True)
    same_run(died, run)


def test_resuming_a_finished_run_changes_nothing(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(packed, folder, tiny_settings())
    before = arrays(folder)
    train(packed, folder, load_settings(run=folder, resume=True), resume=True)
    assert arrays(folder) == before
    assert len(metrics(folder)) == 6


def test_the_same_seed_gives_the_same_run_and_another_does_not(packed: Path, run: Path, tmp_path: Path) -> None:
    train(packed, tmp_path / "same", tiny_settings())
    same_run(tmp_path / "same", run)
    train(packed, tmp_path / "other", tiny_settings(train={"seed": 1}))
    assert metrics(tmp_path / "other") != metrics(run)


def test_dry_run_writes_nothing_and_tells_all(p2phd: Command, packed: Path, tmp_path: Path) -> None:
    outcome = p2phd("train", packed, tmp_path / "run", "--dry-run", "--generator-filters", 4, "--generator-blocks", 1)
    assert outcome.code == 0, outcome.err
    for part in ("generator", "discriminator", "encoder", "device:", "MiB", "200 epochs of 6 steps", "seconds a step"):
        assert part in outcome.out, part
    assert not (tmp_path / "run").exists()


def test_crops_without_encoder_and_with_batch_one(packed: Path, tmp_path: Path) -> None:
    settings = tiny_settings(encoder={"enabled": False}, train={"crop": "16x24", "batch_size": 1, "decay_epochs": 0})
    train(packed, tmp_path / "run", settings)
    assert len(metrics(tmp_path / "run")) == 6
    with np.load(tmp_path / "run" / "model" / "weights.npz") as model:
        assert {name.partition("/")[0] for name in model} == {"step", "generator"}


def test_tensorboard(packed: Path, tmp_path: Path) -> None:
    """It has the losses and the evaluations of `metrics.jsonl`, and the samples."""
    chosen: dict[str, object] = {
        "tensorboard": True,
        "epochs": 1,
        "decay_epochs": 0,
        "evaluate_every": 3,
        "evaluate_limit": 1,
    }
    train(packed, tmp_path / "run", tiny_settings(train=chosen))
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    lines = metrics(tmp_path / "run")
    for name in ("g_gan", "g_feat", "d_real", "eval_psnr", "eval_ssim"):
        values = {line["step"]: line[name] for line in lines if name in line}
        assert values
        shown = {event.step: float(make_ndarray(event.tensor_proto)) for event in found.Tensors(name)}
        assert shown == pytest.approx(values), name
    width, height, *pictures = make_ndarray(found.Tensors("samples")[-1].tensor_proto)
    with Image.open(tmp_path / "run" / "samples" / "step-00000003.png") as sheet:
        assert sheet.size == (int(width), int(height))
        assert np.array_equal(np.asarray(sheet), np.asarray(Image.open(io.BytesIO(pictures[0]))))


def test_rgb_to_rgb_trains(tmp_path: Path) -> None:
    from pix2pixhd_cli.pipeline.generate import generate
    from pix2pixhd_cli.pipeline.pack import pack
    from pix2pixhd_cli.pipeline.prepare import prepare
    from tests.conftest import save

    for side in "AB":
        for n in range(2):
            save(tmp_path / f"src/train_{side}/{n}.png", np.full((32, 32, 3), 60 * n + ord(side), np.uint8))
    prepare(tmp_path / "src", tmp_path / "ds", Settings(prepare={"layout": "pix2pixhd"}))
    pack(tmp_path / "ds", tmp_path / "packed")
    train(tmp_path / "packed", tmp_path / "run", tiny_settings())
    painted = generate(tmp_path / "run", tmp_path / "src" / "train_A", tmp_path / "out")
    assert [read(path).shape for path in painted] == [(32, 32, 3)] * 2


def test_an_existing_run_is_never_overwritten(packed: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(P2PHDError, match="--resume"):
        train(packed, run, tiny_settings())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(P2PHDError, match="holds other files"):
        train(packed, tmp_path / "mine", tiny_settings())
