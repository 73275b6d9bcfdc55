"""What is to be painted: the scenes of a data set, of a folder of label maps, of one file, and those that the studio saves.

scene.p2phd   maps, the code of each instance, how they were chosen, and the model that they were chosen for; arrays in a file, as
              numpy's `npz` has them
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pix2pixhd_cli import console
from pix2pixhd_cli.data import pictures
from pix2pixhd_cli.data.arrays import write_arrays
from pix2pixhd_cli.data.dataset import Example, map_path, photo_path, read_example, read_spec, whole
from pix2pixhd_cli.data.labels import first_place
from pix2pixhd_cli.data.layouts import PICTURES, stem_of
from pix2pixhd_cli.data.parts import share
from pix2pixhd_cli.data.pictures import PictureError
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.features import read_layout
from pix2pixhd_cli.painting import Painter
from pix2pixhd_cli.settings import MOST_PIXELS, GenerateSettings, Part

SUFFIX = ".p2phd"
SMALL = 1 << 20  # Bytes of an array that may be read before its size is told to be wrong.
# The arrays of a scene: their type, and a letter for each of their sides.
SCENE = {
    "label": ("<u2", "HW"),
    "instance": ("<i4", "HW"),
    "identity": ("<i4", "N"),
    "code": ("<f4", "NC"),
    "style": ("U", "S"),
    "locked": ("U", "L"),
    "seed": ("<i8", ""),
    "stem": ("U", ""),
    "mark": ("U", ""),
}


@dataclass(frozen=True)
class Scene:
    """What the studio saves, and `generate` paints again.

    example: maps, and the code of each instance that has one; its stem is that by which codes were drawn.
    styles: the `--feature-code` texts that chose the codes, later ones winning; what they do not speak of was drawn.
    locked: targets of theirs that are to stay as they are.
    seed: of the drawn codes.
    mark: which model they were chosen for, as `Painter.mark` has it.
    """

    example: Example
    styles: tuple[str, ...] = ()
    locked: tuple[str, ...] = ()
    seed: int = 0
    mark: str = ""

    def save(self, path: Path) -> None:
        """Write `SCENE.p2phd`; the same scene always gives the same bytes."""
        codes = self.example.codes
        arrays: dict[str, NDArray[Any]] = {
            "label": self.example.label.astype(np.uint16),
            "instance": self.example.instance.astype(np.int32),
            "identity": np.array(list(codes), np.int32),
            "code": np.stack(list(codes.values())).astype(np.float32) if codes else np.zeros((0, 0), np.float32),
            "style": np.array(self.styles, np.str_),
            "locked": np.array(self.locked, np.str_),
            "seed": np.array(self.seed, np.int64),
            "stem": np.array(self.example.stem),
            "mark": np.array(self.mark),
        }
        write_arrays(path, arrays.items(), compress=True)

    @classmethod
    def load(cls, path: Path, most: int = MOST_PIXELS) -> "Scene":
        """Read `SCENE.p2phd`, of `most` pixels at the most; raises `P2PHDError`."""
        data = read_layout(path, SCENE, "no scene here", most=max(4 * most, SMALL))
        label, identities = data["label"], data["identity"].tolist()
        if not label.size or label.size > most:
            what = f"is {label.shape[0]}x{label.shape[1]}; 1 to {most:,} pixels may be painted, see --max-pixels"
            raise PictureError(path, what)
        if len(set(identities)) != len(identities):
            raise P2PHDError(f"{path}: damaged (an instance has two codes); save it again")
        codes = dict(zip(identities, data["code"], strict=True))
        return cls(
            Example(str(data["stem"]), label, data["instance"], None, codes),
            styles=tuple(map(str, data["style"])),
            locked=tuple(map(str, data["locked"])),
            seed=int(data["seed"]),
            mark=str(data["mark"]),
        )


class Scenes:
    """The scenes of a data set, a folder or a file, read one at a time.

    Every class id is checked against the run's table; photos are read only if they are needed.
    """

    def __init__(self, painter: Painter, labels: Path, settings: GenerateSettings, with_photos: bool) -> None:
        self.painter = painter
        self.with_photos = with_photos
        self.most = settings.max_pixels
        self.rgb = painter.spec.input == "rgb"
        if (labels / "dataset.json").exists():
            self._items = _from_dataset(painter, labels, settings, with_photos)
        elif labels.exists():
            self._items = _from_files(labels, settings)
        else:
            raise P2PHDError(f"{labels}: no such file or folder")
        self._items = self._items[: settings.limit]
        self.zeroed: set[int] = set()
        if painter.spec.has_instances and any(
            "entry" not in item and item["instance"] is None and item["label"].suffix != SUFFIX for item in self._items
        ):
            console.warn("no instance maps given: the regions of a class count as one instance; see --instance-map")

    def __len__(self) -> int:
        return len(self._items)

    def keep(self, part: Part) -> None:
        """Keep a part's scenes alone."""
        self._items = list(share(self._items, part))

    def targets(self, out: Path) -> list[Path]:
        """The pictures to paint."""
        return [out / f"{stem}.png" for stem in self.stems]

    @property
    def stems(self) -> list[str]:
        """The pictures' names."""
        return [item["entry"].stem if "entry" in item else stem_of(item["label"]) for item in self._items]

    @property
    def inputs(self) -> list[Path]:
        """Every file that is read."""
        files = [item[kind] for item in self._items if "entry" not in item for kind in ("label", "instance", "photo")]
        for item in self._items:
            if "entry" in item:
                folder, split, entry = item["folder"], item["split"], item["entry"]
                files += [map_path(folder, split, "label", entry.stem), map_path(folder, split, "instance", entry.stem)]
                files.append(photo_path(folder, split, entry))
        return [path for path in files if path is not None]

    def __iter__(self) -> Iterator[Example]:
        return (self.read(number).example for number in range(len(self)))

    def read(self, number: int) -> Scene:
        """One of them, checked; only those of the studio have more than their maps and photo."""
        item = self._items[number]
        scene = self._read_entry(**item) if "entry" in item else self._read_files(**item)
        example = scene.example
        if example.instance.shape != example.label.shape[:2]:
            raise P2PHDError(f"{item.get('instance')}: is not of its label map's size")
        if self.with_photos and example.photo is None:
            raise P2PHDError(
                f"{example.stem}: has no photo, but a feature gain or a `photo` code needs one; see --photo"
            )
        if example.photo is not None and example.photo.shape[:2] != example.label.shape[:2]:
            raise P2PHDError(f"{item.get('photo')}: is not of its label map's size")
        return scene

    def _read_entry(self, folder: Path, spec: Any, split: str, entry: Any) -> Scene:
        if entry.height * entry.width > self.most:
            what = (
                f"is {entry.height}x{entry.width}, more than {self.most:,} pixels; if that is right, raise --max-pixels"
            )
            raise PictureError(map_path(folder, split, "label", entry.stem), what)
        example = read_example(folder, spec, split, entry)
        photo = example.photo if self.with_photos else None
        return Scene(replace(example, photo=photo))

    def _read_files(self, label: Path, instance: Path | None, photo: Path | None) -> Scene:
        pixels = pictures.read_photo(photo, self.most) if photo is not None and self.with_photos else None
        if label.suffix == SUFFIX:
            scene = load_scene(label, self.painter, self.most)
            if told := of_another_model(scene, self.painter):
                console.warn(f"{label} {told}")
            return replace(scene, example=replace(scene.example, stem=stem_of(label), photo=pixels))
        if self.rgb:
            ids: NDArray[Any] = pictures.read_photo(label, self.most)
        else:
            ids = pictures.read_label_map(label, self.most)
            self.zeroed |= check_ids(label, ids, self.painter)
        instances = pictures.read_instance_map(instance, self.most) if instance is not None else whole(ids)
        return Scene(Example(stem_of(label), ids, instances, pixels))


