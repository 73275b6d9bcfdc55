"""`p2phd pack`: a data set becomes TFRecord shards that training needs nothing else beside."""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import tensorflow as tf

from pix2pixhd_cli import console, engine
from pix2pixhd_cli.data.dataset import DatasetSpec, ExampleEntry, map_path, photo_path, read_example, read_spec
from pix2pixhd_cli.data.files import (
    checksum,
    held,
    partial_folder,
    staging_folder,
    sweep,
    sync,
    take_place,
    write_text,
)
from pix2pixhd_cli.data.parts import Parts, digest_of_files, parts_folder, share, which_part
from pix2pixhd_cli.data.records import PackSpec, Shard, index_shard, read_pack_spec, serialise
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.mirror import WRITER, claimed
from pix2pixhd_cli.sealed import seal
from pix2pixhd_cli.settings import PackSettings, Part, Settings
from pix2pixhd_cli.urls import Location, Url, locate

SHARD_BYTES = 256 << 20
SHARD = re.compile(r".+-\d{5}-of-\d{5}\.tfrecord")
PACK, PACKING = "pack.json", ".packing"


class Plan(NamedTuple):
    """A shard to write: its file, and the neighbouring examples that share it."""

    split: str
    file: str
    entries: Sequence[ExampleEntry]


def pack(dataset: Path, packed: Location | str, settings: Settings | None = None) -> PackSpec:
    """Write `packed`: every example of every wanted split once, and `pack.json` last.

    A folder packed before is replaced once the new one is whole. With `--part`, that part's shards alone are made, in hiding,
    and described. Raises `P2PHDError`.
    """
    chosen, place = (settings or Settings()).pack, locate(packed)
    part = which_part(chosen, place)
    spec = read_spec(dataset)
    plans = _plan(dataset, spec, chosen)
    if isinstance(place, Url):
        result = _pack_to_url(dataset, place, spec, plans)
    else:
        old = _check_folder(place)
        inputs = {"data set": digest_of_files(_files(dataset, spec, plans))}
        parts = Parts(parts_folder(place), ("pack", dataset, place), chosen, inputs)
        if part is not None:
            return _pack_part(dataset, place, spec, plans, parts, part)
        making = _merged(place, plans, parts) if chosen.merge else _made(dataset, place, spec, plans, parts)
        with making as (staging, shards):
            result = _publish(spec, plans, shards, old, staging, place)
    rows = [
        (split, sum(s.records for s in files), len(files), console.size(sum(s.bytes for s in files)))
        for split, files in result.shards.items()
    ]
    console.table("Packed", ["split", "examples", "shards", "size"], rows)
    console.info(f"wrote {place}")
    return result


def _pack_to_url(dataset: Path, packed: Url, spec: DatasetSpec, plans: Sequence[Plan]) -> PackSpec:
    """Write each shard into a temporary folder, and make room for the next by copying it up.

    While `pack.json` is missing, `PACKING` says that shards here are ours, and may be replaced.
    """
    _check_url(packed)
    shards = []
    with claimed(packed), TemporaryDirectory(prefix="p2phd-") as temporary:
        (packed / PACKING).write_text("")
        (packed / PACK).remove()
        with console.progress("packing", sum(len(plan.entries) for plan in plans)) as bar:
            for plan in plans:
                shards.append(_write_shard(Path(temporary), dataset, spec, plan, lambda: bar.advance(bar.task_ids[0])))
                shard = Path(temporary) / plan.file
                with shard.open("rb") as file:
                    (packed / plan.file).put(file)
                shard.unlink()
        for name in set(packed.names()) - {plan.file for plan in plans}:
            if SHARD.fullmatch(name):
                (packed / name).remove()
        result = _spec_of(spec, plans, shards)
        (packed / PACK).write_text(_described(result))
        (packed / PACKING).remove()
    return result


def _pack_part(
    dataset: Path, packed: Path, spec: DatasetSpec, plans: Sequence[Plan], parts: Parts, part: Part
) -> PackSpec:
    """Write a part's shards to where all are gathered; those that an earlier try left whole are kept."""
    own, shards = share(plans, part), []
    with (
        held(partial_folder(packed), shared=True) as staging,
        parts.working(part) as made,
        console.progress("packing", sum(len(plan.entries) for plan in own)) as bar,
    ):
        for plan in own:
            path = staging / plan.file
            if path.is_file() and made.get(plan.file) == checksum(path):
                shards.append(_describe(path, plan, made[plan.file]))
                bar.advance(bar.task_ids[0], len(plan.entries))
                continue
            shards.append(_write_shard(staging, dataset, spec, plan, lambda: bar.advance(bar.task_ids[0])))
            sync(staging)
            made[plan.file] = shards[-1].sha256
            parts.note(part, made)
    if not own:
        console.warn(
            f"--part {part}: there is nothing in it, for there are only {len(plans)} shards; --shards makes more"
        )
    console.info(parts.said(part))
    return _spec_of(spec, own, shards)


@contextmanager
def _made(
    dataset: Path, packed: Path, spec: DatasetSpec, plans: Sequence[Plan], parts: Parts
) -> Iterator[tuple[Path, list[Shard]]]:
    """Write all shards; yields them with the folder that they are in."""
    with staging_folder(packed) as staging:
        parts.forget()
        with console.progress("packing", sum(len(plan.entries) for plan in plans)) as bar:
            shards = [
                _write_shard(staging, dataset, spec, plan, lambda: bar.advance(bar.task_ids[0])) for plan in plans
            ]
        yield staging, shards


