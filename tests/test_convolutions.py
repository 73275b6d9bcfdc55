"""Every way to convolve gives what TensorFlow's kernels give, forward and backward."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from pix2pixhd_cli.model import convolutions
from pix2pixhd_cli.model.convolutions import convolve, transposed_convolve

Way = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The ways that were taken, by the names of their functions."""
    taken = set()

    def spy(name: str, whole: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
        def spied(*arguments: tf.Tensor, **keywords: int) -> tf.Tensor:
            taken.add(name)
            return whole(*arguments, **keywords)

        return spied

    wide = ("product", "_product_gradients", "winograd", "_winograd_gradients")
    names = (*wide, "narrow", "_convolve_large", "_double_large")
    for name in names:
        monkeypatch.setattr(convolutions, name, spy(name, getattr(convolutions, name)))
    return taken


@pytest.fixture(params=["winograd", "product"])
def wide(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, ways: set[str]) -> Iterator[None]:
    """Every 3x3 kernel is taken for a wide one, and goes one of the two ways, there and back."""
    monkeypatch.setattr(convolutions, "WIDE", 1)
    monkeypatch.setattr(convolutions, "SMALL", 1 << 30 if request.param == "product" else 0)
    yield
    assert ways == {request.param, f"_{request.param}_gradients"}


def stock(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return tf.nn.conv2d(x, kernel, 1, "VALID")


def with_gradients(way: Way, x: tf.Tensor, kernel: tf.Tensor) -> list[np.ndarray]:
    """The result, and the gradients of a sum that weighs every output differently."""
    return [found.numpy() for found in with_gradients_as_tensors(way, x, kernel)]


def with_gradients_as_tensors(way: Way, x: tf.Tensor, kernel: tf.Tensor) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        y = way(x, kernel)
        total = tf.reduce_sum(tf.sin(y) * tf.reshape(tf.linspace(0.0, 1.0, tf.size(y)), tf.shape(y)))
    return [y, *tape.gradient(total, [x, kernel])]


def assert_agree(way: Way, reference: Way, x: tf.Tensor, kernel: tf.Tensor, atol: float) -> None:
    for ours, theirs in zip(with_gradients(way, x, kernel), with_gradients(reference, x, kernel), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def example(height: int, width: int, channels: int = 6, filters: int = 5, size: int = 3) -> tuple[tf.Tensor, tf.Tensor]:
    rng = np.random.default_rng(height * width)
    x = tf.constant(rng.standard_normal((2, height, width, channels)), tf.float32)
    return x, tf.constant(rng.standard_normal((size, size, channels, filters)) * 0.1, tf.float32)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(("height", "width"), [(8, 12), (9, 7), (3, 3), (4, 11)])
def test_products_are_convolutions(height: int, width: int) -> None:
    x, kernel = example(height, width)
    assert_agree(convolve, stock, x, kernel, atol=5e-6)


def test_minimal_filtering_works_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "WIDE", 1)
    monkeypatch.setattr(convolutions, "SMALL", 0)
    monkeypatch.setattr(convolutions, "BAND", 50)
    x, kernel = example(15, 12)
    assert convolutions._bands(convolutions._pad_to_even(x)) == [(0, 4), (4, 8), (8, 12), (12, 14)]
    assert_agree(convolve, stock, x, kernel, atol=1e-5)


def test_minimal_filtering_takes_sizes_that_are_known_only_when_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "WIDE", 1)
    traced = tf.function(
        lambda x, kernel: tuple(_graph_gradients(convolve, x, kernel)),
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


@pytest.mark.parametrize("huge", [0, 1 << 30])
@pytest.mark.parametrize(("size", "filters"), [(3, 5), (7, 5), (7, 3)])
def test_reflected_borders_need_no_padded_copy(
    size: int, filters: int, huge: int, ways: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "HUGE", huge)
    x, kernel = example(13, 8, filters=filters, size=size)
    p = size // 2

    def padded(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return stock(tf.pad(x, [[0, 0], [p, p], [p, p], [0, 0]], "REFLECT"), kernel)

    for known in (0, 4):
        way = tf.function(partial(with_gradients_as_tensors, partial(convolve, padding=p, reflect=True, known=known)))
        y, dx, dkernel = with_gradients(padded, x, kernel)
        ours = way(x, kernel)
        np.testing.assert_allclose(ours[0], y, atol=5e-6)
        np.testing.assert_allclose(ours[1][..., known:], dx[..., known:], atol=2e-5)
        np.testing.assert_allclose(ours[2], dkernel, atol=2e-5)
        assert not ours[1].numpy()[..., :known].any()
    expected = set() if huge else {"_convolve_large"}
    assert ways == expected | ({"narrow"} if filters == 3 else set())


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("filters", [1, 3])
def test_few_filters_go_column_by_column(filters: int, padding: int, ways: set[str]) -> None:
    x, kernel = example(13, 10, filters=filters, size=7)

    def whole(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return stock(tf.pad(x, [[0, 0], [padding] * 2, [padding] * 2, [0, 0]]), kernel)

    assert_agree(partial(convolve, padding=padding), whole, x, kernel, atol=2e-5)
    assert "narrow" in ways


@pytest.mark.parametrize(("side", "way"), [(17, "product"), (18, "winograd")])
def test_wide_kernels_go_the_way_that_is_faster_for_their_map(side: int, way: str, ways: set[str]) -> None:
    x, kernel = example(side, side, 256, 256)
    y = convolve(x, kernel)
    assert ways == {way}
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


@pytest.mark.parametrize("large", [0, 1 << 30])
def test_transposed_convolution_drops_the_first_row_and_column(
    large: int, ways: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "LARGE", large)
    x, _ = example(5, 7)
    kernel = tf.constant(np.random.default_rng(1).standard_normal((3, 3, 4, 6)) * 0.1, tf.float32)

    def whole(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d_transpose(x, kernel, [2, 11, 15, 4], 2, "VALID")[:, 1:, 1:]

    assert_agree(transposed_convolve, whole, x, kernel, atol=5e-6)
    assert ways == (set() if large else {"_double_large"})


@pytest.mark.parametrize("large", [0, 1 << 30])
@pytest.mark.parametrize("height", [10, 9])
def test_halving_convolution_has_the_transposed_one_for_its_gradient(
    height: int, large: int, ways: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "LARGE", large)
    x, kernel = example(height, 14)

    def whole(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), kernel, 2, "VALID")

    assert_agree(partial(convolve, strides=2, padding=1), whole, x, kernel, atol=5e-6)
    assert ways == (set() if large or height % 2 else {"_double_large"})
