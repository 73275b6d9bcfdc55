"""Packed examples: TFRecord shards, `pack.json`, and random access to single records.

    packed/   pack.json   SPLIT-00000-of-00008.tfrecord

A record is complete in itself: `stem`, `height`, `width`, `label` and `instance` as zlib-compressed little-endian integers
(uint16, or uint8 RGB for RGB inputs, and int32), `photo` as PNG or JPEG bytes, empty where there is none.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pix2pixhd_cli.data.dataset import DatasetSpec, Example
from pix2pixhd_cli.errors import P2PHDError

# A TFRecord is a length (uint64), its checksum (uint32), the data and the data's checksum (uint32).
HEADER, FOOTER = 12, 4


class Shard(BaseModel):
    """One shard file: its name, how many records and bytes it has, and its SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    records: int
    bytes: int
    sha256: str


class PackSpec(BaseModel):
    """`pack.json`: the shards of each split, and the data set's own description."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    shards: dict[str, tuple[Shard, ...]]
    dataset: DatasetSpec


class Place(NamedTuple):
    """Where a record's data lies."""

    shard: int
    offset: int
    length: int


def serialise(example: Example, photo: bytes) -> bytes:
    """One record; `photo` is the photo's file as it is, or empty."""
    label = example.label.astype(np.uint8 if example.label.ndim == 3 else "<u2")
    height, width = label.shape[:2]

    def raw(*values: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    def number(value: int) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    features = {
        "stem": raw(example.stem.encode()),
        "height": number(height),
        "width": number(width),
        "label": raw(zlib.compress(label.tobytes())),
        "instance": raw(zlib.compress(example.instance.astype("<i4").tobytes())),
        "photo": raw(photo),
    }
    record: bytes = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)
    return record


def parse(record: tf.Tensor, rgb: bool) -> dict[str, tf.Tensor]:
    """Decode one record inside a graph.

    Returns stem (string), label (int32 [H, W], or uint8 [H, W, 3] for RGB inputs), instance (int32 [H, W]) and photo (uint8
    [H, W, 3], or [0, 0, 3] where there is none).
    """
    texts = {name: tf.io.FixedLenFeature([], tf.string) for name in ("stem", "label", "instance", "photo")}
    numbers = {name: tf.io.FixedLenFeature([], tf.int64) for name in ("height", "width")}
    fields = tf.io.parse_single_example(record, texts | numbers)
    shape = tf.stack([fields["height"], fields["width"]])
    label = tf.io.decode_raw(tf.io.decode_compressed(fields["label"], "ZLIB"), tf.uint8 if rgb else tf.uint16)
    instance = tf.io.decode_raw(tf.io.decode_compressed(fields["instance"], "ZLIB"), tf.int32)
    photo = tf.cond(
        tf.strings.length(fields["photo"]) > 0,
        lambda: tf.io.decode_image(fields["photo"], channels=3, expand_animations=False),
        lambda: tf.zeros([0, 0, 3], tf.uint8),
    )
    return {
        "stem": fields["stem"],
        "label": tf.reshape(label, tf.concat([shape, [3]], 0)) if rgb else tf.cast(tf.reshape(label, shape), tf.int32),
        "instance": tf.reshape(instance, shape),
        "photo": tf.ensure_shape(photo, [None, None, 3]),
    }


class PackedSplit:
    """A split of a packed data set, with its records in any order.

    Records lie in the order of the data set's entries, so that `entries[n]` describes record n. `verify` compares every
    shard's checksum first.
    """

    def __init__(self, packed: Path, split: str, *, verify: bool = False) -> None:
        self.packed = packed
        self.split = split
        self.spec = read_pack_spec(packed)
        if not self.spec.shards.get(split):
            raise P2PHDError(f"{packed}: there is no split {split!r} here; packed are {', '.join(self.spec.shards)}")
        self.entries = self.spec.dataset.entries(split)
        self.files = [packed / shard.file for shard in self.spec.shards[split]]
        self.places: list[Place] = []
        for number, (shard, path) in enumerate(zip(self.spec.shards[split], self.files, strict=True)):
            _check_shard(path, shard, verify)
            self.places += _index(path, number, shard.records)
        if len(self.places) != len(self.entries):
            raise P2PHDError(f"{packed}: pack.json and the shards of {split!r} disagree; pack again")

    @property
    def rgb(self) -> bool:
        """Whether the inputs are RGB pictures instead of label maps."""
        return self.spec.dataset.input == "rgb"

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Example]:
        """All examples in order; the next one is read while one is in use."""
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self.example, 0)
            for number in range(1, len(self) + 1):
                example = coming.result()
                if number < len(self):
                    coming = reader.submit(self.example, number)
                yield example

    @property
    def digest(self) -> str:
        """One checksum for the whole split."""
        return hashlib.sha256("".join(s.sha256 for s in self.spec.shards[self.split]).encode()).hexdigest()

    def read(self, number: int) -> bytes:
        """The bytes of record `number`."""
        place = self.places[number]
        with self.files[place.shard].open("rb") as file:
            file.seek(place.offset)
            return file.read(place.length)

    def example(self, number: int) -> Example:
        """Record `number` as arrays."""
        try:
            fields = parse(tf.constant(self.read(number)), self.rgb)
        except tf.errors.OpError as error:
            raise P2PHDError(f"{self.packed}: record {number} of {self.split!r} is damaged; pack again") from error
        photo: NDArray[np.uint8] = fields["photo"].numpy()
        return Example(
            self.entries[number].stem,
            fields["label"].numpy(),
            fields["instance"].numpy(),
            photo if photo.size else None,
        )


def read_pack_spec(packed: Path) -> PackSpec:
    """Read `pack.json`; raises `P2PHDError`."""
    path = packed / "pack.json"
    try:
        return PackSpec.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        advice = (
            "this is a data set, `p2phd pack` it first"
            if (packed / "dataset.json").exists()
            else "`p2phd pack` makes one"
        )
        raise P2PHDError(f"{packed}: no packed data set here (pack.json is missing); {advice}") from None
    except (ValidationError, NotADirectoryError) as error:
        raise P2PHDError(f"{path}: damaged or of another version ({str(error).splitlines()[0]})") from None


def _check_shard(path: Path, shard: Shard, verify: bool) -> None:
    if not path.exists():
        raise P2PHDError(f"{path}: this shard is missing; pack again")
    if path.stat().st_size != shard.bytes:
        raise P2PHDError(f"{path}: has {path.stat().st_size} bytes instead of {shard.bytes}; pack again")
    if verify:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                raise P2PHDError(f"{path}: is damaged, its checksum is not the one in pack.json; pack again")


def _index(path: Path, shard: int, records: int) -> list[Place]:
    """Where each record lies, from the lengths alone."""
    places, offset = [], 0
    with path.open("rb") as file:
        for _ in range(records):
            file.seek(offset)
            (length,) = struct.unpack("<Q", file.read(HEADER)[:8])
            places.append(Place(shard, offset + HEADER, length))
            offset += HEADER + length + FOOTER
    return places
