"""How long the work takes, and how much memory: one JSON line per command, measured on the product's own code.

    python examples/benchmark.py step     --height 128 --width 256                 # seconds per training step
    python examples/benchmark.py memory   --height 128 --width 256 --recompute     # what `train` says of it, and what is true
    python examples/cluster/local.py 2 python examples/benchmark.py step           # the same by two workers
    python examples/cluster/local.py 2 python examples/benchmark.py reduce         # seconds to sum gradients over workers
    python examples/benchmark.py generate --height 512 --width 1024                # seconds per picture, after the first
    python examples/benchmark.py generate --height 1024 --width 2048 --local --ngf 32
    python examples/benchmark.py pool     --height 512 --width 1024 --instances 60 # pooling, forward and backward
    python examples/benchmark.py encode   --height 256 --width 512                 # seconds per picture
    python examples/benchmark.py batches  --height 512 --width 1024                # seconds per picture of the input pipeline
    python examples/benchmark.py tree     --height 512 --width 1024                # the same by the public code's loader
    python examples/benchmark.py prepare  --height 512 --width 1024                # seconds per picture of twice that size

Every command draws its own data, packs it where needed with the product's own commands, and prints
{"what": …, "median_s": …, "min_s": …, "peak_rss_mb": …}, with "images_per_s" where it goes through a data set, and what else it
knows. VGG has random weights unless --perceptual-weights names a file.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pix2pixhd_cli import engine

if TYPE_CHECKING:
    from pix2pixhd_cli.model.perceptual import Vgg
    from pix2pixhd_cli.settings import Settings

FLAGS = {
    "height": (128, "of a picture"),
    "width": (256, "of a picture"),
    "batch": (1, "pictures at a time"),
    "accumulate": (1, "such batches per step"),
    "ngf": (64, "filters of the generator"),
    "downs": (4, "its downsamplings"),
    "blocks": (9, "its residual blocks"),
    "ndf": (64, "filters of the discriminator"),
    "scales": (2, "its scales"),
    "instances": (40, "instances per picture"),
    "runs": (5, "measurements, after one that does not count"),
    "vgg": (1, "the perceptual loss: 0 or 1"),
    "features": (1, "the encoder: 0 or 1"),
    "seed": (0, "of everything random"),
}
LABELS = 35
NOTES: dict[str, int] = {}  # What is printed beside the figures.
PER_RUN = 24  # Pictures that `batches`, `encode` and `prepare` go through at once.


def main() -> None:
    """Measure one thing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*COMMANDS, "untrained"], metavar="{" + ",".join(COMMANDS) + "}")
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    for name, (default, help_text) in FLAGS.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{help_text} (default {default})")
    parser.add_argument("--local", action="store_true", help="the local enhancer; --ngf is its own width")
    parser.add_argument("--recompute", action="store_true", help="train with recomputed blocks")
    parser.add_argument("--precision", default="float32", help="what training convolves in")
    parser.add_argument("--perceptual-weights", metavar="FILE", help="VGG's weights")
    arguments = parser.parse_args()
    if arguments.what == "untrained":
        return _make_run(arguments)
    with tempfile.TemporaryDirectory(prefix="p2phd-benchmark-") as folder:
        seconds = list(COMMANDS[arguments.what](arguments, Path(folder)))
    median, peak = statistics.median(seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    figures = {"median_s": round(median, 4), "min_s": round(min(seconds), 4), "peak_rss_mb": peak}
    pace = {"images_per_s": round(1 / median, 2)} if arguments.what in PACED else {}
    print(json.dumps({"what": arguments.what, **figures, **pace, **NOTES}), flush=True)
    return None


def step(arguments: argparse.Namespace, folder: Path) -> Iterator[float]:
    """Training steps as `train` runs them, each with the wait for its batch."""
    packed = _pack(arguments, folder, arguments.batch * arguments.accumulate * (arguments.runs + 1))
    engine.start()
    from pix2pixhd_cli.data.records import PackedSplit
    from pix2pixhd_cli.devices import gather_team
    from pix2pixhd_cli.model.build import build_model
    from pix2pixhd_cli.perceptual_weights import read_vgg
    from pix2pixhd_cli.training import Trainer

    settings, split = _settings(arguments), PackedSplit(packed, "train")
    team = gather_team(settings.train.devices, settings.train.join_minutes, {})
    engine.make_deterministic(arguments.seed)
    source = settings.train.perceptual_weights
    with team.strategy.scope():
        vgg = (read_vgg(source).build() if source else _random_vgg(arguments.seed)) if arguments.vgg else None
        model = build_model(settings, labels=LABELS, ignored=(255,), training=True, vgg=vgg)
    trainer = Trainer(model, split, settings, team)
    portions = trainer.portions(0)

    def one() -> None:
        _, epoch, turns = next(portions)
        trainer.step(turns, epoch)

    if arguments.what == "memory":
        NOTES["estimate_mb"] = trainer.memory() >> 20
    yield from _timed(one, arguments.runs)


def memory(arguments: argparse.Namespace, folder: Path) -> Iterator[float]:
    """The same, with what `train` would have said of the memory."""
    yield from step(arguments, folder)


def reduce(arguments: argparse.Namespace, folder: Path) -> Iterator[float]:
    """The sum of all gradients over the workers of TF_CONFIG, by itself."""
    del folder
    engine.start()
    import tensorflow as tf

    from pix2pixhd_cli.devices import gather_team
    from pix2pixhd_cli.model.build import build_model
    from pix2pixhd_cli.stepping import sum_over_replicas

    settings = _settings(arguments)
    team = gather_team(settings.train.devices, settings.train.join_minutes, {})
    with team.strategy.scope():
        model = build_model(settings, labels=LABELS, ignored=(255,), training=True)
    tensors = [tf.zeros(v.shape) for v in (*model.generator_variables, *model.discriminator_variables)]
    NOTES["megabytes"] = sum(4 * int(tensor.shape.num_elements()) for tensor in tensors) >> 20
    sum_up = tf.function(lambda: team.strategy.run(sum_over_replicas, (tensors,)))
    yield from _timed(lambda: [tensor.numpy() for tensor in sum_up()], arguments.runs)


def generate(arguments: argparse.Namespace, folder: Path) -> Iterator[float]:
    """Pictures as `generate` paints them, from maps to 8 bits, without reading and writing files."""
    run = _untrained_run(_pack(arguments, folder, 1))
    engine.start()
    from pix2pixhd_cli.painting import Painter

    painter = Painter(run)
    label, instance = _scene(arguments, np.random.default_rng(arguments.seed))
    yield from _timed(lambda: painter.paint(label, instance), arguments.runs)


def pool(arguments: argparse.Namespace, folder: Path) -> Iterator[float]:
    """Instance-wise average pooling of three channels, forward and backward."""
    del folder
    engine.start()
    import tensorflow as tf

    from pix2pixhd_cli.model.encoder import pool_instances

    rng = np.random.default_rng(arguments.seed)
    instance = tf.constant(np.stack([_scene(arguments, rng)[1] for _ in range(arguments.batch)]))
    features = tf.constant(rng.standard_normal((*instance.shape, 3), np.float32))

    @tf.function
    def forward_and_backward() -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = pool_instances(features, instance)
        return tape.gradient(pooled, features, features)

    yield from _timed(lambda: forward_and_backward().numpy(), arguments.runs)


def encode(arguments: argparse.Namespace, folder: Path) -> Iterator[float]:
    """Pictures as `encode` goes through them."""
    packed = _pack(arguments, folder, PER_RUN)
    run = _untrained_run(packed)
    engine.start()
    from pix2pixhd_cli import console
    from pix2pixhd_cli.pipeline.encode import encode as encode_split
    from pix2pixhd_cli.settings import load_settings

    console.be_quiet(True)
    settings = load_settings({"encode": {"batch_size": arguments.batch}}, run=run)
    yield from (s / PER_RUN for s in _timed(lambda: encode_split(run, packed, settings), arguments.runs))


def batches(arguments: argparse.Namespace, folder: Path) -> Iterator[float]:
    """Pictures through the training input pipeline, with flips."""
    packed = _pack(arguments, folder, PER_RUN)
    engine.start()
    from pix2pixhd_cli.data.batches import Deal, training_batches
    from pix2pixhd_cli.data.records import PackedSplit

    steps = math.ceil(PER_RUN / arguments.batch)
    epochs = range(1, 2 * (arguments.runs + 1) + 2)  # Two for each measurement, and one that is read ahead.
    split = PackedSplit(packed, "train")
    found = training_batches(split, deal=Deal(arguments.batch), seed=arguments.seed, epochs=epochs)
    two_epochs = lambda: list(itertools.islice(found, 2 * steps))  # noqa: E731
    yield from (s / (2 * PER_RUN) for s in _timed(two_epochs, arguments.runs))


def tree(arguments: argparse.Namespace, folder: Path) -> Iterator[float]:
    """Pictures of twice the size read from PNG files and scaled, by two processes, as the public code's loader does."""
    _draw(arguments, folder / "raw", PER_RUN, scale=2)
    paths = sorted((folder / "raw" / "train_img").iterdir())
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        read = partial(_read_as_public_loader, size=(arguments.width, arguments.height))
        yield from (s / PER_RUN for s in _timed(lambda: sum(processes.map(read, paths)), arguments.runs))


def _read_as_public_loader(photo: Path, size: tuple[int, int]) -> int:
    """One example as floats, flipped; its bytes stay here, which spares the public loader's handing over."""
    arrays = []
    for kind, method in (
        ("img", Image.Resampling.BICUBIC),
        ("label", Image.Resampling.NEAREST),
        ("inst", Image.Resampling.NEAREST),
    ):
        picture = Image.open(photo.parent.with_name(f"train_{kind}") / photo.name).resize(size, method)
        array = np.asarray(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), np.float32)
        arrays.append(array / np.float32(127.5) - np.float32(1) if kind == "img" else array)
    return sum(array.nbytes for array in arrays)


