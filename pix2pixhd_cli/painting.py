"""A trained run as a function: maps and codes in, picture out; many of them in batches, on all devices."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pix2pixhd_cli.data.dataset import Example, whole
from pix2pixhd_cli.data.labels import majority_classes, tally
from pix2pixhd_cli.devices import take_devices
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.features import Choice, Rule, Styler
from pix2pixhd_cli.images import to_uint8
from pix2pixhd_cli.model.build import side_multiple, smallest_side
from pix2pixhd_cli.model.encoder import instance_codes
from pix2pixhd_cli.model.pix2pixhd import Batch
from pix2pixhd_cli.runs import Run
from pix2pixhd_cli.settings import Settings, load_settings

Item = TypeVar("Item")
WAITING = 4  # Batches whose items may wait for others of their size.


class Request(NamedTuple):
    """One picture to paint; the gate is feature = k · E(photo) + b, with k and b free per instance.

    label: class ids [H, W], or an RGB input [H, W, 3]; any size (it is padded, and the picture cropped).
    instance: instance ids [H, W]; by default the regions of each class are one instance.
    codes: b per instance id; zero where left out.
    gains: k per instance id (zero where left out), or one k for all.
    photo: uint8 [H, W, 3], or float in [-1, 1]; needed where a gain is not zero.
    """

    label: NDArray[np.integer]
    instance: NDArray[np.integer] | None = None
    codes: Mapping[int, Sequence[float] | NDArray[np.floating]] = {}
    gains: Mapping[int, float] | float = 0.0
    photo: NDArray[np.uint8] | NDArray[np.floating] | None = None


@dataclass(frozen=True)
class PhotoCodes:
    """A photo's own codes: float64 [N, C] of its N instances, their ids and pixels, and which one each pixel [H, W] is of."""

    codes: NDArray[np.float64]
    ids: NDArray[np.int64]
    pixels: NDArray[np.float64]
    index: NDArray[np.int32]


def gathered(items: Iterable[Item], like: Callable[[Item], Hashable], most: int) -> Iterator[list[Item]]:
    """Up to `most` items that are alike at a time, in the order in which they come; few of the rest wait for their like."""
    waiting: dict[Hashable, list[Item]] = {}
    for item in items:
        group = waiting.setdefault(like(item), [])
        group.append(item)
        if len(group) == most:
            yield waiting.pop(like(item))
        elif sum(map(len, waiting.values())) == WAITING * most:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


