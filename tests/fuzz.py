"""Damaged files of every format that is read, and what becomes of them.

    python -m tests.fuzz --minutes 60 --seed 1

A format is a good file, and a reader whose result tells whether what was read is right. Every damage to the file must be
refused with a `P2PHDError` that names it, or must not matter; and no reader may take more memory than a few times the file's
size. Values behind checksums are changed too, with the checksum mended: that may give another result, and nothing else.
"""

import argparse
import faulthandler
import io
import pickle
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorflow as tf
from PIL import Image

from pix2pixhd_cli.data import labels, pictures
from pix2pixhd_cli.data.dataset import read_example, read_spec
from pix2pixhd_cli.data.records import PackedSplit
from pix2pixhd_cli.data.state_dicts import LEGACY_MAGIC, read_class_dict, read_state_dict
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.features import FeatureClusters, FeatureCodes
from pix2pixhd_cli.perceptual_weights import read_vgg
from pix2pixhd_cli.pipeline.cluster import cluster
from pix2pixhd_cli.pipeline.encode import encode
from pix2pixhd_cli.pipeline.import_ import _read_options
from pix2pixhd_cli.pipeline.pack import pack
from pix2pixhd_cli.pipeline.prepare import RECORDS, Record, prepare
from pix2pixhd_cli.pipeline.train import train
from pix2pixhd_cli.runs import NETWORKS, SCORE, TRAINING, Run, Score, network_variables, read_variables
from pix2pixhd_cli.scenes import SUFFIX, Scene
from pix2pixhd_cli.sealed import KEY, read_sealed, seal, unseal
from pix2pixhd_cli.settings import load_settings
from tests.conftest import draw_city, tiny_settings
from tests.test_state_dicts import Tensor, pickled

HANGS = 120  # Seconds after which a reader is given up, with everything else.
MEMORY = 64 << 20  # Bytes of Python's that any reader may take beside a few times the file's size.
RESIDENT = 256 << 20  # The same for all of the process, with what libraries take and keep.
# What a value in a file may be turned into, by somebody who mends its checksum.
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, -0.5, 1e308, float("nan"), "", "x", "../x", "\x1b", [], [None], {}, {"x": 1},
)  # fmt: skip
ARRAYS: tuple[Callable[[Any], Any], ...] = (
    lambda a: np.atleast_1d(a)[..., :0],
    lambda a: a[..., None],
    lambda a: a.ravel()[:1],
    lambda a: np.full(a.shape, np.nan),
    lambda a: np.full(a.shape, -1, np.int64),
    lambda a: np.full(a.shape, 3e38, np.float32),
    lambda a: np.full(a.shape, "text"),
    lambda a: np.broadcast_to(a, (2, *a.shape)),
    lambda a: a.astype(np.complex128) if a.dtype.kind in "if" else a,
    lambda a: np.zeros_like(a),
)


