"""`p2phd train`: packed shards become a run with trained networks."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from pix2pixhd_cli import __version__, console, engine
from pix2pixhd_cli.coarse_to_fine import resolve_encoder, start_from
from pix2pixhd_cli.data.batches import Deal
from pix2pixhd_cli.data.parts import digest
from pix2pixhd_cli.data.records import PackedSplit
from pix2pixhd_cli.devices import Team, gather_team
from pix2pixhd_cli.errors import P2PHDError, SettingsError
from pix2pixhd_cli.meeting import is_chief
from pix2pixhd_cli.memory import available
from pix2pixhd_cli.mirror import DESCRIPTION, START, training_copy, working_copy
from pix2pixhd_cli.model.build import build_model, side_multiple, smallest_side
from pix2pixhd_cli.model.pix2pixhd import Pix2PixHD
from pix2pixhd_cli.perceptual_weights import VggFile, cached_imagenet, read_vgg
from pix2pixhd_cli.pipeline.report import INSTALL, is_installed, report
from pix2pixhd_cli.runs import Run, Sources, told
from pix2pixhd_cli.settings import (
    NETWORK_SECTIONS,
    Settings,
    TrainSettings,
    changes,
    fields,
    flag_name,
    load_settings,
    parse_size,
    settings_of_run,
)
from pix2pixhd_cli.training import Trainer, sizes, trained_sizes
from pix2pixhd_cli.urls import Location, locate

PAPER_PERCEPTUAL = 10.0


class Job(NamedTuple):
    """What is to be trained, all of it known before TensorFlow starts.

    vgg: the perceptual loss's, if it is on. init_from: the run whose weights to start from. resuming: whether the run is there.
    held_out: what is evaluated on meanwhile, if anything.
    """

    folder: Run
    split: PackedSplit
    settings: Settings
    vgg: VggFile | None
    init_from: Location | None
    resuming: bool
    held_out: PackedSplit | None


def train(
    packed: Location | str,
    run: Location | str,
    settings: Settings | None = None,
    *,
    init_from: Location | str | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> None:
    """Train the networks on `packed` and write `run`.

    Args:
        packed: a packed data set.
        run: the folder to make; with `resume`, the run to go on with.
        settings: sections train, generator, discriminator, encoder and loss.
        init_from: a run whose weights to start from: a global one for a local enhancer, or one of the same networks.
        resume: go on from the last checkpoint, or from the start if there is none yet.
        dry_run: print networks, sizes, steps, memory and time, and write nothing.

    Raises `P2PHDError` for data that cannot be trained on, and `Interrupted` after Ctrl-C or SIGTERM, once all is saved.
    """
    source = locate(init_from) if init_from is not None else None
    with training_copy(run) if is_chief() and not dry_run else working_copy(run, DESCRIPTION) as folder:
        going_on = resume and folder.exists
        chosen = settings or (load_settings(run=folder.folder, resume=True) if going_on else Settings())
        split = PackedSplit(packed, chosen.train.split)
        _check_run(folder, split, resume)
        if going_on:
            source = _start_of(folder, source)
        elif resume:
            console.warn(f"{folder.folder}: there is nothing to go on from; starting anew, with the settings given now")
        chosen, vgg = _resolve_perceptual(_resolve_encoder(chosen, split, source))
        held_out = PackedSplit(packed, chosen.train.evaluate_split) if chosen.train.evaluate_every else None
        job = Job(folder, split, chosen, vgg, source, going_on, held_out)
        _check(job)
        terms = {**_terms(job), "--dry-run": "on" if dry_run else "off"}
        team = gather_team(chosen.train.devices, chosen.train.join_minutes, terms)
        with team.together():
            if dry_run:
                trainer, _ = _build(job, team)
                _estimate_time(trainer)
                return
            with folder.lock() if team.is_chief else nullcontext():
                if team.is_chief:
                    _check_run(folder, split, resume)
                if team.is_chief and folder.exists != going_on:
                    raise P2PHDError(f"{folder.folder}: another process began it just now; start again")
                _train(job, team)
    if is_chief() and chosen.train.report:
        _report(run)


def _report(run: Location | str) -> None:
    """Write a trained run's report, if its extra is installed; what is wrong with it is no error of the training."""
    if not is_installed():
        console.info(f"no report of it: {INSTALL} adds what that takes, and `p2phd report {run}` writes it")
        return
    try:
        report(run)
    except (P2PHDError, OSError) as error:
        console.warn(f"{told(error)}; no report was written")