class Painter:
    """Generator and encoder of a run, loaded once.

    Args:
        run: a training run.
        settings: of that run; read from it by default.
        checkpoint: one of the run's, to paint with instead of its model.
        batch_size: pictures that a device works on at once, where there are so many of one size.
        devices: what `--devices` takes.

    Raises `P2PHDError` if there is no trained model in `run`, or such devices are not there.
    """

    def __init__(
        self,
        run: Path,
        settings: Settings | None = None,
        *,
        checkpoint: Path | None = None,
        batch_size: int = 1,
        devices: str = "auto",
    ) -> None:
        self.settings = settings or load_settings(run=run)
        self.run = Run(run)
        self.spec = self.run.spec()
        self.team = take_devices(devices)
        # Norms of batches would make a picture depend on those beside it.
        self.most = self.team.replicas * (1 if self.settings.generator.norm == "batch" else batch_size)
        with self.team.strategy.scope():
            self.model = self.run.load_model(self.settings, checkpoint)
        self.step, self.mark = self.run.step_and_mark(checkpoint)
        self.averaged = bool(self.settings.train.ema and self.settings.generate.ema)
        self.multiple = side_multiple(self.settings)
        self.smallest = smallest_side(self.settings)
        # Functions for each size, so that no picture depends, in its last bit, on the sizes painted before it.
        self._generate_at = lru_cache(maxsize=4)(lambda _: self._on_replicas(self._generate))
        self._encode_at = lru_cache(maxsize=4)(lambda _: self._on_replicas(self._encode))

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

    def styled(self, example: Example, styler: Styler, rules: Sequence[Rule] = ()) -> Request:
        """An example in the styles that a styler draws, or that `rules` choose."""
        gates = {}
        if self.channels:
            instances = self.instances(example.label, example.instance)
            gates = styler.gates(example.stem, instances, rules, brought=example.codes)
        codes, gains = ({i: getattr(gate, name) for i, gate in gates.items()} for name in ("code", "gain"))
        return Request(example.label, example.instance, codes, gains, example.photo)

    def in_styles(self, example: Example, styler: Styler, identity: int, styles: Iterable[int]) -> list[Request]:
        """An example with each of these styles of a class in turn, and all else as the styler draws it."""
        rules = (Rule("--all-codes", identity, None, Choice("cluster", style)) for style in styles)
        return [self.styled(example, styler, [rule]) for rule in rules]

    def paint(
        self,
        label: NDArray[np.integer],
        instance: NDArray[np.integer] | None = None,
        *,
        codes: Mapping[int, Sequence[float] | NDArray[np.floating]] | None = None,
        gains: Mapping[int, float] | float = 0.0,
        photo: NDArray[np.uint8] | NDArray[np.floating] | None = None,
    ) -> NDArray[np.uint8]:
        """Paint one picture: uint8 [H, W, 3]. The arguments are those of a `Request`."""
        return self.paint_all([Request(label, instance, codes or {}, gains, photo)])[0]

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
        return self._paint([Request(label, instance, codes or {}, gains, photo)])[0]

    def paint_all(self, requests: Sequence[Request]) -> list[NDArray[np.uint8]]:
        """Paint pictures, those of one size in batches: uint8 [H, W, 3] each."""
        painted: list[tuple[int, NDArray[np.uint8]]] = []
        for numbers in gathered(range(len(requests)), lambda n: self.padded_size(requests[n].label), self.most):
            pictures = self._paint([requests[n] for n in numbers])
            painted += zip(numbers, map(to_uint8, pictures), strict=True)
        return [picture for _, picture in sorted(painted, key=lambda pair: pair[0])]

    def padded_size(self, array: NDArray[Any]) -> tuple[int, int]:
        """The sides, at least those of an array [H, W, …], that the networks can work with."""
        height, width = (max(self.smallest, -(-side // self.multiple) * self.multiple) for side in array.shape[:2])
        return height, width

    def encode(self, photo: NDArray[np.uint8] | NDArray[np.floating], instance: NDArray[np.integer]) -> PhotoCodes:
        """The photo's own codes: of every instance in [H, W], from uint8 [H, W, 3] or floats in [-1, 1], any size."""
        return self.encode_all([(photo, instance)])[0]

    def encode_all(
        self, pairs: Sequence[tuple[NDArray[np.uint8] | NDArray[np.floating], NDArray[np.integer]]]
    ) -> list[PhotoCodes]:
        """The codes of photos with their instance maps, those of one size in batches."""
        encoded: list[tuple[int, PhotoCodes]] = []
        for numbers in gathered(range(len(pairs)), lambda n: pairs[n][1].shape, self.most):
            photos = np.stack([self._photo(*pairs[n]) for n in numbers])
            instances = np.stack([pairs[n][1] for n in numbers]).astype(np.int32)
            size = np.array([instances.shape[1:]] * len(numbers), np.int32)
            parts = self._spread(self._encode_at(photos.shape[1:3]), photos, instances, size)
            encoded += zip(numbers, [codes for part in parts for codes in _by_picture(part)], strict=False)
        return [codes for _, codes in sorted(encoded, key=lambda pair: pair[0])]

    def features(
        self,
        instance: NDArray[np.integer],
        codes: Mapping[int, Sequence[float] | NDArray[np.floating]],
        gains: Mapping[int, float] | float,
        photo: NDArray[np.uint8] | NDArray[np.floating] | None,
    ) -> NDArray[np.float32]:
        """The feature map k · E(photo) + b: float32 [H, W, C]; the arguments are those of `paint`."""
        found = self.encode(photo, instance) if photo is not None and _any(gains) else None
        return self._gate(instance, codes, gains, found)

    def _gate(
        self,
        instance: NDArray[np.integer],
        codes: Mapping[int, Sequence[float] | NDArray[np.floating]],
        gains: Mapping[int, float] | float,
        found: PhotoCodes | None,
    ) -> NDArray[np.float32]:
        """The same with the photo's codes at hand."""
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
            if found is None:
                raise P2PHDError("a feature gain other than 0 needs the photo")
            code = (code + gain[:, None] * found.codes[np.argsort(found.ids)]).astype(np.float32)
        return code[index.reshape(instance.shape)]

    def _paint(self, requests: Sequence[Request]) -> list[NDArray[np.float32]]:
        """Paint pictures of one padded size."""
        maps = [request.instance if request.instance is not None else whole(request.label) for request in requests]
        for request, ids in zip(requests, maps, strict=True):
            if ids.shape != request.label.shape[:2]:
                raise P2PHDError(f"the instance map is {ids.shape}, but its label map is {request.label.shape[:2]}")
        stacks = [
            np.stack([self._pad(request.label) for request in requests]).astype(
                np.int32 if requests[0].label.ndim == 2 else np.uint8
            ),
            np.stack([self._pad(ids) for ids in maps]).astype(np.int32),
        ]
        if self.model.encoder is not None:
            stacks.append(np.stack([self._pad(features) for features in self._features_of(requests, maps)]))
        shape = stacks[0].shape
        parts = self._spread(self._generate_at(shape[1:]), *stacks)
        fakes = [fake for (part,) in parts for fake in part]
        pictures = [
            fake[: request.label.shape[0], : request.label.shape[1]]
            for request, fake in zip(requests, fakes, strict=False)
        ]
        if not all(np.isfinite(picture).all() for picture in pictures):
            raise P2PHDError(f"{self.run.folder}: paints no numbers; choose smaller codes and gains, or train it again")
        return pictures

    def _features_of(
        self, requests: Sequence[Request], maps: Sequence[NDArray[np.integer]]
    ) -> list[NDArray[np.float32]]:
        """Each picture's feature map, float32 [H, W, C]."""
        regions = [self.regions(request.label, ids) for request, ids in zip(requests, maps, strict=True)]
        asked = {
            n: (request.photo, regions[n])
            for n, request in enumerate(requests)
            if request.photo is not None and _any(request.gains)
        }
        found = dict(zip(asked, self.encode_all(list(asked.values())), strict=True))
        return [
            self._gate(regions[n], request.codes, request.gains, found.get(n)) for n, request in enumerate(requests)
        ]

    def _spread(self, function: Callable[..., Any], *stacks: NDArray[Any]) -> list[tuple[NDArray[Any], ...]]:
        """Share a batch out among the devices; returns what each makes of its part, where the last may have been repeated."""
        count, replicas, strategy = len(stacks[0]), self.team.replicas, self.team.strategy
        if replicas == 1:
            return [_arrays(function(*map(tf.constant, stacks)))]
        each = -(-count // replicas)
        order = np.minimum(np.arange(each * replicas), count - 1).reshape(replicas, each)
        shares = strategy.experimental_distribute_values_from_function(
            lambda context: tuple(tf.constant(stack[order[context.replica_id_in_sync_group]]) for stack in stacks)
        )
        made = [strategy.experimental_local_results(value) for value in tf.nest.flatten(function(*shares))]
        return [_arrays(of_one) for of_one in zip(*made, strict=True)]

    def _on_replicas(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if self.team.replicas == 1:
            return tf.function(function)
        return tf.function(lambda *arguments: self.team.strategy.run(function, arguments))

    def _encode(self, photo: tf.Tensor, instance: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, ...]:
        raw = self.model.raw_features(photo)
        return tuple(instance_codes(raw[:, : size[0, 0], : size[0, 1]], instance))

    def _generate(self, label: tf.Tensor, instance: tf.Tensor, features: tf.Tensor | None = None) -> tf.Tensor:
        batch = Batch(label, instance, tf.zeros([1, 1, 1, 3]))
        return self.model.generate(self.model.condition(batch), features)

    def _photo(
        self, photo: NDArray[np.uint8] | NDArray[np.floating], instance: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """A photo as the encoder takes it."""
        if photo.shape[:2] != instance.shape:
            raise P2PHDError(f"the photo is {photo.shape[:2]}, but its instance map is {instance.shape}")
        pixels = photo.astype(np.float32)
        return self._pad(pixels / 127.5 - 1.0 if photo.dtype == np.uint8 else pixels)

    def _pad(self, array: NDArray[Any]) -> NDArray[Any]:
        """Repeat the last row and column until both sides divide as the networks need."""
        room = [(0, wanted - side) for wanted, side in zip(self.padded_size(array), array.shape, strict=False)]
        return np.pad(array, [*room, *[(0, 0)] * (array.ndim - 2)], mode="edge")


def _arrays(tensors: Any) -> tuple[NDArray[Any], ...]:
    return tuple(tensor.numpy() for tensor in tf.nest.flatten(tensors))


def _any(gains: Mapping[int, float] | float) -> bool:
    """Whether any gain is not zero."""
    return any(gains.values()) if isinstance(gains, Mapping) else gains != 0


def _by_picture(found: Sequence[NDArray[Any]]) -> Iterator[PhotoCodes]:
    """The codes of each picture of a batch; its instances follow each other."""
    codes, pixels, key, index = found
    ends = np.searchsorted(key >> 32, np.arange(len(index)), side="right")
    start = 0
    for end, places in zip(ends, index, strict=True):
        yield PhotoCodes(codes[start:end], key[start:end] & 0xFFFFFFFF, pixels[start:end], places - start)
        start = end
