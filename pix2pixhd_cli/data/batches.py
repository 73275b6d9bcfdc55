"""Batches for training: every example once an epoch, in an order that is a function of seed and epoch alone."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pix2pixhd_cli.data.records import PackedSplit, decode_photo
from pix2pixhd_cli.errors import P2PHDError


class Plan(NamedTuple):
    """What one epoch does to which record, in order: each array has one row per example."""

    record: NDArray[np.int64]
    flip: NDArray[np.bool_]
    crop: NDArray[np.float32]  # [N, 2], the crop's corner as a share of the room there is


def plan_epoch(records: int, seed: int, epoch: int, *, flip: bool) -> Plan:
    """Draw an epoch's order, flips and crops from seed and epoch."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(records)
    flips = rng.random(records) < 0.5
    return Plan(order, flips & flip, rng.random((records, 2), np.float32))


def training_batches(
    split: PackedSplit,
    *,
    batch_size: int,
    seed: int,
    epochs: range,
    flip: bool = True,
    crop: tuple[int, int] | None = None,
    skip: int = 0,
) -> Iterator[tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """(label, instance, photo) of all `epochs` one after the other, without the first `skip` batches; an epoch's last batch
    holds what is left.

    label is int32 [B, H, W] (uint8 [B, H, W, 3] for RGB inputs), instance int32 [B, H, W], photo float32 [B, H, W, 3] in
    [-1, 1]. All maps of an example are flipped and cropped alike. Raises `P2PHDError` for a damaged record and `OSError` for a
    lost one.
    """

    def plan(epoch: NDArray[np.int64]) -> Plan:
        record, flips, crops = plan_epoch(len(split), seed, int(epoch), flip=flip)
        start = skip * batch_size if epoch == epochs.start else 0
        return Plan(record[start:], flips[start:], crops[start:])

    failures: list[Exception] = []  # TensorFlow tells of them in pages.

    def read(number: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int32], bytes]:
        try:
            return split.load(int(number))
        except (P2PHDError, OSError) as error:
            failures.append(error)
            raise

    def load(number: tf.Tensor, mirrored: tf.Tensor, corner: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        kind = tf.uint8 if split.rgb else tf.int32
        label, instance, photo = tf.numpy_function(read, [number], (kind, tf.int32, tf.string), stateful=False)
        label = tf.ensure_shape(label, [None, None, 3] if split.rgb else [None, None])
        maps = [label, tf.ensure_shape(instance, [None, None]), decode_photo(tf.ensure_shape(photo, []))]
        if crop is not None:
            maps = [_crop(array, crop, corner) for array in maps]
        maps = [
            tf.cond(mirrored, lambda array=array: tf.reverse(array, [1]), lambda array=array: array) for array in maps
        ]
        return maps[0], maps[1], tf.cast(maps[2], tf.float32) / 127.5 - 1.0

    def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        rows = tf.numpy_function(plan, [epoch], (tf.int64, tf.bool, tf.float32), stateful=False)
        rows = [tf.ensure_shape(array, shape) for array, shape in zip(rows, ([None], [None], [None, 2]), strict=True)]
        examples = tf.data.Dataset.from_tensor_slices(tuple(rows))
        return examples.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).batch(batch_size)

    try:
        yield from tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(of_epoch).prefetch(2)
    except tf.errors.OpError as error:
        if failures:
            raise failures[0] from None
        what = error.message.splitlines()[0]
        raise P2PHDError(f"{split.packed}: a record of {split.split!r} is damaged ({what}); pack again") from None


def _crop(array: tf.Tensor, size: tuple[int, int], corner: tf.Tensor) -> tf.Tensor:
    """Cut height x width out, with the corner at a share of the room there is."""
    shape = tf.shape(array)
    room = tf.cast(shape[:2] - tf.constant(size) + 1, tf.float32)
    top, left = tf.unstack(tf.cast(tf.floor(room * corner), tf.int32))
    return array[top : top + size[0], left : left + size[1]]
