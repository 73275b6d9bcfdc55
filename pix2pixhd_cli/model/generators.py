"""The coarse-to-fine generator's networks (paper, section 3.2)."""

from typing import Any

import keras
import tensorflow as tf

from pix2pixhd_cli.model.layers import Convolution, ResidualBlock, Upsample


def trunk(filters: int, downsamplings: int, blocks: int) -> list[keras.layers.Layer]:
    """Everything between a picture and its last feature map: [B, H, W, C] -> [B, H, W, filters]."""
    widths = [filters << n for n in range(downsamplings + 1)]
    return [
        Convolution(filters, 7, padding=3, reflect=True),
        *(Convolution(width, 3, strides=2, padding=1) for width in widths[1:]),
        *(ResidualBlock(widths[-1]) for _ in range(blocks)),
        *(Upsample(width) for width in reversed(widths[:-1])),
    ]


def head(channels: int) -> Convolution:
    """The last feature map becomes a picture in [-1, 1]: [B, H, W, C] -> [B, H, W, channels]."""
    return Convolution(channels, 7, padding=3, reflect=True, norm=False, activation="tanh")


def build_in_turn(layers: list[keras.layers.Layer], shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """Build layers that follow one another, all of which accept any height and width; returns the last one's shape."""
    for layer in layers:
        layer.build(shape)
        shape = (*shape[:-1], getattr(layer, "filters", shape[-1]))
    return shape


class GlobalGenerator(keras.Model):
    """G1: convolutional front end, residual blocks, transposed convolutional back end.

    Takes float32 [B, H, W, C], the conditioning and the feature map, with sides divisible by 2^downsamplings; returns
    float32 [B, H, W, channels] in [-1, 1].

    Args:
        filters: filters at full resolution, doubling with every downsampling.
        downsamplings: times the resolution is halved.
        blocks: residual blocks at the lowest resolution.
        channels: output channels.
    """

    def __init__(
        self, *, filters: int = 64, downsamplings: int = 4, blocks: int = 9, channels: int = 3, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.downsamplings = downsamplings
        self.blocks = blocks
        self.channels = channels
        self.trunk = trunk(filters, downsamplings, blocks)
        self.head = head(channels)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create all weights for [B, H, W, C]; only C matters."""
        build_in_turn([*self.trunk, self.head], input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Paint a picture."""
        for layer in self.trunk:
            x = layer(x)
        return self.head(x)
