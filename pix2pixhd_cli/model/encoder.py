"""The instance encoder and instance-wise average pooling (paper, section 3.4)."""

from typing import NamedTuple

import tensorflow as tf

from pix2pixhd_cli.model.generators import GlobalGenerator
from pix2pixhd_cli.model.layers import Norm, Upsampling


class InstanceEncoder(GlobalGenerator):
    """E: the global generator's shape without residual blocks.

    Takes a photo, float32 [B, H, W, 3] in [-1, 1], and returns raw features, float32 [B, H, W, channels] in [-1, 1];
    `pool_instances` or `instance_codes` turns them into feature codes.
    """

    def __init__(
        self,
        *,
        filters: int = 16,
        downsamplings: int = 4,
        channels: int = 3,
        norm: Norm = "instance",
        upsampling: Upsampling = "transposed",
    ) -> None:
        super().__init__(
            filters=filters,
            downsamplings=downsamplings,
            blocks=0,
            channels=channels,
            norm=norm,
            upsampling=upsampling,
        )


class InstanceCodes(NamedTuple):
    """The pooled features of every instance of a batch, N in all, and where each pixel finds its own."""

    codes: tf.Tensor  # float64 [N, C]
    pixels: tf.Tensor  # float64 [N], how many pixels each has
    key: tf.Tensor  # int64 [N], image index << 32 | instance id
    index: tf.Tensor  # int32 [B, H, W] into the N


def instance_codes(features: tf.Tensor, instance: tf.Tensor) -> InstanceCodes:
    """Average `features`, float32 [B, H, W, C], over each instance of each picture.

    `instance` is integer [B, H, W] with any ids from 0 to 2^32 - 1; equal ids in two pictures are two instances.
    """
    key, pixels, index = _instances(instance)
    return InstanceCodes(_means(features, pixels, index), pixels, key, index)


def pool_instances(features: tf.Tensor, instance: tf.Tensor) -> tf.Tensor:
    """Instance-wise average pooling: every pixel gets its instance's mean, [B, H, W, C] -> [B, H, W, C]."""
    _, pixels, index = _instances(instance)

    def pool(x: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.cast(_means(x, pixels, index), x.dtype), index)

    return tf.custom_gradient(lambda x: (pool(x), pool))(features)  # Its matrix is symmetric.


def _instances(instance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The N instances of a batch: their keys and pixels [N], and which of them each pixel belongs to [B, H, W]."""
    shape = tf.shape(instance)
    picture = tf.range(tf.cast(shape[0], tf.int64))[:, None, None]
    key, index = tf.unique(tf.reshape(tf.bitwise.left_shift(picture, 32) | tf.cast(instance, tf.int64), [-1]))
    with tf.device("CPU"):
        pixels = tf.raw_ops.DenseBincount(input=index, size=tf.size(key), weights=tf.zeros([0], tf.int64))
    return key, tf.cast(pixels, tf.float64), tf.reshape(index, shape)


def _means(x: tf.Tensor, pixels: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """float64 [N, C] from [B, H, W, C]; a road of a million pixels summed one by one in float32 is off in the third digit."""
    channels = tf.cast(tf.transpose(tf.reshape(x, [-1, x.shape[-1]])), tf.float64)
    places = tf.broadcast_to(tf.reshape(index, [-1]), tf.shape(channels))
    with tf.device("CPU"):  # Each channel on one core, always in the same order.
        sums = tf.raw_ops.DenseBincount(input=places, size=tf.size(pixels), weights=channels)
    return tf.reshape(tf.transpose(sums / pixels), [-1, x.shape[-1]])
