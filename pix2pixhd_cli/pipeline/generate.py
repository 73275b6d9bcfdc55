"""`p2phd generate`: label maps become pictures, in styles that are drawn or chosen."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from pix2pixhd_cli import console, images
from pix2pixhd_cli.data.arrays import open_arrays
from pix2pixhd_cli.data.dataset import Example
from pix2pixhd_cli.data.files import checksum, plain_name, sweep
from pix2pixhd_cli.data.parts import Parts, digest_of_files, which_part
from pix2pixhd_cli.data.pictures import write_picture
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
from pix2pixhd_cli.scenes import Scenes
from pix2pixhd_cli.settings import GenerateSettings, Settings, load_settings

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
    scenes = Scenes(painter, labels, chosen.generate, styler.needs_photo())
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


def _inputs(painter: Painter, scenes: Scenes) -> dict[str, str]:
    """What parts must have in common beside the settings."""
    styles = "none"
    if painter.run.clusters.exists():
        with open_arrays(painter.run.clusters) as file:
            styles = file.digest
    return {"model": painter.mark, "set of styles": styles, "set of inputs": digest_of_files(scenes.inputs)}


def _merge(scenes: Scenes, out: Path, parts: Parts) -> list[Path]:
    """See to it that all pictures of all parts are there as they were painted."""
    with parts.merging() as done:
        for part, made in done:
            for name in made:
                parts.find(part, name, made, out)
        sweep(out, out / "grids", out / "strips", alone=True)
    console.info(f"{out} has {console.count(len(scenes), 'picture')} of {console.count(len(done), 'part')}")
    return scenes.targets(out)


def _refuse_overwriting(scenes: Scenes, out: Path) -> None:
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
    scenes: Scenes,
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


def _warn(painter: Painter, styler: Styler, scenes: Scenes) -> None:
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
