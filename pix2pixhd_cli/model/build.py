"""The only translator from settings to networks."""

from pix2pixhd_cli.model.discriminators import MultiscaleDiscriminator
from pix2pixhd_cli.model.encoder import InstanceEncoder
from pix2pixhd_cli.model.generators import GlobalGenerator
from pix2pixhd_cli.model.optimizers import Adam
from pix2pixhd_cli.model.pix2pixhd import Pix2PixHD
from pix2pixhd_cli.settings import Settings


def build_model(settings: Settings, *, labels: int, ignored: tuple[int, ...], training: bool) -> Pix2PixHD:
    """Build the networks that `settings` describe, with fresh weights; the discriminator only for training."""
    generator, discriminator, encoder = settings.generator, settings.discriminator, settings.encoder
    return Pix2PixHD(
        generator=GlobalGenerator(
            filters=generator.filters, downsamplings=generator.downsamplings, blocks=generator.blocks
        ),
        encoder=InstanceEncoder(filters=encoder.filters, downsamplings=encoder.downsamplings, channels=encoder.channels)
        if encoder.enabled
        else None,
        discriminator=MultiscaleDiscriminator(
            filters=discriminator.filters, layers=discriminator.layers, scales=discriminator.scales
        )
        if training
        else None,
        labels=labels,
        ignored=ignored,
        feature_matching=settings.loss.feature_matching,
        reconstruction=settings.loss.reconstruction,
    )


def build_optimizers(settings: Settings, model: Pix2PixHD) -> tuple[Adam, Adam]:
    """Adam for G with E and Adam for D, with their slots made, so that a checkpoint restores them."""
    generator = Adam(settings.train.learning_rate, settings.train.beta1)
    discriminator = Adam(settings.train.learning_rate, settings.train.beta1)
    generator.build(model.generator_variables)
    discriminator.build(model.discriminator_variables)
    return generator, discriminator


def side_multiple(settings: Settings) -> int:
    """What both sides of a picture must be divisible by."""
    encoder = settings.encoder.downsamplings if settings.encoder.enabled else 0
    return 2 ** max(settings.generator.downsamplings, encoder)
