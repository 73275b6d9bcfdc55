"""`p2phd pack`: a data set becomes TFRecord shards that training needs nothing else beside."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import tensorflow as tf

from pix2pixhd_cli import console, engine
from pix2pixhd_cli.data.dataset import DatasetSpec, ExampleEntry, map_path, photo_path, read_example, read_spec
from pix2pixhd_cli.data.files import staging_folder, sweep, sync, take_place, write_text
from pix2pixhd_cli.data.records import PackSpec, Shard, read_pack_spec, serialise
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.sealed import seal
from pix2pixhd_cli.settings import Settings

SHARD_BYTES = 256 << 20


def pack(dataset: Path, packed: Path, settings: Settings | None = None) -> PackSpec:
    """Write `packed`: every example of every wanted split once, and `pack.json` last.

    A folder packed before is replaced once the new one is whole. Raises `P2PHDError`.
    """
    chosen = (settings or Settings()).pack
    spec = read_spec(dataset)
    splits = {split: spec.entries(split) for split in chosen.split or spec.splits}
    old = _old_pack(packed)
    if packed.exists() and (not packed.is_dir() or (old is None and any(packed.iterdir()))):
        raise P2PHDError(f"{packed}: holds other files; name a new or empty folder for the shards")
    with staging_folder(packed) as staging:
        with console.progress("packing", sum(map(len, splits.values()))) as bar:
            shards = {
                split: _pack_split(dataset, spec, split, staging, chosen.shards, lambda: bar.advance(bar.task_ids[0]))
                for split in splits
            }
        result = PackSpec(shards=shards, dataset=spec)
        write_text(staging / "pack.json", seal(result.model_dump(mode="json")))
        if old is None:
            take_place(staging, packed)
        else:
            _replace(old, staging, packed)
    rows = [
        (split, sum(s.records for s in files), len(files), console.size(sum(s.bytes for s in files)))
        for split, files in shards.items()
    ]
    console.table("Packed", ["split", "examples", "shards", "size"], rows)
    console.info(f"wrote {packed}")
    return result


def _old_pack(packed: Path) -> PackSpec | None:
    """What was packed before, if anything was."""
    if not (packed / "pack.json").exists():
        return None
    try:
        return read_pack_spec(packed)
    except P2PHDError as error:
        raise P2PHDError(f"{error}; delete {packed}, or name another folder") from None


def _replace(old: PackSpec, staging: Path, packed: Path) -> None:
    """Put new shards in the place of old ones. A mixture of both is refused by its checksums, and packed over like any pack."""
    sweep(packed)
    made = sorted(staging.iterdir())
    for gone in {shard.file for shards in old.shards.values() for shard in shards} - {path.name for path in made}:
        (packed / gone).unlink(missing_ok=True)
    sync(packed)  # The old description alone knows them, so they must be gone before it is.
    for path in made:
        path.replace(packed / path.name)
    sync(packed)


def _pack_split(
    dataset: Path, spec: DatasetSpec, split: str, folder: Path, wanted: int | None, advance: Callable[[], object]
) -> tuple[Shard, ...]:
    """Write a split's shards; neighbouring examples share one."""
    entries = spec.entries(split)
    count = min(len(entries), wanted or 1 + _split_bytes(dataset, spec, split) // SHARD_BYTES)
    shards = []
    for number in range(count):
        path = folder / f"{split}-{number:05d}-of-{count:05d}.tfrecord"
        part = entries[number * len(entries) // count : (number + 1) * len(entries) // count]
        _write_shard(path, dataset, spec, split, part, advance)
        sync(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shards.append(Shard(file=path.name, records=len(part), bytes=path.stat().st_size, sha256=digest))
    return tuple(shards)


def _write_shard(
    path: Path,
    dataset: Path,
    spec: DatasetSpec,
    split: str,
    entries: Sequence[ExampleEntry],
    advance: Callable[[], object],
) -> None:
    try:
        with tf.io.TFRecordWriter(str(path)) as writer:
            for entry in entries:
                photo = photo_path(dataset, split, entry)
                example = read_example(dataset, spec, split, entry)
                writer.write(serialise(example, photo.read_bytes() if photo is not None else b""))
                advance()
    except tf.errors.OpError as error:
        raise P2PHDError(f"{path}: cannot be written ({engine.reason(error)})") from None


def _split_bytes(dataset: Path, spec: DatasetSpec, split: str) -> int:
    """Roughly how large a split will be: its photos and label maps as they are on disk."""
    total = 0
    for entry in spec.entries(split):
        for path in (photo_path(dataset, split, entry), map_path(dataset, split, "label", entry.stem)):
            total += path.stat().st_size if path is not None and path.exists() else 0
    return total
