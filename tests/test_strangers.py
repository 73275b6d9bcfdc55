"""Files made to take gigabytes, hours, or what is not theirs: each is refused at once, by name."""

import io
import json
import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pix2pixhd_cli.data.arrays import open_arrays
from pix2pixhd_cli.data.dataset import read_spec
from pix2pixhd_cli.data.files import held, partial_folder
from pix2pixhd_cli.data.labels import CITYSCAPES, read_class_table, read_polygons
from pix2pixhd_cli.data.pictures import read_label_map, read_photo
from pix2pixhd_cli.data.state_dicts import _view, read_class_dict, read_state_dict
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.perceptual_weights import read_vgg
from pix2pixhd_cli.runs import Run
from pix2pixhd_cli.sealed import seal, unseal
from pix2pixhd_cli.settings import load_settings
from tests.conftest import Command, save, tree
from tests.test_import import lay_out
from tests.test_state_dicts import VALUES, Tensor, pickled, write_zip

Reader = Callable[[Path], object]
KERNEL = np.zeros((3, 3, 3, 64), np.float32)


def array(path: Path) -> object:
    with open_arrays(path) as file:
        return file.read("a")


def vgg(path: Path) -> object:
    return read_vgg(str(path))


def polygons(path: Path) -> object:
    return read_polygons(path, CITYSCAPES)


def config(path: Path) -> object:
    return load_settings(config=path)


def huge_side(path: Path) -> None:
    write_zip(path, pickled({"a": Tensor("0", "FloatStorage", (1 << 60,), 24)}), {"0": VALUES.tobytes()})


def false_storage(path: Path) -> None:
    write_zip(path, pickled({"a": Tensor("0", "FloatStorage", (24,), 1 << 40)}), {"0": VALUES.tobytes()})


def packed_head(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", b"\x80\x02" + b"]" * 10_000_000 + b".")


def npy(content: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, content, version)
    return buffer.getvalue()


def bzip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.npy", npy(np.zeros(10)))


