"""What the studio hands out: saved scenes, and parcels of a picture with its maps as a prepared example."""

import io
import shlex
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pix2pixhd_cli.boundary import boundary_map
from pix2pixhd_cli.data.dataset import DatasetSpec, Example, ExampleEntry, map_path
from pix2pixhd_cli.data.files import write_text
from pix2pixhd_cli.data.pictures import write_ids, write_picture
from pix2pixhd_cli.images import Picture
from pix2pixhd_cli.scenes import SUFFIX, Scene
from pix2pixhd_cli.sealed import seal

SPLIT = "val"


def file_of(scene: Scene) -> bytes:
    """A scene file's bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scene{SUFFIX}"
        scene.save(path)
        return path.read_bytes()


def parcel(scene: Scene, picture: Picture, spec: DatasetSpec, command: str) -> bytes:
    """A ZIP file: the picture, the scene, the command that paints it, and a data set of this one example.

    STEM/   picture.png  STEM.p2phd  command.txt  dataset/{dataset.json, val/{label,instance,boundary}/STEM.png}
    """
    stem = scene.example.stem
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_picture(folder / "picture.png", picture)
        scene.save(folder / f"{stem}{SUFFIX}")
        write_text(folder / "command.txt", command + "\n")
        _write_dataset(folder / "dataset", scene.example, spec)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                archive.writestr(zipfile.ZipInfo(f"{stem}/{path.relative_to(folder)}"), path.read_bytes())
        return packed.getvalue()


def _write_dataset(folder: Path, example: Example, spec: DatasetSpec) -> None:
    """A prepared data set of one example, without its photo."""
    stem, (height, width) = example.stem, example.instance.shape
    write_ids(map_path(folder, SPLIT, "label", stem), example.label)
    write_picture(map_path(folder, SPLIT, "boundary", stem), boundary_map(example.instance).astype(np.uint8) * 255)
    if spec.has_instances:
        write_ids(map_path(folder, SPLIT, "instance", stem), example.instance)
    ids, pixels = np.unique(example.label, return_counts=True)
    own = spec.model_copy(
        update={
            "splits": {SPLIT: (ExampleEntry(stem=stem, height=height, width=width, photo=None),)},
            "pixels": {SPLIT: dict(zip(ids.tolist(), pixels.tolist(), strict=True))},
            "instances": {},
            "warnings": (),
        }
    )
    write_text(folder / "dataset.json", seal(own.model_dump(mode="json")))


def command_of_scene(run: Path, stem: str) -> str:
    """The command that paints a saved scene again."""
    return shlex.join(["p2phd", "generate", str(run), f"{stem}{SUFFIX}", "pictures"])


def command_of_maps(run: Path, stem: str, styles: Sequence[str], seed: int) -> str:
    """The command that paints the maps of a parcel as the scene was painted."""
    chosen = [part for text in styles for part in ("--feature-code", text)]
    words = ["p2phd", "generate", str(run), f"{stem}/dataset", "pictures", "--seed", str(seed), *chosen]
    return shlex.join(words)
