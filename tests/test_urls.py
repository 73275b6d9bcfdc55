"""Data and runs at URLs, tried with `file://` and `ram://`: the same bytes, and nothing that looks whole and is not."""

import json
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from pix2pixhd_cli.data import records
from pix2pixhd_cli.data.records import PackedSplit
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.mirror import (
    DESCRIPTION,
    GOING_ON,
    WRITER,
    Claim,
    Mirror,
    Writer,
    cache,
    training_copy,
    working_copy,
)
from pix2pixhd_cli.pipeline.cluster import cluster
from pix2pixhd_cli.pipeline.encode import encode
from pix2pixhd_cli.pipeline.pack import pack
from pix2pixhd_cli.pipeline.train import train
from pix2pixhd_cli.sealed import seal, unseal
from pix2pixhd_cli.settings import Settings
from pix2pixhd_cli.training import Trainer
from pix2pixhd_cli.urls import Url, locate, refuse_url
from tests.conftest import Command, tiny_settings, tree
from tests.power import Death

OPERATIONS = ("rename", "remove", "rmtree", "makedirs")


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A folder that is known by its URL."""
    return tmp_path / "there"


@pytest.fixture(scope="session")
def url(packed: Path) -> str:
    """A packed data set in memory."""
    where = "ram://bucket/packed"
    pack(packed.with_name("dataset"), where)
    return where


class Network:
    """A file system that does so many operations and then, until it is mended, no more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = sys.maxsize
        self.done = 0
        files = tf.io.gfile
        for name in OPERATIONS:
            monkeypatch.setattr(files, name, self._counted(getattr(files, name)))
        monkeypatch.setattr(files, "GFile", self._opening(files.GFile))

    def _count(self) -> None:
        if self.done >= self.left:
            raise tf.errors.UnavailableError(None, None, "cannot; the network is down")
        self.done += 1

    def _counted(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            self._count()
            return operation(*arguments, **keywords)

        return counted

    def _opening(self, opened: Callable[..., Any]) -> Callable[..., Any]:
        def opening(path: str, mode: str) -> Any:
            if "w" in mode:
                self._count()
            return opened(path, mode)

        return opening


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return Network(monkeypatch)


def as_url(path: Path) -> str:
    return f"file://{path}"


def outcome(folder: Path) -> dict[str, bytes]:
    """What must be the same wherever a run was trained: all but places and seconds."""
    found = {name: data for name, data in tree(folder).items() if name not in (".lock", "sources.json")}
    lines = found.pop("metrics.jsonl", b"").splitlines()
    steps = [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]
    return found | {"metrics": json.dumps(steps).encode()}


def dying(at: int) -> Callable[..., dict[str, float]]:
    """A training step that is the process's last, after so many."""
    original, steps = Trainer.step, []

    def step(self: Trainer, batch: Any, epoch: int) -> dict[str, float]:
        steps.append(1)
        if len(steps) > at:
            raise Death
        return original(self, batch, epoch)

    return step


def test_what_is_a_url() -> None:
    assert locate("gs://bucket/a/b/") == Url("gs://bucket/a/b") and locate("GS://b/x") == Url("gs://b/x")
    assert locate("a/b") == Path("a/b") and locate(Path("/a")) == Path("/a") and locate("a:/b") == Path("a:/b")
    assert (Url("gs://b/x") / "y").name == "y" and (Url("gs://b/x") / "y").parent == Url("gs://b/x")
    for text in ("gs://", "gs:///", "gs://b/../c", "gs://b/\n"):
        with pytest.raises(P2PHDError, match="no folder's URL"):
            locate(text)
    for text in ("file://run", "file://localhost/run", "FILE://a"):
        with pytest.raises(P2PHDError, match="names a machine; write file:///folder with three slashes"):
            locate(text)
    with pytest.raises(P2PHDError, match="gs://b/x: a URL must come as text"):
        locate(Path("gs://b/x"))


def test_files_at_urls(tmp_path: Path) -> None:
    for base in (locate("ram://files/x"), locate(as_url(tmp_path / "x"))):
        assert isinstance(base, Url)
        assert not base.exists() and not base.is_dir() and base.names() == []
        for text in ("long text", "text"):
            (base / "sub" / "a").write_text(text)
            assert (base / "sub" / "a").read_text("utf-8") == text and (base / "sub" / "a").stat().st_size == len(text)
        assert base.names() == ["sub"] and (base / "sub").names() == ["a"]
        assert (base / "sub").is_dir() and not (base / "sub").is_file() and (base / "sub" / "a").is_file()
        with (base / "sub" / "a").open() as file:
            file.seek(2)
            assert file.read(5) == b"xt"
        with pytest.raises(FileNotFoundError) as failure:
            (base / "b").stat()
        assert failure.value.filename == str(base / "b")
        with pytest.raises(FileNotFoundError):
            (base / "b").read_text("utf-8")
        (base / "b").remove()
        (base / "sub" / "a").remove()
        (base / "sub").remove_folder()
        (base / "sub").remove_folder()
        assert base.names() == []


@pytest.mark.parametrize("url", ["s3://bucket/x", "foo://x/y"])
def test_a_url_that_nothing_opens(p2phd: Command, dataset: Path, url: str, tmp_path: Path) -> None:
    verbs = (
        ("pack", dataset, url),
        ("train", url, tmp_path / "run"),
        ("encode", url),
        ("generate", url, dataset, tmp_path),
    )
    for words in verbs:
        began = time.monotonic()
        outcome = p2phd(*words)
        assert outcome.code == 1 and time.monotonic() - began < 5
        assert outcome.err.startswith(f"error: {url}") and outcome.err.count("\n") == 1
        assert "file://" in outcome.err and "pip install tensorflow-io" in outcome.err
    assert not (tmp_path / "run").exists()


def test_tensorflow_io_is_brought_in_where_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorflow_io.py").write_text(
        "import tensorflow as tf\nknown = tf.io.gfile.get_registered_schemes\n"
        "tf.io.gfile.get_registered_schemes = lambda: [*known(), 'near']\n"
    )
    monkeypatch.setattr(tf.io.gfile, "get_registered_schemes", tf.io.gfile.get_registered_schemes)
    monkeypatch.syspath_prepend(tmp_path)
    assert "tensorflow_io" not in sys.modules
    locate("ram://x/y").exists()
    assert "tensorflow_io" not in sys.modules
    with pytest.raises(OSError, match="not implemented"):
        locate("near://x/y").exists()
    with pytest.raises(P2PHDError, match="near://, ram:// here, and no far://"):
        locate("far://x/y").exists()
    monkeypatch.delitem(sys.modules, "tensorflow_io")
    (tmp_path / "tensorflow_io.py").write_text("raise RuntimeError('undefined\\nsymbol')")
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    with pytest.raises(P2PHDError, match=r"tensorflow-io cannot be loaded \(undefined symbol\)"):
        locate("far://x/y").exists()