def prepare(arguments: argparse.Namespace, folder: Path) -> Iterator[float]:
    """Pictures of twice the size through `prepare`."""
    _draw(arguments, folder / "raw", PER_RUN, scale=2)
    from pix2pixhd_cli import console
    from pix2pixhd_cli.pipeline.prepare import prepare as prepare_tree
    from pix2pixhd_cli.settings import Settings

    console.be_quiet(True)
    settings = Settings(prepare={"width": arguments.width, "layout": "pix2pixhd"})
    count = itertools.count()
    once = lambda: prepare_tree(folder / "raw", folder / f"dataset{next(count)}", settings)  # noqa: E731
    yield from (s / PER_RUN for s in _timed(once, arguments.runs))


COMMANDS: dict[str, Callable[[argparse.Namespace, Path], Iterator[float]]] = {
    command.__name__: command for command in (step, memory, reduce, generate, pool, encode, batches, tree, prepare)
}
PACED = ("encode", "batches", "tree", "prepare")


def _timed(call: Callable[[], object], runs: int) -> Iterator[float]:
    call()
    for _ in range(runs):
        began = time.perf_counter()
        call()
        yield time.perf_counter() - began


def _scene(arguments: argparse.Namespace, rng: np.random.Generator, scale: int = 1) -> tuple[NDArray[np.uint8], ...]:
    """Label and instance map, uint8 [H, W]: squares of 16 pixels, each of a random instance."""
    squares = rng.integers(0, arguments.instances, (arguments.height // 16, arguments.width // 16))
    instance = squares.repeat(16 * scale, 0).repeat(16 * scale, 1).astype(np.uint8)
    label = instance % LABELS
    label[-1, -1], instance[-1, -1] = LABELS - 1, 255  # So that there are as many labels as the class table would have.
    return label, instance


def _photo(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Smooth colours with some grain, which a PNG takes about as long to decode as a photo: uint8 [H, W, 3]."""
    colours = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return np.clip(smooth + rng.normal(0, 2, smooth.shape), 0, 255).astype(np.uint8)


def _draw(arguments: argparse.Namespace, folder: Path, count: int, scale: int = 1) -> None:
    """Write `count` examples in the public code's layout, `scale` times as large as asked for."""
    rng = np.random.default_rng(arguments.seed)
    for number in range(count):
        label, instance = _scene(arguments, rng, scale)
        for kind, picture in (
            ("label", label),
            ("inst", instance.astype(np.uint16)),
            ("img", _photo(rng, *label.shape)),
        ):
            path = folder / f"train_{kind}" / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)


def _pack(arguments: argparse.Namespace, folder: Path, count: int) -> Path:
    """Draw, prepare and pack `count` examples, in processes of their own."""
    _draw(arguments, folder / "raw", count)
    _subprocess(
        ["-m", "pix2pixhd_cli", "prepare", str(folder / "raw"), str(folder / "dataset"), "--layout", "pix2pixhd"]
    )
    _subprocess(["-m", "pix2pixhd_cli", "pack", str(folder / "dataset"), str(folder / "packed")])
    return folder / "packed"


def _untrained_run(packed: Path) -> Path:
    """A run with fresh weights beside `packed`, made in a process of its own."""
    _subprocess([__file__, "untrained", str(packed), *sys.argv[2:]])
    return packed.with_name("run")


def _make_run(arguments: argparse.Namespace) -> None:
    engine.start()
    from pix2pixhd_cli.data.records import read_pack_spec
    from pix2pixhd_cli.model.build import build_model
    from pix2pixhd_cli.runs import Run, Sources

    spec, settings = read_pack_spec(arguments.folder).dataset, _settings(arguments)
    run = Run(arguments.folder.with_name("run"))
    run.create(settings, spec, Sources(packed=arguments.folder.resolve()))
    run.save_model(build_model(settings, labels=spec.labels, ignored=spec.ignored, training=False))


def _settings(arguments: argparse.Namespace) -> "Settings":
    from pix2pixhd_cli.settings import Settings

    kind = "local" if arguments.local else "global"
    return Settings(
        generator={
            "kind": kind,
            "filters": arguments.ngf,
            "downsamplings": arguments.downs,
            "blocks": arguments.blocks,
        },
        discriminator={"filters": arguments.ndf, "scales": arguments.scales},
        encoder={"enabled": bool(arguments.features)},
        loss={"perceptual": 10.0 if arguments.vgg else 0.0},
        train={
            "batch_size": arguments.batch,
            "seed": arguments.seed,
            "perceptual_weights": arguments.perceptual_weights,
            "recompute": arguments.recompute,
            "precision": arguments.precision,
            "accumulate": arguments.accumulate,
        },
    )


def _random_vgg(seed: int) -> "Vgg":
    from pix2pixhd_cli.model.perceptual import Vgg

    rng = np.random.default_rng(seed)
    widths = [3, 64, 64, 128, 128, *[256] * 4, *[512] * 5]
    drawn = (0.02 * rng.standard_normal((3, 3, i, o), np.float32) for i, o in itertools.pairwise(widths))
    weights = ((kernel, np.zeros(kernel.shape[-1], np.float32)) for kernel in drawn)
    return Vgg(list(weights), convolutions=16, caffe=False)


def _subprocess(words: list[str]) -> None:
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
