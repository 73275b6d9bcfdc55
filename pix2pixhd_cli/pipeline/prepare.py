"""`p2phd prepare`: a raw tree becomes a checked, described data set.

Each example is read once: checked, scaled and written to a staging folder beside DATASET, with a record of what it was
made from. DATASET appears, or changes, only when every example passed; examples whose sources and settings have not
changed since are kept as they are. Parts work in the same staging folder, and a merge finds everything there.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pix2pixhd_cli import __version__, console, images
from pix2pixhd_cli.boundary import boundary_map
from pix2pixhd_cli.data import labels, layouts, pictures
from pix2pixhd_cli.data.dataset import MOST_WARNINGS, DatasetSpec, ExampleEntry, map_path, photo_path, read_example
from pix2pixhd_cli.data.files import (
    held,
    make_folder,
    partial_folder,
    refuse_links,
    remove,
    sweep,
    sync,
    whole_file,
    write_text,
)
from pix2pixhd_cli.data.labels import LabelClass
from pix2pixhd_cli.data.layouts import RawExample, RawTree
from pix2pixhd_cli.data.parts import Parts, digest, parts_folder, share, which_part
from pix2pixhd_cli.data.pictures import PictureError
from pix2pixhd_cli.errors import STOPS, DataProblems, P2PHDError, Problem, interrupted
from pix2pixhd_cli.sealed import read_sealed, seal
from pix2pixhd_cli.settings import (
    MOST_PIXELS,
    MOST_SIDE,
    Part,
    PrepareSettings,
    Settings,
    Size,
    parse_size,
    whole_number,
)

RECORDS = ".prepared"
CONTACT_SHEET = "contact_sheet.png"
SHEET_EXAMPLES = 4
CELL_WIDTH = 256


class Record(BaseModel):
    """What is known of one prepared example; written last, so that its presence says that the example is whole."""

    model_config = ConfigDict(extra="forbid")

    fingerprint: str  # of the sources and the settings it was made with
    entry: ExampleEntry
    raw_height: int
    raw_width: int
    pixels: dict[int, int]  # per class id
    instances: dict[int, int]  # per class id
    spanning: int  # instances that cover several classes
    renamed: int  # Cityscapes ids that name another class than the one under them
    bytes: tuple[int, ...]  # of its files


@dataclass(frozen=True)
class Recipe:
    """All that decides how an example is converted."""

    settings: PrepareSettings
    tree: RawTree
    classes: tuple[LabelClass, ...] | None
    source: Path

    @cached_property
    def remap(self) -> dict[int, int]:
        """Ids to replace while reading."""
        return labels.parse_remap(self.settings.remap)

    @cached_property
    def known_ids(self) -> NDArray[np.bool_]:
        """Which of the 65,536 ids are allowed."""
        known = np.zeros(labels.MAX_ID + 1, bool)
        known[range(labels.MAX_CLASSES) if self.classes is None else [c.id for c in self.classes]] = True
        known[list(self.settings.ignore_id)] = True
        return known

    @cached_property
    def component_ids(self) -> tuple[int, ...] | None:
        """Classes whose regions are instances; None stands for every class."""
        if self.settings.component_class:
            return tuple(self._class_id(text) for text in self.settings.component_class)
        things = tuple(c.id for c in self.classes or () if c.thing)
        return things or None

    @cached_property
    def has_instances(self) -> bool:
        """Whether the data set will have instance maps, as `--instances` has it."""
        wanted = self.settings.instances
        if self.tree.input == "rgb" or wanted == "none":
            return False
        if wanted == "components":
            return True
        found = any(e.instance or e.polygons for e in self.tree.examples)
        if wanted == "maps" and not found:
            raise P2PHDError("--instances maps: there are none here; use --instances components or none")
        return found

    @cached_property
    def fingerprint(self) -> str:
        """A digest of everything but the example's own files."""
        kept = self.settings.model_dump(mode="json", exclude={"limit", "part", "merge"})
        parts = [__version__, kept, self.tree.input, self.has_instances, [c.model_dump() for c in self.classes or ()]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def inputs(self) -> dict[str, str]:
        """What parts must have in common beside the settings: the examples by the names of their files, and the class table."""
        files = [(e.split, e.stem, e.label, e.instance, e.polygons, e.photo) for e in self.tree.examples]
        names = [[str(one.relative_to(self.source)) if isinstance(one, Path) else one for one in e] for e in files]
        classes = [c.model_dump(mode="json") for c in self.classes or ()]
        return {"list of examples": digest(names), "class table": digest(classes)}

    def target(self, height: int, width: int) -> Size:
        """The size that a picture of this size is brought to."""
        if self.settings.size is not None:
            height, width = parse_size(self.settings.size)
        elif self.settings.width is not None:
            height, width = int(self.settings.width * height / width), self.settings.width
        multiple = self.settings.multiple
        return Size(*(max(multiple, (side + multiple // 2) // multiple * multiple) for side in (height, width)))

    def _class_id(self, text: str) -> int:
        found = labels.find_class(self.classes or (), text)
        if found is not None:
            return found.id
        number = whole_number(text.removeprefix("class "))
        if self.classes is None and number is not None:
            return number
        raise P2PHDError(f"--component-class {text}: there is no such class")


def prepare(source: Path, dataset: Path, settings: Settings | None = None) -> DatasetSpec:
    """Check `source` and write `dataset` with its `dataset.json` and `contact_sheet.png`; returns the description.

    With `--part`, that part's examples alone are converted, in hiding, and described. Raises `DataProblems` with the problems of
    every example and of their pairing, having written nothing.
    """
    chosen = (settings or Settings()).prepare
    part = which_part(chosen)
    recipe = _read_recipe(source, chosen)
    _refuse_foreign(dataset)
    parts = Parts(parts_folder(dataset), ("prepare", source, dataset), chosen, recipe.inputs)
    if part is not None:
        return _prepare_part(recipe, dataset, parts, part)
    if chosen.merge:
        parts.require()
    with (
        held(partial_folder(dataset)) as staging,
        _stoppable(),
        _merged(recipe, dataset, staging, parts) if chosen.merge else _made(recipe, dataset, staging, parts) as records,
    ):
        spec = _describe(recipe, recipe.tree.examples, records)
        _publish(recipe, spec, records, staging, dataset)
        shutil.rmtree(staging, ignore_errors=True)
        _write_contact_sheet(dataset, spec)
    _report(recipe, spec, records, dataset)
    return spec


@contextmanager
def _stoppable() -> Iterator[None]:
    """Say how to go on after what was no mistake of the user's."""
    try:
        yield
    except STOPS as stop:
        raise interrupted(stop, "stopped; the same command goes on where it was") from None
    except OSError as error:
        raise P2PHDError(f"{error.filename}: {error.strerror}; after mending that, the same command goes on") from None


def _prepare_part(recipe: Recipe, dataset: Path, parts: Parts, part: Part) -> DatasetSpec:
    """Convert a part's examples to where all are gathered; those that an earlier try left whole are kept."""
    own = share(recipe.tree.examples, part)
    with held(partial_folder(dataset), shared=True) as staging, _stoppable(), parts.working(part):
        records = _convert_all(recipe, own, dataset, staging)
    console.info(parts.said(part))
    return _describe(recipe, own, records)


@contextmanager
def _made(recipe: Recipe, dataset: Path, staging: Path, parts: Parts) -> Iterator[list[Record]]:
    """Convert all examples; what they became is deleted if one of them has a problem."""
    parts.forget()
    sweep(dataset)
    try:
        yield _convert_all(recipe, recipe.tree.examples, dataset, staging)
    except P2PHDError:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextmanager
def _merged(recipe: Recipe, dataset: Path, staging: Path, parts: Parts) -> Iterator[list[Record]]:
    """Find what the examples of all parts became; raises `P2PHDError` naming the parts whose sources changed since.

    An example whose files were being moved when a merge was stopped is converted anew.
    """

    def find(example: RawExample) -> Record | None:
        fingerprint = _fingerprint(recipe, example)
        done = _known_record(recipe, (dataset, staging), example, fingerprint)
        if done is None and _read_record(staging, example, fingerprint) is not None:
            again = _convert(recipe, example, fingerprint, staging)
            return again if isinstance(again, Record) else None
        return done

    sweep(dataset)
    with parts.merging() as done:
        _refuse_problems(recipe.tree.problems, dataset)
        with console.in_threads("merging", find, recipe.tree.examples) as results:
            found = list(results)
        stale = [part for part, _ in done if None in share(found, part)]
        if stale:
            raise P2PHDError(
                f"{recipe.source}: has changed since a part was made, or its files are gone; repeat {parts.repeat(stale)}"
            )
        yield [record for record in found if record is not None]


def _refuse_problems(problems: Sequence[Problem], dataset: Path) -> None:
    if problems:
        raise DataProblems(problems, f"nothing was written to {dataset}; mend these files and run again")


def _read_recipe(source: Path, settings: PrepareSettings) -> Recipe:
    """Find the files and the class table."""
    if not source.is_dir():
        raise P2PHDError(f"{source}: no such folder")
    if settings.width is not None and settings.size is not None:
        raise P2PHDError("--width and --size are two answers to one question; give one")
    tree = _read_tree(source, settings)
    if settings.input != "auto":
        tree.input = settings.input
    examples: list[RawExample] = []
    for split in tree.splits:
        examples += [e for e in tree.examples if e.split == split][: settings.limit]
    tree.examples = examples
    tree.problems = [replace(p, where=p.where.removeprefix(f"{source}/")) for p in tree.problems]
    if not examples and not tree.problems:
        raise P2PHDError(f"{source}: no label maps found in layout {settings.layout}")
    recipe = Recipe(settings, tree, _class_table(settings, tree), source)
    if settings.palette:
        for kept, lost in labels.shared_colours(recipe.classes or ()):
            tree.notes.append(f"{kept} and {lost} have one colour; its pixels are taken for {kept}")
    for note in tree.notes:
        console.warn(note)
    return recipe


def _read_tree(source: Path, settings: PrepareSettings) -> RawTree:
    if settings.layout == "cityscapes":
        return layouts.read_cityscapes(source)
    if settings.layout == "pix2pixhd":
        return layouts.read_pix2pixhd(source)
    return layouts.read_pairs(source, settings.label_folder, settings.photo_folder, settings.instance_folder)


def _class_table(settings: PrepareSettings, tree: RawTree) -> tuple[LabelClass, ...] | None:
    """The class table, or None where classes are to be found in the label maps."""
    if tree.input == "rgb":
        return ()
    if settings.classes is not None:
        return labels.read_class_table(settings.classes)
    if settings.layout == "cityscapes" or any(e.polygons and not e.label for e in tree.examples):
        return labels.CITYSCAPES
    if settings.palette:
        raise P2PHDError("--palette needs the classes' colours: give --classes FILE")
    return None


def _refuse_foreign(dataset: Path) -> None:
    """Never write into a folder that holds something else."""
    if dataset.exists() and not dataset.is_dir():
        raise P2PHDError(f"{dataset}: is a file; name a folder for the data set")
    ours = (dataset / "dataset.json").exists() or (dataset / RECORDS).exists()
    if dataset.is_dir() and any(dataset.iterdir()) and not ours:
        raise P2PHDError(f"{dataset}: holds other files; name a new or empty folder for the data set")
    refuse_links(*dataset.glob("*"), *dataset.glob("*/*"))


def _convert_all(recipe: Recipe, examples: Sequence[RawExample], dataset: Path, staging: Path) -> list[Record]:
    """Convert examples on all cores; unchanged ones are taken as they are. Raises `DataProblems` with all that is wrong."""
    records: list[Record] = []
    problems = list(recipe.tree.problems)

    def work(example: RawExample) -> Record | list[PictureError]:
        try:
            fingerprint = _fingerprint(recipe, example)
        except OSError as error:
            return [PictureError(Path(error.filename), f"cannot be read ({error.strerror})")]
        done = _known_record(recipe, (dataset, staging), example, fingerprint)
        return done if done is not None else _convert(recipe, example, fingerprint, staging)

    with console.in_threads("preparing", work, examples) as results:
        for result in results:
            if isinstance(result, Record):
                records.append(result)
            else:
                problems += [_problem(recipe, error) for error in result]
    _refuse_problems(problems, dataset)
    return records


def _problem(recipe: Recipe, error: PictureError) -> Problem:
    """A reader's complaint, with the file named as it lies in SOURCE."""
    inside = error.path.is_relative_to(recipe.source)
    return Problem(str(error.path.relative_to(recipe.source) if inside else error.path), error.what)


def _record_path(root: Path, split: str, stem: str) -> Path:
    return root / RECORDS / split / f"{stem}.json"


def _fingerprint(recipe: Recipe, example: RawExample) -> str:
    """A digest of settings and source files (names, sizes, times) that decides whether work must be done again."""
    digest = hashlib.sha256(recipe.fingerprint.encode())
    for path in (example.label, example.instance, example.polygons, example.photo):
        if path is not None:
            state = path.stat()
            digest.update(f"{path.relative_to(recipe.source)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _known_record(recipe: Recipe, roots: Iterable[Path], example: RawExample, fingerprint: str) -> Record | None:
    """The record of an example that is whole under one of `roots` and made from these sources; None otherwise."""
    for root in roots:
        record = _read_record(root, example, fingerprint)
        if record is not None and record.bytes == _sizes(root, recipe, example.split, record.entry):
            return record
    return None


def _read_record(root: Path, example: RawExample, fingerprint: str) -> Record | None:
    """The record of an example, if it has this fingerprint."""
    try:
        record = read_sealed(_record_path(root, example.split, example.stem), Record)
    except (OSError, P2PHDError):
        return None
    return record if record.fingerprint == fingerprint else None


def _sizes(root: Path, recipe: Recipe, split: str, entry: ExampleEntry) -> tuple[int, ...]:
    """The sizes of an example's files, -1 for those that are missing."""
    *files, _ = _files(root, recipe, split, entry)
    return tuple(path.stat().st_size if path.exists() else -1 for path in files)


def _convert(recipe: Recipe, example: RawExample, fingerprint: str, staging: Path) -> Record | list[PictureError]:
    """Read, check, scale and write one example, the record last; or say everything that is wrong with it."""
    maps = _tried(_read_maps, recipe, example)
    photo = (
        _tried(pictures.read_photo, example.photo, recipe.settings.max_pixels) if example.photo is not None else None
    )
    faults = [fault for fault in (maps, photo) if isinstance(fault, PictureError)]
    if isinstance(maps, tuple) and isinstance(photo, np.ndarray) and photo.shape[:2] != maps[0].shape[:2]:
        assert example.photo is not None
        faults.append(PictureError(example.photo, f"is {_sides(photo)}, but its label map is {_sides(maps[0])}"))
    if faults or isinstance(maps, PictureError) or isinstance(photo, PictureError):
        return faults
    label, instance = maps
    raw = Size(*label.shape[:2])
    size = recipe.target(*raw)
    if size.height * size.width > MOST_PIXELS or max(size) > MOST_SIDE:
        what = f"would become {size}, more than {MOST_PIXELS:,} pixels; see --size, --width and --multiple"
        return [PictureError(example.input, what)]
    remove(_record_path(staging, example.split, example.stem))  # It vouches for other settings' files.
    suffix = _write_photo(example, photo, size, staging) if photo is not None else None
    counts = _write_maps(recipe, example, label, instance, size, staging)
    of_instance, spanning = labels.majority_classes(counts)
    pixels: Counter[int] = Counter()
    for identity, count in zip(counts.label.tolist(), counts.pixels.tolist(), strict=True):
        pixels[identity] += count
    entry = ExampleEntry(stem=example.stem, height=size.height, width=size.width, photo=suffix)
    record = Record(
        fingerprint=fingerprint,
        entry=entry,
        raw_height=raw.height,
        raw_width=raw.width,
        pixels=dict(sorted(pixels.items())),
        instances=dict(sorted(Counter(of_instance.values()).items())),
        spanning=spanning,
        renamed=_count_renamed(recipe, of_instance),
        bytes=_sizes(staging, recipe, example.split, entry),
    )
    write_text(_record_path(staging, example.split, example.stem), seal(record.model_dump(mode="json")))
    return record


def _tried(read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read` gives, or the `PictureError` that it raises."""
    try:
        return read(*arguments)
    except PictureError as error:
        return error


def _write_maps(
    recipe: Recipe, example: RawExample, label: NDArray[Any], instance: NDArray[np.int32], size: Size, staging: Path
) -> labels.Tally:
    """Scale and write label, boundary and instance map (or the RGB input); returns the pixels per instance and class."""
    path = map_path(staging, example.split, "label", example.stem)
    if label.ndim == 3:
        pictures.write_picture(path, images.fit(label.astype(np.uint8), *size))
        return labels.Tally(*(np.zeros(0, np.int64) for _ in range(3)))
    label, instance = (_nearest(ids, size) for ids in (label, instance))
    pictures.write_ids(path, label)
    boundary = boundary_map(instance).astype(np.uint8) * 255
    pictures.write_picture(map_path(staging, example.split, "boundary", example.stem), boundary)
    if recipe.has_instances:
        pictures.write_ids(map_path(staging, example.split, "instance", example.stem), instance)
    return labels.tally(instance, label)


def _count_renamed(recipe: Recipe, of_instance: dict[int, int]) -> int:
    """Cityscapes' instance ids name their class too; count those that disagree with the label under them."""
    if recipe.settings.layout != "cityscapes" or recipe.settings.instances == "components" or recipe.remap:
        return 0
    return sum((i if i < 1000 else i // 1000) != label for i, label in of_instance.items())


def _read_maps(recipe: Recipe, example: RawExample) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Read and check label and instance map: the former uint16 [H, W], or uint8 [H, W, 3] for RGB inputs."""
    if recipe.tree.input == "rgb":
        picture = pictures.read_photo(example.input, recipe.settings.max_pixels)
        return picture, np.zeros(picture.shape[:2], np.int32)
    drawn = None
    if example.polygons is not None and (example.label is None or (recipe.has_instances and example.instance is None)):
        drawn = labels.read_polygons(example.polygons, recipe.classes or labels.CITYSCAPES, recipe.settings.max_pixels)
    label = _read_label(recipe, example) if example.label is not None else drawn[0]  # type: ignore[index]
    label = labels.remap_ids(label, recipe.remap)
    _check_ids(recipe, example, label)
    if not recipe.has_instances:
        return label, label.astype(np.int32)
    if recipe.settings.instances == "components":
        chosen = recipe.component_ids
        return label, labels.components(label, chosen if chosen is not None else _present(recipe, label))
    if example.instance is not None:
        source = example.instance
        instance = pictures.read_instance_map(source, recipe.settings.max_pixels, deep=recipe.tree.deep_instances)
    elif example.polygons is not None and drawn is not None:
        source, instance = example.polygons, drawn[1]
    else:
        what = "has no instance map, but others have one; give it one, or use --instances components or none"
        raise PictureError(example.input, what)
    if instance.shape != label.shape:
        raise PictureError(source, f"is {_sides(instance)}, but its label map is {_sides(label)}")
    return label, instance


def _read_label(recipe: Recipe, example: RawExample) -> NDArray[np.uint16]:
    assert example.label is not None
    if not recipe.settings.palette:
        return pictures.read_label_map(example.label, recipe.settings.max_pixels)
    try:
        return labels.ids_from_colours(
            pictures.read_colour_map(example.label, recipe.settings.max_pixels), recipe.classes or ()
        )
    except labels.UnknownColours as error:
        raise PictureError(example.label, str(error)) from None


def _present(recipe: Recipe, label: NDArray[np.uint16]) -> list[int]:
    return [int(i) for i in np.unique(label) if i not in recipe.settings.ignore_id]


def _check_ids(recipe: Recipe, example: RawExample, label: NDArray[np.uint16]) -> None:
    """Refuse ids that no class has, naming the first pixel."""
    if recipe.known_ids[: int(label.max(initial=0)) + 1].all():
        return
    bad = ~recipe.known_ids[label]
    if bad.any():
        row, column = labels.first_place(bad)
        value = int(label[row, column])
        advice = "is it an instance map? " if value >= labels.MAX_CLASSES else ""
        raise PictureError(
            example.input,
            f"id {value} at row {row}, column {column} ({int(bad.sum())} pixels in all) is in no class table; "
            f"{advice}use --classes, --remap or --ignore-id",
        )


def _write_photo(example: RawExample, photo: NDArray[np.uint8], size: Size, staging: Path) -> str:
    """Write the photo; an unscaled PNG or JPEG is copied as it is. Returns the suffix it got."""
    assert example.photo is not None
    suffix = {".png": ".png", ".jpg": ".jpg", ".jpeg": ".jpg"}.get(example.photo.suffix.lower())
    copied = suffix is not None and photo.shape[:2] == size
    target = staging / example.split / "photo" / f"{example.stem}{suffix if copied else '.png'}"
    if copied:
        data = example.photo.read_bytes()
        with whole_file(target) as beside:
            beside.write_bytes(data)
    else:
        pictures.write_picture(target, images.fit(photo, *size) if photo.shape[:2] != size else photo)
    return target.suffix


def _nearest(ids: NDArray[Any], size: Size) -> NDArray[Any]:
    """Scale ids by nearest neighbour, pixel centres on pixel centres."""
    height, width = ids.shape
    if (height, width) == size:
        return ids
    rows = ((np.arange(size.height) + 0.5) * height / size.height).astype(int)
    columns = ((np.arange(size.width) + 0.5) * width / size.width).astype(int)
    return ids[rows].take(columns, 1)


def _sides(array: NDArray[Any]) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"


def _describe(recipe: Recipe, examples: Sequence[RawExample], records: Sequence[Record]) -> DatasetSpec:
    """Sum the records up to the description of these examples."""
    classes = recipe.classes
    ignored = tuple(sorted(set(recipe.settings.ignore_id)))
    if classes is None:
        seen = {identity for record in records for identity in record.pixels} - set(ignored)
        if not seen and recipe.settings.part is None:
            raise P2PHDError(f"{recipe.source}: every pixel of every label map has an ignored id")
        classes = labels.plain_classes(max(seen, default=0))
    splits: dict[str, list[ExampleEntry]] = {split: [] for split in recipe.tree.splits}
    pixels: dict[str, Counter[int]] = {split: Counter() for split in recipe.tree.splits}
    instances: dict[str, Counter[int]] = {split: Counter() for split in recipe.tree.splits}
    for example, record in zip(examples, records, strict=True):
        splits[example.split].append(record.entry)
        pixels[example.split].update(record.pixels)
        instances[example.split].update(record.instances)
    if recipe.tree.input == "rgb":
        channels = 0
    else:
        last = max((c.id for c in classes if c.id not in ignored), default=0)
        channels = labels.CITYSCAPES_LABELS if classes == labels.CITYSCAPES else last + 1
    return DatasetSpec(
        input=recipe.tree.input,
        classes=tuple(c for c in classes if c.id not in ignored),
        labels=channels,
        ignored=ignored,
        has_instances=recipe.has_instances,
        splits={split: tuple(entries) for split, entries in splits.items()},
        pixels={split: dict(sorted(count.items())) for split, count in pixels.items()},
        instances={split: dict(sorted(count.items())) for split, count in instances.items()},
        warnings=(*recipe.tree.notes, *_oddities(recipe, records))[:MOST_WARNINGS],
    )


def _publish(recipe: Recipe, spec: DatasetSpec, records: Sequence[Record], staging: Path, dataset: Path) -> None:
    """Move what is new into DATASET, delete what it no longer describes, and write the description last."""
    text = seal(spec.model_dump(mode="json"))
    description = dataset / "dataset.json"
    pairs = list(zip(recipe.tree.examples, records, strict=True))
    fresh = [(e, r) for e, r in pairs if _known_record(recipe, [dataset], e, r.fingerprint) is None]
    if not fresh and description.exists() and description.read_bytes() == text.encode():
        return
    make_folder(dataset / RECORDS)  # From now on the folder is known for a data set of ours.
    remove(dataset / CONTACT_SHEET)  # It shows others.
    remove(description)
    for example, _ in fresh:
        remove(_record_path(dataset, example.split, example.stem))
    moving = [_files(staging, recipe, example.split, record.entry) for example, record in fresh]
    _move(chain.from_iterable(files for *files, _ in moving), staging, dataset)
    _move((record for *_, record in moving), staging, dataset)
    _delete_stale(recipe, dataset, {(e.split, e.stem): r for e, r in pairs})
    write_text(description, text)


def _move(paths: Iterable[Path], staging: Path, dataset: Path) -> None:
    """Move files from STAGING to the same places in DATASET, on the disk."""
    folders = set()
    for path in paths:
        target = dataset / path.relative_to(staging)
        make_folder(target.parent)
        path.replace(target)
        folders.add(target.parent)
    for folder in folders:
        sync(folder)


def _delete_stale(recipe: Recipe, dataset: Path, wanted: dict[tuple[str, str], Record]) -> None:
    """Delete what earlier runs made, by their records, and nothing else."""
    known = {(path.parent.name, path.stem) for path in (dataset / RECORDS).glob("*/*.json")}
    for split, stem in known:
        record = wanted.get((split, stem))
        kept = _files(dataset, recipe, split, record.entry) if record is not None else []
        made = [map_path(dataset, split, kind, stem) for kind in ("label", "boundary", "instance")]
        made += [dataset / split / "photo" / f"{stem}{suffix}" for suffix in (".png", ".jpg")]
        for path in {*made, _record_path(dataset, split, stem)} - set(kept):
            path.unlink(missing_ok=True)


def _files(root: Path, recipe: Recipe, split: str, entry: ExampleEntry) -> list[Path]:
    """Every file of an example, the record that vouches for them last."""
    rgb = recipe.tree.input == "rgb"
    paths = [map_path(root, split, "label", entry.stem)]
    paths += [] if rgb else [map_path(root, split, "boundary", entry.stem)]
    paths += [map_path(root, split, "instance", entry.stem)] if recipe.has_instances else []
    photo = photo_path(root, split, entry)
    return [*paths, *([photo] if photo is not None else []), _record_path(root, split, entry.stem)]


def _write_contact_sheet(dataset: Path, spec: DatasetSpec) -> None:
    """Label map, boundary map and photo of the first few examples of each split."""
    rows, names = [], []
    for split, entries in spec.splits.items():
        for entry in entries[:SHEET_EXAMPLES]:
            example = read_example(dataset, spec, split, entry)
            cells = [
                images.colour_labels(example.label, spec.classes),
                images.from_mask(boundary_map(example.instance)),
                example.photo,
            ]
            rows.append([cell if cell is None else images.fit_width(cell, CELL_WIDTH) for cell in cells])
            names.append(f"{split}: {entry.stem}")
    images.grid(rows, ["label", "boundary", "photo"], names).save(dataset / CONTACT_SHEET)


def _report(recipe: Recipe, spec: DatasetSpec, records: Sequence[Record], dataset: Path) -> None:
    """Say what was found, and aloud what was changed."""
    _report_sizes(recipe, records)
    if spec.input == "labels":
        _report_classes(spec, records)
    for split, entries in spec.splits.items():
        missing = sum(entry.photo is None for entry in entries)
        note = (
            "no photos"
            if missing == len(entries)
            else f"{missing} orphans without a photo"
            if missing
            else "all with photos"
        )
        console.info(f"{split}: {console.count(len(entries), 'example')}, {note}")
    if not spec.has_instances and spec.input == "labels":
        console.info("no instance maps: the regions of a class count as its one instance")
    for oddity in _oddities(recipe, records):
        console.warn(oddity)
    console.info(f"wrote {dataset} (look at {dataset / CONTACT_SHEET})")


def _oddities(recipe: Recipe, records: Sequence[Record]) -> Iterator[str]:
    """What the examples have that may be a mistake, and how it was taken."""
    seen = {identity for record in records for identity in record.pixels} - set(recipe.settings.ignore_id)
    if recipe.classes is None and max(seen, default=0) == 255:
        yield "id 255 is taken for a class; if it means nothing, add --ignore-id 255"
    if spanning := sum(record.spanning for record in records):
        yield f"{console.count(spanning, 'instance')} of several classes; each is taken for its majority class"
    if renamed := sum(record.renamed for record in records):
        yield f"{console.count(renamed, 'instance id')} of another class than the label under them; the label is believed"


def _report_sizes(recipe: Recipe, records: Sequence[Record]) -> None:
    """Say which sizes were rounded to the multiple, and by how much."""
    changes: Counter[str] = Counter()
    for record in records:
        raw, size = Size(record.raw_height, record.raw_width), Size(record.entry.height, record.entry.width)
        free = replace(recipe, settings=recipe.settings.model_copy(update={"multiple": 1})).target(*raw)
        note = "" if free == size else f" (asked: {free}; sides go to multiples of {recipe.settings.multiple})"
        changes[f"{raw} -> {size}{note}"] += 1
    for change, count in changes.most_common(5):
        console.info(f"{console.count(count, 'picture')} {change}")
    if len(changes) > 5:
        console.info(f"… and {len(changes) - 5} more sizes")


def _report_classes(spec: DatasetSpec, records: Sequence[Record]) -> None:
    """The table of pixels and instances per class; classes never seen in one line."""
    pixels: Counter[int] = Counter()
    instances: Counter[int] = Counter()
    for record in records:
        pixels.update(record.pixels)
        instances.update(record.instances)
    total = sum(pixels.values())
    named = [(c.id, c.name) for c in spec.classes] + [(i, "(ignored)") for i in spec.ignored]
    rows = [
        (identity, name, pixels[identity], f"{pixels[identity] / total:.2%}", instances[identity])
        for identity, name in named
        if pixels[identity]
    ]
    console.table("Classes", ["id", "class", "pixels", "share", "instances"], rows)
    unseen = [c.name for c in spec.classes if not pixels[c.id]]
    if unseen:
        console.info(f"never seen: {', '.join(unseen)}")
