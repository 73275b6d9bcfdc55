"""`p2phd import`: a checkpoint of the reference becomes a run that generates, encodes, clusters and can be trained on."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from pydantic import ValidationError

from pix2pixhd_cli import console
from pix2pixhd_cli.data.dataset import DatasetSpec
from pix2pixhd_cli.data.files import staging_folder, take_place
from pix2pixhd_cli.data.labels import (
    CITYSCAPES,
    CITYSCAPES_LABELS,
    MAX_CLASSES,
    LabelClass,
    plain_classes,
    read_class_table,
)
from pix2pixhd_cli.data.state_dicts import StateDict, read_class_dict, read_state_dict
from pix2pixhd_cli.errors import P2PHDError, check_regular, naming
from pix2pixhd_cli.features import ClassStyles, FeatureClusters, FeatureCodes
from pix2pixhd_cli.model.build import build_model, least_parameters
from pix2pixhd_cli.reference import (
    assign,
    check_names,
    discriminator_layers,
    generator_layers,
    infer_discriminator,
    infer_encoder,
    infer_generator,
)
from pix2pixhd_cli.runs import Run, Sources, network_variables
from pix2pixhd_cli.sealed import explain
from pix2pixhd_cli.settings import NETWORK_SECTIONS, Settings, fields, flag_name

Options = dict[str, str]
AREA_UNIT = 32  # The public feature files count areas in 32nds of a picture.


def import_checkpoint(
    checkpoint: Path,
    run: Path,
    *,
    epoch: str = "latest",
    labels: int | None = None,
    boundary: bool | None = None,
    classes: Path | None = None,
    ignore_id: Sequence[int] = (255,),
) -> Settings:
    """Turn `EPOCH_net_G.pth`, and D, E, `opt.txt` and feature files where present, into `run`; returns its settings.

    Widths and depths are read off the tensors' shapes. What shapes cannot tell is taken from `labels` and `boundary`, then from
    `opt.txt`, then from the public defaults, and said.

    Args:
        checkpoint: the folder with the reference's files.
        run: the run to make.
        epoch: which files: `latest`, `10` ….
        labels: one-hot channels; 0 for RGB inputs.
        boundary: whether the networks were shown the boundary map.
        classes: a class table for the run; by default Cityscapes' for 35 labels, else `class 0` ….
        ignore_id: ids that become all-zero vectors.

    Raises `P2PHDError` for files that are missing, damaged, contradictory, or hold anything but weights.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise P2PHDError(f"{run}: holds other files; name a new or empty folder for the run")
    states = _read_states(checkpoint, epoch)
    options = _read_options(checkpoint / "opt.txt")
    settings, channels = _infer(checkpoint, states, options, labels, boundary)
    spec = _describe_data(channels, classes, ignore_id)
    held = sum(array.size for state in states.values() for array in state.values())
    if held < least_parameters(settings, training="D" in states):
        raise P2PHDError(f"{checkpoint}: holds fewer values than networks of these shapes have")
    model = build_model(settings, labels=spec.labels, ignored=spec.ignored, training="D" in states)
    for name, network in model.networks.items():
        _assign(checkpoint, epoch, name[0].upper(), network, states, settings)
    codes = clusters = None
    if settings.encoder.enabled:
        codes = _read_codes(checkpoint / "features.npy", settings.encoder.channels)
        clusters = _read_clusters(checkpoint, codes, settings.encoder.channels)
    with staging_folder(run) as staging:
        folder = Run(staging)
        folder.create(settings, spec, Sources(imported=checkpoint.resolve()))
        folder.save_model(model)
        folder.save_checkpoint(network_variables(model), 0, keep=1)
        if codes is not None:
            codes.save(folder.features)
        if clusters is not None:
            clusters.save(folder.clusters)
        take_place(staging, run)
    _report(settings, spec, states, run)
    return settings


def _read_states(checkpoint: Path, epoch: str) -> dict[str, StateDict]:
    """The networks there are, by the reference's letters; the generator is a must."""
    paths = {letter: checkpoint / f"{epoch}_net_{letter}.pth" for letter in "GDE"}
    if not paths["G"].exists():
        raise P2PHDError(f"{paths['G']}: no such file; name the folder with the reference's checkpoint, and --epoch")
    return {letter: read_state_dict(path) for letter, path in paths.items() if path.exists()}


