"""`p2phd show`: what a data set, a pack or a run is, how far it has come, and what comes next."""

import shlex
from pathlib import Path

from pix2pixhd_cli import console, overview
from pix2pixhd_cli.data.dataset import DatasetSpec, read_spec
from pix2pixhd_cli.data.records import PackSpec, read_pack_spec
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.evaluation import read_evaluations, side_by_side
from pix2pixhd_cli.features import FeatureClusters
from pix2pixhd_cli.mirror import SHOWING, working_copy
from pix2pixhd_cli.runs import Run
from pix2pixhd_cli.settings import settings_of_run
from pix2pixhd_cli.urls import Location, locate


def show(thing: Location | str) -> None:
    """Print what a data set, a packed data set or a run is; raises `P2PHDError` for anything else."""
    place = locate(thing)
    if (place / "pack.json").exists():
        _show_pack(place, read_pack_spec(place))
    elif (place / "settings.json").exists():
        with working_copy(place, SHOWING) as run:
            _show_run(run, str(place))
    elif isinstance(place, Path) and (place / "dataset.json").exists():
        _show_dataset(place, read_spec(place))
    else:
        raise P2PHDError(f"{place}: is no data set, no packed data set and no run")


def _show_dataset(place: Path, spec: DatasetSpec) -> None:
    _tell("data set", place, overview.inputs(spec))
    rows = [
        (split, len(entries), sum(entry.photo is not None for entry in entries), overview.sizes(spec, split))
        for split, entries in spec.splits.items()
    ]
    console.table("Splits", ["split", "examples", "with photos", "height x width"], rows)
    _show_classes(spec)
    _tell("pictures of it", place / "contact_sheet.png")
    _next("pack", place, "PACKED")


def _show_pack(place: Location, pack: PackSpec) -> None:
    _tell("packed data set", place, overview.inputs(pack.dataset))
    rows = []
    for split, shards in pack.shards.items():
        size = console.size(sum(shard.bytes for shard in shards))
        rows.append(
            (split, sum(shard.records for shard in shards), len(shards), size, overview.sizes(pack.dataset, split))
        )
    console.table("Splits", ["split", "examples", "shards", "size", "height x width"], rows)
    _show_classes(pack.dataset)
    _next("train", place, "RUN")


def _show_run(run: Run, name: str) -> None:
    settings, spec, sources = settings_of_run(run.folder), run.spec(), run.sources()
    _tell("run", name, overview.inputs(spec))
    _tell("made from", sources.imported or sources.packed or "unknown")
    if sources.init_from is not None:
        _tell("started from", f"{sources.init_from}, step {sources.init_step}")
    _tell("networks", overview.networks(settings))
    if sources.environment:
        _tell("trained with", *(f"{name} {version}" for name, version in sources.environment.items()))
    progress, last = overview.progress(run), overview.last_losses(run)
    if progress.steps:
        _tell("trained", progress)
    shown = {key: value for key, value in last.items() if key not in ("step", "epoch", "seconds") and value}
    if shown:
        _tell("last logged", ", ".join(f"{key} {value:.4g}" for key, value in shown.items()))
    _show_checkpoints(run)
    _show_evaluations(run)
    styles = _show_styles(run, spec)
    if not progress.is_over:
        _next("train", sources.packed or "PACKED", name, "--resume")
    elif settings.encoder.enabled and not run.features.exists():
        _next("encode", name, *([] if sources.packed is not None else ["PACKED"]))
    elif settings.encoder.enabled and not styles:
        _next("cluster", name)
    else:
        _next("generate", name, "LABELS", "OUT")


def _show_checkpoints(run: Run) -> None:
    best = run.best_checkpoint()
    names = [f"{path.name}{' (the best)' if path == best else ''}" for path in run.checkpoints()]
    if names:
        _tell("checkpoints", ", ".join(names))
    if run.model.exists():
        _tell("later verbs use", f"step {run.model_step()}")


def _show_evaluations(run: Run) -> None:
    found = read_evaluations(run.folder)
    if found:
        rows = [(line.metric, line.codes, *line.shown) for line in side_by_side(found)]
        console.wide_table("Evaluations", ["metric", "codes"], [f"{one.split} {one.step}" for one in found], rows)


def _show_styles(run: Run, spec: DatasetSpec) -> bool:
    """Show the styles; returns whether there are any."""
    if not run.clusters.exists():
        return False
    rows = [
        (spec.class_name(identity), len(styles.centres), ", ".join(filter(None, styles.names)))
        for identity, styles in FeatureClusters.load(run.clusters).classes.items()
        if len(styles.centres)
    ]
    console.table("Styles", ["class", "styles", "names"], rows)
    return True


def _show_classes(spec: DatasetSpec) -> None:
    """Show the classes that occur, and what share of all pixels they have."""
    rows = [(c.identity, c.name, c.kind, f"{c.share:.2%}", c.instances) for c in overview.class_shares(spec)]
    if rows:
        console.table("Classes", ["id", "name", "kind", "share", "instances"], rows)
    for warning in spec.warnings:
        _tell("prepare warned", warning)


def _tell(name: str, *values: object) -> None:
    console.info(f"{name}: {', '.join(map(str, values))}")


def _next(*words: object) -> None:
    console.info(f"next: {shlex.join(['p2phd', *map(str, words)])}")
