"""`p2phd encode`: a feature code for every instance of the training split."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pix2pixhd_cli import console
from pix2pixhd_cli.data.dataset import Example
from pix2pixhd_cli.data.files import checksum
from pix2pixhd_cli.data.labels import majority_classes, tally
from pix2pixhd_cli.data.parts import Parts, share, which_part
from pix2pixhd_cli.data.records import PackedSplit
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.features import CODES, FeatureCodes
from pix2pixhd_cli.mirror import MODEL, working_copy
from pix2pixhd_cli.painting import Painter, PhotoCodes, gathered
from pix2pixhd_cli.pipeline.train import check_photos
from pix2pixhd_cli.runs import Run
from pix2pixhd_cli.settings import Part, Settings, load_settings
from pix2pixhd_cli.urls import Location, locate

PARTS = ".encode-parts"


def encode(run: Location | str, packed: Location | str | None = None, settings: Settings | None = None) -> FeatureCodes:
    """Encode every instance of the split and write `run/features.npz`.

    `packed` is what the run was trained on by default. With `--part`, that part's codes alone are made, and put by. Raises
    `P2PHDError` if the run has no encoder, or if the data's classes are not the run's.
    """
    place = locate(run)
    chosen = settings or load_settings(run=place)
    part = which_part(chosen.encode, place)
    with working_copy(place, MODEL, writing=True) as folder, folder.lock(shared=part is not None):
        return _encode(folder, packed, chosen, part)


def _encode(folder: Run, packed: Location | str | None, chosen: Settings, part: Part | None) -> FeatureCodes:
    """Encode for a run that is ours alone, or shared with other parts."""
    run = folder.folder
    if not chosen.encoder.enabled:
        raise P2PHDError(
            f"{run}: was trained without an encoder, so it has no feature codes; train with --encoder-enabled"
        )
    painter = Painter(run, chosen, batch_size=chosen.encode.batch_size, devices=chosen.encode.devices)
    split = PackedSplit(packed or folder.packed(), chosen.encode.split or chosen.train.split)
    folder.check_classes(split.spec.dataset, split.packed)
    check_photos(split)
    command = ["encode", str(run), *([str(packed)] if packed is not None else [])]
    inputs = {"packed split": split.digest[:12], "model": folder.model_mark()}
    parts = Parts(run / PARTS, command, chosen.encode, inputs)
    if part is not None:
        return _encode_part(painter, split, parts, part)
    if chosen.encode.merge:
        with parts.merging() as done:
            files = [parts.find(part, name, made, parts.folder) for part, made in done for name in made]
            codes = _join((_read(path, painter) for path in files), painter, split)
            codes.save(folder.features)
    else:
        parts.forget()
        codes = _encode_all(painter, split, range(len(split)))
        codes.save(folder.features)
    console.info(
        f"encoded {console.count(len(codes.label), 'instance')} of {console.count(len(split), 'picture')} into {folder.features}"
    )
    return codes


def _encode_part(painter: Painter, split: PackedSplit, parts: Parts, part: Part) -> FeatureCodes:
    """Encode a part's examples into a file beside its record."""
    path = parts.folder / f"{part.number}-of-{part.of}.npz"
    with parts.working(part) as made:
        codes = _encode_all(painter, split, share(range(len(split)), part))
        codes.save(path)
        made[path.name] = checksum(path)
    console.info(parts.said(part))
    return codes


def _read(path: Path, painter: Painter) -> dict[str, NDArray[Any]]:
    """The codes of a part."""
    codes = FeatureCodes.load(path)
    if codes.code.shape[1] != painter.channels:
        raise P2PHDError(f"{path}: not of this run; repeat its part")
    return vars(codes)


def _encode_all(painter: Painter, split: PackedSplit, numbers: Sequence[int]) -> FeatureCodes:
    """The codes of these examples, in their order."""
    found: dict[int, dict[str, NDArray[Any]]] = {}
    with console.progress("encoding", len(numbers)) as bar:
        examples = zip(numbers, split.examples(numbers), strict=True)
        for group in gathered(examples, lambda pair: pair[1].instance.shape, painter.most):
            found |= zip(
                [number for number, _ in group], _encode_group(painter, [one for _, one in group]), strict=True
            )
            bar.advance(bar.task_ids[0], len(group))
    return _join((found[number] for number in numbers), painter, split)


def _encode_group(painter: Painter, examples: Sequence[Example]) -> Iterator[dict[str, NDArray[Any]]]:
    """Encode examples of one size."""
    pairs = []
    for example in examples:
        assert example.photo is not None
        pairs.append((example.photo, painter.regions(example.label, example.instance).astype(np.int32)))
    for example, codes in zip(examples, painter.encode_all(pairs), strict=True):
        if not np.isfinite(codes.codes).all():
            raise P2PHDError(
                f"{painter.run.folder}: its encoder gives no finite codes; the training went wrong, train again"
            )
        yield _describe(example, codes)


def _describe(example: Example, found: PhotoCodes) -> dict[str, NDArray[Any]]:
    """Code, class, share and bounding box of each encoded instance."""
    index, ids = found.index, found.ids
    classes = {} if example.label.ndim == 3 else majority_classes(tally(index, example.label))[0]
    box = np.empty((len(ids), 4), np.int32)
    rows, columns = np.indices(index.shape, np.int32)
    for n, (line, start) in enumerate(((rows, True), (columns, True), (rows, False), (columns, False))):
        edge = np.full(len(ids), np.iinfo(np.int32).max if start else -1, np.int32)
        (np.minimum if start else np.maximum).at(edge, index.ravel(), line.ravel())
        box[:, n] = edge if start else edge + 1
    return {
        "code": found.codes.astype(np.float32),
        "label": np.array([classes.get(n, -1) for n in range(len(ids))], np.int32),
        "instance": ids.astype(np.int32),
        "stem": np.array([example.stem] * len(ids), np.str_),
        "share": (found.pixels / index.size).astype(np.float32),
        "box": box,
    }


def _join(found: Iterable[dict[str, NDArray[Any]]], painter: Painter, split: PackedSplit) -> FeatureCodes:
    """One after the other; of nothing, arrays of no rows."""
    sides = {"C": painter.channels, "4": 4}
    rows = {
        name: [np.zeros([0, *(sides[letter] for letter in letters[1:])], dtype)]
        for name, (dtype, letters) in CODES.items()
        if letters[:1] == "N"
    }
    for one in found:
        for name, arrays in rows.items():
            arrays.append(one[name])
    return FeatureCodes(
        **{name: np.concatenate(arrays) for name, arrays in rows.items()},
        split=np.array(split.split),
        packed=np.array(str(split.packed.resolve())),
        step=np.array(painter.step, np.int64),
    )
