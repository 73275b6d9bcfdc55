"""Kill p2phd at random moments, again and again, and compare what it leaves with what it makes undisturbed.

    python examples/kill_harness.py --kills 50 --seed 0

Draws a tiny toy city, runs `prepare`, `pack`, `train`, `encode`, `cluster` and `generate` once, and then each of them in a
process of its own that is killed (SIGKILL) after a random time and started again, until it gets through; and so on until each
was killed so many times. After every kill no file may be there that looks whole and is not, and at the end everything must be
the same, byte by byte: data sets, shards, weights, optimisers, metrics, samples, codes and pictures.
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

import numpy as np
from toy_city import draw_city

NETWORKS = "--generator-filters 4 --generator-downsamplings 2 --generator-blocks 1 --discriminator-filters 4"
NETWORKS += " --discriminator-layers 2 --encoder-filters 4 --encoder-downsamplings 2 --loss-perceptual 0"
PACE = "--epochs 30 --decay-epochs 10 --log-every 1 --sample-every 20 --checkpoint-every 5 --keep-checkpoints 1000"
COMMANDS = {
    "prepare": "prepare {city} {work}/dataset",
    "pack": "pack {shared}/dataset {work}/packed --shards 3",
    "train": f"train {{shared}}/packed {{work}}/run --resume {PACE} {NETWORKS}",
    "encode": "encode {work}/run",
    "cluster": "cluster {work}/run",
    "generate": "generate {work}/run {shared}/dataset {work}/out --split train --grid",
}
# What a verb starts with, beside what the ones before it made.
NEEDS = {"encode": "train", "cluster": "encode", "generate": "cluster"}
# The folder it writes to.
MAKES = {"prepare": "dataset", "pack": "packed", "train": "run", "encode": "run", "cluster": "run", "generate": "out"}


def main() -> None:
    """Kill every verb."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each verb, at least (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--verbs", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="p2phd-kills-") as folder:
        for line in kill_all(Path(folder), arguments.verbs, arguments.kills, arguments.seed):
            print(line, flush=True)


def kill_all(folder: Path, verbs: list[str], kills: int, seed: int) -> Iterator[str]:
    """Kill each of `verbs` at least `kills` times; yields a line for each, and raises `AssertionError` for any difference."""
    rng = random.Random(seed)
    draw_city(folder / "city", train=6, val=3, seed=1, height=32, width=64)
    shared, seconds = folder / "undisturbed", {}
    for verb in COMMANDS:
        began = time.monotonic()
        process = _start(verb, folder, shared)
        assert process.wait() == 0, verb
        seconds[verb] = time.monotonic() - began
        shutil.copytree(shared, folder / f"after-{verb}")
    for verb in verbs:
        count = rounds = 0
        while count < kills:
            work = folder / "killed"
            shutil.rmtree(work, ignore_errors=True)
            if verb in NEEDS:
                shutil.copytree(folder / f"after-{NEEDS[verb]}", work)
            count += _kill_until_done(verb, folder, work, seconds[verb], rng)
            rounds += 1
            assert (work / MAKES[verb]).is_dir(), f"{verb} made nothing"
            _compare(work, folder / f"after-{verb}", complete=True)
        yield f"{verb}: killed {count} times in {rounds} rounds, and everything is the same"


def _start(verb: str, folder: Path, work: Path) -> subprocess.Popen[bytes]:
    words = COMMANDS[verb].format(city=folder / "city", work=work, shared=folder / "undisturbed").split()
    return subprocess.Popen([sys.executable, "-m", "pix2pixhd_cli", "--quiet", *words])


def _kill_until_done(verb: str, folder: Path, work: Path, seconds: float, rng: random.Random) -> int:
    """How many times it had to be started again."""
    kills = 0
    while True:
        process = _start(verb, folder, work)
        try:
            code = process.wait(timeout=rng.uniform(0, 1.1 * seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            _compare(work, folder / f"after-{verb}", complete=False)
            continue
        assert code == 0, f"{verb} failed"
        return kills


def _compare(made: Path, expected: Path, *, complete: bool) -> None:
    """Every file that is there must be what it should become; in the end, all of them must be there and nothing else."""
    found, wanted = _files(made), _files(expected)
    if complete:
        wanted = {path for path in wanted if path.parts[0] in {other.parts[0] for other in found}}
        assert found == wanted, sorted(map(str, found ^ wanted))
    for path in found:
        if path.name == "metrics.jsonl":
            lines, all_lines = (_lines(folder / path) for folder in (made, expected))
            assert lines == all_lines[: None if complete else len(lines)], f"{path} differs"
        elif path.name == "weights.npz" and not complete:
            _compare_model(made / path, expected)
        else:
            assert (made / path).read_bytes() == (expected / path).read_bytes(), f"{path} differs"


def _files(folder: Path) -> set[Path]:
    """The files that a user would take for whole; hidden ones are not."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path for path in found if not any(part.startswith(".") and part != ".prepared" for part in path.parts)}


def _lines(path: Path) -> list[dict[str, object]]:
    """The whole lines of the metrics, without how long each step took."""
    return [
        {**json.loads(line), "seconds": 0} for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"
    ]


def _compare_model(model: Path, expected: Path) -> None:
    """The model of a training that goes on must be that of one of its checkpoints."""
    with np.load(model) as ours:
        checkpoint = expected / f"run/checkpoints/step-{int(ours['step']):08d}/networks.npz"
        arrays = {name: ours[name] for name in ours.files}
    with np.load(checkpoint) as theirs:
        assert set(arrays) == {name for name in theirs.files if not name.startswith("discriminator")}, (
            f"{model} differs"
        )
        assert all((array == theirs[name]).all() for name, array in arrays.items()), f"{model} differs"


if __name__ == "__main__":
    main()
