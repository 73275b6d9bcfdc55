"""One reader per raw layout: it pairs files by stem and says which have no partner. It opens none of them."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pix2pixhd_cli.data.dataset import InputKind
from pix2pixhd_cli.data.files import check_plain_name
from pix2pixhd_cli.errors import P2PHDError, Problem

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
# What official Cityscapes names carry after the stem.
SUFFIXES = ("_leftImg8bit", "_gtFine_labelIds", "_gtFine_instanceIds", "_gtFine_polygons")


@dataclass(frozen=True)
class RawExample:
    """The files of one example as they lie in SOURCE."""

    split: str
    stem: str
    label: Path | None = None
    instance: Path | None = None
    photo: Path | None = None
    polygons: Path | None = None

    @property
    def input(self) -> Path:
        """The file the label map comes from."""
        path = self.label or self.polygons
        assert path is not None
        return path


@dataclass
class RawTree:
    """All examples of SOURCE, sorted by split and stem, and what is wrong with their pairing."""

    examples: list[RawExample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    input: InputKind = "labels"
    deep_instances: bool = False  # Instance maps must have 16 bits.

    @property
    def splits(self) -> list[str]:
        """The splits there are."""
        return sorted({example.split for example in self.examples})


def read_cityscapes(source: Path) -> RawTree:
    """`leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and `gtFine/SPLIT/CITY/*_gtFine_{labelIds,instanceIds,polygons}.*`."""
    photos, maps = source / "leftImg8bit", source / "gtFine"
    if not maps.is_dir():
        raise P2PHDError(f"{source}: no folder gtFine here; is it a Cityscapes tree? See --layout for others")
    splits = _folders(maps) | (_folders(photos) if photos.is_dir() else set())
    tree = RawTree(deep_instances=True)
    for split in sorted(splits):
        files = {
            "label": _by_stem((maps / split).glob("*/*_gtFine_labelIds.png"), tree),
            "instance": _by_stem((maps / split).glob("*/*_gtFine_instanceIds.png"), tree),
            "polygons": _by_stem((maps / split).glob("*/*_gtFine_polygons.json"), tree),
            "photo": _by_stem(
                (p for p in (photos / split).glob("*/*_leftImg8bit.*") if p.suffix.lower() in PICTURES), tree
            ),
        }
        _pair(tree, split, files)
    return tree


def read_pix2pixhd(source: Path) -> RawTree:
    """`SPLIT_label`, `SPLIT_inst`, `SPLIT_img`, or `SPLIT_A` and `SPLIT_B` for RGB to RGB."""
    names = _folders(source)
    rgb = any(name.endswith("_A") for name in names) and not any(name.endswith("_label") for name in names)
    kinds = {"label": "_A", "photo": "_B"} if rgb else {"label": "_label", "instance": "_inst", "photo": "_img"}
    splits = {name.removesuffix(end) for name in names for end in kinds.values() if name.endswith(end)}
    if not splits:
        raise P2PHDError(
            f"{source}: no folder SPLIT_label or SPLIT_A here, such as train_label; see --layout for others"
        )
    tree = RawTree(input="rgb" if rgb else "labels")
    for split in sorted(splits):
        _pair(tree, split, {kind: _by_stem(_pictures(source / f"{split}{end}"), tree) for kind, end in kinds.items()})
    return tree


def read_pairs(source: Path, label_folder: str, photo_folder: str, instance_folder: str | None) -> RawTree:
    """Two named folders of equal stems (three with instance maps), with a folder per split in each, or all `train`."""
    named = {"label": label_folder, "photo": photo_folder, "instance": instance_folder or "instances"}
    folders = {kind: source / name for kind, name in named.items()}
    for kind, folder in folders.items():
        if not folder.is_dir() and (kind != "instance" or instance_folder is not None):
            raise P2PHDError(f"{folder}: no such folder; name it with --{kind}-folder")
    present = [folder for folder in folders.values() if folder.is_dir()]
    splits = {split for folder in present for split in _folders(folder) if _pictures(folder / split)}
    flat = [folder for folder in present if _pictures(folder)]
    if splits and flat:
        raise P2PHDError(
            f"{flat[0]}: holds pictures, but there are folders of splits too ({min(splits)}); sort them the same way"
        )
    tree = RawTree()
    for split in sorted(splits) or [""]:
        files = {kind: _by_stem(_pictures(folder / split), tree) for kind, folder in folders.items()}
        _pair(tree, split or "train", files)
    return tree


def _pair(tree: RawTree, split: str, files: dict[str, dict[str, Path]]) -> None:
    """Join files by stem into examples; what has no partner becomes a problem.

    A split without photos is fine, and outside `train` so is a label map without a photo.
    """
    inputs = {**files.get("polygons", {}), **files["label"]}
    if not inputs and not files["photo"]:
        tree.problems.append(Problem(split, "this split is empty; fill it or remove its folders"))
    if files["photo"] and not inputs:
        tree.notes.append(f"{split}: {len(files['photo'])} photos without any label map; this split is left out")
        return
    for stem, path in files["photo"].items():
        if stem not in inputs:
            tree.problems.append(Problem(str(path), f"photo without a label map: no label map has the stem {stem}"))
    for stem, path in files.get("instance", {}).items():
        if stem not in inputs:
            tree.problems.append(Problem(str(path), f"instance map without a label map of the stem {stem}"))
    for stem, path in sorted(inputs.items()):
        try:
            check_plain_name(split), check_plain_name(stem)
        except ValueError as error:
            tree.problems.append(Problem(str(path), f"its name or its split's {error}; rename it"))
            continue
        if files["photo"] and split == "train" and stem not in files["photo"]:
            tree.problems.append(Problem(str(path), f"label map without a photo: no photo has the stem {stem}"))
        found = {kind: paths[stem] for kind, paths in files.items() if stem in paths}
        if files.get("instance") and "instance" not in found and "polygons" not in found:
            tree.problems.append(Problem(str(path), f"no instance map has the stem {stem}, but others have one"))
        tree.examples.append(RawExample(split, stem, **found))


def _by_stem(paths: Iterable[Path], tree: RawTree) -> dict[str, Path]:
    """Files by stem, official endings removed; two files of one stem are a problem."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(paths):
        found[stem_of(path)].append(path)
    for stem, files in found.items():
        if len(files) > 1:
            tree.problems.append(Problem(str(files[1]), f"has the stem {stem} of {files[0].name}; stems must differ"))
    return {stem: files[0] for stem, files in found.items()}


def stem_of(path: Path) -> str:
    """A file's stem without official endings."""
    stem = path.stem
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    return stem


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and not path.name.startswith(".")]


def _folders(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
