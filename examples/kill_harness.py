"""Kill p2phd at random moments, again and again, and compare what it leaves with what it makes undisturbed.

    python examples/kill_harness.py --kills 50 --seed 0

Draws a tiny toy city, does every work of `WORKS` once, and then each in a process of its own that is killed (SIGKILL) after a
random time and started again, until it gets through; and so on until each was killed so many times. After every kill no file
may be there that looks whole and is not, and at the end everything must be the same, byte by byte: data sets, shards, weights,
optimisers, metrics, samples, codes and pictures.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from toy_city import draw_city

NETWORKS = "--generator-downsamplings 2 --generator-blocks 1 --discriminator-filters 4 --discriminator-layers 2"
NETWORKS += " --encoder-filters 4 --encoder-downsamplings 2 --loss-perceptual 0 --log-every 1 --checkpoint-every 5"


class Work(NamedTuple):
    """A command to kill, the folder that it makes, and the work whose folders it starts with."""

    command: str
    makes: str
    after: str = ""


WORKS = {
    "prepare": Work("prepare {city} {work}/dataset", "dataset"),
    "prepare-again": Work("prepare {city} {work}/dataset --width 32", "dataset", "prepare"),
    "pack": Work("pack {made}/prepare/dataset {work}/packed --shards 3", "packed"),
    "pack-again": Work("pack {made}/prepare-again/dataset {work}/packed --shards 2", "packed", "pack"),
    "train": Work(
        f"train {{made}}/pack/packed {{work}}/run --resume --generator-filters 4 {NETWORKS} --epochs 30 --decay-epochs 10"
        " --sample-every 20 --keep-checkpoints 1000",
        "run",
    ),
    "train-local": Work(
        f"train {{made}}/pack/packed {{work}}/run --resume --generator-filters 2 {NETWORKS} --epochs 6 --decay-epochs 2"
        " --sample-every 3 --keep-checkpoints 1 --model best --generator-kind local --init-from {made}/train/run"
        " --fixed-global-epochs 3 --pool-size 4 --crop 16x32 --batch-size 2",
        "run",
    ),
    "encode": Work("encode {work}/run", "run", "train"),
    "cluster": Work("cluster {work}/run", "run", "encode"),
    "generate": Work("generate {work}/run {made}/prepare/dataset {work}/out --split train --grid", "out", "cluster"),
}


def main() -> None:
    """Kill every work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each work, at least (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="p2phd-kills-") as folder:
        for line in kill_all(Path(folder), arguments.works, arguments.kills, arguments.seed):
            print(line, flush=True)


def kill_all(folder: Path, works: list[str], kills: int, seed: int) -> Iterator[str]:
    """Kill each of `works` at least `kills` times; yields a line for each, and raises `AssertionError` for any difference."""
    rng = random.Random(seed)
    draw_city(folder / "city", train=6, val=3, seed=1, height=32, width=64)
    seconds = {}
    for name in WORKS:
        _start_with(name, folder, folder / "made" / name)
        began = time.monotonic()
        assert _start(name, folder, folder / "made" / name).wait() == 0, name
        seconds[name] = time.monotonic() - began
    for name in works:
        count = rounds = 0
        while count < kills:
            work = folder / "killed"
            _start_with(name, folder, work)
            count += _kill_until_done(name, folder, work, seconds[name], rng)
            rounds += 1
            _compare_end(work, folder / "made" / name)
        yield f"{name}: killed {count} times in {rounds} rounds, and everything is the same"


def _start_with(name: str, folder: Path, work: Path) -> None:
    """Put into `work` what is there before."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if WORKS[name].after:
        shutil.copytree(folder / "made" / WORKS[name].after, work, dirs_exist_ok=True)


def _start(name: str, folder: Path, work: Path) -> subprocess.Popen[bytes]:
    words = WORKS[name].command.format(city=folder / "city", work=work, made=folder / "made").split()
    return subprocess.Popen([sys.executable, "-m", "pix2pixhd_cli", "--quiet", *words])


def _kill_until_done(name: str, folder: Path, work: Path, seconds: float, rng: random.Random) -> int:
    """How many times it had to be started again."""
    kills = 0
    while True:
        process = _start(name, folder, work)
        try:
            code = process.wait(timeout=rng.uniform(0, seconds * (1.1 + kills / 50)))  # The machine may get slower.
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            _compare_so_far(work, name, folder / "made")
            continue
        assert code == 0, f"{name} failed"
        return kills


def _compare_end(work: Path, made: Path) -> None:
    """Everything must be there, nothing else, and the same."""
    found, wanted = _files(work), _files(made)
    assert found == wanted, sorted(map(str, found ^ wanted))
    for path in found:
        if path.name == "metrics.jsonl":
            assert _lines(work / path) == _lines(made / path), f"{path} differs"
        elif not _is_report(work / path):
            assert (work / path).read_bytes() == (made / path).read_bytes(), f"{path} differs"


def _compare_so_far(work: Path, name: str, made: Path) -> None:
    """Every file must be what it was or what it should become; of a run that goes on, whole."""
    for path in _files(work):
        states = [state / path for state in (made / WORKS[name].after, made / name) if (state / path).exists()]
        if path.name == "metrics.jsonl":
            lines = _lines(work / path)
            assert lines == _lines(states[-1])[: len(lines)], f"{path} differs"
        elif path.name == "weights.npz" or (not states and "checkpoints" in path.parts):
            _compare_arrays(work / path, made / name / "run/checkpoints")
        elif not _is_report(work / path):
            assert (work / path).read_bytes() in [state.read_bytes() for state in states], f"{path} differs"


def _compare_arrays(found: Path, checkpoints: Path) -> None:
    """A model must be that of its step's checkpoint, if this was kept; one of a step that was not, readable to its last bit."""
    if found.suffix == ".json":
        json.loads(found.read_text())
        return
    with np.load(found) as ours:
        arrays = {name: ours[name] for name in ours.files}
    checkpoint = checkpoints / f"step-{int(arrays['step']):08d}/networks.npz"
    if checkpoint.exists():
        with np.load(checkpoint) as theirs:
            assert set(arrays) == {n for n in theirs.files if not n.startswith("discriminator")}, f"{found} differs"
            assert all((array == theirs[n]).all() for n, array in arrays.items()), f"{found} differs"


def _is_report(path: Path) -> bool:
    """Whether it is a report, which must be whole; it names its run, and how long each step took, so each is another."""
    if path.name != "report.html":
        return False
    assert path.read_text().endswith("</html>\n"), f"{path} is cut short"
    return True


def _files(folder: Path) -> set[Path]:
    """The files that a user would take for whole; hidden ones are not."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path for path in found if not any(part.startswith(".") and part != ".prepared" for part in path.parts)}


def _lines(path: Path) -> list[dict[str, object]]:
    """The whole lines of the metrics, without how long each step took."""
    return [
        {**json.loads(line), "seconds": 0} for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"
    ]


if __name__ == "__main__":
    main()
