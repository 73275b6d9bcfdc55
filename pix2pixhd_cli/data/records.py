"""Packed examples: TFRecord shards, `pack.json`, and random access to single records.

    packed/   pack.json   SPLIT-00000-of-00008.tfrecord

A record is complete in itself: `stem`, `height`, `width`, `label` and `instance` as zlib-compressed little-endian integers
(uint16, or uint8 RGB for RGB inputs, and int32), `photo` as PNG or JPEG bytes, empty where there is none.
"""

import hashlib
import io
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, FailFast, Field, NonNegativeInt, model_validator

from pix2pixhd_cli.data.dataset import DatasetSpec, Example, ExampleEntry
from pix2pixhd_cli.data.files import PlainName, checksum
from pix2pixhd_cli.errors import P2PHDError, check_regular, naming
from pix2pixhd_cli.sealed import read_sealed
from pix2pixhd_cli.urls import Location, Url, locate

# A TFRecord is a length (uint64), its checksum (uint32), the data and the data's checksum (uint32).
HEADER, FOOTER = 12, 4
READ_FIRST = 4 << 30  # Bytes of a split that are read once before any of it is used.


class Shard(BaseModel):
    """One shard file: its name, how many records and bytes it has, its SHA-256, and each record's length and CRC-32.

    Packs made before lengths and checksums of records were kept have none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: PlainName
    records: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str
    index: Annotated[tuple[tuple[NonNegativeInt, int], ...], FailFast()] = ()


class PackSpec(BaseModel):
    """`pack.json`: the shards of each split, and the data set's own description."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    shards: dict[PlainName, Annotated[tuple[Shard, ...], FailFast()]]
    dataset: DatasetSpec

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [shard.file for shards in self.shards.values() for shard in shards]
        if len(set(names)) < len(names):
            raise ValueError("a shard is named twice")
        return self


class Place(NamedTuple):
    """Where a record's data lies, and its CRC-32 if it is known."""

    shard: int
    offset: int
    length: int
    checksum: int | None


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


def unpack(record: bytes, entry: ExampleEntry, rgb: bool) -> tuple[NDArray[Any], NDArray[np.int32], bytes]:
    """Label map, int32 [H, W] (uint8 [H, W, 3] for RGB inputs), instance map, int32 [H, W], and the photo's file, or nothing.

    Raises `ValueError` for a record that is not as `entry` has it, before it takes more memory than that needs.
    """
    try:
        found = tf.train.Example.FromString(record).features.feature
        stem, label, instance, photo = (
            found[name].bytes_list.value[0] for name in ("stem", "label", "instance", "photo")
        )
    except (DecodeError, IndexError):
        raise ValueError("it is no record") from None
    if stem != entry.stem.encode() or bool(photo) != (entry.photo is not None):
        raise ValueError(f"it is not the record of {entry.stem}")
    sides = (entry.height, entry.width)
    if photo:
        with Image.open(io.BytesIO(photo), formats=["PNG", "JPEG"]) as picture:
            if picture.size != sides[::-1]:
                raise ValueError(f"its photo is {picture.height}x{picture.width} instead of {sides[0]}x{sides[1]}")
    ids = _inflate(label, (*sides, 3), np.uint8) if rgb else _inflate(label, sides, "<u2").astype(np.int32)
    return ids, _inflate(instance, sides, "<i4"), photo


