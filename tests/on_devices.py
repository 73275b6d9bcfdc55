"""Train and paint in one process on logical devices: python -m tests.on_devices COUNT PACKED FOLDER, JSON on stdin."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pix2pixhd_cli import console, engine

if TYPE_CHECKING:
    from pix2pixhd_cli.painting import Painter


def main(count: int, packed: Path, folder: Path) -> None:
    engine.start()
    import tensorflow as tf

    from pix2pixhd_cli.errors import P2PHDError
    from pix2pixhd_cli.painting import Painter

    cpus = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * count)
    for name, values in json.load(sys.stdin).items():
        if run := values.pop("paint", None):
            found = codes_and_pictures(Painter(Path(run), **values), packed)
            np.savez(folder / name, **found)  # type: ignore[arg-type]
            continue
        try:
            train(packed, folder / name, values)
        except P2PHDError as error:
            console.fail(error)


def train(packed: Path, run: Path, values: dict[str, Any]) -> None:
    from pix2pixhd_cli.pipeline.train import train as train_run
    from pix2pixhd_cli.settings import Settings

    train_run(packed, run, Settings(**values), resume=run.exists())


def codes_and_pictures(painter: "Painter", packed: Path) -> dict[str, NDArray[np.floating]]:
    """Of all training examples at once: each photo's codes, and the picture in their style, as floats."""
    from pix2pixhd_cli.data.records import PackedSplit
    from pix2pixhd_cli.painting import Request

    examples = list(PackedSplit(packed, "train"))
    pairs = [(example.photo, example.instance) for example in examples if example.photo is not None]
    found: dict[str, NDArray[np.floating]] = {}
    for number, codes in enumerate(painter.encode_all(pairs)):
        found[f"code {number}"] = codes.codes
    requests = [Request(example.label, example.instance, gains=1.0, photo=example.photo) for example in examples]
    for start in range(0, len(requests), painter.most):
        for number, picture in enumerate(painter._paint(requests[start : start + painter.most]), start):
            found[f"picture {number}"] = picture
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
