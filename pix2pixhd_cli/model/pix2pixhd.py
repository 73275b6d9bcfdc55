"""The networks together: how a picture is made, and one training step."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, NamedTuple

import keras
import tensorflow as tf

from pix2pixhd_cli.model.conditioning import condition, condition_picture
from pix2pixhd_cli.model.discriminators import Maps, MultiscaleDiscriminator
from pix2pixhd_cli.model.encoder import InstanceEncoder, pool_instances
from pix2pixhd_cli.model.generators import GlobalGenerator, LocalEnhancer
from pix2pixhd_cli.model.layers import computing_in
from pix2pixhd_cli.model.losses import adversarial_loss, feature_matching_loss, reconstruction_loss
from pix2pixhd_cli.model.optimizers import NO_NUMBER, Average
from pix2pixhd_cli.model.perceptual import Vgg, perceptual_loss
from pix2pixhd_cli.model.pool import FakePool


class Batch(NamedTuple):
    """What one step sees: class ids or an RGB input, instance ids, and photos.

    label: int32 [B, H, W], or uint8-valued [B, H, W, 3] where the input is RGB.
    instance: int32 [B, H, W].
    photo: float32 [B, H, W, 3] in [-1, 1].
    """

    label: tf.Tensor
    instance: tf.Tensor
    photo: tf.Tensor


class Losses(NamedTuple):
    """The losses of one step, float32 scalars, weighted as they enter the sum; `d_*` without their factor of a half."""

    g_gan: tf.Tensor
    g_feat: tf.Tensor
    g_vgg: tf.Tensor
    g_rec: tf.Tensor
    d_real: tf.Tensor
    d_fake: tf.Tensor


class Gradients(NamedTuple):
    """What a batch says: its losses, and gradients of all that G's loss trains and of all that D's does."""

    losses: Losses
    generator: list[tf.Tensor]
    discriminator: list[tf.Tensor]


class _WayBack(NamedTuple):
    """The way from the losses to the fake, with what it takes to go on to G's weights."""

    losses: Losses
    painting: tf.GradientTape
    fake: tf.Tensor
    fake_gradient: tf.Tensor
    discriminator_gradients: list[tf.Tensor]


