"""Works in parts: the bytes of a single run, whatever is killed, missing, or made with something else."""

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pix2pixhd_cli.data.parts import digest_of_files, share
from pix2pixhd_cli.errors import DataProblems, P2PHDError, SettingsError
from pix2pixhd_cli.pipeline import encode as encode_module
from pix2pixhd_cli.pipeline import generate as generate_module
from pix2pixhd_cli.pipeline import pack as pack_module
from pix2pixhd_cli.pipeline import prepare as prepare_module
from pix2pixhd_cli.runs import Run
from pix2pixhd_cli.settings import Part, Settings, load_settings, parse_part
from tests.conftest import Command, read, save, tree
from tests.power import Death

VERBS = ("prepare", "pack", "encode", "generate")
FLAGS: dict[str, dict[str, Any]] = {
    "prepare": {"width": 32},
    "pack": {"shards": 4},
    "encode": {},
    "generate": {"grid": True, "all_codes": ("car",), "seed": 3},
}
# What makes one piece of each verb's work.
PIECES = {
    "prepare": (prepare_module, "_convert"),
    "pack": (pack_module, "_write_shard"),
    "encode": (encode_module, "_encode_group"),
    "generate": (generate_module, "_paint"),
}


class Bench:
    """Does the four verbs in folders of its own."""

    def __init__(self, folder: Path, city: Path, dataset: Path, run: Path) -> None:
        self.folder, self.city, self.dataset, self.run = folder, city, dataset, run

    def arguments(self, verb: str, name: str = "here") -> list[Path]:
        made = self.folder / name / "made"
        made.parent.mkdir(exist_ok=True)
        if verb == "encode" and not made.exists():
            shutil.copytree(self.run, made, ignore=shutil.ignore_patterns("features.npz", ".lock"))
        before = {"prepare": [self.city], "pack": [self.dataset], "encode": [], "generate": [self.run, self.dataset]}
        return [*before[verb], made]

    def do(self, verb: str, name: str = "here", **options: Any) -> Any:
        """Do a verb, or a part of it."""
        typed = {verb: {**FLAGS[verb], **options}}
        *_, made = self.arguments(verb, name)
        if verb == "prepare":
            return prepare_module.prepare(self.city, made, load_settings(typed))
        if verb == "pack":
            return pack_module.pack(self.dataset, made, load_settings(typed))
        if verb == "encode":
            return encode_module.encode(made, settings=load_settings(typed, run=made))
        return generate_module.generate(self.run, self.dataset, made, load_settings(typed, run=self.run))

    def left(self, name: str = "here") -> dict[str, bytes]:
        """Every file that is left, hidden ones too."""
        return {path: data for path, data in tree(self.folder / name).items() if path != "made/.lock"}


@pytest.fixture
def bench(city: Path, dataset: Path, run: Path, tmp_path: Path) -> Bench:
    return Bench(tmp_path, city, dataset, run)


@pytest.fixture(scope="module")
def whole(
    city: Path, dataset: Path, run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, bytes]]:
    """What a single run of a verb leaves."""
    bench, found = Bench(tmp_path_factory.mktemp("whole"), city, dataset, run), {}

    def left(verb: str) -> dict[str, bytes]:
        if verb not in found:
            bench.do(verb, verb)
            found[verb] = bench.left(verb)
        return found[verb]

    return left


def test_shares_are_all_items_in_order_and_as_many_each() -> None:
    for length, of in itertools.product(range(20), range(1, 9)):
        shares = [share(range(length), Part(number, of)) for number in range(1, of + 1)]
        assert [item for one in shares for item in one] == list(range(length))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "a/b", "2", "1/0", "1/2/3", "/", "-1/2", "1/100000", "1 / 2"])
def test_what_is_no_part(p2phd: Command, text: str) -> None:
    with pytest.raises(ValueError, match="is no part I/N"):
        parse_part(text)
    outcome = p2phd("pack", "a", "b", f"--part={text}")
    assert outcome.code == 2 and outcome.err.startswith(f"error: --part: '{text}' is no part I/N, such as 2/5")


