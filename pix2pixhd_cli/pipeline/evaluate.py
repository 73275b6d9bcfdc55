"""`p2phd evaluate`: how good a run's pictures are, in numbers that say how they were found."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pix2pixhd_cli import __version__, console, images
from pix2pixhd_cli.data.dataset import DatasetSpec, Example, ExampleEntry, read_example, read_spec
from pix2pixhd_cli.data.parts import digest
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.evaluation import Codes, Confusion, Evaluation, Row, side_by_side
from pix2pixhd_cli.features import ClassStyles, FeatureClusters, Styler
from pix2pixhd_cli.judges import (
    FeatureNetwork,
    Segmenter,
    perceptual_distance,
    read_features,
    read_segmenter,
    vgg_features,
)
from pix2pixhd_cli.metrics import (
    FEWEST,
    Picture,
    closeness,
    confusion,
    frechet_distance,
    kernel_distance,
    segmentation,
)
from pix2pixhd_cli.mirror import EVALUATING, PAINTING, at_any_place
from pix2pixhd_cli.painting import Painter, Request, gathered
from pix2pixhd_cli.perceptual_weights import VggFile, read_vgg
from pix2pixhd_cli.runs import Run, step_of
from pix2pixhd_cli.settings import EvaluateSettings, Settings, flags, load_settings, whole_number
from pix2pixhd_cli.urls import Location, locate

SHOWN = 6  # Examples in the sheet of pictures, at the most: neighbours are often alike.
WIDEST, STRIP_WIDTH = 1024, 256  # Of pictures in sheets, in pixels.
ENLARGED = 3.0  # Beyond this a segmenter sees what it was not trained on.
STYLED = 20  # Examples, at the most, in which each class's styles are compared.


class Judges(NamedTuple):
    """What looks at the pictures; None where no network was given."""

    vgg: VggFile | None
    distance: Callable[[Picture, Picture], float] | None
    features: FeatureNetwork | None
    segmenter: Segmenter | None


@dataclass
class Tally:
    """What the judges said of pictures, which may come in any order; close and features are by stem."""

    close: dict[str, dict[str, float]] = field(default_factory=dict)
    features: dict[str, NDArray[np.floating]] = field(default_factory=dict)
    confusion: NDArray[np.int64] | None = None

    def see(self, picture: Picture, example: Example, judges: Judges, *, real: bool = False) -> None:
        """Judge an example's picture, or its photo."""
        assert example.photo is not None
        if judges.features is not None:
            self.features[example.stem] = judges.features.features(picture)
        if judges.segmenter is not None:
            counts = confusion(example.label, judges.segmenter(picture), judges.segmenter.known)
            self.confusion = counts if self.confusion is None else self.confusion + counts
        if not real:
            self.close[example.stem] = closeness(picture, example.photo, judges.distance)


