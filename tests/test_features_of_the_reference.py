"""The rest of the reference's features: each reachable from settings, each trained for a few steps and painted with."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pix2pixhd_cli.features import FeatureCodes
from pix2pixhd_cli.model.layers import BatchNorm, ResizeUpsample
from pix2pixhd_cli.model.pool import FakePool
from pix2pixhd_cli.painting import Painter
from pix2pixhd_cli.pipeline.cluster import cluster
from pix2pixhd_cli.pipeline.encode import encode
from pix2pixhd_cli.pipeline.export import export
from pix2pixhd_cli.pipeline.generate import generate
from pix2pixhd_cli.pipeline.train import train
from tests.conftest import Command, tiny_settings
from tests.test_training import metrics

ONE_EPOCH: dict[str, object] = {"epochs": 1, "decay_epochs": 0, "checkpoint_every": 99}


@pytest.mark.parametrize(
    "sections",
    [
        {"generator": {"norm": "batch"}},
        {"generator": {"upsampling": "resize"}},
        {"generator": {"boundary": False}},
        {"loss": {"gan": "vanilla"}},
        {"loss": {"feature_matching": 0.0}},
        {"train": {"pool_size": 3}},
    ],
    ids=str,
)
def test_it_trains_and_paints(
    packed: Path, dataset: Path, tmp_path: Path, sections: dict[str, dict[str, object]]
) -> None:
    settings = {**sections, "train": {**ONE_EPOCH, **sections.get("train", {})}}
    train(packed, tmp_path / "run", tiny_settings(**settings))
    assert len(metrics(tmp_path / "run")) == 3
    assert len(generate(tmp_path / "run", dataset, tmp_path / "out")) == 3
    if "feature_matching" in sections.get("loss", {}):
        assert all(line["g_feat"] == 0 for line in metrics(tmp_path / "run"))


def test_pooling_by_label_gives_one_code_to_a_class(packed: Path, dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(packed, run, tiny_settings(encoder={"pooling": "label"}, train=ONE_EPOCH))
    codes = encode(run)
    assert set(codes.instance.tolist()) == set(codes.label.tolist()) == {7, 8, 11, 23, 26}
    cluster(run)
    assert (run / "clusters.png").exists()
    assert np.array_equal(FeatureCodes.load(run / "features.npz").box, codes.box)
    assert len(generate(run, dataset, tmp_path / "out")) == 3


def test_batch_norm_by_hand() -> None:
    x = np.random.default_rng(0).normal(2, 3, (3, 4, 5, 2)).astype(np.float32)
    layer = BatchNorm()
    layer.build((None, None, None, 2))
    layer.scale.assign([2.0, 0.5])
    layer.offset.assign([1.0, -1.0])
    expected = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5) * [2.0, 0.5] + [1.0, -1.0]
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


def test_resizing_repeats_neighbours_before_it_convolves() -> None:
    layer = ResizeUpsample(1)
    layer.build((None, None, None, 1))
    layer.norm = None
    layer.convolution.kernel.assign(np.eye(9)[4].reshape(3, 3, 1, 1))
    layer.convolution.bias.assign([0.0])
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(layer(x)[0, ..., 0], x[0, ..., 0].repeat(2, 0).repeat(2, 1))


def test_the_fake_pool_fills_then_swaps_half_of_the_time() -> None:
    def run() -> tuple[list[float], FakePool]:
        pool = FakePool(5, (1, 1, 1), seed=3)
        query = tf.function(pool.query)
        numbers = np.arange(400, dtype=np.float32).reshape(-1, 2, 1, 1, 1)
        return [float(n) for pair in numbers for n in np.ravel(query(pair))], pool

    got, pool = run()
    assert got[:5] == [0, 1, 2, 3, 4], "it gives back what it gets until it is full"
    old = [g != n for n, g in enumerate(got)][5:]
    assert 0.4 < np.mean(old) < 0.6
    assert len(set(got[5:])) == len(got) - 5, "nothing that came later comes out twice"
    inside = set(np.ravel(pool.history).tolist())
    assert inside | set(got) == set(map(float, range(400))), "nothing is lost"
    assert run()[0] == got, "its draws come from the seed"


def test_a_pool_goes_on_where_it_stopped(packed: Path, tmp_path: Path) -> None:
    from pix2pixhd_cli.settings import load_settings
    from pix2pixhd_cli.training import Trainer
    from tests.test_training import same_run

    settings = tiny_settings(train={"pool_size": 3, "checkpoint_every": 2})
    train(packed, tmp_path / "whole", settings)
    original, steps = Trainer.step, []

    class Death(BaseException):
        pass

    def die(self: Trainer, batch: object, epoch: int) -> dict[str, float]:
        steps.append(1)
        if len(steps) == 5:
            raise Death
        return original(self, batch, epoch)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", die)
        with pytest.raises(Death):
            train(packed, tmp_path / "died", settings)
    train(packed, tmp_path / "died", load_settings(run=tmp_path / "died", resume=True), resume=True)
    same_run(tmp_path / "died", tmp_path / "whole")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tf2onnx")
def test_export_paints_what_generate_paints(p2phd: Command, run: Path, tmp_path: Path) -> None:
    import onnxruntime

    outcome = p2phd("export", run, tmp_path / "saved", "--onnx")
    assert outcome.code == 0, outcome.err
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    session = onnxruntime.InferenceSession(tmp_path / "saved" / "model.onnx")
    painter, rng = Painter(run), np.random.default_rng(0)
    for height, width in ((32, 64), (16, 24)):
        label = rng.choice([7, 8, 23, 26, 255], (height // 4, width // 4)).repeat(4, 0).repeat(4, 1).astype(np.int32)
        instance = label * 1000 + rng.integers(0, 2, label.shape, np.int32)
        codes = {int(i): rng.normal(size=3) for i in np.unique(instance)}
        arrays = {"label": label[None], "instance": instance[None]}
        styled = {**arrays, "features": painter.features(instance, codes, 0.0, None)[None]}
        expected = painter.paint_float(label, instance, codes=codes)
        plain = loaded.signatures["serving_default"](**{name: tf.constant(a) for name, a in arrays.items()})
        np.testing.assert_allclose(plain["picture"][0], painter.paint_float(label, instance), atol=1e-4)
        found = loaded.signatures["with_features"](**{name: tf.constant(a) for name, a in styled.items()})
        np.testing.assert_allclose(found["picture"][0], expected, atol=1e-4)
        np.testing.assert_allclose(session.run(None, styled)[0][0], expected, atol=1e-4)
    outcome = p2phd("export", run, tmp_path / "saved")
    assert outcome.code == 1 and "holds other files" in outcome.err


def test_export_without_an_encoder(packed: Path, tmp_path: Path) -> None:
    train(packed, tmp_path / "run", tiny_settings(encoder={"enabled": False}, train=ONE_EPOCH))
    export(tmp_path / "run", tmp_path / "saved")
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    assert list(loaded.signatures) == ["serving_default"]
