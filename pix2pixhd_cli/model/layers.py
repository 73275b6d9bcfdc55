"""The blocks that all networks are made of, padded as the reference pads them.

`padding="same"` is nowhere used: on even sizes it shifts every stride-2 layer by one pixel.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import keras
import tensorflow as tf

from pix2pixhd_cli.model.convolutions import convolve, transposed_convolve

Activation = Literal["relu", "leaky_relu", "tanh"]
Norm = Literal["instance", "batch"]
Upsampling = Literal["transposed", "resize"]
SLOPE = 0.2  # Of the leaky ReLU below zero.
ACTIVATIONS = {
    "relu": tf.nn.relu,
    "leaky_relu": lambda x: tf.nn.leaky_relu(x, SLOPE),
    "tanh": tf.math.tanh,
    None: tf.identity,
}


_blank = ContextVar("blank", default=False)
_computing = ContextVar("computing", default=tf.float32)


@contextmanager
def computing_in(dtype: tf.DType) -> Iterator[None]:
    """Networks called within, and their gradients, convolve and keep their maps in float16 or bfloat16.

    Weights, statistics of normalisations, and what a network hands out at its end stay float32.
    """
    token = _computing.set(dtype)
    try:
        yield
    finally:
        _computing.reset(token)


def _cast(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """A tensor or a variable in another type; what has it already stays what it is."""
    return x if x.dtype == dtype else tf.cast(x, dtype)


@contextmanager
def blank_weights() -> Iterator[None]:
    """Networks built within start from zeros: drawing weights that are about to be loaded would take seconds."""
    token = _blank.set(True)
    try:
        yield
    finally:
        _blank.reset(token)


def kernel_initializer() -> keras.initializers.Initializer:
    """N(0, 0.02), for every convolution."""
    return keras.initializers.Zeros() if _blank.get() else keras.initializers.RandomNormal(stddev=0.02)


def bias_initializer(fan_in: int) -> keras.initializers.Initializer:
    """Uniform within ±1 / √fan_in."""
    bound = fan_in**-0.5
    return keras.initializers.RandomUniform(-bound, bound)


class Block(keras.layers.Layer):
    """A layer that takes maps as they are; Keras would make float32 of them."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)


class InstanceNorm(Block):
    """Instance normalisation without scale, offset or running statistics: biased variance, epsilon 1e-5.

    [B, H, W, C] -> [B, H, W, C], each channel of each picture with mean 0 and variance 1, then activated.
    """

    def __init__(self, activation: Activation | None = None) -> None:
        super().__init__()
        self.activation = activation

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Normalise over height and width, and activate."""
        return _normalise(x, self.activation)


def _spatial_mean(x: tf.Tensor) -> tf.Tensor:
    """[B, H, W, C] -> [B, 1, 1, C]; in two stages, because one long float32 sum loses a digit."""
    return tf.reduce_mean(tf.reduce_mean(x, 2, keepdims=True), 1, keepdims=True)


def _spatial_variance(centred: tf.Tensor) -> tf.Tensor:
    """The mean square of [B, H, W, C] -> [B, 1, 1, C], by the rows' Euclidean norms: no map of squares."""
    width = centred.shape[2]
    if width is None:  # As in an exported network; the converter to ONNX does not know this norm.
        return _spatial_mean(tf.square(centred))
    of_rows = tf.square(tf.raw_ops.EuclideanNorm(input=centred, axis=2, keep_dims=True))
    return tf.reduce_mean(of_rows, 1, keepdims=True) / width


