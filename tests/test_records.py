"""pack, records and batches: nothing lost, every example once an epoch, an order from seed and epoch alone."""

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pix2pixhd_cli.data.batches import Deal, plan_epoch, training_batches
from pix2pixhd_cli.data.dataset import read_example, read_spec
from pix2pixhd_cli.data.records import PackedSplit, read_pack_spec
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.pipeline.pack import pack
from pix2pixhd_cli.pipeline.prepare import prepare
from pix2pixhd_cli.sealed import seal
from pix2pixhd_cli.settings import Settings
from tests.conftest import save


def packing(dataset: Path, packed: Path, **options: object) -> PackedSplit:
    pack(dataset, packed, Settings(pack=options))
    return PackedSplit(packed, "train")


@pytest.mark.parametrize("shards", [1, 4, 99])
def test_every_record_is_lossless_in_any_number_of_shards(dataset: Path, tmp_path: Path, shards: int) -> None:
    split = packing(dataset, tmp_path / "packed", shards=shards)
    spec = read_spec(dataset)
    assert len(split) == 6 and len(split.files) == min(shards, 6)
    for number, entry in enumerate(spec.splits["train"]):
        packed, original = split.example(number), read_example(dataset, spec, "train", entry)
        assert packed.stem == original.stem
        np.testing.assert_array_equal(packed.label, original.label)
        np.testing.assert_array_equal(packed.instance, original.instance)
        np.testing.assert_array_equal(packed.photo, original.photo)


def test_large_ids_and_missing_photos(tmp_path: Path) -> None:
    save(tmp_path / "src/test_label/a.png", np.full((32, 32), 300, np.uint16))
    instance = np.full((32, 32, 4), [1, 2, 3, 4], np.uint8)
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    note = PngInfo()
    note.add_text("p2phd", "ids32")
    (tmp_path / "src/test_inst").mkdir()
    Image.fromarray(instance, "RGBA").save(tmp_path / "src/test_inst/a.png", pnginfo=note)
    prepare(tmp_path / "src", tmp_path / "ds", Settings(prepare={"layout": "pix2pixhd"}))
    pack(tmp_path / "ds", tmp_path / "packed")
    example = PackedSplit(tmp_path / "packed", "test").example(0)
    assert (example.label == 300).all() and (example.instance == 0x04030201).all() and example.photo is None


def test_the_description_holds_counts_and_checksums(packed: Path) -> None:
    spec = read_pack_spec(packed)
    assert spec.dataset == read_spec(packed.with_name("dataset"))
    for split, shards in spec.shards.items():
        assert sum(shard.records for shard in shards) == len(spec.dataset.splits[split])
        for shard in shards:
            data = (packed / shard.file).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
    assert {p.name for p in packed.iterdir()} == {"pack.json"} | {
        s.file for shards in spec.shards.values() for s in shards
    }


def test_examples_that_only_shards_have_are_refused_by_name(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "packed")
    spec = json.loads((tmp_path / "packed" / "pack.json").read_text())
    del spec["dataset"]["splits"]["train"], spec["checksum"]
    (tmp_path / "packed" / "pack.json").write_text(seal(spec))
    with pytest.raises(P2PHDError, match=r"packed: pack.json and the shards of 'train' disagree; pack again"):
        PackedSplit(tmp_path / "packed", "train")


def test_packing_again_replaces_and_gives_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    packing(dataset, tmp_path / "packed")
    first = {p.name: p.read_bytes() for p in (tmp_path / "packed").iterdir()}
    packing(dataset, tmp_path / "packed", split=("train",))
    assert {p.name for p in (tmp_path / "packed").iterdir()} == {"pack.json", "train-00000-of-00001.tfrecord"}
    packing(dataset, tmp_path / "packed")
    assert {p.name: p.read_bytes() for p in (tmp_path / "packed").iterdir()} == first


DEALT = ("batch_size", "turns", "replicas", "own")


def epoch(split: PackedSplit, number: int, **options: object) -> list[tuple[np.ndarray, ...]]:
    return epochs(split, range(number, number + 1), **options)


def epochs(split: PackedSplit, wanted: range, **options: object) -> list[tuple[np.ndarray, ...]]:
    deal = Deal(**{"batch_size": 4, **{name: options.pop(name) for name in DEALT if name in options}})  # type: ignore[arg-type]
    arguments: dict[str, Any] = {"deal": deal, "seed": 3, "flip": False, **options}
    return [tuple(map(np.asarray, batch)) for batch in training_batches(split, epochs=wanted, **arguments)]