def _train(job: Job, team: Team) -> None:
    """Train in a folder that is the team's alone; the chief reads and writes its checkpoints."""
    folder = job.folder
    trainer, sources = _build(job, team)
    start = 0
    if team.is_chief:
        start = _enter(folder, trainer, sources, job.resuming)
    start = team.first(start)
    team.share(variable for variables in trainer.state.values() for variable in variables)
    if start >= trainer.schedule.steps:
        console.info(f"{folder.folder} is trained already, to step {start}; more --epochs would go on")
        return
    if start:
        console.info(f"going on after step {start} of {trainer.schedule.steps}")
    trainer.fit(folder, start)
    if team.is_chief:
        console.info(f"trained {folder.folder}; samples lie in {folder.folder / 'samples'}")
    else:
        console.info("trained; the chief has written the run")


def _enter(folder: Run, trainer: Trainer, sources: Sources, resuming: bool) -> int:
    """Begin a run, or restore its newest checkpoint; returns the step after which to go on."""
    chosen = trainer.settings
    if not resuming:
        folder.create(chosen, trainer.split.spec.dataset, sources)
        return 0
    start = folder.restore_checkpoint(trainer.state)
    folder.prune(chosen.train.keep_checkpoints)
    if start and folder.choose_model(trainer.model, chosen.train.model):
        folder.restore_checkpoint(trainer.state)
    _tell_environment(folder)
    _record_changes(folder, trainer.split, chosen, start)
    return start


def _start_of(folder: Run, asked: Location | None) -> Location | None:
    """The run whose weights a run starts from that has no checkpoint yet; refuses any but the one that it was begun with."""
    sources = folder.sources()
    if asked is not None and asked.resolve() != sources.init_from:
        raise SettingsError(f"--init-from {asked}: the run started from {sources.init_from or 'nothing'}; leave it out")
    return None if folder.checkpoints() else sources.init_from


def _terms(job: Job) -> dict[str, str]:
    """What all workers must have alike, by what a user calls it; paths and devices are each one's own affair."""
    own = ("perceptual_weights", "join_minutes", "devices")
    flags = {
        flag_name(section, field, own=section == "train"): str(getattr(getattr(job.settings, section), field))
        for section, field, _ in fields()
        if section in (*NETWORK_SECTIONS, "loss", "train") and not (section == "train" and field in own)
    }
    return {
        "p2phd": __version__,
        "data with checksum": job.split.digest[:12],
        "its RUN": "there" if job.resuming else "not there",
        "perceptual weights with checksum": job.vgg.sha256[:12] if job.vgg is not None else "none",
        "--init-from with checksum": _checksum_of_run(job.init_from) if job.init_from is not None else "none",
        **flags,
    }


def _checksum_of_run(run: Location) -> str:
    """What tells a run from others, wherever it lies: what it was made from, and its settings."""
    return digest([place.read_text("utf-8") for name in DESCRIPTION if (place := run / name).exists()])


def _check(job: Job) -> None:
    """Refuse settings that go neither together nor with the data and the run; TensorFlow has not started yet."""
    folder, split, settings, vgg = job.folder, job.split, job.settings, job.vgg
    if job.resuming and (folder.sources().perceptual or {}).get("sha256") != (vgg and vgg.sha256):
        raise SettingsError(
            f"{folder.folder}: was trained with another perceptual loss than --perceptual-weights now gives"
        )
    if job.resuming:
        changes(settings_of_run(folder.folder), settings)
        folder.check_sizes(settings, *trained_sizes(split, settings)[0])
    _check_phases(settings, started=job.init_from is not None or job.resuming, rgb=split.rgb)
    _check_data(split, settings)
    _check_held_out(job)
    _check_tensorboard(settings)


