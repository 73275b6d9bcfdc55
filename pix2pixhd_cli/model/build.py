"""The only translator from settings to networks."""

from itertools import pairwise
from typing import NamedTuple

import keras
import tensorflow as tf

from pix2pixhd_cli.model.discriminators import MultiscaleDiscriminator
from pix2pixhd_cli.model.encoder import InstanceEncoder
from pix2pixhd_cli.model.generators import GlobalGenerator, LocalEnhancer
from pix2pixhd_cli.model.optimizers import Adam, LossScale
from pix2pixhd_cli.model.perceptual import Vgg
from pix2pixhd_cli.model.pix2pixhd import Pix2PixHD
from pix2pixhd_cli.settings import DiscriminatorSettings, GeneratorSettings, Settings

COMPUTING = {"float32": tf.float32, "mixed_float16": tf.float16, "mixed_bfloat16": tf.bfloat16}


def build_model(
    settings: Settings, *, labels: int, ignored: tuple[int, ...], training: bool, vgg: Vgg | None = None
) -> Pix2PixHD:
    """Build the networks that `settings` describe, with fresh weights; the discriminator only for training."""
    discriminator, encoder = settings.discriminator, settings.encoder
    return Pix2PixHD(
        generator=_build_generator(settings.generator),
        encoder=InstanceEncoder(
            filters=encoder.filters,
            downsamplings=encoder.downsamplings,
            channels=encoder.channels,
            norm=settings.generator.norm,
            upsampling=settings.generator.upsampling,
        )
        if encoder.enabled
        else None,
        discriminator=MultiscaleDiscriminator(
            filters=discriminator.filters,
            layers=discriminator.layers,
            scales=discriminator.scales,
            norm=settings.generator.norm,
        )
        if training
        else None,
        labels=labels,
        ignored=ignored,
        boundary=settings.generator.boundary,
        encoder_frozen=encoder.frozen,
        pool_by_label=encoder.pooling == "label",
        gan=settings.loss.gan,
        feature_matching=settings.loss.feature_matching,
        vgg=vgg,
        perceptual=settings.loss.perceptual or 0.0,
        reconstruction=settings.loss.reconstruction,
        recompute=training and settings.train.recompute,
        computing=COMPUTING[settings.train.precision],
        average=settings.train.ema if training else 0.0,
    )


def _build_generator(generator: GeneratorSettings) -> GlobalGenerator | LocalEnhancer:
    shared = generator.model_dump(include={"filters", "downsamplings", "blocks", "norm", "upsampling"})
    if generator.kind == "global":
        return GlobalGenerator(**shared)
    return LocalEnhancer(enhancers=generator.enhancers, local_blocks=generator.local_blocks, **shared)


class Optimizers(NamedTuple):
    """Adam for G with E, for D, and for the outermost enhancer alone while the global network is fixed.

    The latter is another one, so that the global network starts with fresh moments when it is unfrozen.
    """

    generator: Adam
    discriminator: Adam
    outermost: Adam | None


def build_optimizers(settings: Settings, model: Pix2PixHD) -> Optimizers:
    """The optimisers with their slots made, so that a checkpoint restores them."""

    def build(variables: list[keras.Variable]) -> Adam:
        optimizer = Adam(settings.train.learning_rate, settings.train.beta1)
        optimizer.build(variables)
        return optimizer

    return Optimizers(
        build(model.generator_variables),
        build(model.discriminator_variables),
        build(model.outermost_variables) if settings.train.fixed_global_epochs else None,
    )


def build_loss_scale(settings: Settings) -> LossScale | None:
    """What float16 needs, and no other precision."""
    return LossScale() if settings.train.precision == "mixed_float16" else None


def side_multiple(settings: Settings) -> int:
    """What both sides of a picture must be divisible by."""
    local = settings.generator.enhancers if settings.generator.kind == "local" else 0
    encoder = settings.encoder.downsamplings + (local if settings.encoder.frozen else 0)
    return 2 ** max(settings.generator.downsamplings + local, encoder if settings.encoder.enabled else 0)


def smallest_side(settings: Settings) -> int:
    """What both sides must at least be: reflection at the lowest resolution needs two pixels."""
    local = settings.generator.enhancers if settings.generator.kind == "local" else 0
    return max(2 ** (settings.generator.downsamplings + local + 1), side_multiple(settings))


def least_parameters(settings: Settings, *, training: bool) -> int:
    """A lower bound of generator, encoder and, for `training`, discriminator, and a third of them at least.

    So many numbers a file must hold before they are built.
    """
    generator, encoder = settings.generator, settings.encoder
    enhancers = generator.enhancers if generator.kind == "local" else 0
    found = _least_in_trunk(generator.filters << enhancers, generator.downsamplings, generator.blocks)
    found += enhancers * generator.local_blocks * 18 * (2 * generator.filters) ** 2
    found += _least_in_trunk(encoder.filters, encoder.downsamplings, 0) if encoder.enabled else 0
    return found + (_least_in_discriminator(settings.discriminator) if training else 0)


def _least_in_discriminator(discriminator: DiscriminatorSettings) -> int:
    """All layers of 4x4 but the first and the last."""
    widths = [min(discriminator.filters << n, 512) for n in range(discriminator.layers + 1)]
    return discriminator.scales * sum(16 * before * after for before, after in pairwise(widths))


def _least_in_trunk(filters: int, downsamplings: int, blocks: int) -> int:
    """The last downsampling and the residual blocks, all of 3x3."""
    width = filters << downsamplings
    return 9 * width * (width // 2 + 2 * blocks * width)