def test_epochs_follow_one_another(packed: Path) -> None:
    split = PackedSplit(packed, "train")
    alone = [batch for number in (2, 3, 4) for batch in epoch(split, number, flip=True)]
    assert len(alone) == 3 * math.ceil(len(split) / 4)
    for skip in (0, 1):
        together = epochs(split, range(2, 5), flip=True, skip=skip)
        assert len(together) == len(alone) - skip
        for ours, theirs in zip(together, alone[skip:], strict=True):
            assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))


def test_every_example_comes_once_an_epoch(packed: Path) -> None:
    split = PackedSplit(packed, "train")
    photos = {split.example(n).photo.tobytes() for n in range(len(split))}  # type: ignore[union-attr]
    for number in (1, 2):
        batches = epoch(split, number)
        assert [len(photo) for _, _, photo in batches] == [4, 2]
        seen = [np.rint((p + 1) * 127.5).astype(np.uint8).tobytes() for _, _, photo in batches for p in photo]
        assert len(seen) == 6 and set(seen) == photos


@pytest.mark.parametrize(
    ("batch_size", "turns", "replicas"), [(1, 1, 2), (2, 1, 2), (1, 2, 2), (2, 1, 4), (1, 4, 1), (5, 1, 2), (4, 2, 2)]
)
def test_every_example_is_dealt_once_to_one_replica(packed: Path, batch_size: int, turns: int, replicas: int) -> None:
    split, dealt = PackedSplit(packed, "train"), {"batch_size": batch_size, "turns": turns, "replicas": replicas}
    whole = [photo for _, _, photo in epoch(split, 1, batch_size=1)]
    steps, busy = (-(-len(split) // size) for size in (batch_size * turns * replicas, batch_size * replicas))
    found: dict[tuple[int, int], np.ndarray] = {}
    for own in range(replicas):
        batches = epoch(split, 1, own=(own,), **dealt)
        deal = Deal(own=(own,), **dealt)
        shares = [share for step in range(steps) for share in deal.shares(step, len(split))]
        assert len(batches) == len(shares) == busy  # Turns in which nobody has examples are left out.
        for place, ((_, _, photo), share) in enumerate(zip(batches, shares, strict=True)):
            assert len(photo) > 0 and len(photo) <= batch_size
            found[place, own] = photo if share else photo[:0]
    for step in range(steps):
        assert sum(sum(Deal(own=(n,), **dealt).shares(step, len(split))) for n in range(replicas)) == pytest.approx(1)
    np.testing.assert_array_equal(np.concatenate([found[key] for key in sorted(found)]), np.concatenate(whole))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, number: int) -> list[int]:
        return plan_epoch(50, seed, number, flip=True).record.tolist()

    assert order(1, 1) == order(1, 1)
    assert len({tuple(order(s, e)) for s in (1, 2) for e in (1, 2)}) == 4
    flips = np.stack([plan_epoch(50, 1, e, flip=True).flip for e in range(200)])
    assert abs(flips.mean() - 0.5) < 0.02 and flips.mean(0).min() > 0 and flips.mean(0).max() < 1
    assert not plan_epoch(50, 1, 1, flip=False).flip.any()
    with_flips, without = plan_epoch(50, 1, 1, flip=True), plan_epoch(50, 1, 1, flip=False)
    np.testing.assert_array_equal(with_flips.record, without.record)


def test_an_epoch_can_be_entered_anywhere(packed: Path) -> None:
    split = PackedSplit(packed, "train")
    whole = epoch(split, 5, batch_size=2, flip=True, crop=(16, 24))
    for skip in range(4):
        for ours, theirs in zip(
            epoch(split, 5, batch_size=2, flip=True, crop=(16, 24), skip=skip), whole[skip:], strict=True
        ):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(a, b)


def test_flips_and_crops_are_shared_by_all_maps(packed: Path) -> None:
    split = PackedSplit(packed, "train")
    plan = plan_epoch(6, 3, 1, flip=True)
    batches = epoch(split, 1, batch_size=1, flip=True, crop=(20, 30))
    assert plan.flip.any() and not plan.flip.all()
    for number, mirrored, corner, (label, instance, photo) in zip(*plan, batches, strict=True):
        example = split.example(int(number))
        top, left = int(13 * corner[0]), int(35 * corner[1])
        window = (slice(top, top + 20), slice(left, left + 30))
        mirror = slice(None, None, -1 if mirrored else 1)
        np.testing.assert_array_equal(label[0], example.label[window][:, mirror])
        np.testing.assert_array_equal(instance[0], example.instance[window][:, mirror])
        np.testing.assert_allclose((photo[0] + 1) * 127.5, example.photo[window][:, mirror], atol=1e-4)  # type: ignore[index]
