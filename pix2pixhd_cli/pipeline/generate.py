"""`p2phd generate`: label maps become pictures, in styles that are drawn or chosen."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pix2pixhd_cli import console, images
from pix2pixhd_cli.data import pictures
from pix2pixhd_cli.data.arrays import open_arrays
from pix2pixhd_cli.data.dataset import Example, map_path, photo_path, read_example, read_spec, whole
from pix2pixhd_cli.data.files import checksum, plain_name, sweep
from pix2pixhd_cli.data.labels import first_place
from pix2pixhd_cli.data.layouts import PICTURES, stem_of
from pix2pixhd_cli.data.parts import Parts, digest_of_files, share, which_part
from pix2pixhd_cli.data.pictures import PictureError, write_picture
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.features import (
    ClassStyles,
    FeatureClusters,
    Styler,
    parse_rules,
    style_index,
    unknown_class,
)
from pix2pixhd_cli.mirror import PAINTING, at_any_place
from pix2pixhd_cli.painting import Painter, gathered
from pix2pixhd_cli.settings import GenerateSettings, Part, Settings, load_settings

PARTS = ".generate-parts"


@at_any_place(PAINTING)
def generate(run: Path, labels: Path, out: Path, settings: Settings | None = None) -> list[Path]:
    """Paint every label map of `labels` into `out/STEM.png`, of the label map's size; returns the files.

    Args:
        run: a trained run.
        labels: a prepared data set, a folder of label maps, or one label map.
        out: the folder to paint into; grids and strips go to folders of their own in it.
        settings: section generate. With `--part`, that part's label maps alone are painted.

    Raises `P2PHDError` for anything the run or the label maps cannot give. For k and b free per instance, see
    `pix2pixhd_cli.painting.Painter`.
    """
    chosen = settings or load_settings(run=run)
    part = which_part(chosen.generate)
    painter = Painter(run, chosen, batch_size=chosen.generate.batch_size, devices=chosen.generate.devices)
    styler, shown = _styler(painter, chosen.generate)
    scenes = _Scenes(painter, labels, chosen.generate, styler.needs_photo())
    if out.exists() and not out.is_dir():
        raise P2PHDError(f"{out}: is a file; name a folder for the pictures")
    _refuse_overwriting(scenes, out)
    parts = Parts(out / PARTS, ("generate", run, labels, out), chosen.generate, _inputs(painter, scenes))
    if chosen.generate.merge:
        return _merge(scenes, out, parts)
    if part is None:
        parts.forget()
        sweep(out, out / "grids", out / "strips")
        _paint_all(painter, styler, scenes, out, chosen.generate, shown)
    else:
        scenes.keep(part)
        with parts.working(part) as made:
            for path in _paint_all(painter, styler, scenes, out, chosen.generate, shown):
                made[str(path.relative_to(out))] = checksum(path)
    _warn(painter, styler, scenes)
    console.info(f"painted {console.count(len(scenes), 'picture')} into {out}")
    if part is not None:
        console.info(parts.said(part))
    return scenes.targets(out)


def _inputs(painter: Painter, scenes: "_Scenes") -> dict[str, str]:
    """What parts must have in common beside the settings."""
    styles = "none"
    if painter.run.clusters.exists():
        with open_arrays(painter.run.clusters) as file:
            styles = file.digest
    return {"model": painter.mark, "set of styles": styles, "set of inputs": digest_of_files(scenes.inputs)}


def _merge(scenes: "_Scenes", out: Path, parts: Parts) -> list[Path]:
    """See to it that all pictures of all parts are there as they were painted."""
    with parts.merging() as done:
        for part, made in done:
            for name in made:
                parts.find(part, name, made, out)
        sweep(out, out / "grids", out / "strips", alone=True)
    console.info(f"{out} has {console.count(len(scenes), 'picture')} of {console.count(len(done), 'part')}")
    return scenes.targets(out)


def _refuse_overwriting(scenes: "_Scenes", out: Path) -> None:
    """Never paint over a label map, an instance map or a photo."""
    taken = {path.resolve() for path in scenes.inputs}
    for stem in scenes.stems:
        for target in (out / f"{stem}.png", out / "grids" / f"{stem}.png"):
            if target.resolve() in taken:
                raise P2PHDError(
                    f"{target}: would be painted over, and is an input; name another folder for the pictures"
                )


def _styler(painter: Painter, settings: GenerateSettings) -> tuple[Styler, list[tuple[str, ClassStyles, int]]]:
    """What decides the codes, and the classes that `--all-codes` shows, as (name, styles, id)."""
    clusters = None
    if painter.run.clusters.exists():
        clusters = FeatureClusters.load(painter.run.clusters)
    if not painter.channels and (settings.feature_code or settings.all_codes or settings.feature_gain):
        raise P2PHDError(f"{painter.run.folder}: was trained without an encoder, so it takes no feature codes")
    if clusters is not None and clusters.channels != painter.channels:
        raise P2PHDError(f"{painter.run.clusters}: not of this run; cluster again")
    rules = parse_rules(settings.feature_code, painter.spec, clusters, painter.channels)
    if painter.channels and clusters is None and not settings.feature_gain:
        console.warn(
            f"{painter.run.folder} has no styles yet: codes not chosen are zero; `p2phd encode` and `p2phd cluster` find styles"
        )
    shown = []
    for text in settings.all_codes:
        found = painter.spec.class_named(text)
        styles = clusters.classes.get(found.id) if found is not None and clusters is not None else None
        if found is None:
            raise P2PHDError(f"--all-codes {text}: {unknown_class(text, painter.spec, clusters)}")
        style_index(f"--all-codes {text}", "0", styles)
        assert styles is not None
        shown.append((found.name, styles, found.id))
    styler = Styler(
        rules,
        clusters,
        channels=painter.channels,
        gain=settings.feature_gain,
        seed=settings.seed,
        hold=settings.hold,
    )
    return styler, shown


def _paint_all(
    painter: Painter,
    styler: Styler,
    scenes: "_Scenes",
    out: Path,
    settings: GenerateSettings,
    shown: Sequence[tuple[str, ClassStyles, int]],
) -> list[Path]:
    """Paint every scene; returns each file that was written."""
    written: list[Path] = []
    with console.progress("painting", len(scenes)) as bar:
        for group in gathered(scenes, lambda scene: painter.padded_size(scene.label), painter.most):
            written += _paint(painter, styler, group, out, settings, shown)
            bar.advance(bar.task_ids[0], len(group))
    return written


def _paint(
    painter: Painter,
    styler: Styler,
    scenes: Sequence[Example],
    out: Path,
    settings: GenerateSettings,
    shown: Sequence[tuple[str, ClassStyles, int]],
) -> Iterator[Path]:
    """Paint scenes of one size, with their grids and strips if wanted; yields each file that was written."""
    requests = []
    for scene in scenes:
        requests.append(painter.styled(scene, styler))
        for _, styles, identity in _present(painter, scene, shown):
            requests += painter.in_styles(scene, styler, identity, range(len(styles.centres)))
    painted = iter(painter.paint_all(requests))
    for scene in scenes:
        picture = next(painted)
        colours = images.colour_labels(scene.label, painter.spec.classes)
        if settings.grid:
            path = out / "grids" / f"{scene.stem}.png"
            images.grid([[colours, picture]], ["label", "generated"]).save(path)
            yield path
        for name, styles, _ in _present(painter, scene, shown):
            titles = [f"{name} {styles.title(n)}" for n in range(len(styles.centres))]
            path = out / "strips" / plain_name(f"{scene.stem}-{name}.png")
            images.grid([[colours, *islice(painted, len(titles))]], ["label", *titles]).save(path)
            yield path
        path = out / f"{scene.stem}.png"
        write_picture(path, picture)
        yield path


def _present(
    painter: Painter, scene: Example, shown: Sequence[tuple[str, ClassStyles, int]]
) -> list[tuple[str, ClassStyles, int]]:
    """Of the classes to show, those that the scene has."""
    if not shown:
        return []
    classes = set(painter.instances(scene.label, scene.instance).values())
    return [one for one in shown if one[2] in classes]


def _warn(painter: Painter, styler: Styler, scenes: "_Scenes") -> None:
    """Say once what the user may not have expected."""
    for text, stems in styler.absences.items():
        if stems:
            shown = (
                f"{stems[0]}" if len(stems) == 1 else f"{len(stems)} of {styler.pictures} pictures, such as {stems[0]}"
            )
            console.warn(f"--feature-code {text}: nothing to apply it to in {shown}")
    if styler.without_styles and styler.clusters is not None:
        names = ", ".join(painter.spec.class_name(i) for i in sorted(styler.without_styles))
        console.warn(f"no styles for {names}: painted with their mean code, or zero where there is none")
    run = painter.run.folder
    if scenes.zeroed:
        console.warn(f"ids {', '.join(map(str, sorted(scenes.zeroed)))} are no class of {run}: painted as unlabeled")
    if styler.clusters is not None and styler.clusters.step != painter.step:
        console.warn(
            f"{run} was trained on since its styles were found; `p2phd encode` and `p2phd cluster` find them anew"
        )


class _Scenes:
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
            item.get("instance") is None and "entry" not in item for item in self._items
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
        for item in self._items:
            scene = self._read_entry(**item) if "entry" in item else self._read_files(**item)
            if scene.instance.shape != scene.label.shape[:2]:
                raise P2PHDError(f"{item.get('instance')}: is not of its label map's size")
            if self.with_photos and scene.photo is None:
                raise P2PHDError(
                    f"{scene.stem}: has no photo, but a feature gain or a `photo` code needs one; see --photo"
                )
            if scene.photo is not None and scene.photo.shape[:2] != scene.label.shape[:2]:
                raise P2PHDError(f"{item.get('photo')}: is not of its label map's size")
            yield scene

    def _read_entry(self, folder: Path, spec: Any, split: str, entry: Any) -> Example:
        if entry.height * entry.width > self.most:
            what = (
                f"is {entry.height}x{entry.width}, more than {self.most:,} pixels; if that is right, raise --max-pixels"
            )
            raise PictureError(map_path(folder, split, "label", entry.stem), what)
        example = read_example(folder, spec, split, entry)
        photo = example.photo if self.with_photos else None
        return Example(entry.stem, example.label, example.instance, photo)

    def _read_files(self, label: Path, instance: Path | None, photo: Path | None) -> Example:
        if self.rgb:
            ids: NDArray[Any] = pictures.read_photo(label, self.most)
        else:
            ids = pictures.read_label_map(label, self.most)
            self._check_ids(label, ids)
        instances = pictures.read_instance_map(instance, self.most) if instance is not None else whole(ids)
        pixels = pictures.read_photo(photo, self.most) if photo is not None and self.with_photos else None
        return Example(stem_of(label), ids, instances, pixels)

    def _check_ids(self, path: Path, label: NDArray[np.uint16]) -> None:
        """Refuse class ids that the run does not know; an imported run without a table takes those past its labels as void."""
        painter = self.painter
        bad = ~np.isin(label, [c.id for c in painter.spec.classes] + list(painter.spec.ignored))
        if bad.any() and painter.run.sources().imported and label[bad].min() >= painter.spec.labels:
            self.zeroed |= set(np.unique(label[bad]).tolist())
        elif bad.any():
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
    found = _pictures(labels)
    # In Cityscapes' own folders label maps lie between instance maps and colour pictures.
    official = {stem: path for stem, path in found.items() if path.stem.endswith("_gtFine_labelIds")}
    found = official or found
    if not found:
        raise P2PHDError(f"{labels}: no label maps here")
    items: list[dict[str, Any]] = [{"label": path, "instance": None, "photo": None} for path in found.values()]
    for kind, flag, source in (
        ("instance", "--instance-map", settings.instance_map),
        ("photo", "--photo", settings.photo),
    ):
        if source is None:
            continue
        if not source.exists():
            raise P2PHDError(f"{flag} {source}: no such file or folder")
        beside = _pictures(source, prefer="_gtFine_instanceIds" if kind == "instance" else "_leftImg8bit")
        for item in items:
            match = source if source.is_file() and len(items) == 1 else beside.get(stem_of(item["label"]))
            if match is None:
                raise P2PHDError(f"{flag} {source}: nothing here has the stem {stem_of(item['label'])}")
            item[kind] = match
    return items


def _pictures(source: Path, prefer: str = "_gtFine_labelIds") -> dict[str, Path]:
    """Pictures by stem; of several with one stem, the one that ends as preferred."""
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    files = [path for path in files if path.suffix.lower() in PICTURES and not path.name.startswith(".")]
    found: dict[str, Path] = {}
    for path in sorted(files, key=lambda p: p.stem.endswith(prefer)):
        other = found.get(stem_of(path))
        if other is not None and other.stem == path.stem:
            raise P2PHDError(f"{path}: has the name of {other.name}; names must differ")
        found[stem_of(path)] = path
    return found