class Pix2PixHD:
    """Generator, encoder and discriminator, built and ready.

    Args:
        generator: conditioning and feature map to picture.
        encoder: photo to raw features, or None.
        discriminator: needed for training only.
        labels: one-hot channels, or 0 where the input is an RGB picture.
        ignored: class ids that become all-zero vectors.
        boundary: show the networks the boundary map beside the classes.
        encoder_frozen: the encoder is a global run's: it is not trained, and works at the global generator's resolution.
        pool_by_label: one feature code for all regions of a class, instead of one an instance.
        gan: the adversarial loss, LSGAN or the vanilla one.
        feature_matching: weight of the feature matching loss, 0 = off.
        vgg, perceptual: the network and the weight of the perceptual loss; off without the network.
        reconstruction: weight of the reconstruction loss, 0 = off.
        recompute: in training, keep less for the gradients, work it out again, and do one thing after the other.
        computing: the type in which training convolves: float32, float16 or bfloat16.
        average: keep an average of G's weights that forgets all but this share of itself a step, 0 = off.
    """

    def __init__(
        self,
        *,
        generator: GlobalGenerator | LocalEnhancer,
        encoder: InstanceEncoder | None,
        discriminator: MultiscaleDiscriminator | None,
        labels: int,
        ignored: tuple[int, ...] = (),
        boundary: bool = True,
        encoder_frozen: bool = False,
        pool_by_label: bool = False,
        gan: Literal["lsgan", "vanilla"] = "lsgan",
        feature_matching: float = 10.0,
        vgg: Vgg | None = None,
        perceptual: float = 0.0,
        reconstruction: float = 0.0,
        recompute: bool = False,
        computing: tf.DType = tf.float32,
        average: float = 0.0,
    ) -> None:
        self.generator = generator
        self.encoder = encoder
        self.discriminator = discriminator
        self.labels = labels
        self.ignored = ignored
        self.boundary = boundary
        self.encoder_frozen = encoder_frozen
        self.pool_by_label = pool_by_label
        self.pool: FakePool | None = None
        self.gan = gan
        self.feature_matching = feature_matching
        self.vgg = vgg
        self.perceptual = perceptual
        self.reconstruction = reconstruction
        self.computing = computing
        self._set_recompute(recompute)
        condition_channels = labels + boundary if labels else 3
        features = encoder.channels if encoder is not None else 0
        generator.build((None, None, None, condition_channels + features))
        if encoder is not None:
            encoder.build((None, None, None, 3))
        if discriminator is not None:
            discriminator.build((None, None, None, condition_channels + generator.channels))
        self.average = Average(generator.weights, average) if average else None

    def add_pool(self, size: int, height: int, width: int, seed: int) -> None:
        """Show D fakes from a history of `size` pairs of height x width."""
        channels = (self.labels + self.boundary if self.labels else 3) + self.generator.channels
        self.pool = FakePool(size, (height, width, channels), seed)

    @property
    def networks(self) -> dict[str, keras.Model]:
        """The networks there are, by name."""
        named = {"generator": self.generator, "encoder": self.encoder, "discriminator": self.discriminator}
        return {name: network for name, network in named.items() if network is not None}

    @property
    def generator_variables(self) -> list[keras.Variable]:
        """What the generator's loss trains: G, and E unless it is frozen."""
        trained = self.encoder is not None and not self.encoder_frozen
        encoder = self.encoder.trainable_variables if self.encoder is not None and trained else []
        return [*self.generator.trainable_variables, *encoder]

    @property
    def outermost_variables(self) -> list[keras.Variable]:
        """What is trained while the global network is fixed: the outermost enhancer, and E unless it is frozen."""
        assert isinstance(self.generator, LocalEnhancer), "only a local enhancer has a global network to fix"
        rest = self.generator_variables[len(self.generator.trainable_variables) :]
        return [*self.generator.outermost_variables, *rest]

    @property
    def discriminator_variables(self) -> list[keras.Variable]:
        """What the discriminator's loss trains."""
        return list(self._discriminator.trainable_variables)

    @property
    def _discriminator(self) -> MultiscaleDiscriminator:
        assert self.discriminator is not None, "this model was built without its discriminator"
        return self.discriminator

    def condition(self, batch: Batch) -> tf.Tensor:
        """What G and D see of the scene: float32 [B, H, W, labels + 1] (labels without the boundary), or the RGB
        input [B, H, W, 3].
        """
        if not self.labels:
            return condition_picture(batch.label)
        return condition(batch.label, batch.instance, labels=self.labels, ignored=self.ignored, boundary=self.boundary)

    def raw_features(self, photo: tf.Tensor) -> tf.Tensor:
        """E's features before pooling: float32 [B, H, W, channels] from photos [B, H, W, 3] in [-1, 1].

        A frozen encoder sees the photos at the global generator's resolution, and its map is repeated to theirs.
        """
        assert self.encoder is not None, "this model has no encoder"
        if not self.encoder_frozen:
            return self.encoder(photo)
        assert isinstance(self.generator, LocalEnhancer), "only a local enhancer works with a frozen encoder"
        scale = 2 ** len(self.generator.enhancers)
        coarse = self.encoder(tf.nn.avg_pool2d(photo, scale, scale, "VALID"))
        return tf.stop_gradient(tf.repeat(tf.repeat(coarse, scale, 1), scale, 2))

    def encode(self, batch: Batch) -> tf.Tensor:
        """The feature map of the photos' own codes: float32 [B, H, W, channels]."""
        return pool_instances(self.raw_features(batch.photo), batch.label if self.pool_by_label else batch.instance)

    def generate(self, conditioning: tf.Tensor, features: tf.Tensor | None) -> tf.Tensor:
        """Paint: float32 [B, H, W, 3] in [-1, 1]."""
        if features is None:
            return self.generator(conditioning)
        return self.generator(tf.concat([conditioning, features], -1), known=conditioning.shape[-1])

    def reconstruct(self, batch: Batch) -> tf.Tensor:
        """Paint the scene in its photo's own style: float32 [B, H, W, 3] in [-1, 1]."""
        return self._paint(batch, self.condition(batch))

    def judge(self, conditioning: tf.Tensor, picture: tf.Tensor) -> Maps:
        """All maps of the discriminator on a picture in its scene."""
        maps: Maps = self._discriminator(conditioning, picture)
        return maps

    def losses(self, batch: Batch) -> Losses:
        """All losses of a batch, as training finds them."""
        conditioning = self.condition(batch)
        with computing_in(self.computing):
            return self._losses(batch, conditioning, self._paint(batch, conditioning))

    @contextmanager
    def recomputing(self, recompute: bool) -> Iterator[None]:
        """Recompute within, or do not."""
        before = self.recompute
        self._set_recompute(recompute)
        try:
            yield
        finally:
            self._set_recompute(before)

    def _set_recompute(self, recompute: bool) -> None:
        self.recompute = recompute
        for part in (self.generator, self.encoder, self.discriminator, self.vgg):
            if part is not None:
                part.recompute = recompute

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Work with the average of G's weights within, if there is one."""
        if self.average is None:
            yield
            return
        weights = [variable.value for variable in self.generator.weights]
        kept = [weight.numpy() for weight in weights]
        for weight, value in zip(weights, self.average.values, strict=True):
            weight.assign(value)
        try:
            yield
        finally:
            for weight, value in zip(weights, kept, strict=True):
                weight.assign(value)

    def _paint(self, batch: Batch, conditioning: tf.Tensor) -> tf.Tensor:
        return self.generate(conditioning, self.encode(batch) if self.encoder is not None else None)

    def _losses(self, batch: Batch, conditioning: tf.Tensor, fake: tf.Tensor) -> Losses:
        """One pass of D over the fake serves both G's losses and D's, unless there is a fake pool."""
        zero = tf.zeros([], fake.dtype)
        g_vgg = self.perceptual * perceptual_loss(self.vgg, fake, batch.photo) if self.vgg is not None else zero
        with self._after([g_vgg]):
            on_fake = self.judge(conditioning, fake)
            on_real = self.judge(conditioning, batch.photo)
        on_old = on_fake
        if self.pool is not None:
            old = self.pool.query(tf.stop_gradient(tf.concat([conditioning, fake], -1)))
            on_old = self.judge(*tf.split(old, [conditioning.shape[-1], -1], -1))
        return Losses(
            g_gan=adversarial_loss(on_fake, 1.0, self.gan),
            g_feat=self.feature_matching * feature_matching_loss(on_fake, on_real) if self.feature_matching else zero,
            g_vgg=g_vgg,
            g_rec=self.reconstruction * reconstruction_loss(fake, batch.photo) if self.reconstruction else zero,
            d_real=adversarial_loss(on_real, 1.0, self.gan),
            d_fake=adversarial_loss(on_old, 0.0, self.gan),
        )

    def _after(self, done: list[tf.Tensor]) -> AbstractContextManager[object]:
        """With `recompute`, what is built within waits until `done` is there, and finds its memory free."""
        return tf.control_dependencies(done) if self.recompute else nullcontext()

    def train_step(
        self,
        batch: Batch,
        generator_optimizer: keras.Optimizer,
        discriminator_optimizer: keras.Optimizer,
        *,
        fixed_global: bool = False,
    ) -> Losses:
        """Update G (with E), then D, both from D as it was before the step; returns the losses before the update.

        `fixed_global` updates the outermost enhancer's own layers only. Raises `tf.errors.InvalidArgumentError`, having updated
        nothing, if a loss, D's gradients or the fake's are no numbers.
        """
        with computing_in(self.computing):
            back = self._go_back(batch)
            # Squares, because Adam squares. The generator's gradients come after this, so that each is used up at once: checked
            # too, they would all have to be kept.
            squares = sum_of_squares([back.fake_gradient, *back.discriminator_gradients])
            with tf.control_dependencies([tf.debugging.check_numerics(tf.add_n(back.losses) + squares, NO_NUMBER)]):
                trained = self.trained_variables(fixed_global)
                generator_optimizer.apply(self._generator_gradients(back, fixed_global), trained)
                discriminator_optimizer.apply(back.discriminator_gradients, self.discriminator_variables)
        if self.average is not None:
            self.average.follow()
        return back.losses

    def gradients(self, batch: Batch, factor: tf.Tensor, *, fixed_global: bool = False) -> Gradients:
        """The losses of a batch, and their gradients times `factor`; nothing is updated, and nothing is checked."""
        with computing_in(self.computing):
            back = self._go_back(batch, factor)
            generator_gradients = self._generator_gradients(back, fixed_global)
        return Gradients(back.losses, generator_gradients, back.discriminator_gradients)

    def trained_variables(self, fixed_global: bool) -> list[keras.Variable]:
        """What G's loss trains now."""
        return self.outermost_variables if fixed_global else self.generator_variables

    def _go_back(self, batch: Batch, factor: tf.Tensor | None = None) -> _WayBack:
        """The losses, and D's and the fake's gradients times `factor`, if there is one."""
        conditioning = self.condition(batch)
        with tf.GradientTape() as painting:
            fake = self._paint(batch, conditioning)
        # A tape of its own: every use of a tape unrolls the whole of it.
        with tf.GradientTape(persistent=True) as judging:
            judging.watch(fake)
            losses = self._losses(batch, conditioning, fake)
            by_discriminator = losses.g_gan + losses.g_feat + losses.g_rec
            discriminator_loss = 0.5 * (losses.d_real + losses.d_fake)
        discriminator_variables = [variable.value for variable in self.discriminator_variables]
        of_fake = [judging.gradient(losses.g_vgg, fake, factor)] if self.vgg is not None else []
        with self._after(of_fake):
            of_fake.append(judging.gradient(by_discriminator, fake, factor))
        with self._after(of_fake):
            of_discriminator = judging.gradient(discriminator_loss, discriminator_variables, factor)
        return _WayBack(losses, painting, fake, tf.add_n(of_fake), of_discriminator)

    def _generator_gradients(self, back: _WayBack, fixed_global: bool) -> list[tf.Tensor]:
        variables = [variable.value for variable in self.trained_variables(fixed_global)]
        found: list[tf.Tensor] = back.painting.gradient(back.fake, variables, back.fake_gradient)
        return found


def sum_of_squares(tensors: list[tf.Tensor]) -> tf.Tensor:
    """Half of it: no number if one of the tensors holds what is none, or what is too large."""
    return tf.add_n([tf.nn.l2_loss(tensor) for tensor in tensors])