def _normalise(x: tf.Tensor, activation: Activation | None) -> tf.Tensor:
    """Zero mean and unit variance, and the activation, with the gradient in closed form: one map is kept for both.

    The map is of x's type, and all sums are made in float32.
    """

    @tf.custom_gradient
    def normalise(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        exact = _cast(x, tf.float32)
        centred = exact - _spatial_mean(exact)
        scale = tf.math.rsqrt(_spatial_variance(centred) + 1e-5)
        kept = _cast(centred * scale, x.dtype)

        def gradient(dy: tf.Tensor) -> tf.Tensor:
            dy, y = _cast(dy, tf.float32), _cast(kept, tf.float32)
            if activation == "relu":
                dy = tf.raw_ops.ReluGrad(gradients=dy, features=y)
            elif activation == "leaky_relu":
                dy = tf.raw_ops.LeakyReluGrad(gradients=dy, features=y, alpha=SLOPE)
            return _cast(scale * (dy - _spatial_mean(dy) - y * _spatial_mean(dy * y)), x.dtype)

        return ACTIVATIONS[activation](kept), gradient

    return normalise(x)


class BatchNorm(Block):
    """Batch normalisation by the batch's own statistics, in training and in painting, as the reference's code uses it.

    [B, H, W, C] -> [B, H, W, C]; the scale starts at N(1, 0.02), the offset at 0; epsilon 1e-5.
    """

    def __init__(self, activation: Activation | None = None) -> None:
        super().__init__()
        self.activation = activation

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create scale and offset."""
        shape = (input_shape[-1],)
        start = keras.initializers.RandomNormal(1.0, 0.02)
        self.scale = self.add_weight(shape=shape, initializer=start, name="scale")
        self.offset = self.add_weight(shape=shape, initializer="zeros", name="offset")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Normalise over batch, height and width, and activate."""
        exact = _cast(x, tf.float32)
        centred = exact - tf.reduce_mean(_spatial_mean(exact), 0, keepdims=True)
        variance = tf.reduce_mean(_spatial_mean(tf.square(centred)), 0, keepdims=True)
        y = centred * tf.math.rsqrt(variance + 1e-5) * self.scale + self.offset
        return _cast(ACTIVATIONS[self.activation](y), x.dtype)


def normalisation(norm: Norm, activation: Activation | None) -> keras.layers.Layer:
    """A normalisation by its name, with the activation after it."""
    return InstanceNorm(activation) if norm == "instance" else BatchNorm(activation)


class Convolution(Block):
    """Pad, convolve, normalise, activate.

    Args:
        filters: output channels.
        kernel_size: side of the square kernel.
        strides: 1 or 2.
        padding: pixels added on every side.
        reflect: pad by reflection instead of zeros.
        norm: "instance", "batch" or None.
        activation: "relu", "leaky_relu" (slope 0.2), "tanh" or None.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        strides: int = 1,
        padding: int = 0,
        reflect: bool = False,
        norm: Norm | None = "instance",
        activation: Activation | None = "relu",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.reflect = reflect
        self.norm = normalisation(norm, activation) if norm is not None else None
        self.activation = activation

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the kernel and the bias, whose start depends on the input's channels."""
        channels = input_shape[-1]
        assert channels is not None
        self.convolution = keras.layers.Conv2D(
            self.filters,
            self.kernel_size,
            self.strides,
            kernel_initializer=kernel_initializer(),
            bias_initializer=bias_initializer(channels * self.kernel_size**2),
        )
        self.convolution.build(input_shape)
        if self.norm is not None:
            self.norm.build((*input_shape[:-1], self.filters))

    def call(self, x: tf.Tensor, known: int = 0) -> tf.Tensor:
        """[B, H, W, C] -> [B, (H + 2 padding - kernel_size) // strides + 1, …, filters]; `known` first channels are data."""
        dtype = _computing.get()
        x = convolve(
            _cast(x, dtype),
            _cast(self.convolution.kernel.value, dtype),
            strides=self.strides,
            padding=self.padding,
            reflect=self.reflect,
            known=known,
        )
        x = tf.nn.bias_add(x, _cast(self.convolution.bias.value, dtype))
        if self.norm is not None:
            return self.norm(x)
        ends = self.activation in ("tanh", None)  # A picture, features, or logits.
        return ACTIVATIONS[self.activation](_cast(x, tf.float32) if ends else x)


class Upsample(Block):
    """Transposed 3x3 convolution with stride 2, normalisation, ReLU: [B, H, W, C] -> [B, 2H, 2W, filters]."""

    def __init__(self, filters: int, *, norm: Norm = "instance", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.norm = normalisation(norm, "relu")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create kernel and bias; the reference counts a transposed convolution's fan-in by its outputs."""
        self.convolution = keras.layers.Conv2DTranspose(
            self.filters,
            3,
            strides=2,
            kernel_initializer=kernel_initializer(),
            bias_initializer=bias_initializer(self.filters * 9),
        )
        self.convolution.build(input_shape)
        self.norm.build((*input_shape[:-1], self.filters))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Double, then normalise."""
        dtype = _computing.get()
        x = transposed_convolve(_cast(x, dtype), _cast(self.convolution.kernel.value, dtype))
        return self.norm(tf.nn.bias_add(x, _cast(self.convolution.bias.value, dtype)))


class ResizeUpsample(Convolution):
    """Nearest neighbours repeated, then a 3x3 convolution, normalisation, ReLU: no checkerboards.

    [B, H, W, C] -> [B, 2H, 2W, filters].
    """

    def __init__(self, filters: int, *, norm: Norm = "instance", **kwargs: Any) -> None:
        super().__init__(filters, 3, padding=1, reflect=True, norm=norm, **kwargs)

    def call(self, x: tf.Tensor, known: int = 0) -> tf.Tensor:
        """Double, then convolve."""
        return super().call(tf.repeat(tf.repeat(x, 2, 1), 2, 2), known)


def upsample(filters: int, upsampling: Upsampling, norm: Norm) -> keras.layers.Layer:
    """A layer that doubles the resolution, by its name."""
    return Upsample(filters, norm=norm) if upsampling == "transposed" else ResizeUpsample(filters, norm=norm)


class ResidualBlock(Block):
    """x + two reflection-padded 3x3 convolutions, with no activation after the sum."""

    def __init__(self, filters: int, *, norm: Norm = "instance", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first = Convolution(filters, 3, padding=1, reflect=True, norm=norm)
        self.second = Convolution(filters, 3, padding=1, reflect=True, norm=norm, activation=None)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Build both convolutions; they keep the shape."""
        self.first.build(input_shape)
        self.second.build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[B, H, W, filters] -> [B, H, W, filters]."""
        return x + self.second(self.first(x))


def halve(x: tf.Tensor) -> tf.Tensor:
    """Average-pool 3x3 with stride 2, the border not counted: [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]."""

    def sums(x: tf.Tensor) -> tf.Tensor:  # A depthwise convolution pads without a copy of the map.
        ones = tf.ones([3, 3, x.shape[-1], 1], x.dtype)
        return tf.nn.depthwise_conv2d(x, ones, [1, 2, 2, 1], [[0, 0], [1, 1], [1, 1], [0, 0]])

    return sums(x) / sums(tf.ones([1, tf.shape(x)[1], tf.shape(x)[2], 1], x.dtype))
