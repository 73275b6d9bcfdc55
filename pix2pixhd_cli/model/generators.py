"""The coarse-to-fine generator's networks (paper, section 3.2)."""

from functools import partial
from typing import Any

import keras
import tensorflow as tf

from pix2pixhd_cli.model.layers import Block, Convolution, Norm, ResidualBlock, Upsampling, halve, upsample


def trunk(
    filters: int, downsamplings: int, blocks: int, norm: Norm, upsampling: Upsampling
) -> list[keras.layers.Layer]:
    """Everything between a picture and its last feature map: [B, H, W, C] -> [B, H, W, filters]."""
    widths = [filters << n for n in range(downsamplings + 1)]
    return [
        Convolution(filters, 7, padding=3, reflect=True, norm=norm),
        *(Convolution(width, 3, strides=2, padding=1, norm=norm) for width in widths[1:]),
        *(ResidualBlock(widths[-1], norm=norm) for _ in range(blocks)),
        *(upsample(width, upsampling, norm) for width in reversed(widths[:-1])),
    ]


def head(channels: int) -> Convolution:
    """The last feature map becomes a picture in [-1, 1]: [B, H, W, C] -> [B, H, W, channels]."""
    return Convolution(channels, 7, padding=3, reflect=True, norm=None, activation="tanh")


def build_in_turn(layers: list[keras.layers.Layer], shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """Build layers that follow one another, all of which accept any height and width; returns the last one's shape."""
    for layer in layers:
        layer.build(shape)
        shape = (*shape[:-1], getattr(layer, "filters", shape[-1]))
    return shape


def in_turn(layers: list[keras.layers.Layer], x: tf.Tensor, *, known: int = 0, recompute: bool = False) -> tf.Tensor:
    """Apply layers that follow one another.

    `known` first channels of x are data, whose gradient nobody asks for. `recompute` keeps no more for the gradient than what
    goes into each layer, and works out the rest again.
    """
    for layer in layers:
        call = partial(layer, known=known) if known else layer
        x, known = (tf.recompute_grad(call) if recompute else call)(x), 0
    return x


class GlobalGenerator(keras.Model):
    """G1: convolutional front end, residual blocks, transposed convolutional back end.

    Takes float32 [B, H, W, C], the conditioning and the feature map, with sides divisible by 2^downsamplings; returns
    float32 [B, H, W, channels] in [-1, 1].

    Args:
        filters: filters at full resolution, doubling with every downsampling.
        downsamplings: times the resolution is halved.
        blocks: residual blocks at the lowest resolution.
        channels: output channels.
        norm: "instance" or "batch".
        upsampling: "transposed" convolutions, or "resize" against checkerboards.
    """

    def __init__(
        self,
        *,
        filters: int = 64,
        downsamplings: int = 4,
        blocks: int = 9,
        channels: int = 3,
        norm: Norm = "instance",
        upsampling: Upsampling = "transposed",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.downsamplings = downsamplings
        self.blocks = blocks
        self.channels = channels
        self.norm = norm
        self.upsampling = upsampling
        self.recompute = False  # In training: work activations out again in the gradient instead of keeping them.
        self.trunk = trunk(filters, downsamplings, blocks, norm, upsampling)
        self.head = head(channels)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create all weights for [B, H, W, C]; only C matters."""
        build_in_turn([*self.trunk, self.head], input_shape)

    def call(self, x: tf.Tensor, known: int = 0) -> tf.Tensor:
        """Paint a picture; `known` first channels are data, whose gradient nobody asks for."""
        return in_turn([*self.trunk, self.head], x, known=known, recompute=self.recompute)


class Enhancer(Block):
    """One enhancer's own layers: it halves its input, adds the coarser network's feature map, and doubles the sum again.

    Args:
        filters: filters at its own resolution; 2 x filters at half of it, as the coarser feature map has.
        blocks: residual blocks at half its resolution.
        norm, upsampling: as in the global generator.
    """

    def __init__(self, filters: int, blocks: int, norm: Norm, upsampling: Upsampling, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.front = [
            Convolution(filters, 7, padding=3, reflect=True, norm=norm),
            Convolution(2 * filters, 3, strides=2, padding=1, norm=norm),
        ]
        self.back = [
            *(ResidualBlock(2 * filters, norm=norm) for _ in range(blocks)),
            upsample(filters, upsampling, norm),
        ]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create all weights for an input of [B, H, W, C]; only C matters."""
        build_in_turn([*self.front, *self.back], input_shape)

    def enter(self, x: tf.Tensor, known: int = 0, recompute: bool = False) -> tf.Tensor:
        """[B, H, W, C] -> [B, H/2, W/2, 2 filters]; the switches are those of `in_turn`."""
        return in_turn(self.front, x, known=known, recompute=recompute)

    def call(self, x: tf.Tensor, recompute: bool = False) -> tf.Tensor:
        """The sum with the coarser network's features, [B, H/2, W/2, 2 filters] -> [B, H, W, filters]."""
        return in_turn(self.back, x, recompute=recompute)


class LocalEnhancer(keras.Model):
    """G2 around G1: a global generator without its head at the lowest resolution, and enhancers that double it in turn.

    Takes float32 [B, H, W, C] with sides divisible by 2^(downsamplings + enhancers); returns float32 [B, H, W, channels]
    in [-1, 1].

    Args:
        filters: filters of the outermost enhancer; the global generator inside has filters x 2^enhancers.
        downsamplings, blocks: of the global generator inside.
        enhancers: how many there are; the input is average-pooled that many times for the global generator.
        local_blocks: residual blocks of each enhancer.
        channels: output channels.
        norm, upsampling: as in the global generator.
    """

    def __init__(
        self,
        *,
        filters: int = 32,
        downsamplings: int = 4,
        blocks: int = 9,
        enhancers: int = 1,
        local_blocks: int = 3,
        channels: int = 3,
        norm: Norm = "instance",
        upsampling: Upsampling = "transposed",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.downsamplings = downsamplings
        self.blocks = blocks
        self.local_blocks = local_blocks
        self.channels = channels
        self.norm = norm
        self.upsampling = upsampling
        self.recompute = False  # As in the global generator.
        self.trunk = trunk(filters << enhancers, downsamplings, blocks, norm, upsampling)
        self.enhancers = [Enhancer(filters << n, local_blocks, norm, upsampling) for n in reversed(range(enhancers))]
        self.head = head(channels)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create all weights for [B, H, W, C]; only C matters."""
        build_in_turn(self.trunk, input_shape)
        for enhancer in self.enhancers:
            enhancer.build(input_shape)
        self.head.build((*input_shape[:-1], self.filters))

    @property
    def outermost_variables(self) -> list[keras.Variable]:
        """What is trained while the global network is fixed: the outermost enhancer's own layers, with the head."""
        return [*self.enhancers[-1].trainable_variables, *self.head.trainable_variables]

    def call(self, x: tf.Tensor, known: int = 0) -> tf.Tensor:
        """Paint a picture, from the coarsest resolution up; `known` first channels are data, without a gradient."""
        entered = []
        for enhancer in reversed(self.enhancers):  # The finest first: nothing later needs x at its resolution.
            entered.append(enhancer.enter(x, known=known, recompute=self.recompute))
            with tf.control_dependencies(entered):
                x = halve(x)
        features = in_turn(self.trunk, x, known=known, recompute=self.recompute)
        for enhancer in self.enhancers:
            features = enhancer(entered.pop() + features, recompute=self.recompute)
        return in_turn([self.head], features, recompute=self.recompute)
