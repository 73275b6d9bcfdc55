"""Train several times in one process on logical devices: python -m tests.on_devices COUNT PACKED FOLDER, JSON on stdin."""

import json
import sys
from pathlib import Path

from pix2pixhd_cli import console, engine


def main(count: int, packed: Path, folder: Path) -> None:
    engine.start()
    import tensorflow as tf

    from pix2pixhd_cli.errors import P2PHDError
    from pix2pixhd_cli.pipeline.train import train
    from pix2pixhd_cli.settings import Settings

    cpus = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * count)
    for name, values in json.load(sys.stdin).items():
        resume = (folder / name).exists()
        try:
            train(packed, folder / name, Settings(**values), resume=resume)
        except P2PHDError as error:
            console.fail(error)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
