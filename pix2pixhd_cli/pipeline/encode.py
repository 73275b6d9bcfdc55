"""`p2phd encode`: a feature code for every instance of the training split."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pix2pixhd_cli import console
from pix2pixhd_cli.data.dataset import Example
from pix2pixhd_cli.data.labels import majority_classes, tally
from pix2pixhd_cli.data.records import PackedSplit
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.features import FeatureCodes
from pix2pixhd_cli.model.encoder import InstanceCodes
from pix2pixhd_cli.painting import Painter
from pix2pixhd_cli.pipeline.train import check_photos
from pix2pixhd_cli.runs import Run
from pix2pixhd_cli.settings import Settings, load_settings


def encode(run: Path, packed: Path | None = None, settings: Settings | None = None) -> FeatureCodes:
    """Encode every instance of the split and write `run/features.npz`.

    `packed` is what the run was trained on by default. Raises `P2PHDError` if the run has no encoder, or if the data's
    classes are not the run's.
    """
    chosen = settings or load_settings(run=run)
    with Run(run).lock():
        return _encode(Run(run), packed, chosen)


def _encode(folder: Run, packed: Path | None, chosen: Settings) -> FeatureCodes:
    """Encode for a run that is ours alone."""
    run = folder.folder
    if not chosen.encoder.enabled:
        raise P2PHDError(
            f"{run}: was trained without an encoder, so it has no feature codes; train with --encoder-enabled"
        )
    painter = Painter(run, chosen)
    split = PackedSplit(packed or folder.packed(), chosen.encode.split or chosen.train.split)
    folder.check_classes(split.spec.dataset, split.packed)
    check_photos(split)
    parts = []
    with console.progress("encoding", len(split)) as bar:
        for example in split:
            example = replace(example, instance=painter.regions(example.label, example.instance).astype(np.int32))
            assert example.photo is not None
            found = painter.encode(example.photo, example.instance)
            if not np.isfinite(found.codes.numpy()).all():
                raise P2PHDError(f"{run}: its encoder gives no finite codes; the training went wrong, train again")
            parts.append(_describe(example, found))
            bar.advance(bar.task_ids[0])
    codes = _join(parts, split, folder.model_step())
    codes.save(folder.features)
    console.info(f"encoded {len(codes.label)} instances of {len(split)} pictures into {folder.features}")
    return codes


def _describe(example: Example, found: InstanceCodes) -> dict[str, NDArray[Any]]:
    """Code, class, share and bounding box of each encoded instance."""
    index = found.index.numpy()[0]
    ids = found.key.numpy() & 0xFFFFFFFF  # One picture: the key is the instance's id.
    classes = {} if example.label.ndim == 3 else majority_classes(tally(index, example.label))[0]
    box = np.empty((len(ids), 4), np.int32)
    rows, columns = np.indices(index.shape, np.int32)
    for n, (line, start) in enumerate(((rows, True), (columns, True), (rows, False), (columns, False))):
        edge = np.full(len(ids), np.iinfo(np.int32).max if start else -1, np.int32)
        (np.minimum if start else np.maximum).at(edge, index.ravel(), line.ravel())
        box[:, n] = edge if start else edge + 1
    return {
        "code": found.codes.numpy().astype(np.float32),
        "label": np.array([classes.get(n, -1) for n in range(len(ids))], np.int32),
        "instance": ids.astype(np.int32),
        "stem": np.array([example.stem] * len(ids), np.str_),
        "share": (found.pixels.numpy() / index.size).astype(np.float32),
        "box": box,
    }


def _join(parts: list[dict[str, NDArray[Any]]], split: PackedSplit, step: int) -> FeatureCodes:
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return FeatureCodes(
        **joined,
        split=np.array(split.split),
        packed=np.array(str(split.packed.resolve())),
        step=np.array(step, np.int64),
    )