def _build(job: Job, team: Team) -> tuple[Trainer, Sources]:
    """Build the networks on the team's devices; also returns what they were made from."""
    folder, split, settings, vgg, init_from, resuming, held_out = job
    _check_team(split, settings, team)
    engine.make_deterministic(settings.train.seed)
    spec = split.spec.dataset
    with team.strategy.scope():
        perceptual = vgg.build() if vgg is not None else None
        model = build_model(settings, labels=spec.labels, ignored=spec.ignored, training=True, vgg=perceptual)
    init_step = None
    if init_from is not None:
        with working_copy(init_from, START) as source:
            _check_start(source, split)
            init_step = start_from(model, settings, source.folder)
        if resuming and init_step != folder.sources().init_step:
            raise P2PHDError(f"{init_from}: was trained on since {folder.folder} started from it; start a new run")
    trainer = Trainer(model, split, settings, team, held_out)
    if resuming:
        _check_step_size(folder, trainer.deal)
    _describe(model, trainer)
    sources = Sources(
        packed=split.packed.resolve(),
        examples=split.digest,
        init_from=init_from and init_from.resolve(),
        init_step=init_step,
        perceptual={"file": vgg.name, "sha256": vgg.sha256} if vgg is not None else None,
        threads=engine.threads(),
        step_size=trainer.deal.step_size,
        environment=engine.environment(),
    )
    return trainer, sources


def _check_step_size(folder: Run, deal: Deal) -> None:
    """A run may go on with its steps divided otherwise, but each must see as many examples as before."""
    before = folder.sources().step_size
    if before not in (None, deal.step_size):
        raise SettingsError(
            f"{folder.folder}: was trained with {console.count(before, 'example')} a step; --batch-size {deal.batch_size}, "
            f"--accumulate {deal.turns} and {console.count(deal.replicas, 'device')} make {deal.step_size}: choose --accumulate "
            "to make as many"
        )


def _tell_environment(folder: Run) -> None:
    """Sums are made in another order by another number of threads, and perhaps by other versions."""
    for name, version in engine.environment().items():
        before = folder.sources().environment.get(name)
        if before not in (None, version):
            console.warn(
                f"{folder.folder}: was trained with {name} {before}, and here is {version}: it goes on, but may not end in "
                "the same bits"
            )
    _tell_threads(folder)


def _tell_threads(folder: Run) -> None:
    before, now = folder.sources().threads, engine.threads()
    if before not in (None, now):
        console.warn(
            f"{folder.folder}: was trained by {before} threads, and here are {now}: it goes on, but will not end in the same "
            f"bits; with TF_NUM_INTRAOP_THREADS={before} in the environment it will"
        )


def _record_changes(folder: Run, split: PackedSplit, settings: Settings, step: int) -> None:
    """Say which settings differ from the run's, and keep them, with those that they took the place of."""
    sources = folder.sources()
    new: list[dict[str, object]] = []
    for flag, (before, now) in changes(settings_of_run(folder.folder), settings).items():
        console.info(f"{flag} is {now} from now on; it was {before}")
        new.append({"after_step": step, "setting": flag, "from": before, "to": now})
    if sources.changes[-len(new) :] == tuple(new):
        new = []  # They were kept before, by a process that was killed over the settings.
    update = {
        "packed": split.packed.resolve(),
        "changes": (*sources.changes, *new),
        "environment": engine.environment(),
    }
    folder.save_sources(sources.model_copy(update=update))
    folder.save_settings(settings)


