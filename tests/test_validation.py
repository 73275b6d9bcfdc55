"""Evaluations during training: their numbers, the best checkpoint, and stopping early."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.evaluation import read_evaluations
from pix2pixhd_cli.pipeline.evaluate import evaluate
from pix2pixhd_cli.pipeline.train import train
from pix2pixhd_cli.runs import Run
from pix2pixhd_cli.settings import Settings, load_settings
from pix2pixhd_cli.training import Trainer
from pix2pixhd_cli.validation import Pair, Validation
from tests.conftest import Command, tiny_settings
from tests.power import Death
from tests.test_perceptual import weights
from tests.test_training import metrics, same_run


def settings(**chosen: object) -> Settings:
    return tiny_settings(train={"evaluate_every": 2, "checkpoint_every": 100, "epochs": 3, **chosen})


def steps(run: Path) -> list[int]:
    return [int(path.name.partition("-")[2]) for path in Run(run).checkpoints()]


def test_they_are_those_of_evaluate(packed: Path, dataset: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "vgg.npz", **weights(16))  # type: ignore[arg-type]
    typed = settings(
        perceptual_weights=str(tmp_path / "vgg.npz"),
        epochs=1,
        decay_epochs=0,
        evaluate_limit=2,
        ema=0.9,
        keep_checkpoints=9,
    )
    run = tmp_path / "run"
    train(packed, run, typed)
    lines = [line for line in metrics(run) if "eval_psnr" in line]
    assert [line["step"] for line in lines] == [2, 3] and steps(run) == [2, 3]
    chosen = {"checkpoint": "all", "limit": 2}
    for line, found in zip(lines, evaluate(run, dataset, load_settings({"evaluate": chosen}, run=run)), strict=True):
        values = {row.metric: row.value for row in found.rows if row.codes == "photo"}
        assert found.step == line["step"] and found.averaged
        for name, metric in (("psnr", "PSNR (dB)"), ("ssim", "SSIM"), ("perceptual", "perceptual distance")):
            assert line[f"eval_{name}"] == pytest.approx(values[metric], rel=1e-4), name
    scores = [line["eval_perceptual"] for line in lines]
    assert list(Run(run)._scores().values()) == scores, "the perceptual distance decides where there is one"
    assert len(read_evaluations(run)) == 2


SERIES = (3.0, 5.0, 4.0, 4.5, 1.0, 6.0)


@pytest.fixture
def series(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What evaluations will find, one after the other; the step that it is found at is not looked at."""
    coming = list(SERIES)

    def measure(_: Validation, pairs: Iterable[Pair]) -> dict[str, float]:
        assert all(fake.shape == photo.shape for fake, photo in pairs)
        return {"psnr": coming.pop(0), "ssim": 0.0}

    monkeypatch.setattr(Validation, "measure", measure)
    return coming


@pytest.mark.usefixtures("series")
def test_the_best_is_kept_and_chosen(packed: Path, tmp_path: Path) -> None:
    train(packed, tmp_path / "run", settings(best_by="psnr", keep_checkpoints=1, model="best"))
    assert steps(tmp_path / "run") == [12], "the last is the best"
    assert Run(tmp_path / "run").model_step() == 12


def test_a_training_that_becomes_no_better_stops(
    p2phd: Command, packed: Path, tmp_path: Path, series: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(packed, run, settings(best_by="psnr", keep_checkpoints=1, patience=3))
    said = capsys.readouterr().out
    assert "step 4, 'val': PSNR 5.00 dB, SSIM 0.0000 (the best so far)" in said
    assert "stopped after step 10 of 12: no better psnr in 3 evaluations; the best is step-00000004" in said
    assert steps(run) == [4, 10] and Run(run).model_step() == 10
    outcome = p2phd("train", packed, run, "--resume", "--model", "best")
    assert outcome.code == 0 and "stopped after step 10 of 12" in outcome.out and series == [6.0]
    assert Run(run).model_step() == 4
    assert p2phd("train", packed, run, "--resume", "--patience", 4).code == 0
    assert steps(run) == [12] and not series
    assert [line["eval_psnr"] for line in metrics(run) if "eval_psnr" in line] == list(SERIES)


def test_waiting_goes_on_where_it_was(
    packed: Path, tmp_path: Path, series: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it died in the middle."""
    typed = settings(best_by="psnr", keep_checkpoints=1, patience=3)
    train(packed, tmp_path / "whole", typed)
    series[:] = SERIES
    original = Trainer.step

    def stopping(self: Trainer, *arguments: Any) -> dict[str, float]:
        losses = original(self, *arguments)
        if self.optimizers.generator.iterations.numpy() == 7:
            monkeypatch.setattr(Trainer, "step", original)
            raise Death
        return losses

    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(Death):
        train(packed, tmp_path / "run", typed)
    train(packed, tmp_path / "run", typed, resume=True)
    same_run(tmp_path / "run", tmp_path / "whole")
    assert steps(tmp_path / "run") == [4, 10]


def test_what_is_refused(p2phd: Command, packed: Path, run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    new = tmp_path / "new"
    for words, code, message in (
        ((new, "--patience", 2), 2, "--patience and --best-by need --evaluate-every"),
        ((new, "--best-by", "ssim"), 2, "--patience and --best-by need --evaluate-every"),
        ((new, "--evaluate-every", 2, "--best-by", "perceptual"), 2, "--best-by perceptual needs --perceptual-weights"),
        ((new, "--evaluate-every", 2, "--evaluate-split", "test"), 1, "there is no split 'test' here"),
        ((copy, "--resume", "--evaluate-every", 2), 2, "was trained without evaluations; train a new run"),
    ):
        outcome = p2phd("train", packed, *words)
        assert outcome.code == code and message in outcome.err, outcome.err
    assert not new.exists()


def test_held_out_pictures_must_be_large_enough(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pix2pixhd_cli.pipeline import train as module

    monkeypatch.setattr(module, "smallest_side", lambda _: 999)
    monkeypatch.setattr(module, "_check_data", lambda *_: None)
    with pytest.raises(P2PHDError, match="pictures of 'val' are too small"):
        train(packed, tmp_path / "run", settings())
