"""`p2phd show`: what a data set, a pack or a run is, how far it has come, and what comes next."""

import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pix2pixhd_cli import console
from pix2pixhd_cli.data.dataset import DatasetSpec, read_spec
from pix2pixhd_cli.data.records import PackSpec, read_pack_spec
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.evaluation import read_evaluations
from pix2pixhd_cli.features import FeatureClusters
from pix2pixhd_cli.mirror import SHOWING, working_copy
from pix2pixhd_cli.runs import Run, Sources, step_of
from pix2pixhd_cli.settings import Settings, settings_of_run
from pix2pixhd_cli.urls import Location, locate

SIZES_SHOWN = 3


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
    _tell("data set", place, _inputs(spec))
    rows = [
        (split, len(entries), sum(entry.photo is not None for entry in entries), _sizes(spec, split))
        for split, entries in spec.splits.items()
    ]
    console.table("Splits", ["split", "examples", "with photos", "height x width"], rows)
    _show_classes(spec)
    _tell("pictures of it", place / "contact_sheet.png")
    _next("pack", place, "PACKED")


def _show_pack(place: Location, pack: PackSpec) -> None:
    _tell("packed data set", place, _inputs(pack.dataset))
    rows = []
    for split, shards in pack.shards.items():
        size = console.size(sum(shard.bytes for shard in shards))
        rows.append((split, sum(shard.records for shard in shards), len(shards), size, _sizes(pack.dataset, split)))
    console.table("Splits", ["split", "examples", "shards", "size", "height x width"], rows)
    _show_classes(pack.dataset)
    _next("train", place, "RUN")


def _show_run(run: Run, name: str) -> None:
    settings, spec, sources = settings_of_run(run.folder), run.spec(), run.sources()
    _tell("run", name, _inputs(spec))
    _tell("made from", sources.imported or sources.packed or "unknown")
    if sources.init_from is not None:
        _tell("started from", f"{sources.init_from}, step {sources.init_step}")
    _tell("networks", _networks(settings))
    if sources.environment:
        _tell("trained with", *(f"{name} {version}" for name, version in sources.environment.items()))
    steps = _steps(settings, spec, sources)
    last = _last_line(run)
    saved = map(step_of, run.checkpoints())
    done = int(max([last.get("step", 0), *saved]))
    if steps:
        epoch = -(-done * _epochs(settings) // steps)
        _tell("trained", f"step {done} of {steps}, epoch {epoch} of {_epochs(settings)}")
    shown = {key: value for key, value in last.items() if key not in ("step", "epoch", "seconds") and value}
    if shown:
        _tell("last logged", ", ".join(f"{key} {value:.4g}" for key, value in shown.items()))
    _show_checkpoints(run)
    _show_evaluations(run)
    styles = _show_styles(run, spec)
    if steps and done < steps:
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
    names = dict.fromkeys((row.metric, row.codes) for one in found for row in one.rows)
    rows = [
        (*name, *(next((r.shown for r in one.rows if (r.metric, r.codes) == name), "") for one in found))
        for name in names
    ]
    if rows:
        console.table("Evaluations", ["metric", "codes", *(f"{one.split} {one.step}" for one in found)], rows)


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
    counts, instances = (_total(of_split) for of_split in (spec.pixels, spec.instances))
    whole = counts.total()
    things = {c.id for c in spec.classes if c.thing}
    rows = [
        (
            identity,
            spec.class_name(identity),
            "ignored" if identity in spec.ignored else "thing" if identity in things else "",
            f"{count / whole:.2%}",
            instances[identity],
        )
        for identity, count in sorted(counts.items(), key=lambda pair: -pair[1])
    ]
    if rows:
        console.table("Classes", ["id", "name", "kind", "share", "instances"], rows)
    for warning in spec.warnings:
        _tell("prepare warned", warning)


def _total(of_split: Mapping[str, Mapping[int, int]]) -> Counter[int]:
    """The sum over splits."""
    return sum((Counter(counts) for counts in of_split.values()), Counter())


def _inputs(spec: DatasetSpec) -> str:
    if spec.input == "rgb":
        return "RGB inputs"
    return f"{spec.labels} labels, {'instance maps' if spec.has_instances else 'no instance maps'}"


def _sizes(spec: DatasetSpec, split: str) -> str:
    sizes = sorted({(entry.height, entry.width) for entry in spec.splits.get(split, ())})
    shown = ", ".join(f"{height}x{width}" for height, width in sizes[:SIZES_SHOWN])
    return shown + (f" and {len(sizes) - SIZES_SHOWN} more" if len(sizes) > SIZES_SHOWN else "")


def _networks(settings: Settings) -> str:
    generator, chosen = settings.generator, settings.train
    parts = [f"{generator.kind} generator, {generator.filters} filters, {console.count(generator.blocks, 'block')}"]
    parts.append(f"{settings.discriminator.scales} discriminators")
    parts.append(f"encoder of {settings.encoder.channels} numbers" if settings.encoder.enabled else "no encoder")
    if chosen.precision != "float32":
        parts.append(chosen.precision)
    if chosen.ema:
        parts.append(f"average {chosen.ema}")
    return ", ".join(parts)


def _epochs(settings: Settings) -> int:
    return settings.train.epochs + settings.train.decay_epochs


def _steps(settings: Settings, spec: DatasetSpec, sources: Sources) -> int:
    """All steps of the training; 0 if nobody knows."""
    examples = len(spec.splits.get(settings.train.split, ()))
    return -(-examples // sources.step_size) * _epochs(settings) if sources.step_size else 0


def _last_line(run: Run) -> dict[str, float]:
    """The last logged line of losses; empty if there is none that can be read."""
    last: dict[str, float] = {}
    for values in run.logged():
        if "g_gan" in values:
            last = {key: value for key, value in values.items() if isinstance(value, int | float)}
    return last


def _tell(name: str, *values: object) -> None:
    console.info(f"{name}: {', '.join(map(str, values))}")


def _next(*words: object) -> None:
    console.info(f"next: {shlex.join(['p2phd', *map(str, words)])}")
