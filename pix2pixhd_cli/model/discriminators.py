"""The multiscale discriminator (paper, section 3.2)."""

from functools import partial
from typing import Any

import keras
import tensorflow as tf

from pix2pixhd_cli.model.generators import build_in_turn
from pix2pixhd_cli.model.layers import Block, Convolution, Norm, halve

Maps = list[list[tf.Tensor]]  # over scales, finest first, and over layers


class PatchDiscriminator(Block):
    """D_k: a PatchGAN that returns all its feature maps, the last of them the logits.

    Args:
        filters: filters of the first layer, doubling up to 512.
        layers: layers after the first; all but the last of them halve the resolution.
        norm: "instance" or "batch".
    """

    def __init__(self, *, filters: int = 64, layers: int = 3, norm: Norm = "instance", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        widths = [min(filters << n, 512) for n in range(layers + 1)]
        self.stages = [
            Convolution(
                width,
                4,
                strides=2 if n < layers else 1,
                padding=2,
                norm=norm if n else None,
                activation="leaky_relu",
            )
            for n, width in enumerate(widths)
        ]
        self.stages.append(Convolution(1, 4, padding=2, norm=None, activation=None))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create all weights for [B, H, W, C]; only C matters."""
        build_in_turn(self.stages, input_shape)

    def call(self, x: tf.Tensor, known: int = 0) -> list[tf.Tensor]:
        """[B, H, W, C] -> layers + 2 maps, of which the last is [B, h, w, 1]; `known` as in the generators."""
        maps = []
        for stage in self.stages:
            x, known = stage(x, known=known), 0
            maps.append(x)
        return maps


class MultiscaleDiscriminator(keras.Model):
    """Identical PatchGANs on the input and on it average-pooled once, twice ….

    Args:
        filters, layers, norm: of each PatchGAN.
        scales: how many there are.
    """

    def __init__(self, *, filters: int = 64, layers: int = 3, scales: int = 2, norm: Norm = "instance") -> None:
        super().__init__()
        self.filters = filters
        self.scales = scales
        self.recompute = False  # In training: work the maps out again in the gradient instead of keeping them.
        self.discriminators = [PatchDiscriminator(filters=filters, layers=layers, norm=norm) for _ in range(scales)]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create all weights for [B, H, W, C]; only C matters."""
        for discriminator in self.discriminators:
            discriminator.build(input_shape)

    def call(self, conditioning: tf.Tensor, picture: tf.Tensor) -> Maps:
        """Conditioning and picture, float32 [B, H, W, …], to all maps of all scales, finest first.

        The conditioning is data, whose gradient nobody asks for.
        """
        maps = []
        for scale, discriminator in enumerate(self.discriminators):
            if scale:  # One by one, so that the way back halves the picture alone.
                conditioning, picture = halve(conditioning), halve(picture)
            judge = partial(_judge, discriminator)
            maps.append(list((tf.recompute_grad(judge) if self.recompute else judge)(conditioning, picture)))
        return maps


def _judge(discriminator: PatchDiscriminator, conditioning: tf.Tensor, picture: tf.Tensor) -> list[tf.Tensor]:
    maps: list[tf.Tensor] = discriminator(tf.concat([conditioning, picture], -1), known=conditioning.shape[-1])
    return maps
