"""However a step's examples are divided, it is the same step."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pix2pixhd_cli.data.dataset import Example
from pix2pixhd_cli.data.records import PackedSplit
from pix2pixhd_cli.errors import SettingsError
from pix2pixhd_cli.painting import Painter
from pix2pixhd_cli.pipeline.train import train
from pix2pixhd_cli.settings import Settings, load_settings
from tests.conftest import tiny_settings
from tests.test_training import metrics

LOSSES = ("g_gan", "g_feat", "g_vgg", "g_rec", "d_real", "d_fake")
EPOCHS = {2: 7, 4: 2}  # Of 6 examples: 21 steps of two; 4 of four or of two, later ones part at a kink of a ReLU.


def settings(**train: object) -> Settings:
    return tiny_settings(train={"decay_epochs": 0, "checkpoint_every": 100, **train}, loss={"reconstruction": 1.0})


def pictures(run: Path, packed: Path) -> list[NDArray[np.float32]]:
    painter = Painter(run)

    def paint(example: Example) -> NDArray[np.float32]:
        return painter.paint_float(example.label, example.instance, gains=1.0, photo=example.photo)

    return [paint(example) for example in PackedSplit(packed, "train")]


def same_training(a: Path, b: Path, packed: Path) -> None:
    """Equal up to rounding; biases in front of a normalisation move at random, and are left out by looking at pictures."""
    first, second = metrics(a), metrics(b)
    assert [line["step"] for line in first] == [line["step"] for line in second]
    for ours, theirs in zip(first, second, strict=True):
        assert [ours[name] for name in LOSSES] == pytest.approx([theirs[name] for name in LOSSES], rel=1e-4), ours
    for one, other in zip(pictures(a, packed), pictures(b, packed), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.fixture(scope="module", params=[2, 4], ids=lambda size: f"step of {size}")
def reference(request: pytest.FixtureRequest, packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"steps{request.param}") / "run"
    train(packed, folder, settings(batch_size=request.param, epochs=EPOCHS[request.param]))
    return folder


def test_batches_that_are_accumulated_are_one_batch(reference: Path, packed: Path, tmp_path: Path) -> None:
    size = load_settings(run=reference).train.batch_size
    train(packed, tmp_path / "run", settings(batch_size=1, accumulate=size, epochs=EPOCHS[size]))
    same_training(tmp_path / "run", reference, packed)


def test_a_short_last_step_is_the_mean_of_what_it_has(packed: Path, tmp_path: Path) -> None:
    """Of six examples five to a step: the last one's single example counts as a whole step, and comes to the pool once."""
    train(packed, tmp_path / "whole", settings(batch_size=5, epochs=2, pool_size=3))
    train(packed, tmp_path / "single", settings(batch_size=1, accumulate=5, epochs=2, pool_size=3))
    same_training(tmp_path / "single", tmp_path / "whole", packed)


def test_accumulating_resumes_exactly_and_with_as_many_examples_a_step(packed: Path, tmp_path: Path) -> None:
    def chosen(epochs: int, **train: object) -> Settings:
        return settings(**{"epochs": epochs, "batch_size": 1, "accumulate": 4, "pool_size": 3, "log_every": 1, **train})

    train(packed, tmp_path / "whole", chosen(3))
    train(packed, tmp_path / "run", chosen(2))
    with pytest.raises(SettingsError, match=r"trained with 4 examples a step.*make 2"):
        train(packed, tmp_path / "run", chosen(3, accumulate=2), resume=True)
    train(packed, tmp_path / "run", chosen(3), resume=True)
    assert metrics(tmp_path / "run")[-2:] == metrics(tmp_path / "whole")[-2:]


def test_the_global_network_can_be_fixed_while_accumulating(packed: Path, tmp_path: Path) -> None:
    def local(**chosen: object) -> Settings:
        fixed = {"epochs": 2, "decay_epochs": 0, "fixed_global_epochs": 1}
        return tiny_settings(
            generator={"kind": "local", "filters": 2, "downsamplings": 1},
            encoder={"enabled": False},
            train={**fixed, **chosen},
        )

    train(packed, tmp_path / "whole", local(batch_size=2))
    train(packed, tmp_path / "divided", local(batch_size=1, accumulate=2))
    for ours, theirs in zip(metrics(tmp_path / "divided"), metrics(tmp_path / "whole"), strict=True):
        assert [ours[name] for name in LOSSES] == pytest.approx([theirs[name] for name in LOSSES], rel=1e-4), ours
