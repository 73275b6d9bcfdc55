"""The losses, as pure functions of discriminator maps and pictures (paper, sections 3.1 to 3.3).

Discriminator maps are lists over scales of lists over layers of float32 [B, h, w, c]. Every loss is a float32 scalar and
carries no weight.
"""

from collections.abc import Callable
from typing import Literal

import tensorflow as tf

from pix2pixhd_cli.model.discriminators import Maps

DistanceGradient = Callable[[tf.Tensor], tuple[tf.Tensor, None]]


def adversarial_loss(maps: Maps, target: float, kind: Literal["lsgan", "vanilla"] = "lsgan") -> tf.Tensor:
    """How far the logits are from `target` (1 real, 0 fake), summed over scales.

    `lsgan` is the mean squared distance; `vanilla` the binary cross-entropy of their sigmoid.
    """
    if kind == "vanilla":
        distances = [
            tf.nn.sigmoid_cross_entropy_with_logits(tf.fill(tf.shape(scale[-1]), target), scale[-1]) for scale in maps
        ]
    else:
        distances = [tf.square(scale[-1] - target) for scale in maps]
    return tf.add_n([tf.reduce_mean(distance) for distance in distances])


def feature_matching_loss(fake: Maps, real: Maps) -> tf.Tensor:
    """L1 distance between D's inner maps of fake and photo; the photo's are constants (paper, equation 4).

    The reference weighs a map by 4 / (layers + 1) and averages over scales; D's logits take no part.
    """
    inner = len(fake[0]) - 1
    distances = [
        mean_distance(f, r)
        for fakes, reals in zip(fake, real, strict=True)
        for f, r in zip(fakes[:inner], reals[:inner], strict=True)
    ]
    return tf.add_n(distances) * (4.0 / inner) / len(fake)


def mean_distance(fake: tf.Tensor, photo: tf.Tensor) -> tf.Tensor:
    """Mean L1 distance, with `photo` a constant; of the maps only the difference's sign is kept, in a byte."""
    return tf.custom_gradient(distance_and_gradient)(fake, photo)


def distance_and_gradient(fake: tf.Tensor, photo: tf.Tensor) -> tuple[tf.Tensor, DistanceGradient]:
    """The mean distance, float32, and its gradient: from the scalar's to `fake`'s, and none for the photo."""
    difference = tf.cast(fake, tf.float32) - tf.cast(photo, tf.float32)
    sign = tf.cast(tf.sign(difference), tf.int8)

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, None]:
        return tf.cast(tf.cast(sign, dy.dtype) * (dy / tf.cast(tf.size(sign), dy.dtype)), fake.dtype), None

    return tf.reduce_mean(tf.abs(difference)), gradient


def reconstruction_loss(fake: tf.Tensor, photo: tf.Tensor) -> tf.Tensor:
    """Mean L1 distance of pictures, [B, H, W, 3] in [-1, 1]; not in the paper."""
    return mean_distance(fake, photo)
