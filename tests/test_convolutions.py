"""Every way to convolve gives what TensorFlow's kernels give, forward and backward."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from pix2pixhd_cli.model import convolutions
from pix2pixhd_cli.model.convolutions import convolve, product, transposed_convolve, winograd

Way = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def stock(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return tf.nn.conv2d(x, kernel, 1, "VALID")


def with_gradients(way: Way, x: tf.Tensor, kernel: tf.Tensor) -> list[np.ndarray]:
    """The result, and the gradients of a sum that weighs every output differently."""
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        y = way(x, kernel)
        total = tf.reduce_sum(tf.sin(y) * tf.reshape(tf.linspace(0.0, 1.0, tf.size(y)), tf.shape(y)))
    return [y.numpy(), *(gradient.numpy() for gradient in tape.gradient(total, [x, kernel]))]


def example(height: int, width: int, channels: int = 6, filters: int = 5, size: int = 3) -> tuple[tf.Tensor, tf.Tensor]:
    rng = np.random.default_rng(height * width)
    x = tf.constant(rng.standard_normal((2, height, width, channels)), tf.float32)
    return x, tf.constant(rng.standard_normal((size, size, channels, filters)) * 0.1, tf.float32)


@pytest.mark.parametrize("way", [winograd, product])
@pytest.mark.parametrize(("height", "width"), [(8, 12), (9, 7), (3, 3), (4, 11)])
def test_products_are_convolutions(way: Way, height: int, width: int) -> None:
    x, kernel = example(height, width)
    for ours, theirs in zip(with_gradients(way, x, kernel), with_gradients(stock, x, kernel), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6)


@pytest.mark.parametrize("way", [winograd, product])
def test_products_take_sizes_that_are_known_only_when_running(way: Way) -> None:
    traced = tf.function(
        lambda x, kernel: tuple(_graph_gradients(way, x, kernel)),
        input_signature=[tf.TensorSpec([None, None, None, 6]), tf.TensorSpec([3, 3, 6, 5])],
    )
    for height, width in ((8, 12), (9, 7)):
        x, kernel = example(height, width)
        for ours, theirs in zip(traced(x, kernel), _graph_gradients(stock, x, kernel), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def _graph_gradients(way: Way, x: tf.Tensor, kernel: tf.Tensor) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        y = way(x, kernel)
    return [y, *tape.gradient(y, [x, kernel], tf.sin(y))]


@pytest.mark.parametrize(("side", "way"), [(17, "product"), (18, "winograd")])
def test_wide_kernels_go_the_way_that_is_faster_for_their_map(
    side: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def spy(name: str, whole: Way) -> Way:
        def spied(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
            taken.append(name)
            return whole(x, kernel)

        return spied

    for name in ("product", "winograd"):
        monkeypatch.setattr(convolutions, name, spy(name, getattr(convolutions, name)))
    x, kernel = example(side, side, 256, 256)
    y = convolve(x, kernel)
    assert taken == [way]
    exact = tf.nn.conv2d(tf.cast(x, tf.float64), tf.cast(kernel, tf.float64), 1, "VALID")
    assert np.abs(y.numpy() - exact.numpy()).max() < 3e-6 * np.abs(exact).max()
    np.testing.assert_allclose(convolve(x, kernel, padding=1)[:, 1:-1, 1:-1], y, atol=1e-4)


@pytest.mark.parametrize(("strides", "padding", "size"), [(1, 0, 7), (2, 2, 4), (1, 1, 3)])
def test_data_gets_no_gradient_and_everything_else_does(strides: int, padding: int, size: int) -> None:
    x, kernel = example(12, 14, size=size)
    around = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
    _, dx, dkernel = with_gradients(lambda x, k: tf.nn.conv2d(x, k, strides, around), x, kernel)
    ways = with_gradients(lambda x, k: convolve(x, k, strides=strides, padding=padding, known=4), x, kernel)
    np.testing.assert_allclose(ways[2], dkernel, atol=1e-5)
    np.testing.assert_allclose(ways[1][..., 4:], dx[..., 4:], atol=1e-5)
    if (strides, padding) != (1, 1):
        assert not ways[1][..., :4].any()


def test_transposed_convolution_drops_the_first_row_and_column() -> None:
    x, _ = example(5, 7)
    kernel = tf.constant(np.random.default_rng(1).standard_normal((3, 3, 4, 6)) * 0.1, tf.float32)

    def whole(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d_transpose(x, kernel, [2, 11, 15, 4], 2, "VALID")[:, 1:, 1:]

    for ours, theirs in zip(
        with_gradients(transposed_convolve, x, kernel), with_gradients(whole, x, kernel), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6)