@contextmanager
def _merged(packed: Path, plans: Sequence[Plan], parts: Parts) -> Iterator[tuple[Path, list[Shard]]]:
    """Find all shards of all parts; a merge that was stopped may have put some of them into their places."""
    parts.require()
    with held(partial_folder(packed)) as staging, parts.merging() as done:
        yield (
            staging,
            [
                _describe(parts.find(part, plan.file, made, staging, packed), plan, made[plan.file])
                for part, made in done
                for plan in share(plans, part)
            ],
        )
        shutil.rmtree(staging, ignore_errors=True)


def _publish(
    spec: DatasetSpec, plans: Sequence[Plan], shards: Sequence[Shard], old: PackSpec | None, staging: Path, packed: Path
) -> PackSpec:
    """Describe the shards, and put all into its place."""
    result = _spec_of(spec, plans, shards)
    for path in list(staging.iterdir()):
        if path.name not in {plan.file for plan in plans}:
            path.unlink()  # Parts of other settings, or half a shard.
    write_text(staging / PACK, _described(result))
    if old is None:
        take_place(staging, packed)
    else:
        _replace(old, result, staging, packed)
    return result


def _spec_of(spec: DatasetSpec, plans: Sequence[Plan], shards: Sequence[Shard]) -> PackSpec:
    """The description of these shards, by split."""
    of_split: dict[str, list[Shard]] = {plan.split: [] for plan in plans}
    for plan, shard in zip(plans, shards, strict=True):
        of_split[plan.split].append(shard)
    return PackSpec(shards={split: tuple(found) for split, found in of_split.items()}, dataset=spec)


def _described(spec: PackSpec) -> str:
    """The text of `pack.json`."""
    return seal(spec.model_dump(mode="json"))


def _check_folder(packed: Path) -> PackSpec | None:
    """What was packed here before, if anything was; raises `P2PHDError` where anything else lies."""
    old = _old_pack(packed)
    if packed.exists() and (not packed.is_dir() or (old is None and any(packed.iterdir()))):
        raise P2PHDError(f"{packed}: holds other files; name a new or empty folder for the shards")
    return old


def _check_url(packed: Url) -> None:
    """Refuse a URL where anything else lies."""
    old, names = _old_pack(packed), packed.names()
    ours = {PACK, PACKING, WRITER} | {shard.file for shards in (old.shards if old else {}).values() for shard in shards}
    for name in names:
        shard = PACKING in names and SHARD.fullmatch(name)
        if name not in ours and not shard and not name.endswith(".partial"):
            raise P2PHDError(f"{packed}: holds other files ({name}); name a new or empty folder for the shards")


def _old_pack(packed: Location) -> PackSpec | None:
    """What was packed before, if anything was."""
    if not (packed / PACK).exists():
        return None
    try:
        return read_pack_spec(packed)
    except P2PHDError as error:
        raise P2PHDError(f"{error}; delete {packed}, or name another folder") from None


def _replace(old: PackSpec, new: PackSpec, staging: Path, packed: Path) -> None:
    """Put new shards in the place of old ones. A mixture of both is refused by its checksums, and packed over like any pack."""
    sweep(packed)
    before, after = ({shard.file for shards in spec.shards.values() for shard in shards} for spec in (old, new))
    for gone in before - after:
        (packed / gone).unlink(missing_ok=True)
    sync(packed)  # The old description alone knows them, so they must be gone before it is.
    for path in sorted(staging.iterdir()):
        path.replace(packed / path.name)
    sync(packed)


def _plan(dataset: Path, spec: DatasetSpec, settings: PackSettings) -> list[Plan]:
    """All shards of all wanted splits, in order."""
    plans = []
    for split in dict.fromkeys(settings.split or spec.splits):
        entries = spec.entries(split)
        count = min(len(entries), settings.shards or 1 + _split_bytes(dataset, spec, split) // SHARD_BYTES)
        for number in range(count):
            file = f"{split}-{number:05d}-of-{count:05d}.tfrecord"
            plans.append(Plan(split, file, share(entries, Part(number + 1, count))))
    return plans


def _files(dataset: Path, spec: DatasetSpec, plans: Iterable[Plan]) -> Iterable[Path]:
    """All that is read."""
    yield dataset / "dataset.json"
    for plan in plans:
        for entry in plan.entries:
            yield map_path(dataset, plan.split, "label", entry.stem)
            if spec.has_instances:
                yield map_path(dataset, plan.split, "instance", entry.stem)
            if (photo := photo_path(dataset, plan.split, entry)) is not None:
                yield photo


def _write_shard(folder: Path, dataset: Path, spec: DatasetSpec, plan: Plan, advance: Callable[[], object]) -> Shard:
    """Write a shard, on the disk."""
    path = folder / plan.file
    try:
        with tf.io.TFRecordWriter(str(path)) as writer:
            for entry in plan.entries:
                photo = photo_path(dataset, plan.split, entry)
                example = read_example(dataset, spec, plan.split, entry)
                writer.write(serialise(example, photo.read_bytes() if photo is not None else b""))
                advance()
    except tf.errors.OpError as error:
        raise P2PHDError(f"{path}: cannot be written ({engine.reason(error)})") from None
    sync(path)
    return _describe(path, plan, checksum(path))


def _describe(path: Path, plan: Plan, digest: str) -> Shard:
    """What `pack.json` says of a shard."""
    return Shard(
        file=path.name,
        records=len(plan.entries),
        bytes=path.stat().st_size,
        sha256=digest,
        index=index_shard(path),
    )


def _split_bytes(dataset: Path, spec: DatasetSpec, split: str) -> int:
    """Roughly how large a split will be: its photos and label maps as they are on disk."""
    total = 0
    for entry in spec.entries(split):
        for path in (photo_path(dataset, split, entry), map_path(dataset, split, "label", entry.stem)):
            total += path.stat().st_size if path is not None and path.exists() else 0
    return total