def _resolve_encoder(settings: Settings, split: PackedSplit, init_from: Location | None) -> Settings:
    """Unless the user chose, take over the encoder of `init_from`; without it, train one where there is something to pool."""
    if init_from is not None:
        return resolve_encoder(settings, init_from, asked=settings.encoder.enabled)
    if settings.encoder.enabled is not None:
        return settings
    encoder = settings.encoder.model_copy(update={"enabled": not split.rgb})
    return settings.model_copy(update={"encoder": encoder})


def _resolve_perceptual(settings: Settings) -> tuple[Settings, VggFile | None]:
    """Unless the user chose, the perceptual loss is on if there are weights for it; nothing is downloaded unasked."""
    weight, source = settings.loss.perceptual, settings.train.perceptual_weights
    if source not in (None, "imagenet"):
        source = str(Path(source).absolute())
    if source is None and weight != 0 and cached_imagenet().is_file():
        source = str(cached_imagenet())
    if weight and source is None:
        raise SettingsError(
            f"--loss-perceptual {weight:g} needs --perceptual-weights: a file, or imagenet to download it"
        )
    if weight is None:
        weight = PAPER_PERCEPTUAL if source is not None else 0.0
        state = (
            f"on, with {source}" if weight else "off; --perceptual-weights imagenet (a download) or a file turns it on"
        )
        console.info(f"the perceptual loss is {state}")
    loss = settings.loss.model_copy(update={"perceptual": weight})
    train = settings.train.model_copy(update={"perceptual_weights": source if weight else None})
    resolved = settings.model_copy(update={"loss": loss, "train": train})
    return resolved, read_vgg(source) if weight and source is not None else None


def _check_phases(settings: Settings, started: bool, rgb: bool) -> None:
    """Refuse phases and encoders that the generator has no place for."""
    local = settings.generator.kind == "local"
    epochs = settings.train.epochs + settings.train.decay_epochs
    if settings.train.fixed_global_epochs > epochs:
        raise SettingsError(
            f"--fixed-global-epochs {settings.train.fixed_global_epochs}: there are only {epochs} epochs"
        )
    if settings.encoder.enabled and settings.encoder.pooling == "label" and rgb:
        raise SettingsError("--encoder-pooling label: RGB inputs have no labels to pool by")
    if settings.train.fixed_global_epochs and not local:
        raise SettingsError(
            "--fixed-global-epochs needs --generator-kind local: there is nothing but the global network"
        )
    if settings.encoder.frozen and not started:
        raise SettingsError("--encoder-frozen needs --generator-kind local and --init-from")


def check_photos(split: PackedSplit) -> None:
    """Refuse a split with examples that have no photo."""
    bare = [entry.stem for entry in split.entries if entry.photo is None]
    if bare:
        raise P2PHDError(
            f"{split.packed}: {console.count(len(bare), 'example')} of {split.split!r} without a photo, the first is {bare[0]}"
        )


def _check_data(split: PackedSplit, settings: Settings) -> None:
    """Refuse what the networks cannot take, naming the example and the way out."""
    chosen = settings.train
    check_photos(split)
    multiple = side_multiple(settings)
    found = sizes(split)
    if chosen.crop:
        crop = parse_size(chosen.crop)
        small = next((size for size in found if size[0] < crop.height or size[1] < crop.width), None)
        if small:
            raise P2PHDError(f"--crop {crop}: larger than a picture of {small[0]}x{small[1]}")
        found = [crop]
    elif len(found) > 1 and chosen.batch_size > 1:
        shown = ", ".join(f"{height}x{width}" for height, width in found[:4])
        raise P2PHDError(
            f"{split.packed}: pictures have {len(found)} different sizes ({shown} …); use --batch-size 1, --crop, or prepare "
            "them with --size"
        )
    if len(found) > 1 and chosen.pool_size:
        raise P2PHDError(
            f"{split.packed}: --pool-size needs pictures of one size; use --crop, or prepare them with --size"
        )
    smallest = smallest_side(settings)
    for height, width in found:
        if height % multiple or width % multiple or min(height, width) < smallest:
            raise P2PHDError(
                f"{split.packed}: pictures of {height}x{width} cannot be halved {multiple.bit_length() - 1} times: sides must "
                f"be multiples of {multiple}, at least {smallest}; prepare with --multiple {multiple}, use --crop, or "
                "fewer --generator-downsamplings and --encoder-downsamplings"
            )