def test_what_must_lie_on_this_machine(p2phd: Command, run: Path, dataset: Path, tmp_path: Path) -> None:
    for words in (
        ("prepare", "gs://b/x", tmp_path / "x"),
        ("prepare", tmp_path, "gs://b/x"),
        ("pack", "gs://b/x", tmp_path / "x"),
        ("generate", run, "gs://b/x", tmp_path / "x"),
        ("generate", run, dataset, "gs://b/x"),
        ("export", run, "gs://b/x"),
        ("import", "gs://b/x", tmp_path / "x"),
        ("import", tmp_path, "gs://b/x"),
    ):
        outcome = p2phd(*words)
        assert (outcome.code, outcome.err) == (
            1,
            "error: gs://b/x: must lie on this machine; only PACKED and RUN may be URLs\n",
        )
    assert not (tmp_path / "x").exists() and refuse_url(None) is None


def test_parts_need_a_folder(p2phd: Command, dataset: Path, run: Path, there: Path) -> None:
    shutil.copytree(run, there)
    for words in (
        ("pack", dataset, f"file://{there}-packed", "--part", "1/2"),
        ("pack", dataset, f"file://{there}-packed", "--merge"),
        ("encode", f"file://{there}", "--part", "1/2"),
    ):
        outcome = p2phd(*words)
        assert outcome.code == 2 and "parts need a folder that all of them share" in outcome.err, outcome.err


