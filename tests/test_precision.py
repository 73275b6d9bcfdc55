"""Mixed precision: what is computed in half, what stays in float32, and the loss scale that float16 needs."""

import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from pix2pixhd_cli import training
from pix2pixhd_cli.errors import P2PHDError, SettingsError
from pix2pixhd_cli.model.layers import Convolution, InstanceNorm, ResidualBlock, Upsample, computing_in
from pix2pixhd_cli.model.losses import mean_distance
from pix2pixhd_cli.model.optimizers import LossScale
from pix2pixhd_cli.pipeline.train import train
from pix2pixhd_cli.settings import Settings, load_settings
from pix2pixhd_cli.training import Trainer
from tests.conftest import Command, tiny_settings
from tests.test_training import arrays, metrics

HALVES = [tf.float16, tf.bfloat16]
BITS = {tf.float16: 2**-10, tf.bfloat16: 2**-7}


def settings(precision: str, **chosen: object) -> Settings:
    return tiny_settings(train={"precision": precision, **chosen})


def in_both(layer: tf.Module, x: tf.Tensor, half: tf.DType) -> tuple[list[tf.Tensor], list[tf.Tensor], tf.DType]:
    """Output and gradients in float32 and in half; and the type of the output in half."""

    def run(x: tf.Tensor) -> list[tf.Tensor]:
        variables = [weight.value for weight in layer.weights if weight.name != "bias"]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            total = tf.reduce_mean(tf.cast(y, tf.float32) * direction[: len(x)])
        return [y, *tape.gradient(total, [x, *variables])]

    direction = tf.random.stateless_normal(layer(x).shape, [1, 2])
    exact = run(x)
    with computing_in(half):
        found = run(tf.cast(x, half))
    return exact, [tf.cast(value, tf.float32) for value in found], found[0].dtype


@pytest.mark.parametrize("half", HALVES, ids=lambda t: t.name)
@pytest.mark.parametrize(
    "layer",
    [
        lambda: Convolution(8, 3, padding=1, reflect=True),
        lambda: Convolution(8, 4, strides=2, padding=2, norm="batch", activation="leaky_relu"),
        lambda: ResidualBlock(6),
        lambda: Upsample(8),
    ],
    ids=["reflected", "strided", "residual", "upsample"],
)
def test_layers_give_the_same_in_half(layer: object, half: tf.DType) -> None:
    keras.utils.set_random_seed(1)  # Others may draw weights for which an activation just turns on or off.
    built = layer()  # type: ignore[operator]
    x = tf.random.stateless_normal([2, 12, 16, 6], [3, 4])
    built.build(x.shape)
    exact, found, dtype = in_both(built, x, half)
    assert dtype == half
    for a, b in zip(exact, found, strict=True):
        assert float(tf.norm(a - b)) <= 20 * BITS[half] * float(tf.norm(a)) + 1e-5


@pytest.mark.parametrize("activation", ["tanh", None])
def test_what_a_network_hands_out_is_float32(activation: str | None) -> None:
    layer = Convolution(3, 7, padding=3, norm=None, activation=activation)  # type: ignore[arg-type]
    x = tf.random.stateless_normal([1, 8, 8, 4], [3, 4])
    layer.build(x.shape)
    with computing_in(tf.float16):
        assert layer(x).dtype == tf.float32
    assert all(weight.value.dtype == tf.float32 for weight in layer.weights)


def test_normalisation_sums_in_float32() -> None:
    """In float16 the squares of these would be infinite, and their mean would be off."""
    x = tf.cast(1000.0 + 300.0 * tf.random.stateless_normal([1, 64, 64, 4], [5, 6]), tf.float16)
    y = tf.cast(InstanceNorm()(x), tf.float32)
    exact = InstanceNorm()(tf.cast(x, tf.float32))
    assert y.dtype == tf.float32 and float(tf.reduce_max(tf.abs(y - exact))) < 4e-3


def test_distances_are_summed_in_float32() -> None:
    ones = tf.ones([1, 300, 300, 1], tf.float16)
    with tf.GradientTape() as tape:
        tape.watch(ones)
        distance = mean_distance(ones, tf.zeros_like(ones))
    assert distance.dtype == tf.float32 and float(distance) == 1.0
    assert tape.gradient(distance, ones).dtype == tf.float16


