"""Convolutions by whichever way is fastest: wide ones on a CPU as matrix products, the others by TensorFlow's kernels.

TensorFlow's kernels reorder a convolution's weights at every call, which for a residual block's 38 MB takes longer than the
work itself on maps of its size. As matrix products the weights are read as they lie.

In the gradients the kernel's comes after the map's: the optimiser may then change the kernel where it lies, for nobody reads
it any more; otherwise it copies it first.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

WIDE = 1 << 16  # Input channels x filters from which products are faster.
BAND = 1 << 14  # Pixels that Winograd's way transforms at once.
SMALL = 256  # Pixels below which the plain product beats Winograd's, whose kernels take 16 / 9 of the room.

# Minimal filtering F(2x2, 3x3): of a 4x4 patch d and a 3x3 kernel g, the 2x2 outputs are Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A, with 16
# multiplications instead of 36. Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), 4.1.
PATCH = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])  # Bᵀ
KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # G
OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])  # Aᵀ

Gradients = tuple[tf.Tensor, tf.Tensor]


def convolve(x: tf.Tensor, kernel: tf.Tensor, *, strides: int = 1, padding: int = 0, known: int = 0) -> tf.Tensor:
    """Convolve: [B, H, W, C] and [k, k, C, O] -> [B, (H + 2 padding - k) // strides + 1, …, O].

    Args:
        x: the map.
        kernel: the weights.
        strides: 1 or 2.
        padding: zeros added on every side.
        known: how many of x's first channels are data, whose gradient nobody asks for; where it takes time it is left at zero.
    """
    size, _, channels, filters = kernel.shape
    wide = size == 3 and strides == 1 and channels * filters >= WIDE and not tf.config.list_logical_devices("GPU")
    if padding and strides == 1 and size == 2 * padding + 1 and not wide:
        return tf.nn.conv2d(x, kernel, 1, "SAME")  # The same thing without a copy.
    x = tf.pad(x, [[0, 0], [padding, padding], [padding, padding], [0, 0]]) if padding else x
    if wide:
        height, width = x.shape[1:3]
        small = height is not None and width is not None and (height - 2) * (width - 2) < SMALL
        return product(x, kernel) if small else winograd(x, kernel)
    return _convolve_known(x, kernel, strides, known) if known else tf.nn.conv2d(x, kernel, strides, "VALID")


@tf.custom_gradient
def transposed_convolve(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], Gradients]]:
    """The 3x3 transposed convolution with stride 2 that doubles: [B, H, W, C] and [3, 3, O, C] -> [B, 2H, 2W, O].

    The reference's padding leaves out the first of the 2H + 1 rows and columns of a transposed convolution without.
    """
    out = tf.stack([tf.shape(x)[0], 2 * _side(x, 1) + 1, 2 * _side(x, 2) + 1, kernel.shape[2]])

    def gradient(dy: tf.Tensor) -> Gradients:
        dy = tf.pad(dy, [[0, 0], [1, 0], [1, 0], [0, 0]])
        dx = tf.nn.conv2d(dy, kernel, 2, "VALID")
        with tf.control_dependencies([dx]):
            dkernel = tf.raw_ops.Conv2DBackpropFilter(
                input=dy, filter_sizes=kernel.shape, out_backprop=x, strides=[1, 2, 2, 1], padding="VALID"
            )
        return dx, dkernel

    return tf.nn.conv2d_transpose(x, kernel, out, 2, "VALID")[:, 1:, 1:], gradient


def _convolve_known(x: tf.Tensor, kernel: tf.Tensor, strides: int, known: int) -> tf.Tensor:
    """Convolve without padding and without the gradient of the `known` first channels."""

    @tf.custom_gradient
    def convolution(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], Gradients]]:
        def gradient(dy: tf.Tensor) -> Gradients:
            sides = tf.stack([*tf.unstack(tf.shape(x))[:3], x.shape[-1] - known])
            place = {"out_backprop": dy, "strides": [1, strides, strides, 1], "padding": "VALID"}
            dx = tf.raw_ops.Conv2DBackpropInput(input_sizes=sides, filter=kernel[:, :, known:], **place)
            dkernel = tf.raw_ops.Conv2DBackpropFilter(input=x, filter_sizes=kernel.shape, **place)
            return tf.pad(dx, [[0, 0], [0, 0], [0, 0], [known, 0]]), dkernel

        return tf.nn.conv2d(x, kernel, strides, "VALID"), gradient

    return convolution(x, kernel)


@tf.custom_gradient
def product(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], Gradients]]:
    """A 3x3 convolution as one product, of every pixel's patch in a row: [B, H, W, C] -> [B, H - 2, W - 2, O].

    The patches, nine times the map, are made again for the gradient instead of kept.
    """
    channels, filters = kernel.shape[2:]
    height, width = _side(x, 1) - 2, _side(x, 2) - 2
    matrix = tf.reshape(kernel, [-1, filters])

    def patches() -> tf.Tensor:
        seen = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        return tf.reshape(tf.concat(seen, -1), [-1, 9 * channels])

    def gradient(dy: tf.Tensor) -> Gradients:
        dy = tf.reshape(dy, [-1, filters])
        shares = tf.matmul(dy, matrix, transpose_b=True)  # What each pixel of dy gives back to its nine places.
        with tf.control_dependencies([shares]):
            dkernel = tf.matmul(patches(), dy, transpose_a=True)
        shares = tf.unstack(tf.reshape(shares, [-1, height, width, 9, channels]), axis=3)
        padded = [
            tf.pad(share, [[0, 0], [n // 3, 2 - n // 3], [n % 3, 2 - n % 3], [0, 0]]) for n, share in enumerate(shares)
        ]
        return tf.add_n(padded), tf.reshape(dkernel, kernel.shape)

    return tf.reshape(tf.matmul(patches(), matrix), [-1, height, width, filters]), gradient


@tf.custom_gradient
def winograd(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], Gradients]]:
    """A 3x3 convolution by minimal filtering: [B, H, W, C] -> [B, H - 2, W - 2, O].

    The transformed patches, four times the map, are made again for the gradient instead of kept. The gradient of the map is a
    convolution of its own, with the kernel turned around.
    """

    def gradient(dy: tf.Tensor) -> Gradients:
        dx = _filter(tf.pad(dy, [[0, 0], [2, 2], [2, 2], [0, 0]]), kernel, turned=True)
        with tf.control_dependencies([dx]), tf.GradientTape() as tape:
            tape.watch(kernel)
            again = _filter(x, kernel)
        return dx, tape.gradient(again, kernel, dy)

    return _filter(x, kernel), gradient


def _filter(x: tf.Tensor, kernel: tf.Tensor, *, turned: bool = False) -> tf.Tensor:
    """Minimal filtering; `turned` gives the kernel half a turn and swaps its channels."""
    with tf.control_dependencies([x]):  # Or every layer's kernels would be transformed at once, and wait.
        kernels = _transform(KERNEL[:, ::-1] if turned else KERNEL, tf.reshape(kernel, [9, -1]))
    kernels = tf.reshape(kernels, [16, *kernel.shape[2:]])
    height, width = _side(x, 1), _side(x, 2)
    odd = not (isinstance(height, int) and isinstance(width, int) and height % 2 == width % 2 == 0)
    x = tf.pad(x, [[0, 0], [0, height % 2], [0, width % 2], [0, 0]]) if odd else x
    rows = _bands(height + height % 2, width)
    bands: list[tf.Tensor] = []
    for first, last in itertools.pairwise(rows):
        with tf.control_dependencies(bands[-1:]):  # One after the other: the patches of a large map take much room.
            bands.append(_filter_band(x[:, first : last + 2] if len(rows) > 2 else x, kernels, turned))
    found = tf.concat(bands, 1) if len(bands) > 1 else bands[0]
    return found[:, : height - 2, : width - 2] if odd else found


def _bands(height: int | tf.Tensor, width: int | tf.Tensor) -> list[int | tf.Tensor]:
    """Where the bands of a map's output begin, and where the last one ends."""
    if not isinstance(height, int) or not isinstance(width, int):
        return [0, height - 2]
    step = max(2, BAND // width // 2 * 2)
    return [*range(0, height - 2, step), height - 2]


def _filter_band(x: tf.Tensor, kernels: tf.Tensor, turned: bool) -> tf.Tensor:
    """Minimal filtering of a map of even sides with transformed kernels [16, C, O]."""
    down, across, channels = _side(x, 1) // 2 - 1, _side(x, 2) // 2 - 1, x.shape[-1]  # Tiles of 2x2 outputs.
    pixels = tf.transpose(tf.reshape(x, [-1, down + 1, 2, across + 1, 2, channels]), [2, 4, 0, 1, 3, 5])
    patches = tf.stack([pixels[:, :, :, i : i + down, j : j + across] for i in range(2) for j in range(2)])
    order = (0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15)  # Quarters of 2x2 pixels -> rows of 4.
    patches = tf.reshape(_transform(PATCH, patches, order), [16, -1, channels])
    products = tf.matmul(patches, kernels, transpose_b=turned)
    found = tf.reshape(_transform(OUTPUT, products), [2, 2, -1, down, across, products.shape[-1]])
    return tf.reshape(tf.transpose(found, [2, 3, 0, 4, 1, 5]), [-1, 2 * down, 2 * across, products.shape[-1]])


def _transform(matrix: NDArray[Any], x: tf.Tensor, order: tuple[int, ...] | None = None) -> tf.Tensor:
    """Apply an m x n transform to rows and columns at once, [n², …] -> [m², …] flat; x may come in another order."""
    both = np.kron(matrix, matrix)
    both = both if order is None else both[:, order]
    return tf.matmul(tf.constant(both, tf.float32), tf.reshape(x, [both.shape[1], -1]))


def _side(x: tf.Tensor, axis: int) -> int | tf.Tensor:
    """A side's length: a number where it is known before running."""
    return tf.shape(x)[axis] if x.shape[axis] is None else x.shape[axis]