@pytest.mark.parametrize("verb", VERBS)
def test_a_part_is_no_merge(bench: Bench, verb: str) -> None:
    with pytest.raises(SettingsError, match="--part 1/2 and --merge: a merge comes after all parts; give one of both"):
        bench.do(verb, part="1/2", merge=True)
    assert not list(bench.folder.rglob("*parts*"))


@pytest.mark.parametrize("of", [1, 2, 5])
@pytest.mark.parametrize("verb", VERBS)
def test_parts_are_what_a_single_run_is(
    bench: Bench, whole: Callable[[str], dict[str, bytes]], verb: str, of: int
) -> None:
    for number in range(of, 0, -1):
        bench.do(verb, part=f"{number}/{of}")
    bench.do(verb, merge=True)
    assert bench.left() == whole(verb)
    with pytest.raises(P2PHDError, match=r"there are no parts to merge; .* if they are not merged already"):
        bench.do(verb, merge=True)
    assert bench.left() == whole(verb)
    assert not [path for path in (bench.folder / "here").iterdir() if path.name.startswith(".made")]


def test_parts_without_a_shard_are_told(
    bench: Bench, whole: Callable[[str], dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Four shards of one split, and three of the other."""
    for number in range(1, 10):
        bench.do("pack", part=f"{number}/9")
    assert (
        capsys.readouterr().err.count("there is nothing in it, for there are only 7 shards; --shards makes more") == 2
    )
    bench.do("pack", merge=True)
    assert bench.left() == whole("pack")


def test_more_parts_than_examples(bench: Bench) -> None:
    bench.do("encode", "single", split="val")
    for number in range(1, 6):
        codes = bench.do("encode", split="val", part=f"{number}/5")
    assert len(codes.stem)
    bench.do("encode", split="val", merge=True)
    assert bench.left() == bench.left("single")


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("verb", VERBS)
def test_a_part_that_died_is_repeated(
    bench: Bench, whole: Callable[[str], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, verb: str, after: int
) -> None:
    module, piece = PIECES[verb]
    original, done = getattr(module, piece), itertools.count()

    def die(*arguments: Any) -> Any:
        if next(done) == after:
            raise Death
        return original(*arguments)

    bench.do(verb, part="1/2")
    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr(module, piece, die)
        bench.do(verb, part="2/2")
    with pytest.raises(P2PHDError, match=r"part 2/2 is not finished; repeat `p2phd .* --part 2/2` and then merge$"):
        bench.do(verb, merge=True)
    bench.do(verb, part="2/2")
    bench.do(verb, merge=True)
    assert bench.left() == whole(verb)


KILLED = """
import os, signal, sys
from pix2pixhd_cli.cli import main
number, replace, seen = int(sys.argv[1]), os.replace, []

def kill(*arguments):
    seen.append(1)
    if len(seen) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*arguments)

os.replace = kill
main(sys.argv[2:])
"""


@pytest.mark.parametrize("verb", ["prepare", "generate"])
def test_a_part_that_was_killed_is_repeated_while_another_is_at_work(
    bench: Bench, whole: Callable[[str], dict[str, bytes]], verb: str
) -> None:
    flags = {"prepare": ["--width=32"], "generate": ["--grid", "--all-codes=car", "--seed=3"]}[verb]
    words = [*map(str, bench.arguments(verb)), *flags, "--part=2/2"]
    killed = subprocess.Popen([sys.executable, "-c", KILLED, "6", verb, *words], stderr=subprocess.DEVNULL)
    bench.do(verb, part="1/2")
    assert killed.wait(120) == -signal.SIGKILL
    assert list((bench.folder / "here").rglob(".*.partial")), "it was writing"
    bench.do(verb, part="2/2")
    bench.do(verb, merge=True)
    assert bench.left() == whole(verb)


@pytest.mark.parametrize("verb", ["prepare", "pack"])
@pytest.mark.parametrize("again", [False, True])
def test_a_merge_may_die_anywhere(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str, again: bool
) -> None:
    """It goes on where it was, over another data set or pack too; but once the last records are gone it has nothing to say."""
    kinds: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "prepare": ({"limit": 1}, {"width": 64}),
        "pack": ({}, {"shards": 3}),
    }
    few, others = kinds[verb]
    bench.do(verb, "single", **few)
    if again:
        bench.do(verb, **{**few, **others})
    for number in (1, 2):
        bench.do(verb, part=f"{number}/2", **few)
    shutil.copytree(bench.folder / "here", bench.folder / "before")
    for writes in itertools.count(int(again), 3):
        with monkeypatch.context() as patch:
            left = dying(patch, writes)
            with contextlib.suppress(Death):
                bench.do(verb, merge=True, **few)
        try:
            if left[0] < 0:
                bench.do(verb, merge=True, **few)
        except P2PHDError as error:
            assert "there are no parts to merge" in str(error)
        assert bench.left() == bench.left("single")
        if left[0] >= 0:
            break
        shutil.rmtree(bench.folder / "here")
        shutil.copytree(bench.folder / "before", bench.folder / "here")
        capsys.readouterr()
    assert writes > 10


def dying(patch: pytest.MonkeyPatch, writes: int) -> list[int]:
    """Let so many changes of folders happen; the one number says how many are left, and is below 0 after a death."""
    left = [writes]
    for name in ("replace", "unlink", "rmdir", "mkdir"):
        original = getattr(os, name)

        def counted(*arguments: Any, original: Callable[..., Any] = original, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Death
            return original(*arguments, **keywords)

        patch.setattr(os, name, counted)
    return left


def test_whole_shards_of_a_part_that_died_are_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    original = pack_module._write_shard

    def write(folder: Path, dataset: Path, spec: Any, plan: Any, advance: Any) -> Any:
        if len(written) == 2:
            written.append("died")
            raise Death
        written.append(plan.file)
        return original(folder, dataset, spec, plan, advance)

    monkeypatch.setattr(pack_module, "_write_shard", write)
    with pytest.raises(Death):
        bench.do("pack", part="1/2")
    (bench.folder / "here/.made.p2phd-partial" / written[0]).write_bytes(b"damaged")
    assert [shard.file for shard in bench.do("pack", part="1/2").shards["train"]] == [
        written[0],
        written[1],
        written[4],
    ]
    assert written[2:4] == ["died", written[0]]


def test_missing_parts_are_named(bench: Bench) -> None:
    for number in (2, 4, 5):
        bench.do("pack", part=f"{number}/5")
    with pytest.raises(P2PHDError) as caught:
        bench.do("pack", merge=True)
    command = f"p2phd pack {bench.dataset} {bench.folder}/here/made --shards=4"
    assert str(caught.value) == (
        f"{bench.folder}/here/.made.p2phd-parts: parts 1/5, 3/5 are missing; "
        f"repeat `{command} --part 1/5`, and so on, and then merge"
    )


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "prepare": ({"width": 64}, "--width 64 instead of 32"),
    "pack": ({"shards": 3}, "--shards 3 instead of 4"),
    "encode": ({"split": "train"}, "--split train instead of none"),
    "generate": ({"grid": False}, "--grid off instead of on"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_parts_of_other_settings_and_numbers_are_never_mixed(
    bench: Bench, whole: Callable[[str], dict[str, bytes]], verb: str
) -> None:
    options, message = OTHERS[verb]
    bench.do(verb, part="1/3")
    bench.do(verb, part="1/2", **options)
    bench.do(verb, part="2/2")
    with pytest.raises(P2PHDError, match=f"part 1/2 is made with {message}; repeat .*parts 2/3, 3/3 are missing"):
        bench.do(verb, merge=True)
    bench.do(verb, part="1/2")
    bench.do(verb, merge=True)
    assert {n: d for n, d in bench.left().items() if n in whole(verb) or "grids" not in n} == whole(verb)


def test_a_source_that_changed_is_told_of(bench: Bench) -> None:
    shutil.copytree(bench.city, bench.folder / "city")
    bench.city = bench.folder / "city"
    for number in (1, 2, 3):
        bench.do("prepare", part=f"{number}/3")
    photo = sorted((bench.city / "leftImg8bit/train/toytown").iterdir())[4]
    save(photo, 255 - read(photo))
    with pytest.raises(P2PHDError, match=r"has changed since a part was made, or its files are gone; .* --part 2/3`"):
        bench.do("prepare", merge=True)
    bench.do("prepare", part="2/3")
    for kind in ("labelIds", "instanceIds"):
        name = photo.name.replace("leftImg8bit", f"gtFine_{kind}")
        (bench.city / "gtFine/train/toytown" / name).unlink()
    photo.unlink()
    with pytest.raises(P2PHDError, match="parts 1/3, 2/3, 3/3 are made from another list of examples"):
        bench.do("prepare", merge=True)
    for number in (1, 2, 3):
        bench.do("prepare", part=f"{number}/3")
    bench.do("prepare", merge=True)
    bench.do("prepare", "single")
    assert bench.left() == bench.left("single")


def test_problems_of_a_part_are_all_shown(p2phd: Command, bench: Bench) -> None:
    shutil.copytree(bench.city, bench.folder / "city")
    maps = sorted((bench.folder / "city/gtFine/train/toytown").glob("*labelIds.png"))
    for path in (maps[0], maps[1], maps[5]):
        save(path, np.full((32, 64), 99, np.uint8))
    made = bench.folder / "made"
    outcome = p2phd("prepare", bench.folder / "city", made, "--part", "1/3")
    assert outcome.code == 1 and "2 problems found" in outcome.err and maps[5].name not in outcome.err
    assert p2phd("prepare", bench.folder / "city", made, "--part", "3/3").code == 0
    with pytest.raises(P2PHDError, match=r"part 1/3 is not finished.*part 2/3 is missing"):
        prepare_module.prepare(bench.folder / "city", made, Settings(prepare={"merge": True}))
    assert not made.exists()
    with pytest.raises(DataProblems):
        prepare_module.prepare(bench.folder / "city", made)
    assert sorted(path.name for path in bench.folder.iterdir()) == ["city"], "a run in one piece clears up after parts"


def test_a_data_set_that_changed_is_told_of(bench: Bench) -> None:
    bench.dataset = shutil.copytree(bench.dataset, bench.folder / "dataset")
    bench.do("pack", part="1/1")
    photo = next((bench.dataset / "train/photo").iterdir())
    save(photo, 255 - read(photo))
    with pytest.raises(P2PHDError, match=r"part 1/1 is made from another data set \(\w+, and now it is \w+\); repeat"):
        bench.do("pack", merge=True)


@pytest.mark.parametrize("verb", ["encode", "generate"])
def test_parts_of_another_model_are_refused(bench: Bench, verb: str) -> None:
    made = bench.arguments("encode")[0]
    shutil.copy(bench.run / "features.npz", made)
    bench.run = made
    name = "here" if verb == "encode" else "out"
    bench.do(verb, name, part="1/2")
    with np.load(made / "model/weights.npz") as file:
        arrays = {**file, "step": np.array(7)}
    np.savez(made / "model/weights.npz", **arrays)
    bench.do(verb, name, part="2/2")
    with pytest.raises(
        P2PHDError, match=r"part 1/2 is made from another model \(step 6, \w+, and now it is step 7, \w+\)"
    ):
        bench.do(verb, name, merge=True)


def test_pictures_that_were_painted_over_are_told_of(bench: Bench, whole: Callable[[str], dict[str, bytes]]) -> None:
    for number in (1, 2):
        painted = bench.do("generate", part=f"{number}/2")
    save(painted[0], np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(P2PHDError, match=f"{painted[0].name}: is not as part 2/2 left it; repeat .*--part 2/2`"):
        bench.do("generate", merge=True)
    bench.do("generate")
    assert bench.left() == whole("generate"), "a run in one piece clears up after parts"


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_refused_while_a_part_is_at_work(
    bench: Bench, whole: Callable[[str], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Locks are an open file's, so that one process can be two."""
    module, piece = PIECES[verb]
    original, tried = getattr(module, piece), list[str]()
    refused: list[dict[str, Any]] = [
        {"part": "1/2"},
        {},
        {"merge": True},
        {"part": "1/3"},
        {"part": "2/2", **OTHERS[verb][0]},
    ]

    def attempt(**options: Any) -> str:
        try:
            bench.do(verb, **options)
        except P2PHDError as error:
            return str(error)
        return ""

    def beside(*arguments: Any) -> Any:
        if not tried:
            tried.append("")
            tried.extend(attempt(**options) for options in refused)
            bench.do(verb, part="2/2")
        return original(*arguments)

    monkeypatch.setattr(module, piece, beside)
    bench.do(verb, part="1/2")
    assert len(tried) == 6
    assert all("wait for it" in said for said in tried[1:]), tried
    assert all("another process is at work on part 1/2; wait for it" in tried[number] for number in (1, 4, 5))
    bench.do(verb, merge=True)
    assert bench.left() == whole(verb)


def test_a_part_is_refused_while_a_single_run_is_at_work(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []

    def beside(*_: Any) -> Any:
        for number in (1, 2):
            with pytest.raises(P2PHDError, match="another process is working here; wait for it") as caught:
                bench.do("prepare", part=f"{number}/2")
            said.append(caught.value)
        raise Death

    monkeypatch.setattr(prepare_module, "_describe", beside)
    with pytest.raises(Death):
        bench.do("prepare")
    assert len(said) == 2


def test_encoding_in_parts_keeps_training_out(p2phd: Command, bench: Bench, packed: Path) -> None:
    (made,) = bench.arguments("encode")
    with Run(made).lock(shared=True):
        bench.do("encode", part="1/2")
        outcome = p2phd("train", packed, made, "--resume")
        assert outcome.code == 1 and "is writing here; wait for it" in outcome.err
    with Run(made).lock(), pytest.raises(P2PHDError, match="is writing here; wait for it"):
        bench.do("encode", part="2/2")


def test_the_command_that_comes_next(p2phd: Command, bench: Bench, whole: Callable[[str], dict[str, bytes]]) -> None:
    """It has all that the merge needs, wherever the settings came from."""
    words = ["generate", *bench.arguments("generate"), "--grid", "--all-codes", "car", "--seed", 3]
    for number in (1, 2):
        outcome = p2phd(*words, "--part", f"{number}/2")
        assert outcome.code == 0
        line = outcome.out.splitlines()[-1]
        assert line.startswith(f"part {number} of 2 is done; when all are, `p2phd generate ") and line.endswith("`")
    _, *command = shlex.split(line.split("`")[1])
    assert command[-1] == "--merge"
    assert p2phd(*command).code == 0
    assert bench.left() == whole("generate")


def test_parts_enter_no_fingerprint(bench: Bench) -> None:
    bench.do("prepare")
    times = {path: path.stat().st_mtime_ns for path in bench.folder.rglob("*.png") if path.name != "contact_sheet.png"}
    for number in (1, 2):
        bench.do("prepare", part=f"{number}/2")
    bench.do("prepare", merge=True)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items()), "all is as it was"


def test_records_that_are_damaged_or_have_other_names_count_for_nothing(bench: Bench) -> None:
    bench.do("pack", part="1/2")
    folder = bench.folder / "here/.made.p2phd-parts"
    shutil.copy(folder / "1-of-2.json", folder / "2-of-2.json")
    shutil.copy(folder / "1-of-2.json", folder / "x-of-y.json")
    with pytest.raises(P2PHDError, match="part 2/2 is missing; repeat"):
        bench.do("pack", merge=True)
    (folder / "1-of-2.json").write_text("{")
    with pytest.raises(P2PHDError, match="no part was begun"):
        bench.do("pack", merge=True)


def test_files_are_told_apart_by_name_size_and_time(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    found = {digest_of_files([tmp_path / "a"]), digest_of_files([tmp_path / "a", tmp_path / "none"])}
    assert len(found) == 1
    os.utime(tmp_path / "a", ns=(0, 0))
    found.add(digest_of_files([tmp_path / "a"]))
    (tmp_path / "a").rename(tmp_path / "b")
    assert len(found | {digest_of_files([tmp_path / "b"])}) == 3
