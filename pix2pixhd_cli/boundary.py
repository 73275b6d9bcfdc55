"""The boundary map: one definition for `prepare`'s pictures (numpy arrays) and for the networks' input (tensors)."""

from collections.abc import Callable
from typing import Any

import numpy as np


def boundary_map(instance: Any, concatenate: Callable[..., Any] = np.concatenate) -> Any:
    """Mark the pixels whose instance id differs from their left, right, upper or lower neighbour's.

    `instance` is integer [..., H, W], an array, or a tensor with `concatenate=tf.concat`; the result is boolean of the
    same shape and kind. Lines are two pixels thick; the picture's border is no boundary. Source: paper, section 3.3.
    """
    across = instance[..., :, 1:] != instance[..., :, :-1]  # [..., H, W - 1]
    down = instance[..., 1:, :] != instance[..., :-1, :]  # [..., H - 1, W]
    none_across = instance[..., :, :1] != instance[..., :, :1]
    none_down = instance[..., :1, :] != instance[..., :1, :]
    return (
        concatenate([across, none_across], -1)
        | concatenate([none_across, across], -1)
        | concatenate([down, none_down], -2)
        | concatenate([none_down, down], -2)
    )