def test_a_pack_at_a_url_is_the_same(dataset: Path, packed: Path, url: str, there: Path) -> None:
    pack(dataset, as_url(there), Settings(pack={"shards": 2}))
    assert len(list(there.glob("train*"))) == 2
    pack(dataset, as_url(there))
    assert tree(there) == tree(packed)
    here, ours = PackedSplit(packed, "train"), PackedSplit(url, "train")
    assert str(ours.packed) == url and ours.digest == here.digest and len(ours) == len(here)
    for mine, yours in zip(here, ours, strict=True):
        assert all((getattr(mine, kind) == getattr(yours, kind)).all() for kind in ("label", "instance", "photo"))


def test_damage_at_a_url(packed: Path, there: Path) -> None:
    shutil.copytree(packed, there)
    shard = next(there.glob("train*"))
    whole = shard.read_bytes()
    place = PackedSplit(as_url(there), "train").places[3]
    shard.write_bytes(whole[:-1])
    with pytest.raises(P2PHDError, match=f"file://.*{shard.name}: has .* bytes"):
        PackedSplit(as_url(there), "train")
    damaged = bytearray(whole)
    damaged[place.offset + place.length // 2] ^= 1
    shard.write_bytes(damaged)
    split = PackedSplit(as_url(there), "train")
    split.load(2)
    with pytest.raises(P2PHDError, match="record 3 of 'train' is damaged"):
        split.load(3)
    shard.unlink()
    with pytest.raises(FileNotFoundError) as failure:
        split.load(2)
    assert failure.value.filename == as_url(shard)
    with pytest.raises(P2PHDError, match="this shard is missing"):
        PackedSplit(as_url(there), "train")
    with pytest.raises(P2PHDError, match="no packed data set here"):
        PackedSplit(as_url(there / "x"), "train")


def test_a_large_pack_is_checked_as_it_is_read(packed: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(packed, there)
    shard, place = next(there.glob("train*")), PackedSplit(there, "train").places[3]
    damaged = bytearray(shard.read_bytes())
    damaged[place.offset + place.length // 2] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(P2PHDError, match="is damaged, its checksum is not"):
        PackedSplit(there, "train")
    monkeypatch.setattr(records, "READ_FIRST", 0)
    with pytest.raises(P2PHDError, match="record 3 of 'train' is damaged"):
        PackedSplit(there, "train").load(3)


def test_packs_made_before_records_had_checksums(packed: Path, there: Path) -> None:
    shutil.copytree(packed, there)
    values = unseal((there / "pack.json").read_text())
    for shards in values["shards"].values():
        for shard in shards:
            del shard["index"]
    (there / "pack.json").write_text(seal(values))
    for place in (there, as_url(there)):
        split = PackedSplit(place, "train")
        assert [p[:3] for p in split.places] == [p[:3] for p in PackedSplit(packed, "train").places]
        assert split.places[0].checksum is None and split.example(5).stem == split.entries[5].stem


def test_a_pack_is_made_where_nothing_else_lies(dataset: Path, there: Path) -> None:
    there.mkdir()
    (there / "other-00000-of-00001.tfrecord").write_bytes(b"mine")
    with pytest.raises(P2PHDError, match="holds other files"):
        pack(dataset, as_url(there))
    assert tree(there) == {"other-00000-of-00001.tfrecord": b"mine"}


def test_a_pack_that_is_stopped_anywhere_never_looks_whole(
    dataset: Path, packed: Path, there: Path, network: Network
) -> None:
    old = there.with_name("old")
    pack(dataset, old, Settings(pack={"split": ("train",), "shards": 3}))
    new = tree(packed)
    for operations in range(1000):
        shutil.rmtree(there, ignore_errors=True)
        shutil.copytree(old, there)
        network.done, network.left = 0, operations
        try:
            pack(dataset, as_url(there))
        except OSError as error:
            assert error.filename.startswith("file://") and error.strerror == "the network is down"
        if network.done < operations:
            break
        if (there / "pack.json").exists():
            found = {name: data for name, data in tree(there).items() if not name.startswith(".")}
            assert found in (tree(old), new)
        network.left = sys.maxsize
        pack(dataset, as_url(there))
        assert tree(there) == new
    assert operations >= 20 and tree(there) == new


def test_one_process_at_a_time(p2phd: Command, dataset: Path, packed: Path, run: Path, there: Path) -> None:
    shutil.copytree(run, there)
    other = Writer(host="elsewhere", process=7, token="x")
    (there / WRITER).write_text(seal(other.model_dump()))
    before = tree(there)
    for words in (("encode", as_url(there)), ("cluster", as_url(there)), ("train", packed, as_url(there), "--resume")):
        outcome = p2phd(*words)
        assert outcome.code == 1
        assert f"{as_url(there)}: process 7 on elsewhere is writing here" in outcome.err
        assert f"if it is gone for sure, delete {as_url(there)}/.writer" in outcome.err
    assert tree(there) == before
    assert p2phd("generate", as_url(there), dataset, there.with_name("out"), "--limit", "1").code == 0
    dead = other.model_copy(update={"host": socket.gethostname(), "process": 2**22 + 1})
    (there / WRITER).write_text(seal(dead.model_dump()))
    cluster(as_url(there))
    assert not (there / WRITER).exists()


def test_a_run_is_one_by_its_path_and_by_its_url(p2phd: Command, packed: Path, run: Path, there: Path) -> None:
    shutil.copytree(run, there)
    names = (str(there), as_url(there))
    for name, other in (names, names[::-1]):
        with working_copy(name, DESCRIPTION, writing=True) as copy, copy.lock():
            for words in (("cluster", other), ("train", packed, other, "--resume")):
                outcome = p2phd(*words)
                assert outcome.code == 1 and "is writing here" in outcome.err, outcome.err


def test_verbs_at_urls(
    p2phd: Command, dataset: Path, packed: Path, url: str, run: Path, there: Path, tmp_path: Path
) -> None:
    here = shutil.copytree(run, tmp_path / "here")
    shutil.copytree(run, there)
    for folder in (here, there):
        for name in ("features.npz", "clusters.npz", "clusters.png"):
            (folder / name).unlink()
    names = ("--name", "road:0=asphalt", "--name", "car:0=red")
    for place, out in ((str(here), tmp_path / "out"), (as_url(there), tmp_path / "out_of_url")):
        for words in (
            ("encode", place, packed),
            ("cluster", place, *names),
            ("generate", place, dataset, out, "--feature-code", "road=asphalt", "--limit", "2"),
        ):
            outcome = p2phd(*words)
            assert (outcome.code, outcome.err) == (0, "") and "/p2phd-" not in outcome.out
    assert tree(there) == {name: data for name, data in tree(here).items() if name != ".lock"} | {
        ".lock": (run / ".lock").read_bytes()
    }
    assert tree(tmp_path / "out") == tree(tmp_path / "out_of_url")
    encode(as_url(there), url)
    cluster(as_url(there))
    assert (there / "clusters.npz").read_bytes() == (run / "clusters.npz").read_bytes()
    assert p2phd("export", as_url(there), tmp_path / "saved").code == 0
    (tmp_path / "gone").mkdir()
    outcome = p2phd("cluster", as_url(there), tmp_path / "gone")
    assert outcome.code == 0 and "no picture of the styles" in outcome.err and not (there / "clusters.png").exists()
    outcome = p2phd("encode", as_url(tmp_path / "gone"))
    assert outcome.code == 1 and outcome.err.startswith(f"error: {as_url(tmp_path / 'gone')}: no trained run here")


def test_a_training_goes_on_from_its_url_alone(url: str, run: Path, there: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Death):
        patch.setattr(Trainer, "step", dying(5))
        patch.setattr(Mirror, "_finish", lambda _: None)  # A process that was killed does nothing more.
        patch.setattr("pix2pixhd_cli.mirror.TrainingMirror._give_up", lambda _: None)
        train(url, as_url(there), tiny_settings())
    assert (there / WRITER).exists() and sorted(p.name for p in (there / "checkpoints").iterdir()) == [
        "step-00000002",
        "step-00000004",
    ]
    shutil.rmtree(cache())
    train(url, as_url(there), resume=True)
    trained = {name: data for name, data in outcome(run).items() if not name.startswith(("features", "clusters"))}
    assert outcome(there) == trained
    assert not (there / WRITER).exists() and not list(cache().iterdir())
    assert unseal((there / "sources.json").read_text())["packed"] == url
    encode(as_url(there))
    assert (there / "features.npz").exists()


def test_copying_up_is_tried_again(
    url: str,
    run: Path,
    there: Path,
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    original = Trainer.step

    def step(self: Trainer, batch: Any, epoch: int) -> dict[str, float]:
        steps.append(1)
        network.left = 0 if len(steps) in down else sys.maxsize
        return original(self, batch, epoch)

    monkeypatch.setattr(Trainer, "step", step)
    steps: list[int] = []
    down = [2]
    train(url, as_url(there), tiny_settings())
    told = capsys.readouterr().err
    assert "the network is down; not written. Training goes on, and tries again at the next save" in told
    assert told.count("warning") == 1 and "file://" in told
    trained = {name: data for name, data in outcome(run).items() if not name.startswith(("features", "clusters"))}
    assert outcome(there) == trained

    shutil.rmtree(there)
    steps.clear()
    down += [3, 4, 5, 6]
    with pytest.raises(P2PHDError, match=r"steps 1 to 6 could not be saved.*file://\S+ --resume"):
        train(url, as_url(there), tiny_settings())
    assert f"what was not copied up lies in {cache()}" in capsys.readouterr().err
    assert (there / "settings.json").exists() and not (there / "checkpoints").exists()
    network.left = sys.maxsize
    kept = shutil.copytree(cache(), tmp_path / "kept")
    writer = (there / WRITER).rename(tmp_path / "writer")
    with training_copy(as_url(there)) as copy:
        assert not copy.checkpoints(), "another may have written there: what is here may be older"
    shutil.copytree(kept, cache(), dirs_exist_ok=True)
    writer.rename(there / WRITER)
    train(url, as_url(there), resume=True)
    assert len(steps) == 6 and "going on with what lies in" in capsys.readouterr().out
    assert outcome(there) == trained and not list(cache().iterdir())


def test_a_run_that_is_taken_away_is_told(url: str, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Writer(host="elsewhere", process=7, token="x")
    original = Trainer.step

    def step(self: Trainer, batch: Any, epoch: int) -> dict[str, float]:
        (there / WRITER).write_text(seal(other.model_dump()))
        return original(self, batch, epoch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(P2PHDError, match="could not be saved"):
        patch.setattr(Trainer, "step", step)
        train(url, as_url(there), tiny_settings())
    assert "process 7 on elsewhere writes here now; not written" in capsys.readouterr().err
    assert (there / WRITER).exists() and not (there / "checkpoints").exists()


def test_trainings_that_do_not_begin(url: str, run: Path, there: Path, network: Network) -> None:
    shutil.copytree(run, there)
    before = tree(there)
    with pytest.raises(P2PHDError, match=f"{as_url(there)}: a run is here already"):
        train(url, as_url(there), tiny_settings())
    train(url, as_url(there), resume=True, dry_run=True)
    other = there.with_name("other")
    other.mkdir()
    (other / "mine").write_text("mine")
    with pytest.raises(P2PHDError, match=f"{as_url(other)}: holds other files"):
        train(url, as_url(other), tiny_settings())
    network.left = 0
    with pytest.raises(OSError, match="network"):
        train(url, as_url(there.with_name("none")), tiny_settings())
    assert tree(there) == before and tree(other) == {"mine": b"mine"} and not there.with_name("none").exists()
    assert not list(cache().iterdir())


def test_networks_start_from_a_url(packed: Path, run: Path, there: Path, tmp_path: Path) -> None:
    shutil.copytree(run, there)
    train(packed, tmp_path / "new", tiny_settings(train={"epochs": 1, "decay_epochs": 0}), init_from=as_url(there))
    samples = (tmp_path / "new" / "samples" / "step-00000000.png", run / "samples" / "step-00000006.png")
    assert samples[0].read_bytes() == samples[1].read_bytes()
    sources = unseal((tmp_path / "new" / "sources.json").read_text())
    assert (sources["init_from"], sources["init_step"]) == (as_url(there), 6)


def made(folder: Path, step: int, text: str) -> None:
    """A checkpoint's files, as far as copying knows them."""
    for file in ("networks.npz", "training.npz", "score.json"):
        path = folder / "checkpoints" / f"step-{step:08d}" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text} {step} {file}")


def grown(folder: Path) -> Iterator[dict[str, bytes]]:
    """A run's folder as it grows: begun, saved, saved and pruned, styles found, and found anew."""
    for name in ("dataset.json", "sources.json", "settings.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    yield tree(folder)
    for step in (2, 4, 6):
        made(folder, step, "first")
        (folder / "model").mkdir(exist_ok=True)
        for name in ("model/weights.npz", "metrics.jsonl"):
            (folder / name).write_text(f"{step} of {name}")
        shutil.rmtree(folder / "checkpoints" / f"step-{step - 4:08d}", ignore_errors=True)
        yield tree(folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    made(folder, 6, "again, and longer")
    for name in ("features.npz", "clusters.npz", "clusters.png"):
        (folder / name).write_text(f"old {name}")
    yield tree(folder)
    (folder / "clusters.npz").write_text("newer clusters.npz")
    (folder / "clusters.png").unlink()
    yield tree(folder)


def check_whole(there: Path, before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """Whatever looks whole is what it was before or what it is now."""
    found = {name: data for name, data in tree(there).items() if not any(p.startswith(".") for p in Path(name).parts)}
    for name, data in found.items():
        assert data in (before.get(name), after.get(name)), name
    if "settings.json" in found:
        assert {"dataset.json", "sources.json"} <= found.keys()
    if "clusters.png" in found:
        assert any(all(found[n] == state.get(n) for n in ("clusters.npz", "clusters.png")) for state in (before, after))
    marked = [name.removesuffix("score.json") for name in found if name.endswith("score.json")]
    for folder in marked:
        files = [folder + file for file in ("networks.npz", "training.npz", "score.json")]
        assert any(all(found.get(n) == state.get(n) for n in files) for state in (before, after)), folder
    assert marked or not any(name.startswith("checkpoints") for name in before)


def test_a_run_whose_copying_stops_anywhere_is_whole(tmp_path: Path, network: Network) -> None:
    before: dict[str, bytes] = {}
    here, there, state = tmp_path / "here", tmp_path / "there", tmp_path / "state"
    there.mkdir()
    mirror = Mirror(here, Url(as_url(there)), GOING_ON)
    mirror._claim.take()
    tried = 0
    for after in grown(here):
        known = dict(mirror._known)
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(there, state)
        for operations in range(1000):
            shutil.rmtree(there)
            shutil.copytree(state, there)
            mirror._known = dict(known)
            network.done, network.left = 0, operations
            try:
                mirror.copy_up()
            except OSError:
                tried += 1
            else:
                break
            check_whole(there, before, after)
            network.left = sys.maxsize
            with working_copy(as_url(there), GOING_ON) as copy:
                for checkpoint in copy.checkpoints():
                    assert len(list(checkpoint.iterdir())) == 3
            mirror.copy_up()
            assert {n: d for n, d in tree(there).items() if n != WRITER} == after
        assert {n: d for n, d in tree(there).items() if n != WRITER} == after
        assert not [folder for folder in there.rglob("step-*") if not list(folder.iterdir())]
        before = after
    assert tried > 60


def test_a_claim_is_checked(there: Path) -> None:
    place = Url(as_url(there))
    first, second = Claim(place), Claim(place)
    first.take()
    second.take()  # Of the same process, so the first is over.
    with pytest.raises(OSError, match="writes here now"):
        first.check()
    first.release()
    second.check()
    (there / WRITER).unlink()
    with pytest.raises(OSError, match="took it away"):
        second.check()
    there.joinpath("linked").symlink_to(there)
    with pytest.raises(P2PHDError, match="is a link"):
        first.take()