@dataclass(frozen=True)
class Format:
    """A file to damage, and what reads it; `exact` formats have checksums, so that no damage may change what is read."""

    path: Path
    read: Callable[[Path], Any]
    exact: bool = True


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One kind of damage at one place."""
    place, length = rng.randrange(len(data) + 1), rng.choice([1, 2, 4, 8, 64, 1024])
    before, hit, after = data[:place], data[place : place + length], data[place + length :]
    kind = rng.randrange(8)
    if kind == 0:
        return before
    if kind == 1:
        return before + rng.randbytes(length) + hit + after
    if kind == 2:
        return before + after
    if kind == 3:
        return before + bytes(len(hit)) + after
    if kind == 4:
        return before + b"\xff" * len(hit) + after
    if kind == 5:
        other = rng.randrange(len(data) + 1)
        return before + data[other : other + length] + after
    if kind == 6:
        return before + rng.randbytes(len(hit)) + after
    return before + bytes([hit[0] ^ 1 << rng.randrange(8)]) + hit[1:] + after if hit else data + b"\0"


def rewrite(data: bytes, suffix: str, rng: random.Random) -> bytes | None:
    """The file with another value or array, and right checksums; None for formats without checksums of ours."""
    if suffix in (".npz", SUFFIX):
        with np.load(io.BytesIO(data)) as file:
            arrays = dict(file)
        name = rng.choice(sorted(arrays))
        arrays[name] = rng.choice(ARRAYS)(np.atleast_1d(arrays[name]) if rng.random() < 0.5 else arrays[name])
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()
    if suffix == ".json" and KEY in data.decode():
        values = unseal(data.decode())
        holder, key = rng.choice(list(_places(values)))
        holder[key] = rng.choice(VALUES)
        return seal(values).encode()
    return None


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    """Every value in dicts and lists, as what holds it and its key there."""
    for key in list(values) if isinstance(values, dict) else range(len(values)):
        yield values, key
        if isinstance(values[key], dict | list):
            yield from _places(values[key])


def outcome(form: Format, data: bytes, expected: Any, folder: Path) -> str:
    """`refused`, `harmless` or `changed`; raises whatever else the reader raises, and `AssertionError` for too much memory."""
    path = folder / form.path.name
    path.write_bytes(data)
    before = resident()
    tracemalloc.start()
    faulthandler.dump_traceback_later(HANGS, exit=True)
    try:
        found = form.read(path)
    except P2PHDError as error:
        assert str(folder.parent.parent) in str(error), f"{error} names no file"
        return "refused"
    finally:
        faulthandler.cancel_dump_traceback_later()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY + 20 * len(data), f"{peak >> 20} MiB for a file of {len(data)} bytes"
        taken = resident("VmHWM") - before
        assert taken < RESIDENT + 20 * len(data), f"{taken >> 20} MiB, all in all, for a file of {len(data)} bytes"
    return "harmless" if same(found, expected) else "changed"


def resident(kind: str = "VmRSS") -> int:
    """Bytes that this process has in memory now, or (`VmHWM`) had at most since this was last asked for what it has now."""
    if kind == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(kind))


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal to the last bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return bool(a == b)


def formats(folder: Path, dataset: Path, packed: Path, run: Path) -> dict[str, Format]:
    """A good file of every format under `folder`, beside what it needs, and its reader."""
    folder.mkdir(exist_ok=True)
    for name, source in (("dataset", dataset), ("packed", packed), ("run", run)):
        shutil.copytree(source, folder / name)
    run, packed, dataset = folder / "run", folder / "packed", folder / "dataset"
    settings = load_settings(run=run)
    checkpoint = Run(run).checkpoints()[-1]
    photo = next((dataset / "train/photo").iterdir())
    jpeg, webp, tiff, bmp, gif = (folder / f"photo.{suffix}" for suffix in ("jpg", "webp", "tif", "bmp", "gif"))
    for path in (jpeg, webp, tiff, bmp, gif):
        Image.fromarray(pictures.read_photo(photo)).save(path)
    polygons, legacy = folder / "polygons.json", folder / "legacy.pth"
    legacy.write_bytes(legacy_state_dict())
    polygons.write_text(
        '{"imgHeight": 32, "imgWidth": 64, "objects": [{"label": "car", "polygon": [[1, 1], [20, 1], [20, 9.5]]}]}'
    )
    toml, table, config = folder / "classes.toml", folder / "classes.csv", folder / "config.toml"
    toml.write_text(
        '[[classes]]\nid = 0\nname = "sky"\ncolor = [70, 130, 180]\n[[classes]]\nid = 8\nname = "car"\nthing = true\n'
    )
    table.write_text("id,name,color,thing\n0,sky,#4682b4,\n8,car,#00008e,1\n")
    options = folder / "opt.txt"
    options.write_text("------------ Options -------------\nlabel_nc: 35\nngf: 64\nno_instance: False\n")
    config.write_text("[train]\nepochs = 5\nlearning_rate = 0.0002\n[prepare]\nignore_id = [255, 254]\nwidth = 64\n")
    shallow = folder / "vgg.h5"
    with h5py.File(shallow, "w") as file:
        file["block1_conv1/kernel:0"] = np.zeros((3, 3, 3, 4), np.float32)
    np.savez(folder / "vgg.npz", block1_conv1_kernel=np.zeros((3, 3, 3, 4), np.float32))
    golden = Path(__file__).parent / "golden"
    scene, spec = folder / f"scene{SUFFIX}", read_spec(dataset)
    example = read_example(dataset, spec, "val", spec.entries("val")[0])
    Scene(replace(example, codes={7: np.ones(3, np.float32)}), ("car=1",), ("car",), 3, "step 6").save(scene)
    codes = folder / "features.npy"
    np.save(codes, np.array({7: np.zeros((3, 4))}, dtype=object), allow_pickle=True)

    def scene_of(path: Path) -> Any:
        found = Scene.load(path, 1 << 16)
        return {**vars(found), "example": vars(found.example)}

    def beside(path: Path, whole: Path) -> Path:
        """The folder `whole` with this file in the place of its own."""
        target = whole / path.name
        shutil.copy(path, target)
        return whole

    def state(name: str) -> dict[str, Any]:
        with np.load(checkpoint / name) as file:
            found: dict[str, list[tf.Variable]] = {}
            for key in file.files:
                if "/" in key:
                    found.setdefault(key.partition("/")[0], []).append(tf.Variable(file[key]))
        return found

    networks, training = state(NETWORKS), state(TRAINING)

    def restored(path: Path, variables: dict[str, Any]) -> Any:
        read_variables(path, variables)
        return {name: [v.numpy() for v in found] for name, found in variables.items()}

    def model(path: Path) -> Any:
        folder = beside(path, run / "model").parent
        loaded = Run(folder).load_model(settings)
        return {name: [v.numpy() for v in found] for name, found in network_variables(loaded).items()}

    def logged(path: Path) -> Any:
        Run(path.parent).start_metrics(1 << 60)
        return path.read_text()

    def drawn(path: Path) -> Any:
        return labels.read_polygons(path, labels.CITYSCAPES, most=1 << 20)

    def examples(path: Path) -> Any:
        split = PackedSplit(beside(path, packed), "train")
        return [[e.stem, e.label, e.instance, e.photo] for e in split]

    record = next((dataset / RECORDS / "train").iterdir())
    split = next(path for path in packed.iterdir() if path.name.startswith("train"))
    return {
        "label.png": Format(next((dataset / "train/label").iterdir()), pictures.read_label_map),
        "instance.png": Format(next((dataset / "train/instance").iterdir()), pictures.read_instance_map),
        "photo.png": Format(photo, pictures.read_photo),
        "photo.jpg": Format(jpeg, pictures.read_photo, exact=False),
        "dataset.json": Format(dataset / "dataset.json", lambda path: read_spec(path.parent)),
        "pack.json": Format(packed / "pack.json", examples),
        "shard": Format(split, examples),
        "settings.json": Format(run / "settings.json", lambda path: load_settings(run=path.parent)),
        "sources.json": Format(run / "sources.json", lambda path: Run(path.parent).sources().model_dump()),
        "dataset.json of a run": Format(run / "dataset.json", lambda path: Run(path.parent).spec()),
        "weights.npz": Format(run / "model/weights.npz", model),
        "networks.npz": Format(checkpoint / NETWORKS, lambda path: restored(path, networks)),
        "training.npz": Format(checkpoint / TRAINING, lambda path: restored(path, training)),
        "features.npz": Format(run / "features.npz", lambda path: vars(FeatureCodes.load(path))),
        "clusters.npz": Format(
            run / "clusters.npz",
            lambda path: {i: vars(s) for i, s in FeatureClusters.load(path).classes.items()},
        ),
        "scene.p2phd": Format(scene, scene_of),
        "score.json": Format(checkpoint / SCORE, lambda path: read_sealed(path, Score).distance),
        "record of prepare": Format(record, lambda path: read_sealed(path, Record).model_dump()),
        "metrics.jsonl": Format(run / "metrics.jsonl", logged, exact=False),
        "polygons.json": Format(polygons, drawn, exact=False),
        "photo.webp": Format(webp, pictures.read_photo, exact=False),
        "photo.tif": Format(tiff, pictures.read_photo, exact=False),
        "photo.bmp": Format(bmp, pictures.read_photo, exact=False),
        "photo.gif": Format(gif, pictures.read_label_map, exact=False),
        "legacy.pth": Format(legacy, read_state_dict, exact=False),
        "net_G.pth": Format(golden / "encoder_net_E.pth", read_state_dict),
        "features.npy": Format(codes, read_class_dict, exact=False),
        "vgg.h5": Format(shallow, lambda path: read_vgg(str(path)).sha256),
        "vgg.npz": Format(folder / "vgg.npz", lambda path: read_vgg(str(path)).sha256),
        "opt.txt": Format(options, _read_options, exact=False),
        "classes.toml": Format(toml, labels.read_class_table, exact=False),
        "classes.csv": Format(table, labels.read_class_table, exact=False),
        "config.toml": Format(config, lambda path: load_settings(config=path), exact=False),
    }


def attack(name: str, form: Format, folder: Path, rng: random.Random, count: int) -> Counter[str]:
    """Damage a file so many times; raises `AssertionError` for an outcome that is not allowed, and keeps the damaged file."""
    data, found = form.path.read_bytes(), Counter[str]()
    room = folder / "rooms" / name
    room.mkdir(parents=True, exist_ok=True)
    (room / form.path.name).write_bytes(data)
    try:
        expected = form.read(room / form.path.name)
    except P2PHDError:
        expected = None  # A format that is refused even when whole, for what is in it.
    for number in range(count):
        written = rewrite(data, form.path.suffix, rng) if rng.random() < 0.25 else None
        damaged = written or mutate(data, rng)
        if written is None and rng.random() < 0.2 and damaged:
            damaged = mutate(damaged, rng)
        kept = room / f"damage-{number}"
        try:
            result = outcome(form, damaged, expected, room)
            assert result != "changed" or not form.exact or written is not None, "the damage was not seen"
        except BaseException as error:
            kept.write_bytes(damaged)
            raise AssertionError(f"{name}: {type(error).__name__}: {error}; the damaged file is {kept}") from error
        found[result] += 1
    outcome(form, data, expected, room)  # Others read this file too.
    return found


def legacy_state_dict() -> bytes:
    """A `.pth` as PyTorch wrote it before 1.6."""
    values = np.arange(24, dtype=np.float32)
    parts = [pickle.dumps(LEGACY_MAGIC, 2), pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2)]
    parts += [pickled({"a.weight": Tensor("77", "FloatStorage", (4, 6), 24)}, extra=(None,)), pickle.dumps(["77"], 2)]
    return b"".join([*parts, struct.pack("<q", 24), values.tobytes()])


def main() -> None:
    """Go on until the time is over, and print what became of the damaged files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="how long (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the damages (default 0)")
    arguments = parser.parse_args()
    rng, end = random.Random(arguments.seed), time.monotonic() + 60 * arguments.minutes
    found: dict[str, Counter[str]] = {}
    folder = Path(tempfile.mkdtemp(prefix="p2phd-fuzz-"))
    known = formats(folder / "good", *make_everything(folder))
    findings = 0
    while time.monotonic() < end:
        for name, form in known.items():
            try:
                found.setdefault(name, Counter()).update(attack(name, form, folder / "good", rng, 20))
            except AssertionError as error:
                findings += 1
                print(error, flush=True)
    for name, counts in found.items():
        print(f"{name:25} " + "  ".join(f"{what} {count}" for what, count in sorted(counts.items())))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{sum(map(Counter.total, found.values()))} damages, {findings} findings, peak memory {peak} MiB")
    if findings:
        sys.exit(f"the files that were not refused lie in {folder}")
    shutil.rmtree(folder)


def make_everything(folder: Path) -> tuple[Path, Path, Path]:
    """A tiny data set, pack, and run with codes and styles."""
    city, dataset, packed, run = (folder / name for name in ("city", "dataset", "packed", "run"))
    draw_city(city, train=6, val=3, seed=1, height=32, width=64)
    prepare(city, dataset)
    pack(dataset, packed)
    train(packed, run, tiny_settings())
    encode(run)
    cluster(run)
    return dataset, packed, run


if __name__ == "__main__":
    main()
