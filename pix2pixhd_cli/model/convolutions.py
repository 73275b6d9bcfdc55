"""Convolutions by whichever way is fastest: on a CPU wide ones as matrix products and large kernels with few filters column by
column, the others by TensorFlow's kernels.

TensorFlow's kernels reorder a convolution's weights at every call, which for a residual block's 38 MB takes longer than the
work itself on maps of its size. As matrix products the weights are read as they lie.

In half precision, and on other devices, all of it is TensorFlow's.

For the gradients no more is kept than the map before it was padded. The gradient of a wide kernel comes after its map's: the
optimiser may then change the kernel where it lies, for nobody reads it any more; otherwise it copies it first.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

WIDE = 1 << 16  # Input channels x filters from which products are faster.
BAND = 1 << 14  # Pixels that Winograd's way transforms at once.
SMALL = 256  # Pixels below which the plain product beats Winograd's, whose kernels take 16 / 9 of the room.
LARGE = 1 << 17  # Pixels from which a hidden map in TensorFlow's kernels is worth more multiplications to avoid.
HUGE = 1 << 20  # Pixels from which a padded copy of a map is worth more operations to avoid.

# Minimal filtering F(2x2, 3x3): of a 4x4 patch d and a 3x3 kernel g, the 2x2 outputs are Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A, with 16
# multiplications instead of 36. Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), 4.1.
PATCH = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])  # Bᵀ
KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # G
OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])  # Aᵀ

Gradients = tuple[tf.Tensor, tf.Tensor]


class Way(NamedTuple):
    """How a map that is already padded is convolved: x, kernel -> y, and x, kernel, dy -> the gradients of x and kernel.

    `same` does it to a map that is not, with as many zeros around as keep its size, where TensorFlow has that without a copy.
    """

    convolve: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    gradients: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Gradients]
    same: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None


def convolve(
    x: tf.Tensor, kernel: tf.Tensor, *, strides: int = 1, padding: int = 0, reflect: bool = False, known: int = 0
) -> tf.Tensor:
    """Convolve: [B, H, W, C] and [k, k, C, O] -> [B, (H + 2 padding - k) // strides + 1, …, O].

    Args:
        x: the map.
        kernel: the weights.
        strides: 1 or 2.
        padding: pixels added on every side, zeros.
        reflect: pad by the map's own pixels instead; only with stride 1.
        known: how many of x's first channels are data, whose gradient nobody asks for; where it takes time it is left at zero.
    """
    size = kernel.shape[0]
    way = _way(x, kernel, strides, padding, known)
    same = way.same if size == 2 * padding + 1 else None
    if same is not None and not reflect and not known:
        return same(x, kernel)
    in_place = same if reflect and _has_pixels(x, HUGE) and size <= min(x.shape[1:3]) else None
    even = all(side is not None and side % 2 == 0 for side in x.shape[1:3])
    halving = strides == 2 and size == 3 and padding == 1 and even

    @tf.custom_gradient
    def convolution(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], Gradients]]:
        def gradient(dy: tf.Tensor) -> Gradients:
            with tf.control_dependencies([dy]):
                padded = _pad(x, padding, reflect)
            dx, dkernel = way.gradients(padded, kernel, dy)
            dx = _double_large(dy, kernel) if halving and _has_pixels(dy, LARGE) else _unpad(dx, padding, reflect)
            unasked = x.shape[-1] - dx.shape[-1]
            return tf.pad(dx, [[0, 0], [0, 0], [0, 0], [unasked, 0]]) if unasked else dx, dkernel

        if in_place is not None:
            return _convolve_large(x, kernel, in_place), gradient
        return way.convolve(_pad(x, padding, reflect), kernel), gradient

    return convolution(x, kernel)


def _pad(x: tf.Tensor, padding: int, reflect: bool) -> tf.Tensor:
    return tf.pad(x, _around(padding), "REFLECT" if reflect else "CONSTANT") if padding else x


def _unpad(dx: tf.Tensor, padding: int, reflect: bool) -> tf.Tensor:
    """The gradient of a map from that of the padded one."""
    if reflect:
        return tf.raw_ops.MirrorPadGrad(input=dx, paddings=_around(padding), mode="REFLECT")
    return dx[:, padding:-padding, padding:-padding] if padding else dx


def _around(padding: int) -> list[list[int]]:
    return [[0, 0], [padding, padding], [padding, padding], [0, 0]]


def _way(x: tf.Tensor, kernel: tf.Tensor, strides: int, padding: int, known: int) -> Way:
    """The fastest way for a map [B, H, W, C] that gets `padding` pixels around."""
    size, _, channels, filters = kernel.shape
    stock = _stock(strides, known)
    if strides > 1 or not _ours(x):
        return stock
    if size == 3 and channels * filters >= WIDE:
        return _products(x, padding)
    few = size > 4 and filters < 4
    return stock._replace(convolve=narrow, same=partial(narrow, padding="SAME")) if few else stock


def _ours(x: tf.Tensor) -> bool:
    """Whether the ways of this module are for a map: one of float32 on a CPU."""
    return x.dtype == tf.float32 and not tf.config.list_logical_devices("GPU")


def _has_pixels(x: tf.Tensor, count: int) -> bool:
    """Whether a map that is ours is known to be that large."""
    height, width = x.shape[1:3]
    return height is not None and width is not None and height * width >= count and _ours(x)


def _side(x: tf.Tensor, axis: int) -> int | tf.Tensor:
    """A side's length: a number where it is known before running."""
    return tf.shape(x)[axis] if x.shape[axis] is None else x.shape[axis]


# TensorFlow's own kernels.


def _stock(strides: int, known: int) -> Way:
    """TensorFlow's kernels; the map's gradient leaves out its first `known` channels."""
    place = {"strides": [1, strides, strides, 1], "padding": "VALID"}

    def gradients(x: tf.Tensor, kernel: tf.Tensor, dy: tf.Tensor) -> Gradients:
        sides = tf.stack([*tf.unstack(tf.shape(x))[:3], x.shape[-1] - known])
        asked = kernel[:, :, known:] if known else kernel
        dx = tf.raw_ops.Conv2DBackpropInput(input_sizes=sides, filter=asked, out_backprop=dy, **place)
        return dx, tf.raw_ops.Conv2DBackpropFilter(input=x, filter_sizes=kernel.shape, out_backprop=dy, **place)

    return Way(
        lambda x, kernel: tf.nn.conv2d(x, kernel, strides, "VALID"),
        gradients,
        (lambda x, kernel: tf.nn.conv2d(x, kernel, 1, "SAME")) if strides == 1 else None,
    )


def _convolve_large(x: tf.Tensor, kernel: tf.Tensor, same: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Pad by reflection and convolve, without a padded copy of the map.

    It is convolved with zeros around it (`same`); then the outputs that saw them give way to those of reflected strips.
    """
    height, width = x.shape[1:3]
    p = kernel.shape[0] // 2

    def strip(part: tf.Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> tf.Tensor:
        return tf.nn.conv2d(tf.pad(part, [(0, 0), rows, columns, (0, 0)], "REFLECT"), kernel, 1, "VALID")

    above, below = strip(x[:, : 2 * p], (p, 0), (p, p)), strip(x[:, -2 * p :], (0, p), (p, p))
    left, right = strip(x[:, :, : 2 * p], (0, 0), (p, 0)), strip(x[:, :, -2 * p :], (0, 0), (0, p))
    y = _replace(same(x, kernel), np.r_[:p, height - p : height], np.arange(width), tf.concat([above, below], 1))
    return _replace(y, np.arange(p, height - p), np.r_[:p, width - p : width], tf.concat([left, right], 2))


def _replace(y: tf.Tensor, rows: NDArray[Any], columns: NDArray[Any], by: tf.Tensor) -> tf.Tensor:
    """Put other values, [B, rows, columns, C], into a map [B, H, W, C] where it lies: nothing else may read it."""
    _, height, width, channels = y.shape
    pictures = tf.range(tf.shape(y)[0])[:, None, None] * (height * width)
    places = tf.reshape(pictures + (rows[:, None] * width + columns), [-1])
    flat = tf.raw_ops.InplaceUpdate(x=tf.reshape(y, [-1, channels]), i=places, v=tf.reshape(by, [-1, channels]))
    return tf.reshape(flat, tf.shape(y))


@tf.custom_gradient
def transposed_convolve(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], Gradients]]:
    """The 3x3 transposed convolution with stride 2 that doubles: [B, H, W, C] and [3, 3, O, C] -> [B, 2H, 2W, O].

    The reference's padding leaves out the first of the 2H + 1 rows and columns of a transposed convolution without.
    """

    def gradient(dy: tf.Tensor) -> Gradients:
        dy = tf.pad(dy, [[0, 0], [1, 0], [1, 0], [0, 0]])
        dx = tf.nn.conv2d(dy, kernel, 2, "VALID")
        with tf.control_dependencies([dx]):
            dkernel = tf.raw_ops.Conv2DBackpropFilter(
                input=dy, filter_sizes=kernel.shape, out_backprop=x, strides=[1, 2, 2, 1], padding="VALID"
            )
        return dx, dkernel

    if _has_pixels(x, LARGE):
        return _double_large(x, kernel), gradient
    out = tf.stack([tf.shape(x)[0], 2 * _side(x, 1) + 1, 2 * _side(x, 2) + 1, kernel.shape[2]])
    return tf.nn.conv2d_transpose(x, kernel, out, 2, "VALID")[:, 1:, 1:], gradient


def _double_large(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """The transposed convolution as a 2x2 one with four times the filters, one for each of a pixel's four places.

    TensorFlow's kernel for it keeps a map of its own as large as its output, in every thread that ever ran it.
    """
    _, height, width, channels = x.shape
    of_place = tf.constant([[[0, 1, 0], [0, 0, 1]], [[0, 0, 0], [1, 0, 0]]], x.dtype)  # Pixel, place, tap.
    quarters = tf.einsum("ipt,jqs,tsoc->ijcpqo", of_place, of_place, kernel)
    y = tf.nn.conv2d(x, tf.reshape(quarters, [2, 2, channels, -1]), 1, "SAME")
    y = tf.transpose(tf.reshape(y, [-1, height, width, 2, 2, kernel.shape[2]]), [0, 1, 3, 2, 4, 5])
    return tf.reshape(y, [-1, 2 * height, 2 * width, kernel.shape[2]])


# Large kernels with few filters. TensorFlow's kernels work on sixteen at a time, whether they are there or not.


def narrow(x: tf.Tensor, kernel: tf.Tensor, padding: str = "VALID") -> tf.Tensor:
    """A convolution with few filters as one by each of the kernel's columns, and one that shifts and adds what they give."""
    size, _, channels, filters = kernel.shape
    columns = tf.reshape(tf.transpose(kernel, [0, 2, 1, 3]), [size, 1, channels, size * filters])
    adding = np.eye(size * filters).reshape(1, -1, size, filters).transpose(0, 2, 1, 3)
    return tf.nn.conv2d(tf.nn.conv2d(x, columns, 1, padding), tf.constant(adding, kernel.dtype), 1, padding)


# Products: all patches in one on small maps, Winograd's minimal filtering on others.


def _products(x: tf.Tensor, padding: int) -> Way:
    """The faster of the two for a map [B, H, W, C] that gets `padding` pixels around."""
    height, width = x.shape[1:3]
    room = 2 * padding - 2
    small = height is not None and width is not None and (height + room) * (width + room) < SMALL
    return Way(product, _product_gradients) if small else Way(winograd, _winograd_gradients)


def product(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """A 3x3 convolution as one product, of every pixel's patch in a row: [B, H, W, C] -> [B, H - 2, W - 2, O]."""
    filters = kernel.shape[-1]
    y = tf.matmul(_patches(x), tf.reshape(kernel, [-1, filters]))
    return tf.reshape(y, [-1, x.shape[1] - 2, x.shape[2] - 2, filters])


def _product_gradients(x: tf.Tensor, kernel: tf.Tensor, dy: tf.Tensor) -> Gradients:
    """The patches, nine times the map, are made again instead of kept."""
    channels, filters = kernel.shape[2:]
    height, width = x.shape[1] - 2, x.shape[2] - 2
    dy = tf.reshape(dy, [-1, filters])
    # What dy gives back to its nine places.
    shares = tf.matmul(dy, tf.reshape(kernel, [-1, filters]), transpose_b=True)
    with tf.control_dependencies([shares]):
        dkernel = tf.reshape(tf.matmul(_patches(x), dy, transpose_a=True), kernel.shape)
    shares = tf.unstack(tf.reshape(shares, [-1, height, width, 9, channels]), axis=3)
    around = [[[0, 0], [n // 3, 2 - n // 3], [n % 3, 2 - n % 3], [0, 0]] for n in range(9)]
    return tf.add_n([tf.pad(share, room) for share, room in zip(shares, around, strict=True)]), dkernel


def _patches(x: tf.Tensor) -> tf.Tensor:
    """Every pixel's 3x3 patch: [B, H, W, C] -> [B (H - 2) (W - 2), 9 C]."""
    height, width = x.shape[1] - 2, x.shape[2] - 2
    seen = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return tf.reshape(tf.concat(seen, -1), [-1, 9 * x.shape[-1]])


def winograd(x: tf.Tensor, kernel: tf.Tensor, *, turned: bool = False) -> tf.Tensor:
    """A 3x3 convolution by minimal filtering: [B, H, W, C] -> [B, H - 2, W - 2, O].

    `turned` gives the kernel half a turn and swaps its channels.
    """
    with tf.control_dependencies([x]):  # Or every layer's kernels would be transformed at once, and wait.
        kernels = _transform(KERNEL[:, ::-1] if turned else KERNEL, tf.reshape(kernel, [9, -1]))
    kernels = tf.reshape(kernels, [16, *kernel.shape[2:]])
    even = _pad_to_even(x)
    bands: list[tf.Tensor] = []
    for first, last in _bands(even):
        with tf.control_dependencies(bands[-1:]):  # One after the other: the patches of a large map take much room.
            products = tf.matmul(_patches_of_tiles(even[:, first : last + 2]), kernels, transpose_b=turned)
        tiles = [2, 2, -1, (last - first) // 2, _side(even, 2) // 2 - 1, products.shape[-1]]
        bands.append(_from_tiles(tf.reshape(_transform(OUTPUT, products), tiles)))
    y = tf.concat(bands, 1) if len(bands) > 1 else bands[0]
    return y if even is x else y[:, : _side(x, 1) - 2, : _side(x, 2) - 2]


def _winograd_gradients(x: tf.Tensor, kernel: tf.Tensor, dy: tf.Tensor) -> Gradients:
    """The map's is a convolution with the kernel turned around; the transformed patches are made again instead of kept."""
    dx = done = winograd(tf.pad(dy, [[0, 0], [2, 2], [2, 2], [0, 0]]), kernel, turned=True)
    x, dy = _pad_to_even(x), _pad_to_even(dy)
    dkernels = tf.zeros([], x.dtype)
    for first, last in _bands(x):
        with tf.control_dependencies([done]):
            patches = _patches_of_tiles(x[:, first : last + 2])
            dproducts = _transform(OUTPUT.T, tf.reshape(_to_tiles(dy[:, first:last]), [4, -1]))
        dproducts = tf.reshape(dproducts, [16, -1, dy.shape[-1]])
        dkernels = done = dkernels + tf.matmul(patches, dproducts, transpose_a=True)
    return dx, tf.reshape(_transform(KERNEL.T, dkernels), kernel.shape)


def _pad_to_even(x: tf.Tensor) -> tf.Tensor:
    """Add a last row and column where a side is odd, or might be."""
    height, width = _side(x, 1), _side(x, 2)
    if isinstance(height, int) and isinstance(width, int) and height % 2 == width % 2 == 0:
        return x
    return tf.pad(x, [[0, 0], [0, height % 2], [0, width % 2], [0, 0]])


def _bands(x: tf.Tensor) -> list[tuple[int | tf.Tensor, int | tf.Tensor]]:
    """The first row of each band of a map's output and the one after its last."""
    height, width = _side(x, 1) - 2, _side(x, 2)
    if not isinstance(height, int) or not isinstance(width, int):
        return [(0, height)]
    step = max(2, BAND // width // 2 * 2)
    return [(first, min(first + step, height)) for first in range(0, height, step)]


def _patches_of_tiles(x: tf.Tensor) -> tf.Tensor:
    """The transformed 4x4 patch behind every tile of 2x2 outputs: [B, H, W, C] -> [16, B (H / 2 - 1) (W / 2 - 1), C]."""
    down, across = _side(x, 1) // 2 - 1, _side(x, 2) // 2 - 1
    pixels = _to_tiles(x)
    patches = tf.stack([pixels[:, :, :, i : i + down, j : j + across] for i in range(2) for j in range(2)])
    order = (0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15)  # Quarters of 2x2 pixels -> rows of 4.
    return tf.reshape(_transform(PATCH, patches, order), [16, -1, x.shape[-1]])


def _to_tiles(x: tf.Tensor) -> tf.Tensor:
    """[B, H, W, C] -> [2, 2, B, H / 2, W / 2, C], the first two being the place in a tile."""
    tiles = tf.reshape(x, [-1, _side(x, 1) // 2, 2, _side(x, 2) // 2, 2, x.shape[-1]])
    return tf.transpose(tiles, [2, 4, 0, 1, 3, 5])


def _from_tiles(tiles: tf.Tensor) -> tf.Tensor:
    """[2, 2, B, H / 2, W / 2, C] -> [B, H, W, C]."""
    down, across, channels = _side(tiles, 3), _side(tiles, 4), tiles.shape[-1]
    return tf.reshape(tf.transpose(tiles, [2, 3, 0, 4, 1, 5]), [-1, 2 * down, 2 * across, channels])


def _transform(matrix: NDArray[Any], x: tf.Tensor, order: tuple[int, ...] | None = None) -> tf.Tensor:
    """Apply an m x n transform to rows and columns at once, [n², …] -> [m², …] flat; x may come in another order."""
    both = np.kron(matrix, matrix)
    both = both if order is None else both[:, order]
    return tf.matmul(tf.constant(both, tf.float32), tf.reshape(x, [both.shape[1], -1]))