def load_scene(path: Path, painter: Painter, most: int) -> Scene:
    """Read what the studio saved, if this run can paint it; raises `P2PHDError`."""
    run, channels = painter.run.folder, painter.channels
    if painter.spec.input == "rgb":
        raise P2PHDError(f"{path}: {run} paints from RGB pictures, and not from scenes")
    scene = Scene.load(path, most)
    check_ids(path, scene.example.label, painter)
    for code in scene.example.codes.values():
        if len(code) != channels:
            raise P2PHDError(f"{path}: its codes have {len(code)} numbers; those of {run} have {channels}")
    return scene


def of_another_model(scene: Scene, painter: Painter) -> str:
    """What to say of a scene that was saved with another model; nothing if it was this one."""
    if scene.mark == painter.mark:
        return ""
    return f"was saved with another model ({scene.mark}; here it is {painter.mark}): its picture will differ"


def check_ids(path: Path, label: NDArray[np.integer], painter: Painter) -> set[int]:
    """Refuse class ids that the run does not know; raises `PictureError`.

    An imported run without a class table takes those past its labels as void; returns which these are.
    """
    bad = ~np.isin(label, [c.id for c in painter.spec.classes] + list(painter.spec.ignored))
    if not bad.any():
        return set()
    if painter.run.sources().imported and label[bad].min() >= painter.spec.labels:
        return set(np.unique(label[bad]).tolist())
    row, column = first_place(bad)
    what = f"id {label[row, column]} at row {row}, column {column} is no class of {painter.run.folder}"
    raise PictureError(path, f"{what}; prepare the label map as the training data was")


