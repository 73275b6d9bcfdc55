"""What the networks see of a scene: one-hot classes and the boundary map."""

import tensorflow as tf

from pix2pixhd_cli.boundary import boundary_map


def condition(
    label: tf.Tensor, instance: tf.Tensor, *, labels: int, ignored: tuple[int, ...] = (), boundary: bool = True
) -> tf.Tensor:
    """One-hot classes and the boundary map.

    Args:
        label: class ids, int32 [B, H, W].
        instance: instance ids, int32 [B, H, W].
        labels: one-hot channels; ids outside 0 … labels - 1 become an all-zero vector.
        ignored: ids that become an all-zero vector although they lie within.
        boundary: add the boundary map of `instance` as the last channel.

    Returns float32 [B, H, W, labels + 1] (or labels) of zeros and ones. Source: paper, section 3.3.
    """
    for identity in ignored:
        label = tf.where(label == identity, labels, label)  # Not -1, which ONNX takes for the last class.
    classes = tf.one_hot(label, labels)
    if not boundary:
        return classes
    lines = tf.cast(boundary_map(instance, tf.concat), tf.float32)
    return tf.concat([classes, lines[..., None]], -1)


def condition_picture(picture: tf.Tensor) -> tf.Tensor:
    """An RGB input picture in the one-hot's place: uint8-valued [B, H, W, 3] -> float32 [B, H, W, 3] in [-1, 1]."""
    return tf.cast(picture, tf.float32) / 127.5 - 1.0
