"""Networks, pooling, conditioning and losses against restatements in plain numpy."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from pix2pixhd_cli.boundary import boundary_map
from pix2pixhd_cli.model.build import build_model, build_optimizers
from pix2pixhd_cli.model.conditioning import condition
from pix2pixhd_cli.model.discriminators import MultiscaleDiscriminator
from pix2pixhd_cli.model.encoder import InstanceEncoder, instance_codes, pool_instances
from pix2pixhd_cli.model.generators import GlobalGenerator, LocalEnhancer
from pix2pixhd_cli.model.layers import halve
from pix2pixhd_cli.model.losses import adversarial_loss, feature_matching_loss, reconstruction_loss
from pix2pixhd_cli.model.optimizers import Adam
from pix2pixhd_cli.model.perceptual import Vgg, perceptual_loss
from pix2pixhd_cli.model.pix2pixhd import Batch, Losses
from tests.conftest import tiny_settings


@pytest.mark.parametrize(("channels", "count"), [(36, 182_546_755), (39, 182_556_163)])
def test_parameters_of_the_global_generator(channels: int, count: int) -> None:
    network = GlobalGenerator()
    network.build((None, None, None, channels))
    assert network.count_params() == count


@pytest.mark.parametrize(("channels", "count"), [(36, 182_857_059), (39, 182_871_171)])
def test_parameters_of_the_local_enhancer(channels: int, count: int) -> None:
    network = LocalEnhancer()
    network.build((None, None, None, channels))
    assert network.count_params() == count


def test_parameters_of_the_encoder_and_a_discriminator() -> None:
    encoder, discriminator = InstanceEncoder(), MultiscaleDiscriminator(scales=1)
    encoder.build((None, None, None, 3))
    discriminator.build((None, None, None, 39))
    assert (encoder.count_params(), discriminator.count_params()) == (788_803, 2_801_601)


@pytest.fixture
def instance() -> np.ndarray:
    rng = np.random.default_rng(0)
    ids = rng.choice([0, 7, 300, 26003, 65535, 2**31 - 1], (3, 4, 5)).repeat(2, 1).repeat(2, 2)
    return ids.astype(np.int32)


def pooled_by_hand(features: np.ndarray, instance: np.ndarray) -> np.ndarray:
    out = np.empty_like(features)
    for b in range(len(features)):
        for i in np.unique(instance[b]):
            out[b][instance[b] == i] = features[b][instance[b] == i].mean(0)
    return out


def test_pooling_never_mixes_pictures(instance: np.ndarray) -> None:
    features = np.random.default_rng(1).normal(size=(*instance.shape, 3)).astype(np.float32)
    np.testing.assert_allclose(pool_instances(features, instance), pooled_by_hand(features, instance), atol=1e-6)


def test_gradient_of_pooling(instance: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    features = tf.constant(rng.normal(size=(*instance.shape, 3)).astype(np.float32))
    weight = rng.normal(size=features.shape).astype(np.float32)
    with tf.GradientTape() as tape:
        tape.watch(features)
        total = tf.reduce_sum(pool_instances(features, instance) * weight)
    # Pooling is its own transpose.
    np.testing.assert_allclose(tape.gradient(total, features), pooled_by_hand(weight, instance), atol=1e-6)


def test_pooling_is_exact_for_a_road_of_half_a_million_pixels() -> None:
    rng = np.random.default_rng(0)
    features = (0.3 + 0.001 * rng.normal(size=(1, 512, 1024, 3))).astype(np.float32)
    pooled = pool_instances(features, np.zeros((1, 512, 1024), np.int32))
    np.testing.assert_allclose(pooled[0, 0, 0], features.astype(np.float64).mean((0, 1, 2)), rtol=0, atol=1e-7)


def test_codes_name_their_picture_and_instance(instance: np.ndarray) -> None:
    features = np.ones((*instance.shape, 2), np.float32)
    found = instance_codes(features, instance)
    keys = {(int(k) >> 32, int(k) & 0xFFFFFFFF): int(n) for k, n in zip(found.key, found.pixels, strict=True)}
    expected = {(b, int(i)): int((instance[b] == i).sum()) for b in range(3) for i in np.unique(instance[b])}
    assert keys == expected


def test_boundary_by_hand() -> None:
    ids = np.random.default_rng(3).integers(0, 3, (6, 7))
    expected = np.zeros(ids.shape, bool)
    for y, x in np.ndindex(ids.shape):
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            if 0 <= y + dy < 6 and 0 <= x + dx < 7:
                expected[y, x] |= ids[y, x] != ids[y + dy, x + dx]
    np.testing.assert_array_equal(boundary_map(ids), expected)
    assert not boundary_map(np.zeros((1, 1), int)).any()


def test_condition_is_one_hot_and_boundary() -> None:
    label = tf.constant([[[0, 2], [255, 1]]])
    x = condition(label, tf.constant([[[5, 5], [6, 6]]]), labels=3, ignored=(1,)).numpy()
    assert x.shape == (1, 2, 2, 4)
    assert x[0, 0, 0].tolist() == [1, 0, 0, 1] and x[0, 0, 1].tolist() == [0, 0, 1, 1]
    assert x[0, 1, 0].tolist() == [0, 0, 0, 1], "out of range"
    assert x[0, 1, 1].tolist() == [0, 0, 0, 1], "ignored"


@pytest.mark.parametrize("shape", [(1, 6, 8, 2), (2, 7, 5, 1)])
def test_halve_does_not_count_the_border(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    b, h, w, c = shape
    expected = np.empty((b, (h + 1) // 2, (w + 1) // 2, c), np.float32)
    for i, j in np.ndindex(expected.shape[1:3]):
        rows, columns = slice(max(0, 2 * i - 1), 2 * i + 2), slice(max(0, 2 * j - 1), 2 * j + 2)
        expected[:, i, j] = x[:, rows, columns].mean((1, 2))
    np.testing.assert_allclose(halve(x), expected, atol=1e-6)


def test_losses_by_hand() -> None:
    rng = np.random.default_rng(5)
    fake, real = ([[rng.normal(size=(2, 3, 3, 4)) for _ in range(5)] for _ in range(2)] for _ in range(2))
    mse = sum(((scale[-1] - 1) ** 2).mean() for scale in fake)
    assert float(adversarial_loss(fake, 1.0)) == pytest.approx(mse)
    matching = sum(
        np.abs(f - r).mean() for fs, rs in zip(fake, real, strict=True) for f, r in zip(fs[:4], rs[:4], strict=True)
    )
    assert float(feature_matching_loss(fake, real)) == pytest.approx(matching * (4 / 4) / 2)
    shallow_fake, shallow_real = ([scale[:3] for scale in maps] for maps in (fake, real))
    matching = sum(
        np.abs(f - r).mean()
        for fs, rs in zip(shallow_fake, shallow_real, strict=True)
        for f, r in zip(fs[:2], rs[:2], strict=True)
    )
    assert float(feature_matching_loss(shallow_fake, shallow_real)) == pytest.approx(matching * (4 / 2) / 2)
    assert float(reconstruction_loss(fake[0][0], real[0][0])) == pytest.approx(np.abs(fake[0][0] - real[0][0]).mean())


def batch(size: int = 1, labels: int = 4) -> Batch:
    rng = np.random.default_rng(6)
    label = rng.integers(0, labels, (size, 4, 8)).repeat(4, 1).repeat(4, 2).astype(np.int32)
    return Batch(tf.constant(label), tf.constant(label), tf.constant(rng.uniform(-1, 1, (*label.shape, 3)), tf.float32))


def test_a_step_moves_every_network_and_only_by_its_own_loss() -> None:
    settings = tiny_settings(encoder={"enabled": True}, loss={"feature_matching": 0.0, "reconstruction": 5.0})
    model = build_model(settings, labels=4, ignored=(), training=True)
    optimizers = build_optimizers(settings, model)
    before = {name: [w.numpy() for w in network.weights] for name, network in model.networks.items()}
    losses = model.train_step(batch(), optimizers.generator, optimizers.discriminator)
    assert float(losses.g_feat) == 0 and float(losses.g_rec) > 0
    for name, network in model.networks.items():
        kernels = [(old, new) for old, new in zip(before[name], network.weights, strict=True) if old.ndim == 4]
        assert all((old != new.numpy()).any() for old, new in kernels), name


def test_each_picture_of_a_batch_is_painted_as_if_alone() -> None:
    model = build_model(tiny_settings(encoder={"enabled": True}), labels=4, ignored=(), training=True)
    both = batch(2)
    alone = [model.reconstruct(Batch(*(field[n : n + 1] for field in both)))[0] for n in range(2)]
    np.testing.assert_allclose(model.reconstruct(both), np.stack(alone), atol=1e-5)


@pytest.mark.parametrize("kind", ["global", "local"])
def test_recomputing_trains_the_same(kind: str) -> None:
    rng = np.random.default_rng(8)
    widths = [3, 8, 8, 8, 8, *[8] * 4, *[8] * 5]
    weights = [(rng.normal(0, 0.1, (3, 3, i, o)), np.zeros(o)) for i, o in itertools.pairwise(widths)]

    def train(recompute: bool) -> list[Losses]:
        keras.utils.set_random_seed(1)
        settings = tiny_settings(
            generator={"kind": kind, "blocks": 2},
            encoder={"enabled": True},
            loss={"perceptual": 10.0},
            train={"recompute": recompute},
        )
        vgg = Vgg(weights, convolutions=16, caffe=False)
        model = build_model(settings, labels=4, ignored=(), training=True, vgg=vgg)
        parts = [model.generator, model.discriminator, vgg]
        assert [part.recompute for part in parts if part is not None] == [recompute] * 3
        optimizers = build_optimizers(settings, model)
        step = tf.function(lambda batch: model.train_step(batch, optimizers.generator, optimizers.discriminator))
        return [step(batch()) for _ in range(3)]

    again, kept = np.array(train(True)), np.array(train(False))
    np.testing.assert_allclose(again[0], kept[0], rtol=1e-6)
    # Adam makes a step of any rounding error around a gradient of zero.
    np.testing.assert_allclose(again, kept, rtol=1e-3)


@pytest.mark.parametrize("caffe", [False, True])
def test_perceptual_gradient_is_the_same_block_by_block(caffe: bool) -> None:
    rng = np.random.default_rng(10)
    widths = [3, 8, 8, 8, 8, *[8] * 4, *[8] * 5]
    vgg = Vgg(
        [(rng.normal(0, 0.2, (3, 3, i, o)), rng.normal(0, 0.1, o)) for i, o in itertools.pairwise(widths)],
        convolutions=16,
        caffe=caffe,
    )
    fake, photo = (tf.constant(rng.uniform(-1, 1, (2, 32, 48, 3)), tf.float32) for _ in range(2))
    found = []
    for vgg.recompute in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(fake)
            loss = perceptual_loss(vgg, fake, photo)
        found.append((loss, tape.gradient(loss, fake, tf.constant(3.0)).numpy()))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=0, atol=1e-5 * np.abs(found[0][1]).max())


def test_adam_is_its_papers() -> None:
    rng = np.random.default_rng(9)
    start, gradients = rng.normal(size=7), [rng.normal(size=7) * 10.0**-n for n in range(8)]
    variable = keras.Variable(start.astype(np.float32))
    optimizer = Adam(0.01)
    optimizer.build([variable])
    expected, m, v = start.copy(), np.zeros(7), np.zeros(7)
    for t, gradient in enumerate(gradients, start=1):
        optimizer.apply([tf.constant(gradient, tf.float32)], [variable])
        m, v = 0.5 * m + 0.5 * gradient, 0.999 * v + 0.001 * gradient**2
        expected -= 0.01 * (m / (1 - 0.5**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(variable.numpy(), expected, atol=1e-6)