class Album:
    """What there is to look at: some examples whole and, of each class, which example has most of it."""

    def __init__(self, examples: "Examples", judges: Judges) -> None:
        self._classes, self._segmenter = examples.spec.classes, judges.segmenter
        self._shown = {entry.stem for entry in examples.entries[:: -(-len(examples) // SHOWN)]}
        self._rows: dict[str, list[tuple[str, Picture]]] = {}  # By stem: pictures with their titles.
        self._most: dict[int, tuple[int, str]] = {}

    def add(self, example: Example, title: str, picture: Picture) -> None:
        """Keep an example's picture, if it is one of those that are shown."""
        if example.stem in self._shown:
            assert example.photo is not None
            if example.stem not in self._rows:
                label = images.colour_labels(example.label, self._classes)
                self._rows[example.stem] = [("label", _shrunk(label)), *self._views("photo", example.photo)]
            self._rows[example.stem] += self._views(title, picture)

    def count(self, example: Example) -> None:
        """Take note of how many pixels an example has of each class."""
        ids, counts = np.unique(example.label if example.label.ndim == 2 else -1, return_counts=True)
        for identity, pixels in zip(ids.tolist(), counts.tolist(), strict=True):
            self._most[identity] = max(self._most.get(identity, (0, "")), (pixels, example.stem))

    def fullest(self, identity: int) -> str | None:
        """The stem of the example that has most of a class, if any has."""
        return self._most.get(identity, (0, None))[1]

    def sheet(self) -> images.Sheet:
        """A row for each example that is shown."""
        stems = sorted(self._rows)
        rows = [[picture for _, picture in self._rows[stem]] for stem in stems]
        titles = [title for title, _ in self._rows[stems[0]]]
        return images.grid(rows, titles, stems, max(1, 256 // rows[0][0].shape[1]))

    def _views(self, title: str, picture: Picture) -> list[tuple[str, Picture]]:
        """A picture, and what the segmenter sees in it; what is none of our classes is black."""
        if self._segmenter is None:
            return [(title, _shrunk(picture))]
        seen = self._segmenter(picture)
        colours = images.colour_labels(np.maximum(seen, 0), self._classes)
        colours = np.where((seen < 0)[..., None], np.uint8(0), colours)
        return [(title, _shrunk(picture)), (f"seen in {title}", _shrunk(colours))]


class Examples:
    """The examples of a split that have photos, read when they are needed."""

    def __init__(self, dataset: Path, run: Run, settings: EvaluateSettings) -> None:
        self.dataset, self.spec, self.split = dataset, read_spec(dataset), settings.split
        run.check_classes(self.spec, dataset)
        entries = self.spec.entries(settings.split)
        self.entries: list[ExampleEntry] = [entry for entry in entries if entry.photo is not None][: settings.limit]
        if not self.entries:
            raise P2PHDError(f"{dataset}: no example of {settings.split!r} has a photo to compare pictures with")
        if orphans := sum(entry.photo is None for entry in entries):
            console.warn(
                f"{dataset}: {console.count(orphans, 'example')} of {settings.split!r} without a photo left out"
            )

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Example]:
        for entry in self.entries:
            yield self._read(entry)

    def read(self, stem: str) -> Example:
        """One of them."""
        return self._read(next(entry for entry in self.entries if entry.stem == stem))

    def _read(self, entry: ExampleEntry) -> Example:
        return read_example(self.dataset, self.spec, self.split, entry)

    @property
    def sizes(self) -> str:
        """Their sizes, as a protocol has them."""
        found = sorted({(entry.height, entry.width) for entry in self.entries})
        return ", ".join(f"{height}x{width}" for height, width in found[:4]) + (", …" if len(found) > 4 else "")

    @property
    def digest(self) -> str:
        """What tells these examples from others."""
        return digest([entry.model_dump() for entry in self.entries])


def evaluate(run: Location | str, dataset: Path, settings: Settings | None = None) -> list[Evaluation]:
    """Paint a split of `dataset`, compare the pictures with its photos, and write `RUN/evaluation/`.

    Args:
        run: a trained run.
        dataset: a prepared data set with the run's classes.
        settings: section evaluate.

    Returns the evaluations of the checkpoints that were asked for, oldest first. Raises `P2PHDError`.
    """
    chosen = settings or load_settings(run=locate(run))
    scope = PAINTING if chosen.evaluate.checkpoint is None else EVALUATING
    return at_any_place(scope, writing=True)(_evaluate)(run, dataset, chosen)


def _evaluate(run: Path, dataset: Path, chosen: Settings) -> list[Evaluation]:
    folder = Run(run)
    checkpoints = _checkpoints(folder, chosen.evaluate.checkpoint)
    examples = Examples(dataset, folder, chosen.evaluate)
    judges = _judges(chosen, examples.spec)
    truth = Tally()
    if judges.features is not None or judges.segmenter is not None:
        with console.progress("looking at photos", len(examples)) as bar:
            for example in examples:
                assert example.photo is not None
                truth.see(example.photo, example, judges, real=True)
                bar.advance(bar.task_ids[0])
    found = []
    for checkpoint in checkpoints:
        painter = Painter(
            run,
            chosen,
            checkpoint=checkpoint,
            batch_size=chosen.evaluate.batch_size,
            devices=chosen.evaluate.devices,
        )
        one, sheet, strips = _evaluate_one(painter, examples, judges, truth, chosen.evaluate)
        path = one.save(run, sheet, strips)
        found.append(one)
        _show(one)
        console.info(f"wrote {path}; look at {path.with_suffix('.png')}")
    for name, advice in found[-1].left_out.items():
        console.info(f"left out: {name}; {advice}")
    if len(found) > 1:
        rows = [(line.metric, line.codes, *line.shown) for line in side_by_side(found) if line.codes != "real"]
        console.wide_table("By step (* is the best)", ["metric", "codes"], [str(one.step) for one in found], rows)
    return found


def _show(found: Evaluation) -> None:
    """Print all numbers, then how they were found, and those that there are of each class."""
    notes = list(dict.fromkeys(row.shown_protocol for row in found.rows))
    cells = [(r.metric, r.codes, r.shown, r.better, str(1 + notes.index(r.shown_protocol))) for r in found.rows]
    console.table(f"Step {found.step}, {found.split!r}", ["metric", "codes", "value", "better", "note"], cells)
    for number, note in enumerate(notes, 1):
        console.info(f"{number}: {note}")
    split = [row for row in found.rows if row.by_class]
    if split:
        names = dict.fromkeys(name for row in split for name in row.by_class)
        shown = [(name, *(f"{r.by_class[name]:.4g}" if name in r.by_class else "" for r in split)) for name in names]
        console.table("By class", ["class", *(f"{row.metric}, {row.codes}" for row in split)], shown)


def _checkpoints(run: Run, asked: str | None) -> list[Path | None]:
    """The checkpoints to evaluate; None stands for the model that later verbs work with."""
    if asked is None:
        return [None]
    there = run.checkpoints()
    if asked == "all" and there:
        return list(there)
    if asked == "best" and (best := run.best_checkpoint()) is not None:
        return [best]
    step = whole_number(asked)
    if found := [path for path in there if step_of(path) == step]:
        return list(found)
    steps = ", ".join(str(step_of(path)) for path in there) or "none"
    raise P2PHDError(f"--checkpoint {asked}: there is no such checkpoint; there are all, best, and steps {steps}")


def _judges(settings: Settings, spec: DatasetSpec) -> Judges:
    chosen = settings.evaluate
    source = chosen.perceptual_weights or settings.train.perceptual_weights
    vgg = read_vgg(source) if source is not None else None
    network = vgg.build() if vgg is not None else None
    segmenter = features = None
    if chosen.segmenter is not None:
        segmenter = read_segmenter(chosen.segmenter, chosen.segmenter_input, chosen.segmenter_classes, spec)
    if chosen.features is not None:
        features = read_features(chosen.features, chosen.features_input)
    elif vgg is not None and network is not None:
        features = vgg_features(vgg, network)
    return Judges(vgg, perceptual_distance(network) if network is not None else None, features, segmenter)


def _evaluate_one(
    painter: Painter, examples: Examples, judges: Judges, truth: Tally, settings: EvaluateSettings
) -> tuple[Evaluation, images.Sheet, images.Sheet | None]:
    """Judge the pictures of one checkpoint; with sheets of some of them, and of classes in all their styles."""
    styler, left_out = _styler(painter, settings)
    ways = _ways(painter, styler)
    tallies: dict[Codes, Tally] = {codes: Tally() for codes in ways}
    varied: list[float] = []
    album = Album(examples, judges)
    with console.progress(f"judging step {painter.step}", len(examples)) as bar:
        for group in gathered(examples, lambda example: painter.padded_size(example.label), painter.most):
            for codes, request in ways.items():
                pictures = painter.paint_all([request(example, 0) for example in group])
                for example, picture in zip(group, pictures, strict=True):
                    tallies[codes].see(picture, example, judges)
                    album.add(example, f"codes: {codes}", picture)
                if codes == "sampled" and judges.distance is not None:
                    others = painter.paint_all([request(example, 1) for example in group])
                    varied += [judges.distance(*pair) for pair in zip(pictures, others, strict=True)]
            for example in group:
                album.count(example)
            bar.advance(bar.task_ids[0], len(group))
    base = {"size": examples.sizes, "pictures": str(len(examples))}
    rows = [row for codes, tally in tallies.items() for row in _rows(codes, tally, truth, judges, examples, base)]
    if truth.confusion is not None:
        rows += _semantics("real", truth.confusion, judges, examples, base)
    if varied:
        assert judges.vgg is not None
        note = {**base, **_of_vgg(judges.vgg), "pairs": f"seeds {settings.seed} and {settings.seed + 1}"}
        rows.append(
            Row(metric="diversity: perceptual distance", codes="sampled", value=float(np.mean(varied)), protocol=note)
        )
    strips = None
    if styler is not None:
        rows += _control(painter, styler, examples, base)
        strips = _strips(painter, styler, examples, album)
    found = Evaluation(
        version=__version__,
        step=painter.step,
        model=painter.mark,
        averaged=painter.averaged,
        split=examples.split,
        data=examples.digest,
        arguments=(str(examples.dataset), *flags(painter.settings, "evaluate")),
        rows=tuple(rows),
        confusions=tuple(_confusions(tallies, truth, judges, examples)),
        examples={stem: close["psnr"] for stem, close in next(iter(tallies.values())).close.items()},
        left_out=left_out | _without(judges, len(examples), styled=styler is not None),
    )
    return found, album.sheet(), strips


def _without(judges: Judges, count: int, *, styled: bool) -> dict[str, str]:
    """What cannot be told for want of a network or of pictures, and what would add it."""
    found = {}
    if judges.vgg is None:
        found["perceptual distance"] = "--perceptual-weights adds it"
        if styled:
            found["diversity"] = "--perceptual-weights adds it"
    if judges.features is None:
        found["kernel and Fréchet distance"] = "--features or --perceptual-weights adds them"
    elif count < FEWEST:
        found["kernel and Fréchet distance"] = f"{FEWEST} pictures and more add them"
    if judges.segmenter is None:
        found["pixel accuracy and mean IoU"] = "--segmenter adds them"
    return found


def _styler(painter: Painter, settings: EvaluateSettings) -> tuple[Styler | None, dict[str, str]]:
    """What draws codes from the run's styles, if they are of this checkpoint; else, why not."""
    name = "sampled codes, diversity and control"
    if not painter.channels:
        return None, {name: "the run has no encoder"}
    if not painter.run.clusters.exists():
        return None, {name: "`p2phd encode` and `p2phd cluster` make styles to sample from"}
    clusters = FeatureClusters.load(painter.run.clusters)
    if clusters.step != painter.step:
        return None, {name: f"the styles are those of step {clusters.step}"}
    return Styler([], clusters, channels=painter.channels, seed=settings.seed), {}


def _ways(painter: Painter, styler: Styler | None) -> Mapping[Codes, Callable[[Example, int], Request]]:
    """How to ask for an example's picture, by where its codes come from; the second argument is added to the seed."""

    def plain(example: Example, _: int) -> Request:
        return Request(example.label, example.instance)

    def from_photo(example: Example, _: int) -> Request:
        return Request(example.label, example.instance, gains=1.0, photo=example.photo)

    def sampled(example: Example, more: int) -> Request:
        assert styler is not None
        drawing = Styler([], styler.clusters, channels=styler.channels, seed=styler.seed + more)
        return painter.styled(example, drawing)

    if not painter.channels:
        return {"none": plain}
    return {"photo": from_photo, "sampled": sampled} if styler is not None else {"photo": from_photo}


def _rows(
    codes: Codes, tally: Tally, truth: Tally, judges: Judges, examples: Examples, base: dict[str, str]
) -> Iterator[Row]:
    """All numbers of pictures that were painted with the same kind of codes; sampled ones reconstruct nothing."""
    if codes != "sampled":
        yield from _reconstruction(codes, tally, judges, base)
    if judges.features is not None and len(examples) >= FEWEST:
        network = judges.features
        real, fake = (np.stack([one.features[stem] for stem in truth.features]) for one in (truth, tally))
        note = {**base, "network": network.name, "sha256": network.sha256, "resize": network.resized}
        estimate = kernel_distance(real, fake)
        yield Row(
            metric="kernel distance (KID) x 1000",
            codes=codes,
            value=1000 * estimate.value,
            deviation=1000 * estimate.deviation,
            better="lower",
            protocol={**note, "kernel": "(x·y/D + 1)³, unbiased; jackknife deviation"},
        )
        small = (
            {"beware": f"{len(real)} pictures are few for {real.shape[1]} features"}
            if len(real) < 10 * real.shape[1]
            else {}
        )
        value = frechet_distance(real, fake)
        yield Row(metric="Fréchet distance", codes=codes, value=value, better="lower", protocol=note | small)
    if tally.confusion is not None:
        yield from _semantics(codes, tally.confusion, judges, examples, base)


def _reconstruction(codes: Codes, tally: Tally, judges: Judges, base: dict[str, str]) -> Iterator[Row]:
    kinds: dict[str, tuple[str, Literal["higher", "lower"], dict[str, str]]] = {
        "psnr": ("PSNR (dB)", "higher", {}),
        "ssim": ("SSIM", "higher", {"window": "Gaussian, 11 pixels, sigma 1.5"}),
        "perceptual": ("perceptual distance", "lower", _of_vgg(judges.vgg) if judges.vgg is not None else {}),
    }
    for name, (metric, better, note) in kinds.items():
        if values := [close[name] for close in tally.close.values() if name in close]:
            yield Row(metric=metric, codes=codes, value=_mean(values), better=better, protocol=base | note)


def _semantics(
    codes: Codes, counts: NDArray[np.int64], judges: Judges, examples: Examples, base: dict[str, str]
) -> Iterator[Row]:
    assert judges.segmenter is not None
    network, found = judges.segmenter.network, segmentation(counts, judges.segmenter.known)
    ignored = [
        c.name for c in examples.spec.classes if c.id not in judges.segmenter.known or c.id in examples.spec.ignored
    ]
    scale = max(judges.segmenter.scale(entry.height, entry.width) for entry in examples.entries)
    note = {
        **base,
        "segmenter": network.name,
        "sha256": network.sha256,
        "resize": "tighter side, bicubic, in pieces" if network.sides is not None else "none",
        "classes": f"{len(found.iou)} of {len(examples.spec.classes)}",
        "ignored": ", ".join([*ignored, *map(str, sorted(examples.spec.ignored))]) or "none",
    }
    if scale > ENLARGED:
        note["beware"] = f"it sees pictures {scale:.1f} times enlarged, and may judge their noise"
    yield Row(metric="pixel accuracy", codes=codes, value=found.accuracy, better="higher", protocol=note)
    by_class = {examples.spec.class_name(identity): value for identity, value in found.iou.items()}
    yield Row(metric="mean IoU", codes=codes, value=found.mean_iou, better="higher", by_class=by_class, protocol=note)


def _control(painter: Painter, styler: Styler, examples: Examples, base: dict[str, str]) -> Iterator[Row]:
    """How far a class's two commonest styles part in its own pixels, and in all others, in levels of 255."""
    assert styler.clusters is not None
    inside: dict[int, list[float]] = defaultdict(list)
    outside: dict[int, list[float]] = defaultdict(list)
    for example in examples:
        classes = sorted(set(painter.instances(example.label, example.instance).values()))
        for identity in classes:
            styles = styler.clusters.classes.get(identity)
            if styles is None or len(styles.centres) < 2 or len(inside[identity]) == STYLED:
                continue
            pair = painter.paint_all(painter.in_styles(example, styler, identity, _commonest(styles)))
            one, other = (picture.astype(float) for picture in pair)
            change, own = np.abs(one - other).mean(-1), example.label == identity
            inside[identity].append(float(change[own].mean()))
            outside[identity].append(float(change[~own].mean()) if not own.all() else 0.0)
    known = [identity for identity in inside if inside[identity]]
    if not known:
        return
    note = {**base, "pairs": f"the two commonest styles, {STYLED} pictures a class at the most"}
    for name, better, found in (("own class", "higher", inside), ("elsewhere", "lower", outside)):
        by_class = {painter.spec.class_name(identity): _mean(found[identity]) for identity in known}
        yield Row(
            metric=f"control: change {name} (levels)",
            codes="sampled",
            value=_mean(by_class.values()),
            better=better,
            by_class=by_class,
            protocol=note,
        )


def _strips(painter: Painter, styler: Styler, examples: Examples, album: Album) -> images.Sheet | None:
    """Each class in all of its styles, in the example that has most of it."""
    assert styler.clusters is not None
    rows, names, captions = [], [], []
    for identity, styles in styler.clusters.classes.items():
        stem = album.fullest(identity)
        if stem is None or len(styles.centres) < 2:
            continue
        example, numbers = examples.read(stem), range(len(styles.centres))
        if identity not in painter.instances(example.label, example.instance).values():
            continue
        painted = painter.paint_all(painter.in_styles(example, styler, identity, numbers))
        label = images.colour_labels(example.label, examples.spec.classes)
        rows.append([images.fit_width(picture, STRIP_WIDTH) for picture in (label, *painted)])
        names.append(examples.spec.class_name(identity))
        captions.append([stem, *(styles.title(n) for n in numbers)])
    return images.grid(rows, names=names, captions=captions) if rows else None


def _shrunk(picture: Picture) -> Picture:
    """No wider than a sheet has room for."""
    return images.fit_width(picture, WIDEST) if picture.shape[1] > WIDEST else picture


def _commonest(styles: ClassStyles) -> list[int]:
    """The two styles of most instances."""
    order = np.argsort(-styles.counts, kind="stable")
    return [int(order[0]), int(order[1])]


def _confusions(
    tallies: Mapping[Codes, Tally], truth: Tally, judges: Judges, examples: Examples
) -> Iterator[Confusion]:
    if judges.segmenter is None:
        return
    names = tuple(examples.spec.class_name(identity) for identity in judges.segmenter.known)
    for codes, tally in (*tallies.items(), ("real", truth)):
        assert tally.confusion is not None
        yield Confusion(codes=codes, classes=names, counts=tuple(map(tuple, tally.confusion.tolist())))


def _of_vgg(vgg: VggFile) -> dict[str, str]:
    return {"network": f"{vgg.kind} ({vgg.name})", "sha256": vgg.sha256, "resize": "none"}


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