def _read_options(path: Path) -> Options:
    """`key: value` lines of the reference's `opt.txt`; none without the file."""
    if not path.exists():
        return {}
    check_regular(path)
    with naming(path):
        pairs = [line.partition(":") for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    return {key.strip(): value.split()[0] for key, colon, value in pairs if colon and value.strip()}


def _infer(
    checkpoint: Path, states: dict[str, StateDict], options: Options, labels: int | None, boundary: bool | None
) -> tuple[Settings, int]:
    """The run's settings and the one-hot channels."""
    inferring = {"G": infer_generator, "D": infer_discriminator, "E": infer_encoder}
    found: dict[str, dict[str, Any]] = {}
    for letter, state in states.items():
        try:
            found[letter] = inferring[letter](state)
        except (P2PHDError, ValueError, IndexError) as error:
            raise P2PHDError(f"{checkpoint}: net_{letter}: {error}") from None
    _refuse_contradictions(checkpoint, options, found)
    inputs = found["G"].pop("inputs")
    encoded = found["E"]["channels"] if "E" in found else 0
    scene = found["D"].pop("inputs") - 3 if "D" in found else inputs - encoded
    if inputs - scene != encoded:
        what = (
            f"takes {inputs - scene} feature channels, but the encoder gives {encoded}"
            if encoded
            else (f"takes {inputs - scene} feature channels, but there is no net_E.pth beside it")
        )
        raise P2PHDError(f"{checkpoint}: the generator {what}")
    labels, boundary = _split_scene(checkpoint, scene, options, labels, boundary)
    loss = {
        "gan": "vanilla" if options.get("no_lsgan") == "True" else "lsgan",
        "feature_matching": 0.0
        if options.get("no_ganFeat_loss") == "True"
        else _number(checkpoint, options, "lambda_feat", 10),
        "perceptual": 0.0,
    }
    encoder = {"enabled": "E" in found, "pooling": "label" if options.get("label_feat") == "True" else "instance"}
    sections = {
        "generator": {**found["G"], "boundary": boundary},
        "discriminator": found.get("D", {}),
        "encoder": {**found.get("E", {}), **encoder},
        "loss": loss,
    }
    try:
        return Settings(**sections), labels  # type: ignore[arg-type]
    except ValidationError as error:
        raise P2PHDError(f"{checkpoint}: its shapes are no network's ({explain(error)})") from None


def _number(checkpoint: Path, options: Options, key: str, default: float) -> float:
    """A number from `opt.txt`."""
    text = options.get(key, str(default))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise P2PHDError(f"{checkpoint / 'opt.txt'}: {key} is {text!r}, which is no number it can be")
    return value


def _refuse_contradictions(checkpoint: Path, options: Options, found: dict[str, dict[str, Any]]) -> None:
    """Compare what `opt.txt` says with what the shapes tell."""
    keys = {
        "G": {"netG": "kind", "ngf": "filters", "n_downsample_global": "downsamplings", "n_blocks_global": "blocks"},
        "D": {"ndf": "filters", "n_layers_D": "layers", "num_D": "scales"},
        "E": {"nef": "filters", "n_downsample_E": "downsamplings", "feat_num": "channels"},
    }
    if found["G"]["kind"] == "local":
        keys["G"] |= {"n_local_enhancers": "enhancers", "n_blocks_local": "local_blocks"}
    for letter, names in keys.items():
        for key, name in names.items():
            if letter in found and key in options and options[key] != str(found[letter][name]):
                told = found[letter][name]
                raise P2PHDError(f"{checkpoint}: opt.txt says {key} {options[key]}, but net_{letter}.pth has {told}")


def _split_scene(
    checkpoint: Path, scene: int, options: Options, labels: int | None, boundary: bool | None
) -> tuple[int, bool]:
    """Tell one-hot channels and boundary map apart in the `scene` channels that G and D share."""
    source = "flags"
    if boundary is None and "no_instance" in options:
        boundary, source = options["no_instance"] != "True", "opt.txt"
    if labels is None and "label_nc" in options:
        labels, source = int(_number(checkpoint, options, "label_nc", 0)), "opt.txt"
    if labels == 0 and scene == 3:
        return 0, False
    if boundary is None:
        boundary = labels is None or scene == labels + 1
    if labels is None:
        labels, source = scene - boundary, "the public defaults (a boundary map; see --no-boundary and --labels)"
    if labels + boundary != scene or not 1 <= labels <= MAX_CLASSES:
        raise P2PHDError(
            f"{checkpoint}: the networks take {scene} channels beside features, but {source} say {labels} labels "
            f"{'and' if boundary else 'without'} a boundary map; see --labels and --no-boundary"
        )
    console.info(f"{labels} labels {'and' if boundary else 'without'} a boundary map, by {source}")
    return labels, boundary


def _describe_data(labels: int, classes: Path | None, ignore_id: Sequence[int]) -> DatasetSpec:
    table: tuple[LabelClass, ...] = plain_classes(labels - 1)
    if classes is not None:
        table = read_class_table(classes)
    elif labels == CITYSCAPES_LABELS:
        table = CITYSCAPES
    ignored = tuple(sorted(set(ignore_id)))
    return DatasetSpec(
        input="labels" if labels else "rgb",
        classes=tuple(c for c in table if c.id not in ignored) if labels else (),
        labels=labels,
        ignored=ignored,
        has_instances=False,
        splits={},
        pixels={},
    )


def _assign(
    checkpoint: Path, epoch: str, letter: str, network: keras.Model, states: dict[str, StateDict], settings: Settings
) -> None:
    """Set one network's weights, every layer by its name."""
    state = states[letter]
    encoder = settings.encoder.model_dump() | {"kind": "global", "blocks": 0}
    layers = {
        "G": lambda: generator_layers(**settings.generator.model_dump()),
        "E": lambda: generator_layers(**encoder),
        "D": lambda: discriminator_layers(state, **settings.discriminator.model_dump()),
    }
    try:
        assign(network, check_names(state, layers[letter]()))
    except P2PHDError as error:
        raise P2PHDError(f"{checkpoint / f'{epoch}_net_{letter}.pth'}: {error}") from None


def _read_codes(path: Path, channels: int) -> FeatureCodes | None:
    """The public `features.npy`: per class an array of codes, the last column the area in 32nds of a picture."""
    if not path.exists():
        return None
    arrays = read_class_dict(path)
    if any(array.ndim != 2 or array.shape[1] != channels + 1 for array in arrays.values()):
        raise P2PHDError(f"{path}: holds no codes of {channels} channels and an area")
    rows = [(label, row) for label, array in arrays.items() for row in array]
    if not rows:
        return None
    table = np.array([row for _, row in rows])
    return FeatureCodes(
        code=table[:, :-1].astype(np.float32),
        label=np.array([label for label, _ in rows], np.int32),
        instance=np.full(len(rows), -1, np.int32),
        stem=np.full(len(rows), "", np.str_),
        share=(table[:, -1] / AREA_UNIT).astype(np.float32),
        box=np.zeros((len(rows), 4), np.int32),
        split=np.array("train"),
        packed=np.array(""),
        step=np.array(0, np.int64),
    )


def _read_clusters(checkpoint: Path, codes: FeatureCodes | None, channels: int) -> FeatureClusters | None:
    """The public `features_clustered_*.npy`, the largest of several: per class an array of centres."""
    paths = sorted(checkpoint.glob("features_clustered_*.npy"))
    if not paths:
        return None
    classes = {}
    for label, array in sorted(read_class_dict(paths[-1]).items()):
        if array.ndim != 2 or array.shape[1] != channels:
            raise P2PHDError(f"{paths[-1]}: class {label} holds no centres of {channels} channels")
        centres = array.astype(np.float32)
        own = codes.code[codes.label == label] if codes is not None else centres
        mean = (own if len(own) else np.zeros((1, channels), np.float32)).mean(0)
        counts = np.zeros(len(centres), np.int32)
        classes[label] = ClassStyles(centres, counts, ("",) * len(centres), mean, 0.0)
    return FeatureClusters(classes, channels)


def _report(settings: Settings, spec: DatasetSpec, states: dict[str, StateDict], run: Path) -> None:
    generator = settings.generator
    rows = [
        ("generator", f"{generator.kind}, {generator.filters} filters, {generator.downsamplings} downsamplings"),
        ("labels", f"{spec.labels}{' and a boundary map' if generator.boundary and spec.labels else ''}"),
        ("encoder", f"{settings.encoder.channels} feature channels" if "E" in states else "none"),
        ("discriminator", f"{settings.discriminator.scales} scales" if "D" in states else "none"),
    ]
    console.table("Imported", ["what", "found"], rows)
    console.info(
        f"wrote {run}; paint with `{shlex.join(['p2phd', 'generate', str(run), 'LABELS', 'OUT'])}`, train on with"
    )
    again = ["p2phd", "train", "PACKED", "NEW_RUN", "--init-from", str(run), *_network_flags(settings)]
    console.info(f"  {shlex.join(again)}")


def _network_flags(settings: Settings) -> list[str]:
    """The flags that ask for these networks, as far as they are not the defaults."""
    flags = []
    for section, name, field in fields():
        value = getattr(getattr(settings, section), name)
        if section in NETWORK_SECTIONS and value != field.get_default() and (section, name) != ("encoder", "enabled"):
            flag = flag_name(section, name, own=False)
            flags += [flag if value else f"--no-{flag[2:]}"] if isinstance(value, bool) else [flag, str(value)]
    return flags
