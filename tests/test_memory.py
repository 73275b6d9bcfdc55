"""What a step is said to take of memory: the peak of hand-made graphs to the byte, and of real steps about."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow as tf
from tensorflow.python.client import device_lib

from pix2pixhd_cli import memory
from pix2pixhd_cli.data.records import PackedSplit
from pix2pixhd_cli.devices import take_devices
from pix2pixhd_cli.memory import ROOM, available, bytes_of, peak_of, room_of, total
from pix2pixhd_cli.model.build import build_model
from pix2pixhd_cli.settings import Settings
from pix2pixhd_cli.training import Trainer
from tests.conftest import Command, tiny_settings
from tests.test_devices import ENVIRONMENT, ROOT

verb = import_module("pix2pixhd_cli.pipeline.train")
MAP = tf.TensorSpec([10, 25])  # 1,000 bytes.


def peak(work: Callable[..., object], *specs: tf.TensorSpec) -> int:
    return peak_of(tf.function(work).get_concrete_function(*(specs or (MAP,))).graph)


def test_results_count_from_their_making_to_their_last_use() -> None:
    assert peak(lambda x: tf.pad(x, [[0, 0], [0, 5]])) == 1200
    padded = [[0, 0], [0, 0]]
    assert (
        peak(lambda x: tf.pad(tf.pad(tf.pad(x, padded), padded), padded)) == 2000
    )  # One is gone when the third is made.

    def keeping(x: tf.Tensor) -> tf.Tensor:
        first = tf.pad(x, padded)
        return tf.pad(tf.pad(first, padded), padded), first

    assert peak(keeping) == 3000


def test_element_by_element_takes_nothing_more() -> None:
    padded = [[0, 0], [0, 0]]
    assert peak(lambda x: tf.nn.relu(2.0 * tf.pad(x, padded)) + 1.0) == 1000
    assert peak(lambda x: tf.nn.relu(x) + x) == 1000  # Not in the place of the input, which is there anyway.

    def twice(x: tf.Tensor) -> tf.Tensor:
        y = tf.pad(x, padded)
        return y, tf.nn.relu(y)

    assert peak(twice) == 2000


def test_views_take_nothing() -> None:
    assert peak(lambda x: tf.identity(tf.reshape(tf.pad(x, [[0, 0], [0, 0]]), [250]))) == 1000


def test_what_nobody_needs_is_not_counted() -> None:
    def work(x: tf.Tensor) -> tf.Tensor:
        tf.tile(x, [100, 1])
        return tf.pad(x, [[0, 0], [0, 0]])

    assert peak(work) == 1000


def test_types_and_unknown_shapes() -> None:
    assert peak(lambda x: tf.pad(tf.cast(x, tf.float16), [[0, 0], [0, 0]])) == 1000  # 500 and 500.
    assert peak(lambda x: tf.pad(x, [[0, 0], [0, 0]]), tf.TensorSpec([None, 25])) == 0
    assert bytes_of(tf.zeros([3, 4], tf.float64)) == 96 and bytes_of(tf.constant("text")) == 0


def test_room_is_for_the_largest_result_that_somebody_needs() -> None:
    def work(x: tf.Tensor) -> tf.Tensor:
        tf.tile(x, [100, 1])
        return tf.reduce_sum(tf.tile(x, [3, 1]))

    assert room_of(tf.function(work).get_concrete_function(MAP).graph) == ROOM * 3000


def test_variables_are_updated_as_soon_as_they_can_be() -> None:
    """Two gradients of 1,000 bytes, of which the first is used up before the second is there."""
    variables = [tf.Variable(tf.zeros([10, 25])) for _ in range(2)]

    def work(x: tf.Tensor) -> tf.Tensor:
        found = [tf.pad(x, [[0, 0], [0, 0]]) for _ in variables]
        for variable, value in zip(variables, found, strict=True):
            variable.assign_add(value)
        return tf.zeros([])

    assert peak(work) == 1000


def step(*flags: str) -> list[str | Path]:
    networks = ("--height=256", "--width=512", "--ngf=16", "--downs=3", "--blocks=3", "--ndf=16", "--runs=1")
    return [sys.executable, ROOT / "examples" / "benchmark.py", "memory", *networks, *flags]


@pytest.mark.parametrize(
    "flags",
    [
        ("--vgg=0", "--batch=2"),
        pytest.param(("--vgg=0", "--accumulate=2", "--precision=mixed_bfloat16"), marks=pytest.mark.slow),
        pytest.param(("--vgg=1", "--recompute"), marks=pytest.mark.slow),
        ("--vgg=0", "--local", "--ngf=8"),
    ],
    ids=" ".join,
)
def test_the_estimate_is_near_the_measured_peak(flags: tuple[str, ...]) -> None:
    """Of what comes beside the program itself."""
    done = subprocess.run(step(*flags), env=ENVIRONMENT, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    estimate, peak = (figures[name] - (memory.LOADED >> 20) for name in ("estimate_mb", "peak_rss_mb"))
    assert estimate == pytest.approx(peak, rel=0.25)


def test_what_is_free() -> None:
    free = available()
    assert free is None or 1 << 20 < free < 1 << 50
    assert total(1000, 2) == memory.LOADED + 2000


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("0::/job/step\n", 2000000), ("0::/job\n", 4000000), ("0::/../other\n", 4000000), ("9:name=x:/job/step\n0::/\n", 4000000),
        ("4:cpu,memory:/job/step\n0::/elsewhere\n", 2000000), ("4:memory:/unseen/from/here\n", 4000000),
    ],
)  # fmt: skip
def test_a_container_may_take_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, left: int) -> None:
    """By its own control group or one above it, of either version."""
    files = {"memory_": "MemTotal: 9\nMemAvailable: 8000000 kB\n", "group": line}
    for kind, limit, used in ((".", "memory.max", "anon"), ("memory", "memory.limit_in_bytes", "total_rss")):
        files |= {f"{kind}/job/{limit}": "max\n" if kind == "." else f"{1 << 62}\n", f"{kind}/{limit}": "5000000\n"}
        files |= {f"{kind}/{at}/memory.stat": f"{used} 1000000\nfile 9\n" for at in (".", "job", "job/step")}
        files[f"{kind}/job/step/{limit}"] = "3000000\n"
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name, at in (("MEMORY", "memory_"), ("GROUP", "group"), ("GROUPS", ".")):
        monkeypatch.setattr(memory, name, tmp_path / at)
    limited = available()
    (tmp_path / "group").write_text("3:cpu:/\n")
    whole = available()
    assert limited is not None and whole is not None
    assert whole - limited == pytest.approx(8000000 * 1024 - left, abs=64 << 20)  # The process itself may have grown.


def test_what_nobody_tells_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMORY", Path("/no/such/file"))
    assert available() is None


def test_the_smallest_gpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        SimpleNamespace(device_type=kind, memory_limit=size) for kind, size in (("CPU", 1), ("GPU", 9), ("GPU", 8))
    ]
    monkeypatch.setattr(memory, "_has_gpus", lambda: True)
    monkeypatch.setattr(device_lib, "list_local_devices", lambda _: found)
    assert available() == 8 and total(1000, 2) == 1000


# What a step takes with (batch size, recomputing), where it takes 40 GiB as asked for.
TAKES = {(4, False): 40, (1, False): 20, (4, True): 25, (1, True): 10}
HALVES = "--crop 256x512 it would take about {}.0 GiB, and see parts of the pictures"


@pytest.mark.parametrize(
    ("free", "chosen", "said"),
    [
        (50, {}, ""),
        (30, {}, "with --batch-size 1 --accumulate 8 it would take about 20.0 GiB, and train the same"),
        (30, {"generator": {"norm": "batch"}}, "with --recompute it would take about 25.0 GiB, and train the same"),
        (15, {}, "with --batch-size 1 --accumulate 8 --recompute it would take about 10.0 GiB"),
        (15, {"generator": {"norm": "batch"}}, f"with --recompute {HALVES.format(12)}"),
        (5, {}, f"with --batch-size 1 --accumulate 8 --recompute {HALVES.format(5)}"),
        (22, {"train": {"recompute": True}, "generator": {"norm": "batch"}}, f"with {HALVES.format(12)}"),
        (1, {}, "; whatever the flags, these networks do not fit: train with fewer --generator-filters"),
    ],
)
def test_flags_that_would_fit_are_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    free: int,
    chosen: dict[str, dict[str, object]],
    said: str,
) -> None:
    def takes(batch_size: int = 4, *, recompute: bool = False, sides: tuple[int, int] | None = None) -> int:
        return max(2, TAKES[batch_size, recompute] * (sides or largest)[0] // largest[0]) << 30

    monkeypatch.setattr(verb, "available", lambda: free << 30)
    largest = (512, 1024)
    settings = Settings(**{**chosen, "train": {"batch_size": 4, "accumulate": 2, **chosen.get("train", {})}})  # type: ignore[arg-type]
    trainer = SimpleNamespace(settings=settings, team=take_devices("cpu"), memory=takes, largest=largest)
    verb._describe_memory(trainer)
    printed = capsys.readouterr()
    assert "a step will take about 40.0 GiB of memory" in printed.out
    warned = f"warning: a step will take about 40.0 GiB of memory, and {free}.0 GiB are free"
    assert (warned in printed.err and said in printed.err) if said else not printed.err


def test_the_estimate_comes_before_the_first_step(p2phd: Command, packed: Path, tmp_path: Path) -> None:
    networks = [f"--{name}=2" for name in ("generator-filters", "generator-downsamplings", "discriminator-filters")]
    outcome = p2phd("train", packed, tmp_path / "run", "--dry-run", *networks, "--generator-blocks", 1)
    assert outcome.code == 0 and "device: CPU:0; a step will take about 6" in outcome.out


def test_trying_other_flags_leaves_the_model_as_it_was(packed: Path) -> None:
    settings = tiny_settings(train={"batch_size": 2})
    split = PackedSplit(packed, "train")
    model = build_model(settings, labels=split.spec.dataset.labels, ignored=(255,), training=True)
    trainer = Trainer(model, split, settings, take_devices("cpu"))
    usual = trainer.memory()
    assert trainer.memory(1) < usual and trainer.memory(2, recompute=True) != usual
    assert not model.recompute and not model.generator.recompute
    assert trainer.memory() == usual
