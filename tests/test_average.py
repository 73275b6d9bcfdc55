"""The averaged generator: what it is the average of, who paints with it, and that it is resumed exactly."""

from pathlib import Path

import numpy as np
import pytest

from pix2pixhd_cli.model.build import build_model
from pix2pixhd_cli.painting import Painter
from pix2pixhd_cli.pipeline.generate import generate
from pix2pixhd_cli.pipeline.train import train
from pix2pixhd_cli.runs import Run
from pix2pixhd_cli.settings import Settings, load_settings
from pix2pixhd_cli.training import Trainer
from tests.conftest import Command, read, tiny_settings
from tests.test_training import metrics, same_run


def settings(**chosen: object) -> Settings:
    return tiny_settings(train={"ema": 0.9, **chosen})


@pytest.fixture(scope="module")
def averaged(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("averaged") / "run"
    train(packed, folder, settings())
    return folder


def test_it_is_the_average_of_the_steps_weights(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.step
    seen: list[list[np.ndarray]] = []

    def watch(self: Trainer, *arguments: object) -> dict[str, float]:
        if not seen:
            seen.append([weight.numpy() for weight in self.model.generator.weights])
        losses = original(self, *arguments)  # type: ignore[arg-type]
        seen.append([weight.numpy() for weight in self.model.generator.weights])
        return losses

    monkeypatch.setattr(Trainer, "step", watch)
    train(packed, tmp_path / "run", settings(ema=0.15, epochs=2))
    average, *steps = seen
    average = [weight.astype(np.float64) for weight in average]
    for number, weights in enumerate(steps):
        decay = min(0.15, (1 + number) / (10 + number))  # Of which both sides are met.
        average = [decay * kept + (1 - decay) * new for kept, new in zip(average, weights, strict=True)]
    with np.load(tmp_path / "run" / "model" / "weights.npz") as file:
        for number, (expected, last) in enumerate(zip(average, steps[-1], strict=True)):
            np.testing.assert_allclose(file[f"average/{number:03d}"], expected, atol=1e-6)
            np.testing.assert_array_equal(file[f"generator/{number:03d}"], last)


def test_the_weights_themselves_train_as_without(averaged: Path, run: Path) -> None:
    assert metrics(averaged) == metrics(run)


def test_generate_paints_with_it_unless_told_otherwise(
    p2phd: Command, averaged: Path, dataset: Path, tmp_path: Path
) -> None:
    for out, flags in (("average", ()), ("newest", ("--no-ema",))):
        assert p2phd("generate", averaged, dataset, tmp_path / out, *flags).code == 0
    chosen = load_settings(run=averaged)
    model = build_model(
        chosen, labels=Run(averaged).spec().labels, ignored=Run(averaged).spec().ignored, training=False
    )
    with np.load(averaged / "model" / "weights.npz") as file:
        for out, name in (("average", "average"), ("newest", "generator")):
            painter = Painter(averaged, chosen)
            for number, weight in enumerate(painter.model.generator.weights):
                weight.assign(file[f"{name}/{number:03d}"])
            assert len(painter.model.generator.weights) == len(model.generator.weights)
            expected = generate_with(painter, dataset, tmp_path / f"expected-{out}", chosen)
            for path in expected:
                np.testing.assert_array_equal(read(path), read(tmp_path / out / path.name))
    assert any((read(path) != read(tmp_path / "newest" / path.name)).any() for path in (tmp_path / "average").iterdir())


def generate_with(painter: Painter, dataset: Path, out: Path, chosen: Settings) -> list[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pix2pixhd_cli.pipeline.generate.Painter", lambda *_, **__: painter)
        return generate(painter.run.folder, dataset, out, chosen)


def test_samples_and_scores_show_what_will_be_painted(packed: Path, averaged: Path) -> None:
    """The checkpoint's distance is that of the average's pictures."""
    from pix2pixhd_cli.data.records import PackedSplit

    painter, distances = Painter(averaged), []
    for number in range(4):
        example = PackedSplit(packed, "train").example(number)
        assert example.photo is not None
        fake = painter.paint_float(example.label, example.instance, gains=1.0, photo=example.photo)
        distances.append(np.abs(fake - (example.photo.astype(np.float32) / 127.5 - 1)).mean())
    assert Run(averaged).best_distance() == pytest.approx(min(Run(averaged)._scores().values()), rel=1e-6)  # type: ignore[type-var]
    newest = Run(averaged)._scores()[Run(averaged).checkpoints()[-1]]
    assert newest == pytest.approx(np.mean(distances), rel=1e-4)


def test_it_is_resumed_exactly(packed: Path, averaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Death(BaseException):
        pass

    original, steps = Trainer.step, []

    def die(self: Trainer, *arguments: object) -> dict[str, float]:
        steps.append(1)
        if len(steps) == 4:
            raise Death
        return original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "step", die)
    with pytest.raises(Death):
        train(packed, tmp_path / "run", settings())
    train(packed, tmp_path / "run", settings(), resume=True)
    same_run(tmp_path / "run", averaged)


def test_the_best_checkpoint_brings_its_average(packed: Path, tmp_path: Path) -> None:
    train(packed, tmp_path / "run", settings(model="best"))
    best = Run(tmp_path / "run").best_checkpoint()
    assert best is not None
    with np.load(best / "networks.npz") as checkpoint, np.load(tmp_path / "run" / "model" / "weights.npz") as model:
        assert [name for name in model if name.startswith("average")]
        for name in model:
            np.testing.assert_array_equal(model[name], checkpoint[name])


def test_a_run_starts_from_one_with_an_average(packed: Path, averaged: Path, tmp_path: Path) -> None:
    train(packed, tmp_path / "plain", tiny_settings(), init_from=averaged)
    train(packed, tmp_path / "tuned", settings(), init_from=averaged)
    assert metrics(tmp_path / "plain") == metrics(tmp_path / "tuned")
