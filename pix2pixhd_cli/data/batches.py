"""Batches for training: every example once an epoch, in an order that is a function of seed and epoch alone."""

from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Deal:
    """How a step's examples are dealt out: `batch_size` to each of `replicas` in each of `turns`.

    own: the replicas that work here, in order; only their examples are read. What is left for an epoch's last step may give some
    of them fewer, or none; turns in which no replica has any are left out.
    """

    batch_size: int
    turns: int = 1
    replicas: int = 1
    own: tuple[int, ...] = (0,)

    @property
    def step_size(self) -> int:
        """Examples in a step."""
        return self.batch_size * self.turns * self.replicas

    def steps(self, examples: int) -> int:
        """Steps in an epoch."""
        return -(-examples // self.step_size)

    def size(self, step: int, examples: int) -> int:
        """Examples in a step that counts from 0."""
        return min(self.step_size, examples - step * self.step_size)

    def shares(self, step: int, examples: int) -> list[float]:
        """What each turn and own replica has of the examples of a step that counts from 0."""
        size = self.size(step, examples)
        first = np.arange(0, size, self.batch_size * self.replicas)[:, None]
        counts = np.clip(size - first - np.array(self.own) * self.batch_size, 0, self.batch_size)
        return (counts.ravel() / size).tolist()

    def places(self, examples: int) -> tuple[NDArray[np.int64], int]:
        """Of each turn and own replica of each step the examples, by their place in an epoch's order.

        Where there are none, the last example stands once; the second number says how often.
        """
        first = np.arange(0, examples, self.batch_size * self.replicas)[:, None]
        own = (first + np.array(self.own) * self.batch_size).ravel()
        places = (own[:, None] + np.arange(self.batch_size)).ravel()
        idle = int((own >= examples).sum())
        return np.append(places[places < examples], [examples - 1] * idle).astype(np.int64), idle


def training_batches(
    split: PackedSplit,
    *,
    deal: Deal,
    seed: int,
    epochs: range,
    flip: bool = True,
    crop: tuple[int, int] | None = None,
    skip: int = 0,
) -> Iterator[tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """(label, instance, photo) of all `epochs` one after the other, without the first `skip` steps: a batch for each turn and own
    replica of each step. In an epoch's last step they hold what is left, and where nothing is, the last example.

    label is int32 [B, H, W] (uint8 [B, H, W, 3] for RGB inputs), instance int32 [B, H, W], photo float32 [B, H, W, 3] in
    [-1, 1]. All maps of an example are flipped and cropped alike. Raises `P2PHDError` for a damaged record and `OSError` for a
    lost one.
    """

    def plan(epoch: NDArray[np.int64]) -> Plan:
        record, flips, crops = plan_epoch(len(split), seed, int(epoch), flip=flip)
        rows = dealt[skip * per_step if epoch == epochs.start else 0 :]
        return Plan(record[rows], flips[rows], crops[rows])

    dealt, idle = deal.places(len(split))
    per_step = deal.batch_size * deal.turns * len(deal.own)
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
        busy = examples.cardinality() - idle
        batches = loaded(examples.take(busy)).batch(deal.batch_size)
        return batches.concatenate(loaded(examples.skip(busy)).batch(1)) if idle else batches

    def loaded(examples: tf.data.Dataset) -> tf.data.Dataset:
        return examples.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

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
