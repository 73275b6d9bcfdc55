"""A trained run as a function: maps and codes in, picture out."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pix2pixhd_cli.data.dataset import whole
from pix2pixhd_cli.data.labels import majority_classes, tally
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.images import to_uint8
from pix2pixhd_cli.model.build import side_multiple, smallest_side
from pix2pixhd_cli.model.encoder import InstanceCodes, instance_codes
from pix2pixhd_cli.model.pix2pixhd import Batch
from pix2pixhd_cli.runs import Run
from pix2pixhd_cli.settings import Settings, load_settings


class Painter:
    """Generator and encoder of a run, loaded once.

    Args:
        run: a training run.
        settings: of that run; read from it by default.

    Raises `P2PHDError` if there is no trained model in `run`.
    """

    def __init__(self, run: Path, settings: Settings | None = None) -> None:
        self.settings = settings or load_settings(run=run)
        self.run = Run(run)
        self.spec = self.run.spec()
        self.model = self.run.load_model(self.settings)
        self.multiple = side_multiple(self.settings)
        self.smallest = smallest_side(self.settings)
        # Functions for each size, so that no picture depends, in its last bit, on the sizes painted before it.
        self._generate_at = lru_cache(maxsize=4)(lambda _: tf.function(self._generate))
        self._encode_at = lru_cache(maxsize=4)(lambda _: tf.function(self._encode))

    @property
    def channels(self) -> int:
        """Numbers in a feature code; 0 if the run has no encoder."""
        return self.model.encoder.channels if self.model.encoder is not None else 0

    def instances(self, label: NDArray[np.integer], instance: NDArray[np.integer]) -> dict[int, int]:
        """Each instance's id and, by majority, its class; where codes are pooled by label, the classes themselves."""
        instance = self.regions(label, instance)
        if label.ndim == 3:
            return {int(i): -1 for i in np.unique(instance)}
        return majority_classes(tally(instance, label))[0]

    def regions(self, label: NDArray[np.integer], instance: NDArray[np.integer]) -> NDArray[np.integer]:
        """What shares one code, [H, W]: the instances, or the classes of a run that pools by label."""
        return whole(label) if self.model.pool_by_label else instance

    def paint(
        self,
        label: NDArray[np.integer],
        instance: NDArray[np.integer] | None = None,
        *,
        codes: Mapping[int, Sequence[float] | NDArray[np.floating]] | None = None,
        gains: Mapping[int, float] | float = 0.0,
        photo: NDArray[np.uint8] | NDArray[np.floating] | None = None,
    ) -> NDArray[np.uint8]:
        """Paint one picture; the gate is feature = k · E(photo) + b, with k and b free per instance.

        Args:
            label: class ids [H, W], or an RGB input [H, W, 3]; any size (it is padded, and the picture cropped).
            instance: instance ids [H, W]; by default the regions of each class are one instance.
            codes: b per instance id; zero where left out.
            gains: k per instance id (zero where left out), or one k for all.
            photo: uint8 [H, W, 3], or float in [-1, 1]; needed where a gain is not zero.

        Returns uint8 [H, W, 3].
        """
        return to_uint8(self.paint_float(label, instance, codes=codes, gains=gains, photo=photo))

    def paint_float(
        self,
        label: NDArray[np.integer],
        instance: NDArray[np.integer] | None = None,
        *,
        codes: Mapping[int, Sequence[float] | NDArray[np.floating]] | None = None,
        gains: Mapping[int, float] | float = 0.0,
        photo: NDArray[np.uint8] | NDArray[np.floating] | None = None,
    ) -> NDArray[np.float32]:
        """The same as `paint`, but float32 [H, W, 3] in [-1, 1] as the generator gives it."""
        height, width = label.shape[:2]
        ids = instance if instance is not None else whole(label)
        if ids.shape != (height, width):
            raise P2PHDError(f"the instance map is {ids.shape}, but its label map is {(height, width)}")
        features = None
        if self.model.encoder is not None:
            features = tf.constant(self._pad(self.features(self.regions(label, ids), codes or {}, gains, photo))[None])
        scene = tf.constant(self._pad(label), tf.int32 if label.ndim == 2 else tf.uint8)[None]
        fake = self._generate_at(tuple(scene.shape))(scene, tf.constant(self._pad(ids), tf.int32)[None], features)
        picture: NDArray[np.float32] = fake[0, :height, :width].numpy()
        if not np.isfinite(picture).all():
            raise P2PHDError(f"{self.run.folder}: paints no numbers; choose smaller codes and gains, or train it again")
        return picture

    def encode(self, photo: NDArray[np.uint8] | NDArray[np.floating], instance: NDArray[np.integer]) -> InstanceCodes:
        """The photo's own codes: of every instance in [H, W], from uint8 [H, W, 3] or floats in [-1, 1], any size."""
        if photo.shape[:2] != instance.shape:
            raise P2PHDError(f"the photo is {photo.shape[:2]}, but its instance map is {instance.shape}")
        size = tf.constant(instance.shape)
        pixels = photo.astype(np.float32)
        pixels = pixels / 127.5 - 1.0 if photo.dtype == np.uint8 else pixels
        padded = tf.constant(self._pad(pixels))[None]
        return self._encode_at(tuple(padded.shape))(padded, tf.constant(instance, tf.int32)[None], size)

    def features(
        self,
        instance: NDArray[np.integer],
        codes: Mapping[int, Sequence[float] | NDArray[np.floating]],
        gains: Mapping[int, float] | float,
        photo: NDArray[np.uint8] | NDArray[np.floating] | None,
    ) -> NDArray[np.float32]:
        """The feature map k · E(photo) + b: float32 [H, W, C]; the arguments are those of `paint`."""
        ids, index = np.unique(instance, return_inverse=True)
        strangers = {*codes, *(gains if isinstance(gains, Mapping) else ())} - set(ids.tolist())
        if strangers:
            raise P2PHDError(f"there is no instance {min(strangers)} in this picture")
        code = np.zeros((len(ids), self.channels), np.float32)
        for number, i in enumerate(ids.tolist()):
            if len(chosen := codes.get(i, code[number])) != self.channels:
                raise P2PHDError(f"the code of instance {i} has {len(chosen)} numbers instead of {self.channels}")
            code[number] = chosen
        gain = np.array([gains.get(i, 0.0) if isinstance(gains, Mapping) else gains for i in ids.tolist()], np.float32)
        if gain.any():
            if photo is None:
                raise P2PHDError("a feature gain other than 0 needs the photo")
            found = self.encode(photo, instance)
            order = np.argsort(found.key.numpy())  # One picture: by instance id, as `ids`.
            code = code + gain[:, None] * found.codes.numpy()[order]
        return code.astype(np.float32)[index.reshape(instance.shape)]

    def _encode(self, photo: tf.Tensor, instance: tf.Tensor, size: tf.Tensor) -> InstanceCodes:
        raw = self.model.raw_features(photo)
        return instance_codes(raw[:, : size[0], : size[1]], instance)

    def _generate(self, label: tf.Tensor, instance: tf.Tensor, features: tf.Tensor | None) -> tf.Tensor:
        batch = Batch(label, instance, tf.zeros([1, 1, 1, 3]))
        return self.model.generate(self.model.condition(batch), features)

    def _pad(self, array: NDArray[Any]) -> NDArray[Any]:
        """Repeat the last row and column until both sides divide as the networks need."""
        room = []
        for side in array.shape[:2]:
            wanted = max(self.smallest, -(-side // self.multiple) * self.multiple)
            room.append((0, wanted - side))
        return np.pad(array, [*room, *[(0, 0)] * (array.ndim - 2)], mode="edge")