def _from_dataset(
    painter: Painter, folder: Path, settings: GenerateSettings, with_photos: bool
) -> list[dict[str, Any]]:
    spec = read_spec(folder)
    painter.run.check_classes(spec, folder)
    if settings.instance_map is not None or settings.photo is not None:
        raise P2PHDError(
            f"{folder}: a data set brings its own instance maps and photos; leave --instance-map and --photo out"
        )
    if painter.spec.has_instances and not spec.has_instances:
        console.warn(f"{folder} has no instance maps: the regions of a class count as one instance")
    entries = spec.entries(settings.split)
    bare = [entry.stem for entry in entries[: settings.limit] if entry.photo is None]
    if with_photos and bare:
        raise P2PHDError(
            f"{folder}: {console.count(len(bare), 'example')} of {settings.split!r} without a photo, the first is {bare[0]}"
        )
    return [{"folder": folder, "spec": spec, "split": settings.split, "entry": entry} for entry in entries]


def _from_files(labels: Path, settings: GenerateSettings) -> list[dict[str, Any]]:
    found = _pictures(labels, {*PICTURES, SUFFIX})
    # In Cityscapes' own folders label maps lie between instance maps and colour pictures.
    official = {stem: path for stem, path in found.items() if path.stem.endswith("_gtFine_labelIds")}
    found = official or found
    if not found:
        raise P2PHDError(f"{labels}: no label maps here")
    brought = [path for path in found.values() if path.suffix == SUFFIX]
    if brought and settings.instance_map is not None:
        raise P2PHDError(f"{brought[0]}: a scene brings its own instance map; leave --instance-map out")
    items: list[dict[str, Any]] = [{"label": path, "instance": None, "photo": None} for path in found.values()]
    for kind, flag, source in (
        ("instance", "--instance-map", settings.instance_map),
        ("photo", "--photo", settings.photo),
    ):
        if source is None:
            continue
        if not source.exists():
            raise P2PHDError(f"{flag} {source}: no such file or folder")
        beside = _pictures(source, PICTURES, "_gtFine_instanceIds" if kind == "instance" else "_leftImg8bit")
        for item in items:
            match = source if source.is_file() and len(items) == 1 else beside.get(stem_of(item["label"]))
            if match is None:
                raise P2PHDError(f"{flag} {source}: nothing here has the stem {stem_of(item['label'])}")
            item[kind] = match
    return items


def _pictures(source: Path, suffixes: Set[str], prefer: str = "_gtFine_labelIds") -> dict[str, Path]:
    """Pictures by stem; of several with one stem, the one that ends as preferred."""
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    files = [path for path in files if path.suffix.lower() in suffixes and not path.name.startswith(".")]
    found: dict[str, Path] = {}
    for path in sorted(files, key=lambda p: p.stem.endswith(prefer)):
        other = found.get(stem_of(path))
        if other is not None and (other.stem == path.stem or SUFFIX in (path.suffix, other.suffix)):
            raise P2PHDError(f"{path}: has the name of {other.name}; names must differ")
        found[stem_of(path)] = path
    return found