def _inflate(data: bytes, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Decompress just as much as an array of this shape has; raises `ValueError`."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    stream = zlib.decompressobj()
    try:
        values = stream.decompress(data, size)
        whole = len(values) == size and not stream.decompress(stream.unconsumed_tail, 1) and stream.eof
    except zlib.error:
        whole = False
    if not whole:
        raise ValueError("a map in it is damaged, or of another size")
    return np.frombuffer(values, dtype).reshape(shape)


class PackedSplit:
    """A split of a packed data set, with its records in any order.

    Records lie in the order of the data set's entries, so that `entries[n]` describes record n. Every shard's checksum is
    compared first, or its size alone at a URL or where all are larger than `READ_FIRST`; every record's is when it is read.
    """

    def __init__(self, packed: Location | str, split: str) -> None:
        self.packed = packed = locate(packed)
        self.split = split
        self.spec = read_pack_spec(packed)
        if not self.spec.shards.get(split):
            raise P2PHDError(f"{packed}: there is no split {split!r} here; packed are {', '.join(self.spec.shards)}")
        self.entries = self.spec.dataset.splits.get(split, ())
        self.files = [packed / shard.file for shard in self.spec.shards[split]]
        self.places: list[Place] = []
        small = sum(shard.bytes for shard in self.spec.shards[split]) <= READ_FIRST
        for number, (shard, path) in enumerate(zip(self.spec.shards[split], self.files, strict=True)):
            _check_shard(path, shard, small=small)
            self.places += _index(path, number, shard)
        if len(self.places) != len(self.entries):
            raise P2PHDError(f"{packed}: pack.json and the shards of {split!r} disagree; pack again")

    @property
    def rgb(self) -> bool:
        """Whether the inputs are RGB pictures instead of label maps."""
        return self.spec.dataset.input == "rgb"

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Example]:
        """All examples in order."""
        return self.examples(range(len(self)))

    def examples(self, numbers: Sequence[int]) -> Iterator[Example]:
        """The examples of these records; the next one is read while one is in use."""
        with ThreadPoolExecutor(1) as reader:
            before = None
            for number in numbers:
                coming = reader.submit(self.example, number)
                if before is not None:
                    yield before.result()
                before = coming
            if before is not None:
                yield before.result()

    @property
    def digest(self) -> str:
        """One checksum for the whole split."""
        return hashlib.sha256("".join(s.sha256 for s in self.spec.shards[self.split]).encode()).hexdigest()

    def load(self, number: int) -> tuple[NDArray[Any], NDArray[np.int32], bytes]:
        """Record `number` as `unpack` gives it; raises `P2PHDError`."""
        place = self.places[number]
        with naming(self.files[place.shard]), self.files[place.shard].open("rb") as file:
            file.seek(place.offset)
            record = file.read(place.length)
        try:
            if place.checksum not in (None, zlib.crc32(record)):
                raise ValueError("its checksum is another")
            return unpack(record, self.entries[number], self.rgb)
        except (ValueError, OSError, SyntaxError) as error:  # Pillow's are among them.
            raise P2PHDError(
                f"{self.packed}: record {number} of {self.split!r} is damaged ({error}); pack again"
            ) from None

    def example(self, number: int) -> Example:
        """Record `number` as arrays; raises `P2PHDError`."""
        label, instance, photo = self.load(number)
        try:
            pixels = decode_photo(photo).numpy() if photo else None
        except tf.errors.OpError:
            raise P2PHDError(
                f"{self.packed}: the photo in record {number} of {self.split!r} is damaged; pack again"
            ) from None
        return Example(self.entries[number].stem, label, instance, pixels)


def decode_photo(photo: tf.Tensor) -> tf.Tensor:
    """A photo's pixels, uint8 [H, W, 3]."""
    return tf.ensure_shape(tf.io.decode_image(photo, channels=3, expand_animations=False), [None, None, 3])


def read_pack_spec(packed: Location) -> PackSpec:
    """Read `pack.json`; raises `P2PHDError`."""
    path = packed / "pack.json"
    try:
        return read_sealed(path, PackSpec)
    except FileNotFoundError:
        advice = (
            "this is a data set, `p2phd pack` it first"
            if (packed / "dataset.json").exists()
            else "`p2phd pack` makes one"
        )
        raise P2PHDError(f"{packed}: no packed data set here (pack.json is missing); {advice}") from None


def _check_shard(path: Location, shard: Shard, *, small: bool) -> None:
    if not path.exists():
        raise P2PHDError(f"{path}: this shard is missing; pack again")
    check_regular(path)
    if path.stat().st_size != shard.bytes:
        raise P2PHDError(f"{path}: has {path.stat().st_size} bytes instead of {shard.bytes}; pack again")
    if isinstance(path, Url) or (shard.index and not small):
        return  # To read all of it would take long; each record has a checksum of its own.
    if checksum(path) != shard.sha256:
        raise P2PHDError(f"{path}: is damaged, its checksum is not the one in pack.json; pack again")


def _index(path: Location, number: int, shard: Shard) -> list[Place]:
    """Where each record lies, from the lengths alone."""
    places: list[Place] = []
    offset = 0
    for length, crc in shard.index or _walk(path, shard):
        places.append(Place(number, offset + HEADER, length, crc))
        offset += HEADER + length + FOOTER
    if len(places) != shard.records or offset != shard.bytes:
        raise P2PHDError(f"{path}: does not hold {shard.records} records; pack again")
    return places


def index_shard(path: Path) -> tuple[tuple[int, int], ...]:
    """The length and CRC-32 of each record of a whole shard."""
    index, end = [], path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < end:
            (length,) = struct.unpack("<Q", file.read(HEADER)[:8])
            index.append((length, zlib.crc32(file.read(length))))
            file.seek(FOOTER, os.SEEK_CUR)
    return tuple(index)


def _walk(path: Location, shard: Shard) -> Iterator[tuple[int, None]]:
    """The lengths of an older pack's records, as they stand in the shard."""
    offset = 0
    with naming(path), path.open("rb") as file:
        while offset + HEADER + FOOTER <= shard.bytes:
            file.seek(offset)
            (length,) = struct.unpack("<Q", file.read(HEADER)[:8])
            yield length, None
            offset += HEADER + length + FOOTER