def long_head(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", npy(np.zeros(10), (2, 0)))


def large_chunk(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("block1_conv1", (1,), "f8", chunks=(10_000_000,), maxshape=(None,), compression="gzip")


def text_weights(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["block1_conv1"] = np.zeros((3, 3, 3, 64), "S1")


def weights_elsewhere(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("a", (3, 3, 3, 64), "f4", external=[(str(path.with_name("pipe")), 0, KERNEL.nbytes)])


def endless_scans(path: Path) -> None:
    save(path, np.zeros((32, 32, 3), np.uint8))
    data = path.read_bytes()
    scan = data[data.index(b"\xff\xda") : -2]
    path.write_bytes(data[:-2] + scan * 200 + data[-2:])


def many_pictures(path: Path) -> None:
    """The same in the clothes of a format that holds several pictures."""
    small = io.BytesIO()
    second = Image.new("RGB", (32, 32))
    second.save(small, "MPO", save_all=True, append_images=[second])
    data = small.getvalue()
    start = data.index(b"\xff\xda")
    end = data.index(b"\xff\xd9", start)
    path.write_bytes(data[:end] + data[start:end] * 200 + data[end:])


def large_tile(path: Path) -> None:
    """A TIFF of 16x16 whose one tile is 46,336x46,336."""
    shorts = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 46_336, 323: 46_336}
    tile = zlib.compress(bytes(1 << 16))
    entries = [*shorts.items(), (324, 8 + 2 + 12 * 10 + 4), (325, len(tile))]
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + tags + bytes(4) + tile)


def corners(path: Path) -> None:
    ring = [[n % 7, n * 37 % 60_000] for n in range(20_000)]
    scene = {"imgHeight": 60_000, "imgWidth": 1, "objects": [{"label": "car", "polygon": ring}] * 3}
    path.write_text(json.dumps(scene))


@pytest.mark.parametrize(
    ("name", "make", "read", "message"),
    [
        ("a.pth", huge_side, read_state_dict, "something else than tensors"),
        ("b.pth", false_storage, read_state_dict, "has 96 bytes, and claims"),
        ("c.pth", packed_head, read_state_dict, "its pickle is compressed"),
        ("a.npz", bzip, array, "packed as numpy never does"),
        ("b.npz", long_head, array, "version"),
        ("a.h5", large_chunk, vgg, "larger than any of VGG's"),
        ("b.h5", text_weights, vgg, "something else than numbers"),
        ("c.h5", weights_elsewhere, vgg, "something else than numbers of its own"),
        ("a.jpg", endless_scans, read_photo, "too many scans"),
        ("a.json", corners, polygons, "so many corners"),
        ("a.toml", lambda path: path.write_text("a" + ".a" * 20_000 + "=1"), config, "one of its keys is"),
        ("a.csv", lambda path: path.write_text("id,name\n" + "0,a\n" * 60_000), read_class_table, "60000 classes"),
        ("b.jpg", many_pictures, read_photo, "too many scans"),
        ("a.png", os.mkfifo, read_label_map, "is no file"),
        ("b.json", os.mkfifo, polygons, "is no file"),
        ("d.pth", os.mkfifo, read_state_dict, "is no file"),
        ("c.npz", os.mkfifo, array, "is no file"),
        ("a.npy", os.mkfifo, read_class_dict, "is no file"),
        ("a.tif", large_tile, read_label_map, "tiles are much larger"),
    ],
)
def test_it_is_refused_at_once(tmp_path: Path, name: str, make: Reader, read: Reader, message: str) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(P2PHDError, match=message) as refusal:
        read(path)
    assert name in str(refusal.value)


def test_a_million_mistakes_take_no_more_than_the_first(dataset: Path, tmp_path: Path) -> None:
    spec = unseal((dataset / "dataset.json").read_text())
    spec["splits"]["train"] = [{}] * 300_000
    (tmp_path / "dataset.json").write_text(seal(spec))
    tracemalloc.start()
    with pytest.raises(P2PHDError, match="stem: Field required"):
        read_spec(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 << 20


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/step-00000002/score.json", "model/weights.npz"])
def test_a_pipe_in_a_run_stops_nothing(p2phd: Command, packed: Path, begun: Path, name: str) -> None:
    (begun / name).unlink()
    os.mkfifo(begun / name)
    outcome = p2phd("train", packed, begun, "--resume")
    assert f"{begun / name}: is no file" in outcome.err


def test_a_pickle_can_change_nothing_of_ours(tmp_path: Path) -> None:
    """It asks for a name, and then for other attributes of what it gets."""
    state = pickle.dumps((None, {"__defaults__": (1, 2, 3)}), 2)[2:-1]
    write_zip(tmp_path / "a.pth", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + state + b"b.", {})
    with pytest.raises(P2PHDError, match=r"a\.pth"):
        read_state_dict(tmp_path / "a.pth")
    assert _view.__defaults__ is None


def test_pipes_in_the_place_of_a_shard_and_of_options(p2phd: Command, packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "packed")
    spec = unseal((tmp_path / "packed/pack.json").read_text())
    (shard,) = spec["shards"]["train"]
    (tmp_path / "packed/pack.json").write_text(seal(spec | {"shards": {"train": [shard | {"bytes": 0}]}}))
    (tmp_path / "packed" / shard["file"]).unlink()
    os.mkfifo(tmp_path / "packed" / shard["file"])
    assert f"{shard['file']}: is no file" in p2phd("train", tmp_path / "packed", tmp_path / "run").err
    lay_out("train_labels_only", tmp_path / "reference")
    (tmp_path / "reference/opt.txt").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "reference/opt.txt")
    assert "opt.txt: is no file" in p2phd("import", tmp_path / "reference", tmp_path / "run").err


@pytest.mark.parametrize("verb", ["prepare", "pack", "export", "import"])
def test_a_link_where_a_folder_is_made_leads_nowhere(
    p2phd: Command, city: Path, dataset: Path, run: Path, tmp_path: Path, verb: str
) -> None:
    mine, staging = tmp_path / "mine", partial_folder(tmp_path / "made")
    save(mine / "precious/data.png", np.zeros((2, 2), np.uint8))
    before = tree(mine)
    lay_out("train_labels_only", tmp_path / "reference")
    words = (verb, {"prepare": city, "pack": dataset, "export": run, "import": tmp_path / "reference"}[verb])
    staging.symlink_to(mine)
    outcome = p2phd(*words, tmp_path / "made")
    assert outcome.code == 1 and f"{staging}: is a link, and may lead anywhere; delete it" in outcome.err
    staging.unlink()
    staging.mkdir()
    (staging / "train").symlink_to(mine)
    outcome = p2phd(*words, tmp_path / "made")
    assert outcome.code == 1 and f"{staging / 'train'}: is a link" in outcome.err
    assert tree(mine) == before and not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["train", "train/label", ".prepared/train"])
def test_a_data_set_with_links_is_not_written_to(p2phd: Command, city: Path, tmp_path: Path, name: str) -> None:
    made, outside = tmp_path / "made", tmp_path / "outside"
    assert p2phd("prepare", city, made).code == 0
    shutil.move(made / name, outside)
    (made / name).symlink_to(outside)
    before = tree(outside)
    outcome = p2phd("prepare", city, made, "--width", 32)
    assert outcome.code == 1 and f"{made / name}: is a link" in outcome.err
    assert tree(outside) == before


def test_huge_discriminators_are_refused_before_they_are_built(p2phd: Command, packed: Path, begun: Path) -> None:
    settings = unseal((begun / "settings.json").read_text())
    settings["discriminator"] |= {"filters": 512, "layers": 10, "scales": 10}
    (begun / "settings.json").write_text(seal(settings))
    tracemalloc.start()
    outcome = p2phd("train", packed, begun, "--resume")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "is too small for this run's settings" in outcome.err and peak < 100 << 20


@pytest.mark.parametrize("verb", ["prepare", "pack"])
def test_two_processes_do_not_make_one_folder(
    p2phd: Command, city: Path, dataset: Path, tmp_path: Path, verb: str
) -> None:
    words = (verb, {"prepare": city, "pack": dataset}[verb], tmp_path / "made")
    with held(partial_folder(tmp_path / "made")) as staging:
        outcome = p2phd(*words)
        assert outcome.code == 1 and f"{staging}: another process is working here; wait for it" in outcome.err
    assert p2phd(*words).code == 0


def test_a_damaged_data_set_can_be_made_again(p2phd: Command, city: Path, tmp_path: Path) -> None:
    made, packed = tmp_path / "made", tmp_path / "packed"
    assert p2phd("prepare", city, made).code == 0
    before = tree(made)
    label = next(made.glob("train/label/*"))
    label.write_bytes(label.read_bytes()[:60])
    (made / "dataset.json").write_bytes(b"\xff\xfe{")
    assert p2phd("prepare", city, made).code == 0
    assert tree(made) == before
    assert p2phd("pack", made, packed).code == 0
    (packed / "pack.json").write_text("{")
    assert p2phd("pack", made, packed).err.endswith(f"; delete {packed}, or name another folder\n")


@pytest.mark.parametrize("verb", ["prepare", "pack"])
def test_a_mount_point_is_no_place_for_a_folder_that_is_renamed(
    p2phd: Command, city: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path)
    outcome = p2phd(verb, {"prepare": city, "pack": dataset}[verb], tmp_path)
    assert outcome.code == 1 and outcome.err.endswith(f"{tmp_path}: is a mount point; name a folder in it\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["checkpoints", "samples", "model", "metrics.jsonl", ".lock"])
def test_a_run_with_links_is_not_written_to(p2phd: Command, run: Path, tmp_path: Path, name: str) -> None:
    copy, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(run, copy)
    (outside / ".mine.partial").mkdir(parents=True)
    (outside / ".notes.99999999.partial").write_text("mine")
    if (copy / name).is_dir():
        shutil.rmtree(copy / name)
    else:
        (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to(outside)
    outcome = p2phd("cluster", copy)
    assert outcome.code == 1 and f"{copy / name}: is a link" in outcome.err
    assert sorted(path.name for path in outside.iterdir()) == [".mine.partial", ".notes.99999999.partial"]


def test_a_folder_of_others_is_refused_untouched(p2phd: Command, packed: Path, tmp_path: Path) -> None:
    kept = tmp_path / "foreign/checkpoints/.mine.partial/data"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    assert "holds other files" in p2phd("train", packed, tmp_path / "foreign").err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]


def test_what_is_no_checkpoint_is_left_alone(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    newest = Run(tmp_path / "run").checkpoints()[-1]
    shutil.copytree(newest, newest.with_name(f"{newest.name}-copy2"))
    newest.with_name("step-9x9").mkdir()
    assert Run(tmp_path / "run").checkpoints() == [
        tmp_path / "run" / path.relative_to(run) for path in Run(run).checkpoints()
    ]
    Run(tmp_path / "run").prune(1)
    assert newest.with_name(f"{newest.name}-copy2").exists()


def test_clustering_where_nothing_is_large_enough(p2phd: Command, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    outcome = p2phd("cluster", tmp_path / "run", "--min-area", 0.9)
    assert outcome.code == 0 and "choose a smaller --min-area" in outcome.err
    assert not (tmp_path / "run/clusters.png").exists()