def _check_held_out(job: Job) -> None:
    """Refuse to evaluate on pictures that cannot be painted, and scores that do not go with the run's."""
    chosen, held_out = job.settings.train, job.held_out
    if chosen.best_by == "perceptual" and job.vgg is None:
        raise SettingsError("--best-by perceptual needs --perceptual-weights")
    if job.resuming and bool(settings_of_run(job.folder.folder).train.evaluate_every) != (held_out is not None):
        raise SettingsError(
            f"--evaluate-every {chosen.evaluate_every}: {job.folder.folder} was trained {'without' if held_out else 'with'} "
            "evaluations; train a new run"
        )
    if held_out is None:
        if chosen.patience or chosen.best_by:
            raise SettingsError("--patience and --best-by need --evaluate-every")
        return
    check_photos(held_out)
    small = min(sizes(held_out))
    if min(small) < smallest_side(job.settings):
        raise P2PHDError(f"{held_out.packed}: pictures of {held_out.split!r} are too small ({small[0]}x{small[1]})")


def _check_team(split: PackedSplit, settings: Settings, team: Team) -> None:
    """Refuse what several devices cannot share."""
    if team.replicas > 1 and settings.train.pool_size:
        raise SettingsError("--pool-size: a history of fakes is kept on one device; leave it out, or use --devices 1")
    if team.replicas > 1 and len(trained_sizes(split, settings)) > 1:
        raise P2PHDError(
            f"{split.packed}: several devices need pictures of one size; use --crop, prepare them with --size, or --devices 1"
        )


def _check_tensorboard(settings: Settings) -> None:
    if settings.train.tensorboard:
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            raise P2PHDError("--tensorboard needs its extra: pip install 'pix2pixhd_cli[tensorboard]'") from None


def _check_run(folder: Run, split: PackedSplit, resume: bool) -> None:
    """A run is never overwritten, and never goes on with data of other classes."""
    if folder.exists and folder.sources().imported:
        raise P2PHDError(f"{folder.folder}: is imported; train a new run from it with --init-from {folder.folder}")
    if folder.exists and not resume:
        raise P2PHDError(f"{folder.folder}: a run is here already; go on with --resume, or name another folder")
    if not folder.exists and not folder.is_free:
        raise P2PHDError(f"{folder.folder}: holds other files; name a new or empty folder for the run")
    if folder.exists:
        folder.check_classes(split.spec.dataset, split.packed)
        if folder.sources().examples != split.digest:
            raise P2PHDError(f"{split.packed}: is not the data that {folder.folder} was trained on; start a new run")


def _check_start(source: Run, split: PackedSplit) -> None:
    """The networks' inputs must mean the same; names of classes may differ."""
    ours, theirs = source.spec(), split.spec.dataset
    if (ours.input, ours.labels) != (theirs.input, theirs.labels):
        raise P2PHDError(
            f"{split.packed}: has {theirs.labels} labels, but {source.folder} was trained with {ours.labels}"
        )


def _describe(model: Pix2PixHD, trainer: Trainer) -> None:
    """Parameters, device, data and memory, before the first step."""
    rows = [(name, network.count_params()) for name, network in model.networks.items()]
    console.table("Networks", ["network", "parameters"], [*rows, ("all", sum(count for _, count in rows))])
    _describe_phases(model, trainer.settings.train)
    schedule, team = trainer.schedule, trainer.team
    if team.replicas > 1:
        console.info(f"{team.role}, {team.replicas} devices in all")
    if trainer.settings.generator.norm == "batch" and team.replicas * trainer.deal.turns > 1:
        console.warn(
            "--generator-norm batch normalises what a device sees at a time: with other --devices, --batch-size or --accumulate "
            "it trains otherwise"
        )
    height, width = trainer.largest
    _describe_memory(trainer)
    if trainer.settings.train.precision == "mixed_float16" and team.devices[0].startswith("CPU"):
        console.warn(
            "--precision mixed_float16 is slow on a CPU, and takes more memory than was told; mixed_bfloat16 saves some"
        )
    console.info(
        f"data: {console.count(schedule.examples, 'example')}, trained at {height}x{width}, {trainer.deal.step_size} in a step: "
        f"{schedule.epochs} epochs of {schedule.steps_per_epoch} steps, {schedule.steps} in all"
    )