def test_bfloat16_ends_near_float32(packed: Path, tmp_path: Path) -> None:
    last = []
    for precision in ("float32", "mixed_bfloat16", "mixed_float16"):
        train(packed, tmp_path / precision, settings(precision, epochs=10, decay_epochs=0))
        last.append(np.mean([line["g_feat"] for line in metrics(tmp_path / precision)[-6:]]))
    assert last[1:] == pytest.approx([last[0]] * 2, rel=0.05)
    assert last[1] != last[0] != last[2]


def test_the_scale_halves_doubles_and_has_a_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "PATIENCE", 3)
    monkeypatch.setattr(LossScale, "START", 4.0)
    scale, seen = LossScale(), []
    for finite in (True, True, False, True, True, True, True, False, False):
        scale.follow(tf.constant(finite))
        seen.append(float(scale.value))
    assert seen == [4, 4, 2, 2, 2, 4, 4, 2, 1] and int(scale.skipped) == 3


def test_the_scale_gives_up_at_its_floor() -> None:
    scale = LossScale()
    scale.value.assign(LossScale.FLOOR)
    scale.follow(tf.constant(True))
    with pytest.raises(tf.errors.InvalidArgumentError):
        scale.follow(tf.constant(False))


def test_an_overflow_skips_the_step_and_is_counted(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LossScale, "START", LossScale.CEILING)  # Far too large for these losses.
    weights, original = [], Trainer.step

    def watch(self: Trainer, *arguments: object) -> dict[str, float]:
        losses = original(self, *arguments)  # type: ignore[arg-type]
        state = [variable for variables in self.state.values() for variable in variables]
        weights.append([np.asarray(variable) for variable in state[:-3]])
        return losses

    monkeypatch.setattr(Trainer, "step", watch)
    train(packed, tmp_path / "run", settings("mixed_float16", epochs=4))
    lines = metrics(tmp_path / "run")
    skipped = [line["skipped"] for line in lines]
    assert skipped[0] == 1 and lines[0]["loss_scale"] == LossScale.CEILING / 2
    assert 1 < skipped[-1] < len(lines), "and in the end it trains"
    for number in range(1, len(lines)):
        before, after = weights[number - 1], weights[number]
        same = all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        assert same == (skipped[number] > skipped[number - 1]), number


def test_gradients_that_overflow_at_any_scale_stop_the_training(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint whose every step was skipped is nothing to start from; of many examples some are named."""
    monkeypatch.setattr(LossScale, "START", 2.0)
    monkeypatch.setattr(training, "NAMED", 1)
    typed = {"precision": "mixed_float16", "batch_size": 2, "checkpoint_every": 1}
    with pytest.raises(P2PHDError, match=r"step 2: the losses' gradients are too large .* unscaled") as caught:
        train(packed, tmp_path / "run", tiny_settings(train=typed, loss={"feature_matching": 1e9}))
    assert re.search(r", on \w+ and 1 more; the checkpoint of step 1 is kept\. ", str(caught.value))
    assert str(caught.value).endswith("a smaller --learning-rate, or with --precision mixed_bfloat16")


def test_the_scale_is_resumed_exactly(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "PATIENCE", 4)

    def chosen(epochs: int, precision: str = "mixed_float16") -> Settings:
        return settings(precision, epochs=epochs, decay_epochs=0)

    train(packed, tmp_path / "whole", chosen(2))
    train(packed, tmp_path / "run", chosen(1))
    train(packed, tmp_path / "run", chosen(2), resume=True)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert arrays(tmp_path / "run") == arrays(tmp_path / "whole")
    assert len({line["loss_scale"] for line in metrics(tmp_path / "whole")}) > 1
    with pytest.raises(SettingsError, match="precision"):
        train(packed, tmp_path / "run", chosen(2, "float32"), resume=True)


def test_weights_are_kept_in_float32(p2phd: Command, packed: Path, dataset: Path, tmp_path: Path) -> None:
    flags = [
        "--precision",
        "mixed_bfloat16",
        "--generator-filters",
        4,
        "--generator-blocks",
        1,
        "--epochs",
        1,
        "--log-every",
        1,
    ]
    assert p2phd("train", packed, tmp_path / "run", *flags, "--decay-epochs", 0).code == 0
    with np.load(tmp_path / "run" / "model" / "weights.npz") as file:
        assert {file[name].dtype for name in file if name != "step"} == {np.dtype(np.float32)}
    assert p2phd("generate", tmp_path / "run", dataset, tmp_path / "out").code == 0
    assert load_settings(run=tmp_path / "run").train.precision == "mixed_bfloat16"
    assert arrays(tmp_path / "run") and "skipped" not in json.dumps(metrics(tmp_path / "run"))
