"""The history of fakes that a discriminator may be shown instead of the newest one."""

import tensorflow as tf


class FakePool(tf.Module):
    """The last fakes with their conditioning; half of the time a newer one takes an older one's place and lets it out.

    Its random numbers come from `seed` and from how many it has seen, so that a resumed training draws the same.

    Args:
        size: how many it holds; until it is full it gives back what it gets.
        shape: height, width and channels of conditioning and picture together.
        seed: of its draws.
    """

    def __init__(self, size: int, shape: tuple[int, int, int], seed: int) -> None:
        super().__init__()
        self.size = size
        self.seed = seed
        self.history = tf.Variable(tf.zeros([size, *shape]), trainable=False)
        self.seen = tf.Variable(0, trainable=False, dtype=tf.int64)

    def query(self, pairs: tf.Tensor) -> tf.Tensor:
        """Give each of [B, H, W, C] to the pool and get one back in its place."""
        return tf.map_fn(self._swap, pairs, parallel_iterations=1)

    def _swap(self, pair: tf.Tensor) -> tf.Tensor:
        seen = self.seen.read_value()
        self.seen.assign_add(1)
        chance, place = tf.unstack(tf.random.stateless_uniform([2], tf.stack([self.seed, seen])))
        full = seen >= self.size
        index = tf.where(full, tf.cast(place * self.size, tf.int64), seen)
        old = self.history.read_value()[index]
        swap = tf.logical_and(full, chance > 0.5)
        kept = tf.where(tf.logical_or(swap, tf.logical_not(full)), pair, old)
        self.history.scatter_nd_update([[index]], [kept])
        return tf.where(swap, old, pair)