def _describe_memory(trainer: Trainer) -> None:
    """What memory a step will take and, if there is not so much, which flags would make it fit."""
    needed, free = trainer.memory(), available()
    each = " each" if len(trainer.team.devices) > 1 and not trainer.team.devices[0].startswith("CPU") else ""
    console.info(
        f"device: {', '.join(trainer.team.devices)}; a step will take about {console.size(needed)} of memory{each}"
    )
    if free is None or needed <= free:
        return
    problem = f"a step will take about {console.size(needed)} of memory{each}, and {console.size(free)} are free"
    for saving in _savings(trainer.settings, trainer.largest):
        less = trainer.memory(saving.batch_size, recompute=saving.recompute, sides=saving.crop)
        if less <= free:
            outcome = "and see parts of the pictures" if saving.crop else "and train the same"
            console.warn(f"{problem}; with {saving.flags} it would take about {console.size(less)}, {outcome}")
            return
    console.warn(f"{problem}; whatever the flags, these networks do not fit: train with fewer --generator-filters")


class Saving(NamedTuple):
    """Flags that save memory, and what they stand for; crop is None if results stay the same."""

    flags: str
    batch_size: int
    recompute: bool
    crop: tuple[int, int] | None = None


def _savings(settings: Settings, sides: tuple[int, int]) -> Iterator[Saving]:
    """What saves memory, from what costs least time; at last, crops of pictures that have these sides."""
    chosen = settings.train
    least = Saving("", chosen.batch_size, chosen.recompute)
    if chosen.batch_size > 1 and settings.generator.norm == "instance":
        least = Saving(f"--batch-size 1 --accumulate {chosen.batch_size * chosen.accumulate}", 1, chosen.recompute)
        yield least
    if not chosen.recompute:
        yield Saving("--recompute", chosen.batch_size, True)
        if least.flags:
            yield least._replace(flags=f"{least.flags} --recompute", recompute=True)
        least = least._replace(flags=f"{least.flags} --recompute".strip(), recompute=True)
    multiple, smallest = side_multiple(settings), smallest_side(settings)
    while min(sides := (sides[0] // 2 // multiple * multiple, sides[1] // 2 // multiple * multiple)) >= smallest:
        yield least._replace(flags=f"{least.flags} --crop {sides[0]}x{sides[1]}".strip(), crop=sides)


def _describe_phases(model: Pix2PixHD, settings: TrainSettings) -> None:
    """What of the generator's side is trained when, with its parameters."""
    encoder = " (the encoder is frozen)" if model.encoder_frozen else ""
    fixed = settings.fixed_global_epochs
    if fixed:
        count = sum(v.value.shape.num_elements() for v in model.outermost_variables)
        console.info(f"epochs 1 to {fixed} train {count:,} parameters of the outermost enhancer{encoder}")
    if fixed == settings.epochs + settings.decay_epochs:
        return
    count = sum(v.value.shape.num_elements() for v in model.generator_variables)
    console.info(
        f"epochs {fixed + 1} to {settings.epochs + settings.decay_epochs} train {count:,} parameters{encoder}, and D"
    )


def _estimate_time(trainer: Trainer) -> None:
    seconds = trainer.measure()
    total = console.duration(seconds * trainer.schedule.steps)
    console.info(f"time: {seconds:.2f} seconds a step (measured), about {total} in all")
