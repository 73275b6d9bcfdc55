"""`p2phd cluster`: the feature codes of each class become styles, and a picture of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from pix2pixhd_cli import console, images
from pix2pixhd_cli.data.dataset import DatasetSpec, Example
from pix2pixhd_cli.data.records import PackedSplit
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.features import ClassStyles, FeatureClusters, FeatureCodes
from pix2pixhd_cli.mirror import STYLES, at_any_place
from pix2pixhd_cli.pipeline.train import check_photos
from pix2pixhd_cli.runs import Run
from pix2pixhd_cli.settings import ClusterSettings, Settings, load_settings
from pix2pixhd_cli.urls import Location

CROPS = 4  # Real instances shown per style.
CROP_SIDE = 64
LONGEST = 2  # A crop's longer side, at the most, in terms of its shorter one.
FADE = 0.75  # How far everything but the instance fades to white.


@at_any_place(STYLES, writing=True)
def cluster(
    run: Path, packed: Location | str | None = None, settings: Settings | None = None, *, names: Sequence[str] = ()
) -> FeatureClusters:
    """Cluster the codes of each class and write `run/clusters.npz` and `run/clusters.png`.

    Args:
        run: a run with feature codes.
        packed: where the encoded photos are; by default where they were when encoded.
        settings: section cluster; its values are kept in the run.
        names: `CLASS:INDEX=NAME`, given after clustering. Names given before go to the nearest new centres.

    Raises `P2PHDError` if there are no feature codes yet, or for a name that cannot be given.
    """
    chosen = settings or load_settings(run=run)
    with Run(run).lock():
        return _cluster(Run(run), packed, chosen, names)


def _cluster(folder: Run, packed: Location | str | None, chosen: Settings, names: Sequence[str]) -> FeatureClusters:
    """Cluster for a run that is ours alone."""
    run = folder.folder
    codes, spec = FeatureCodes.load(folder.features), folder.spec()
    if codes.code.shape[1] != chosen.encoder.channels:
        raise P2PHDError(f"{folder.features}: is not of this run; encode again")
    clusters = find_styles(codes, chosen.cluster)
    if folder.clusters.exists():
        clusters = clusters.inherit_names(FeatureClusters.load(folder.clusters))
    clusters = clusters.rename(names, spec)
    folder.save_section(chosen, "cluster")
    (run / "clusters.png").unlink(missing_ok=True)  # It shows others.
    clusters.save(folder.clusters)
    _report(clusters, spec)
    if not any(len(styles.centres) for styles in clusters.classes.values()):
        console.warn("no class has styles: no instance is large enough; choose a smaller --min-area")
        return clusters
    try:
        split = _encoded_split(codes, packed)
    except P2PHDError as error:
        console.warn(f"no picture of the styles: {error} (if the packed data moved, name it after RUN)")
        return clusters
    _sheet(codes, clusters, spec, chosen, split).save(run / "clusters.png")
    console.info(f"wrote {folder.clusters}; look at {run / 'clusters.png'}")
    return clusters


def _encoded_split(codes: FeatureCodes, packed: Location | str | None) -> PackedSplit:
    """The packed split that was encoded; raises `P2PHDError` if it is not there any more, or is another one."""
    if not str(codes.packed):
        raise P2PHDError("these codes were imported without photos; `p2phd encode RUN PACKED` makes new ones")
    split = PackedSplit(packed or str(codes.packed), str(codes.split))
    check_photos(split)
    sides = {entry.stem: (entry.height, entry.width) for entry in split.entries}
    for stem, box in zip(codes.stem, codes.box, strict=True):
        height, width = sides.get(str(stem), (0, 0))
        if not (0 <= box[0] < box[2] <= height and 0 <= box[1] < box[3] <= width):
            raise P2PHDError(f"{split.packed}: is not what was encoded ({stem} is missing or smaller)")
    return split


def find_styles(codes: FeatureCodes, settings: ClusterSettings) -> FeatureClusters:
    """K-means per class over its larger instances, with at most as many centres as there are different codes."""
    classes = {}
    for identity in np.unique(codes.label):
        of_class = codes.label == identity
        taking_part = codes.code[of_class & (codes.share > settings.min_area)]
        count = min(settings.clusters, len(np.unique(taking_part, axis=0)))
        centres = np.zeros((0, codes.code.shape[1]), np.float32)
        sizes, inertia = np.zeros(0, np.int32), 0.0
        if count:
            found = KMeans(count, n_init=10, random_state=0).fit(taking_part)
            centres = found.cluster_centers_.astype(np.float32)
            sizes, inertia = np.bincount(found.labels_, minlength=count).astype(np.int32), float(found.inertia_)
        mean = codes.code[of_class].mean(0)
        classes[int(identity)] = ClassStyles(centres, sizes, ("",) * count, mean, inertia)
    return FeatureClusters(classes, codes.code.shape[1], int(codes.step))


def _report(clusters: FeatureClusters, spec: DatasetSpec) -> None:
    """A line per class that has styles; the others by name."""
    rows = [
        (spec.class_name(i), int(s.counts.sum()), len(s.centres), f"{s.inertia:.4f}", ", ".join(filter(None, s.names)))
        for i, s in clusters.classes.items()
        if len(s.centres)
    ]
    console.table("Styles", ["class", "n", "k", "inertia", "names"], rows)
    without = [spec.class_name(i) for i, s in clusters.classes.items() if not len(s.centres)]
    if without:
        console.info(f"too small for styles of their own, painted with their mean code: {', '.join(without)}")


def _sheet(
    codes: FeatureCodes, clusters: FeatureClusters, spec: DatasetSpec, settings: Settings, split: PackedSplit
) -> images.Sheet:
    """Per class a row of styles, each shown by the real instances nearest to its centre."""
    shown = {i: s for i, s in clusters.classes.items() if len(s.centres)}
    chosen = {i: _nearest(codes, i, styles, settings.cluster.min_area) for i, styles in shown.items()}
    numbers = [number for of_class in chosen.values() for own in of_class for number in own]
    crops = _crops(codes, numbers, split, by_label=settings.encoder.pooling == "label")
    rows = [
        [images.mosaic([crops[n] for n in own], CROP_SIDE, CROPS) for own in chosen[identity]] for identity in shown
    ]
    captions = [[f"{s.title(n)}  ({count})" for n, count in enumerate(s.counts)] for s in shown.values()]
    return images.grid(rows, names=[spec.class_name(identity) for identity in shown], captions=captions)


def _nearest(codes: FeatureCodes, identity: int, styles: ClassStyles, min_area: float) -> list[list[int]]:
    """For each style of a class the instances that show it, the nearest to its centre first."""
    candidates = np.flatnonzero((codes.label == identity) & (codes.share > min_area))
    distances = np.linalg.norm(codes.code[candidates][:, None] - styles.centres[None], axis=-1)
    order = candidates[np.argsort(distances, axis=0, kind="stable")]
    return [order[: min(CROPS, int(count)), index].tolist() for index, count in enumerate(styles.counts)]


def _crops(codes: FeatureCodes, chosen: Sequence[int], split: PackedSplit, by_label: bool) -> dict[int, images.Picture]:
    """Instances by their number, cut out of their photos; each photo is read once."""
    of_picture: dict[str, list[int]] = {}
    for number in chosen:
        of_picture.setdefault(str(codes.stem[number]), []).append(number)
    places = {entry.stem: n for n, entry in enumerate(split.entries)}

    def cut(stem: str) -> list[images.Picture]:
        example = split.example(places[stem])
        return [_crop(codes, number, example, by_label) for number in of_picture[stem]]

    found: dict[int, images.Picture] = {}
    with console.in_threads("drawing styles", cut, of_picture) as cutting:
        for stem, pictures in zip(of_picture, cutting, strict=True):
            found |= dict(zip(of_picture[stem], pictures, strict=True))
    return found


def _crop(codes: FeatureCodes, number: int, example: Example, by_label: bool) -> images.Picture:
    """One instance cut out of its photo, its surroundings faded; of long ones, where there is most of it."""
    assert example.photo is not None
    top, left, bottom, right = codes.box[number]
    regions = example.label if by_label else example.instance
    own: NDArray[np.bool_] = regions[top:bottom, left:right] == codes.instance[number]
    height, width = own.shape
    rows = _fullest(own.sum(1), min(height, LONGEST * width))
    columns = _fullest(own.sum(0), min(width, LONGEST * height))
    own = own[rows, columns]
    photo = example.photo[top:bottom, left:right][rows, columns].astype(np.float32)
    faded = photo + (255 - photo) * FADE
    return np.where(own[..., None], photo, faded).astype(np.uint8)


def _fullest(counts: NDArray[np.integer], length: int) -> slice:
    """The window of this length that holds the most."""
    sums = np.concatenate([[0], np.cumsum(counts)])
    start = int((sums[length:] - sums[:-length]).argmax())
    return slice(start, start + length)
