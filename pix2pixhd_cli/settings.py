"""Every setting: its only name, type, default, range and help text.

`Settings` has one frozen section per verb and per network. A field `epochs` of the section `train` is the flag `--epochs`
of `p2phd train`, the environment variable `P2PHD_TRAIN__EPOCHS` and the TOML key `epochs` under `[train]`, and wins in
that order. Sections of networks and losses carry their section in the flag: `--generator-filters`.
"""

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from pix2pixhd_cli.errors import P2PHDError, SettingsError, check_regular, naming
from pix2pixhd_cli.sealed import seal, unseal
from pix2pixhd_cli.urls import Location

ENV_PREFIX = "P2PHD_"
Values = dict[str, dict[str, Any]]  # section -> field -> value


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


def parse_size(text: str) -> Size:
    """Read `HEIGHTxWIDTH`, both at least 1; raises `ValueError` otherwise."""
    height, _, width = (whole_number(part) for part in text.partition("x"))
    if not height or not width:
        raise ValueError(f"{text!r} is not HEIGHTxWIDTH, such as 512x1024")
    return Size(height, width)


class Part(NamedTuple):
    """One of the parts that a work is done in, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse_part(text: str) -> Part:
    """Read `I/N`, part I of N; raises `ValueError` otherwise."""
    number, _, of = (whole_number(part) for part in text.partition("/"))
    if not number or not of or number > of or of > MOST_PARTS:
        raise ValueError(f"{text!r} is no part I/N, such as 2/5, with I from 1 to N and N up to {MOST_PARTS:,}")
    return Part(number, of)


def whole_number(text: str) -> int | None:
    """The number that a text of up to 18 digits is; None for any other text."""
    return int(text) if text.isdecimal() and len(text) <= 18 else None


def _checked_size(text: str) -> str:
    return str(parse_size(text))


def _checked_devices(text: str) -> str:
    if text not in ("auto", "cpu") and not whole_number(text):
        raise ValueError(f"{text!r} is not auto, cpu or a number of GPUs")
    return text


def _checked_part(text: str) -> str:
    return str(parse_part(text))


def _split_commas(value: object) -> object:
    """Environment variables hold lists as `1,2,3`, or as JSON where commas matter."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [part.strip() for part in value.split(",") if part.strip()]


MOST_PIXELS = 1 << 28  # 16,384 x 16,384.
MOST_SIDE = 1 << 16
MOST_EPOCHS = 1_000_000
MOST_PARTS = 99_999
DevicesText = Annotated[str, AfterValidator(_checked_devices)]
SizeText = Annotated[str, AfterValidator(_checked_size)]
PartText = Annotated[str, AfterValidator(_checked_part)]
Ids = Annotated[tuple[Annotated[int, Field(ge=0, le=65535)], ...], NoDecode, BeforeValidator(_split_commas)]
Strings = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# Who does how much of a work, and never what comes of it.
WhichPart = Annotated[
    PartText | None,
    Field(
        examples=["2/5"],
        description="Do part I of N alone, as I/N, while others do the rest, anywhere on a shared folder; --merge comes last.",
    ),
]
BatchSize = Annotated[
    int,
    Field(
        ge=1,
        le=1 << 16,
        description="Pictures of one size that a device works on at once; what comes of it is the same.",
    ),
]
Devices = Annotated[
    DevicesText,
    Field(examples=["4"], description="auto takes all GPUs, or the CPU where there are none; cpu; or so many GPUs."),
]
Merge = Annotated[bool, Field(description="Put the parts together, once all are done; they need the same settings.")]


class PrepareSettings(Section):
    """How raw photos, label maps and instance maps become a checked data set."""

    layout: Literal["cityscapes", "pix2pixhd", "pairs"] = Field(
        "cityscapes",
        description="How SOURCE is laid out: the official Cityscapes tree, the flat SPLIT_label, SPLIT_inst, SPLIT_img "
        "(or SPLIT_A, SPLIT_B) folders of the public code, or two named folders.",
    )
    width: int | None = Field(
        None, examples=[1024], ge=1, le=MOST_SIDE, description="Scale every example to this width, keeping its ratio."
    )
    size: SizeText | None = Field(
        None, examples=["512x1024"], description="Scale every example to HEIGHTxWIDTH; the ratio may change."
    )
    multiple: int = Field(32, ge=1, le=MOST_SIDE, description="Sides go to the nearest multiple of this.")
    limit: int | None = Field(None, examples=[100], ge=1, description="Take only the first N examples of each split.")
    classes: Path | None = Field(
        None,
        examples=["classes.toml"],
        description="Class table, TOML or CSV: id, name, color, thing. Cityscapes' own table is built in for its layout; "
        "elsewhere classes default to 0 … the largest id seen.",
    )
    palette: bool = Field(False, description="Label maps are RGB pictures in the class table's colours.")
    ignore_id: Ids = Field(
        (255,), description="Label id without meaning: an all-zero one-hot. Repeatable; replaces the default."
    )
    remap: Strings = Field((), description="OLD=NEW replaces a label id while reading. Repeatable.")
    instances: Literal["auto", "maps", "components", "none"] = Field(
        "auto",
        description="Where instances come from: instance maps, connected components of label maps, or nowhere; "
        "auto takes the maps if there are any.",
    )
    component_class: Strings = Field(
        (),
        description="Class (name or id) whose connected regions are instances of their own; the class table's "
        "things by default, or every class if it marks none. Repeatable.",
    )
    input: Literal["auto", "labels", "rgb"] = Field(
        "auto", description="What SOURCE's inputs are: label maps, or RGB pictures (auto: RGB for SPLIT_A folders)."
    )
    label_folder: str = Field("labels", description="Layout pairs: the folder of label maps (or RGB inputs) in SOURCE.")
    photo_folder: str = Field("photos", description="Layout pairs: the folder of photos in SOURCE.")
    instance_folder: str | None = Field(
        None,
        examples=["instances"],
        description="Layout pairs: the folder of instance maps; instances, if there is one.",
    )
    max_pixels: int = Field(MOST_PIXELS, ge=1, description="Refuse larger pictures, before they are decoded.")
    part: WhichPart = None
    merge: Merge = False


class PackSettings(Section):
    """How a data set becomes TFRecord shards."""

    split: Strings = Field((), description="Split to pack; all of them by default. Repeatable.")
    shards: int | None = Field(
        None, examples=[8], ge=1, le=99_999, description="Shards per split; by default one for every 256 MiB."
    )
    part: WhichPart = None
    merge: Merge = False


class GeneratorSettings(Section):
    """The picture-making network (paper, section 3.2)."""

    kind: Literal["global", "local"] = Field(
        "global", description="The global generator alone, or local enhancers around it, for twice its resolution."
    )
    filters: int = Field(
        64,
        ge=1,
        le=1024,
        description="Filters at full resolution; the paper's local enhancer has 32, and so 64 in the global generator.",
    )
    norm: Literal["instance", "batch"] = Field(
        "instance", description="Normalisation of all networks; batch is that of what a device sees at a time."
    )
    upsampling: Literal["transposed", "resize"] = Field(
        "transposed",
        description="How resolution is doubled: transposed convolutions, or resizing, against checkerboards.",
    )
    boundary: bool = Field(True, description="Show the networks the boundary map beside the classes.")
    downsamplings: int = Field(4, ge=1, le=10, description="Times the global generator halves the resolution.")
    blocks: int = Field(9, ge=0, le=100, description="Residual blocks at the lowest resolution.")
    enhancers: int = Field(1, ge=1, le=4, description="Local enhancers, each doubling the resolution (kind local).")
    local_blocks: int = Field(3, ge=0, le=100, description="Residual blocks of each local enhancer (kind local).")


class DiscriminatorSettings(Section):
    """The multiscale PatchGAN discriminators (paper, section 3.2)."""

    filters: int = Field(64, ge=1, le=1024, description="Filters of the first layer.")
    layers: int = Field(3, ge=1, le=10, description="Strided layers after the first.")
    scales: int = Field(
        2, ge=1, le=10, description="Discriminators, each seeing half the resolution of the one before."
    )


class EncoderSettings(Section):
    """The instance encoder that finds feature codes (paper, section 3.4)."""

    enabled: bool | None = Field(
        None,
        examples=[True],
        description="Train an encoder; by default where there are photos and instances or classes to pool.",
    )
    filters: int = Field(16, ge=1, le=1024, description="Filters of the first layer.")
    downsamplings: int = Field(4, ge=1, le=10, description="Times the resolution is halved.")
    channels: int = Field(3, ge=1, le=64, description="Numbers in a feature code.")
    pooling: Literal["instance", "label"] = Field(
        "instance", description="What shares one code: an instance, or all regions of a class in a picture."
    )
    frozen: bool = Field(
        False,
        description="Keep the encoder as it came from a global run, at that run's resolution (--init-from sets it).",
    )


class LossSettings(Section):
    """The losses, and the weights of the generator's; 0 switches one off."""

    gan: Literal["lsgan", "vanilla"] = Field("lsgan", description="Least squares, or the vanilla loss on a sigmoid.")
    feature_matching: float = Field(10.0, ge=0, description="Weight of the feature matching loss (paper, equation 4).")
    perceptual: float | None = Field(
        None,
        examples=[10.0],
        ge=0,
        description="Weight of the perceptual loss, 10 in the paper; by default that if there are weights for it, else off.",
    )
    reconstruction: float = Field(
        0.0, ge=0, description="Weight of the L1 distance to the photo. Not in the paper; helps small data."
    )


class TrainSettings(Section):
    """The length, order and pace of training."""

    epochs: int = Field(100, ge=1, le=MOST_EPOCHS, description="Epochs at the full learning rate.")
    decay_epochs: int = Field(
        100, ge=0, le=MOST_EPOCHS, description="Epochs after those, over which the learning rate falls linearly."
    )
    fixed_global_epochs: int = Field(
        0, ge=0, description="Of those, first train the outermost local enhancer alone for so many epochs."
    )
    batch_size: int = Field(1, ge=1, le=1 << 16, description="Examples per step, on each device.")
    accumulate: int = Field(
        1,
        ge=1,
        le=1 << 16,
        description="Batches that a step's gradients are the mean of: as a larger batch, in the memory of one.",
    )
    learning_rate: float = Field(2e-4, gt=0, description="Adam's learning rate.")
    beta1: float = Field(0.5, ge=0, lt=1, description="Adam's first moment decay.")
    seed: int = Field(0, ge=0, lt=1 << 32, description="Seed of weights, order, flips and crops.")
    split: str = Field("train", description="Split to train on.")
    pool_size: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Show the discriminator fakes from a history of so many, half of the time; 0 for the newest.",
    )
    flip: bool = Field(True, description="Mirror half of the examples, chosen anew each epoch.")
    crop: SizeText | None = Field(None, examples=["256x512"], description="Train on random crops of HEIGHTxWIDTH.")
    perceptual_weights: str | None = Field(
        None,
        examples=["imagenet"],
        description="VGG for the perceptual loss: imagenet (Keras' download), a Keras .h5, a torchvision .pth, or an .npz.",
    )
    devices: DevicesText = Field(
        "auto",
        examples=["4"],
        description="auto takes all GPUs, or the CPU where there are none; cpu; or so many GPUs. Each gets --batch-size "
        "examples a step. With TF_CONFIG in the environment, of every worker.",
    )
    join_minutes: float = Field(
        5, gt=0, le=10080, description="Minutes to wait for the other workers of TF_CONFIG at the start."
    )
    recompute: bool = Field(
        False,
        description="Keep less for the gradients and work it out again: less memory, more time, the same losses.",
    )
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = Field(
        "float32",
        description="What training convolves in; normalisation, losses and pictures stay in float32, and so do later verbs.",
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        examples=[0.999],
        description="Also keep an average of the generator that forgets all but this share of itself a step; later verbs then "
        "paint with it. 0 for none.",
    )
    log_every: int = Field(50, ge=1, description="Steps between lines in metrics.jsonl.")
    sample_every: int = Field(1000, ge=1, description="Steps between sample pictures.")
    checkpoint_every: int = Field(1000, ge=1, description="Steps between checkpoints.")
    checkpoint_minutes: float = Field(
        30, ge=0, description="Minutes between checkpoints, at the most; 0 for steps alone."
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="Newest checkpoints to keep, beside the best; others are deleted."
    )
    model: Literal["newest", "best"] = Field(
        "newest",
        description="The checkpoint that later verbs work with; the best one's samples are nearest to their photos, or it is the "
        "best of all evaluated.",
    )
    evaluate_every: int = Field(
        0,
        ge=0,
        examples=[1000],
        description="Steps between evaluations of --evaluate-split, each of which also writes a checkpoint; 0 for none.",
    )
    evaluate_split: str = Field("val", description="Split to evaluate on; it must be packed too.")
    evaluate_limit: int = Field(50, ge=1, description="Evaluate on its first N examples.")
    best_by: Literal["psnr", "ssim", "perceptual"] | None = Field(
        None,
        examples=["ssim"],
        description="What makes an evaluated checkpoint the best; by default perceptual where that loss is on, else ssim.",
    )
    patience: int = Field(0, ge=0, description="Stop after so many evaluations in a row without a better one; 0 never.")
    tensorboard: bool = Field(False, description="Also write TensorBoard logs (extra: tensorboard).")
    report: bool = Field(True, description="At the end write RUN/report.html, as `p2phd report` does (extra: report).")


class EncodeSettings(Section):
    """Which instances get feature codes."""

    split: str | None = Field(
        None, examples=["train"], description="Split whose instances are encoded; the run's training split by default."
    )
    batch_size: BatchSize = 1
    devices: Devices = "auto"
    part: WhichPart = None
    merge: Merge = False


class ClusterSettings(Section):
    """How feature codes become styles."""

    clusters: int = Field(10, ge=1, description="Styles per class, at the most.")
    min_area: float = Field(
        0.015625, ge=0, lt=1, description="Only instances larger than this share of their picture take part."
    )


class GenerateSettings(Section):
    """Which pictures to make, and in which style."""

    split: str = Field("val", description="Split to paint, where LABELS is a prepared data set.")
    limit: int | None = Field(None, examples=[100], ge=1, description="Paint only the first N label maps.")
    feature_code: Strings = Field(
        (),
        description="TARGET=CHOICE. TARGET: a class (car), a class or instance id (26003), instance:17, or * for all. CHOICE: a "
        "cluster's index or name, random, mean, photo, or a vector (0.1,-0.4,0.9). Repeatable; later wins.",
    )
    feature_gain: float = Field(
        0.0,
        description="k of the gate feature = k · E(photo) + b, where b is the chosen code; other than 0 needs photos.",
    )
    seed: int = Field(0, ge=0, description="Seed of randomly chosen styles.")
    hold: bool = Field(False, description="Draw the same styles for every picture, as for a video.")
    grid: bool = Field(False, description="Also write label map and result side by side, to OUT/grids.")
    all_codes: Strings = Field(
        (), description="Class to paint in each of its styles, as a strip in OUT/strips. Repeatable."
    )
    instance_map: Path | None = Field(
        None, examples=["instances"], description="Instance map, or a folder of them paired by name, for LABELS."
    )
    photo: Path | None = Field(
        None, examples=["photos"], description="Photo, or a folder of them paired by name, for the photo's own codes."
    )
    ema: bool = Field(True, description="Paint with the averaged generator, if the run has one (train --ema).")
    max_pixels: int = Field(1 << 25, ge=1, description="Refuse larger pictures, before memory is taken for them.")
    batch_size: BatchSize = 1
    devices: Devices = "auto"
    part: WhichPart = None
    merge: Merge = False


PixelRange = Literal["-1..1", "0..1", "0..255", "imagenet"]


class EvaluateSettings(Section):
    """Which pictures to judge, and by which networks."""

    split: str = Field("val", description="Split whose photos the pictures are compared with.")
    checkpoint: str | None = Field(
        None,
        examples=["all"],
        description="all, best, or a step; by default what `generate` paints with.",
    )
    limit: int | None = Field(None, examples=[100], ge=1, description="Judge only the first N examples.")
    perceptual_weights: str | None = Field(
        None,
        examples=["vgg19.pth"],
        description="VGG for perceptual distances, and for features if there are no others: files as in `train`, whose own "
        "is the default.",
    )
    features: Path | None = Field(
        None,
        examples=["inception.keras"],
        description="Feature network for kernel and Fréchet distance: Keras or ONNX file, TFLite file, or SavedModel.",
    )
    features_input: PixelRange = Field(
        "-1..1",
        description="What --features takes, unless it is uint8; imagenet stands for 0..1 less mean, by deviation.",
    )
    segmenter: Path | None = Field(
        None, examples=["deeplab.tflite"], description="Network that sees classes in pictures; files as for --features."
    )
    segmenter_input: PixelRange = Field("-1..1", description="What --segmenter takes, unless it is uint8.")
    segmenter_classes: str | None = Field(
        None,
        examples=["cityscapes"],
        description="Which of our classes each of the segmenter's is: a CSV file of lines NUMBER,CLASS, or cityscapes for its 19 "
        "train ids; by default they are the same.",
    )
    seed: int = Field(0, ge=0, description="Seed of sampled styles.")
    batch_size: BatchSize = 1
    devices: Devices = "auto"


InParts = PrepareSettings | PackSettings | EncodeSettings | GenerateSettings


class StudioSettings(Section):
    """Where the studio's page is, and what it begins with."""

    host: str = Field(
        "127.0.0.1", description="Address to serve at; others than this machine's own need the token in the URL."
    )
    port: int = Field(8765, ge=0, le=65535, description="Port to serve at; 0 takes any that is free.")
    open: bool = Field(True, description="Open the page in the browser.")
    split: str = Field("val", description="Split to begin with, where LABELS is a prepared data set.")
    instance_map: Path | None = Field(
        None, examples=["instances"], description="Instance map, or a folder of them paired by name, for LABELS."
    )
    seed: int = Field(0, ge=0, lt=1 << 53, description="Seed of randomly drawn styles.")
    max_pixels: int = Field(
        1 << 22, ge=1, le=1 << 25, description="Refuse larger scenes, before memory is taken for them."
    )


class Settings(BaseSettings):
    """All settings of all verbs. Build it with `load_settings`, or plainly: `Settings(train={"epochs": 5})`."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid")

    prepare: PrepareSettings = PrepareSettings()
    pack: PackSettings = PackSettings()
    generator: GeneratorSettings = GeneratorSettings()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    encoder: EncoderSettings = EncoderSettings()
    loss: LossSettings = LossSettings()
    train: TrainSettings = TrainSettings()
    encode: EncodeSettings = EncodeSettings()
    cluster: ClusterSettings = ClusterSettings()
    generate: GenerateSettings = GenerateSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    studio: StudioSettings = StudioSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take only what is passed: `load_settings` merges the environment, nothing else reads it behind one's back."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


# Settings that shape the networks: a later verb or a resumed training takes them from the run and from nowhere else.
NETWORK_SECTIONS = ("generator", "discriminator", "encoder")
# Settings of training and losses that a resumed training may change; it would not end where it would have with others.
# The perceptual loss's file may move, as long as it is the same.
CHANGEABLE = (
    "epochs", "decay_epochs", "batch_size", "accumulate", "devices", "join_minutes", "perceptual_weights", "recompute",
    "log_every", "sample_every", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "model", "tensorboard",
    "report", "evaluate_every", "patience",
)  # fmt: skip
SAVED_SECTIONS = (*NETWORK_SECTIONS, "loss", "train", "cluster")


class Layer(NamedTuple):
    """The values one source gives, and how a message names them."""

    source: str  # flag | env | file | run
    values: Values
    place: str = ""

    def name(self, section: str, field: str) -> str:
        """How a user knows this setting when it comes from this source."""
        if self.source == "flag":
            return flag_name(section, field, own=section not in {*NETWORK_SECTIONS, "loss"})
        if self.source == "env":
            return env_name(section, field)
        return f"[{section}] {field} in {self.place}" if field else f"[{section}] in {self.place}"


def flag_name(section: str, field: str, own: bool) -> str:
    """`--epochs` for a verb's own section, `--generator-filters` for the others."""
    return "--" + (field if own else f"{section}-{field}").replace("_", "-")


def flags(settings: Settings, *sections: str) -> list[str]:
    """The flags that make these sections what they are, but for what is so anyway; the first section is the verb's own."""
    words: list[str] = []
    for section, name, field in fields():
        value = getattr(getattr(settings, section), name)
        if section not in sections or value == field.get_default() or value is None:
            continue
        flag = flag_name(section, name, own=section == sections[0])
        if isinstance(value, bool):
            words.append(flag if value else off(flag))
        else:
            words += [word for one in (value if isinstance(value, tuple) else (value,)) for word in (flag, str(one))]
    return words


def off(flag: str) -> str:
    """What turns a switch off: `--no-flip` for `--flip`."""
    return f"--no-{flag.removeprefix('--')}"


def env_name(section: str, field: str) -> str:
    """The environment variable of a field."""
    return f"{ENV_PREFIX}{section}__{field}".upper().removesuffix("__")


def fields() -> Iterator[tuple[str, str, FieldInfo]]:
    """Every setting as (section, field, its declaration), in the order of this file."""
    for section, declaration in Settings.model_fields.items():
        model = declaration.annotation
        assert isinstance(model, type) and issubclass(model, Section)
        for name, field in model.model_fields.items():
            yield section, name, field


def load_settings(
    typed: Values | None = None, config: Path | None = None, run: Location | None = None, *, resume: bool = False
) -> Settings:
    """Merge, strongest first: `typed` (flags), the environment, `config` (TOML), the settings of `run`, the defaults.

    Raises `SettingsError` for anything unknown, of the wrong type or out of range, and for a setting that contradicts
    `run`: its networks always, with `resume` all that decides where it ends.
    """
    layers = read_layers(typed, config, run)
    settings = merge(layers)
    if run is not None:
        _refuse_contradictions(layers, resume)
    return settings


def settings_of_run(run: Location) -> Settings:
    """What a run was trained with, whatever the environment says."""
    return merge([Layer("run", _read_run(run), str(run / "settings.json"))])


def read_layers(typed: Values | None = None, config: Path | None = None, run: Location | None = None) -> list[Layer]:
    """Read every source, strongest first, without merging."""
    layers = [Layer("flag", typed or {}), Layer("env", _read_environment())]
    if config is not None:
        layers.append(Layer("file", _read_toml(config), str(config)))
    if run is not None:
        layers.append(Layer("run", _read_run(run), str(run / "settings.json")))
    return layers


def merge(layers: list[Layer]) -> Settings:
    """Merge layers key by key, the first one winning, and validate the result."""
    merged: Values = {}
    for layer in reversed(layers):
        for section, values in layer.values.items():
            below = merged.get(section, {})
            both = isinstance(values, Mapping) and isinstance(below, Mapping)
            merged[section] = {**below, **values} if both else values
    for section in sorted(set(merged) - set(Settings.model_fields)):
        raise SettingsError(_explain({"loc": (section,), "type": "extra_forbidden"}, layers))
    try:
        return Settings(**merged)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(problem, layers) for problem in error.errors()[:5])) from None


def changes(old: Settings, new: Settings) -> dict[str, tuple[object, object]]:
    """What a resumed training changes: each flag with its old value and its new one.

    Raises `SettingsError` for what it may not change.
    """
    for section, field in _fixed(resume=True):
        have, want = (getattr(getattr(one, section), field) for one in (old, new))
        if have != want:
            flag = flag_name(section, field, own=section == "train")
            raise SettingsError(f"{flag} is {want!r}, but the run was trained with {have!r}: train a new run")
    pairs = {field: (getattr(old.train, field), getattr(new.train, field)) for field in CHANGEABLE}
    return {flag_name("train", field, own=True): pair for field, pair in pairs.items() if pair[0] != pair[1]}


def source_of(layers: list[Layer], section: str, field: str) -> str:
    """Name the source that decided a setting: a flag, variable or file by name, or `default`."""
    for layer in layers:
        if field in (layer.values.get(section) or {}):
            return layer.name(section, field)
    return "default"


def save_settings(settings: Settings) -> str:
    """The JSON that a run keeps: the sections that training and clustering read."""
    return seal(settings.model_dump(mode="json", include=set(SAVED_SECTIONS)))


def _read_environment() -> Values:
    values = EnvSettingsSource(Settings)()
    for name in os.environ:
        section = name.upper().removeprefix(ENV_PREFIX).partition("__")[0].lower()
        known = section in Settings.model_fields
        near = section.partition("_")[0] in Settings.model_fields and not known
        if name.upper().startswith(ENV_PREFIX) and (near or ("__" in name and not known)):
            raise SettingsError(
                f"{name}: there is no section {section!r}; sections are {', '.join(Settings.model_fields)}"
            )
    return values


def _read_toml(path: Path) -> Values:
    try:
        return read_toml(path)
    except FileNotFoundError:
        raise SettingsError(f"--config {path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"--config {path}: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file; raises `FileNotFoundError`, and `ValueError` for one that is not, or would take for ever to read."""
    check_regular(path)
    text = path.read_text(encoding="utf-8-sig")
    if len(text) > 1 << 20 or any(line.count(".") > 100 for line in text.splitlines()):
        raise ValueError("it is too long, or one of its keys is")
    return tomllib.loads(text)


def _read_run(run: Location) -> Values:
    path = run / "settings.json"
    check_regular(path)
    try:
        with naming(path):
            values = unseal(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise P2PHDError(
            f"{run}: no trained run here (settings.json is missing); `p2phd train PACKED {run}` makes one"
        ) from None
    except ValueError as error:
        raise P2PHDError(f"{path}: damaged ({error})") from None
    strange = sorted(set(values) - set(SAVED_SECTIONS))
    if strange:
        raise P2PHDError(f"{path}: damaged (runs keep no section {strange[0]!r})")
    return values


def _explain(problem: Any, layers: list[Layer]) -> str:
    """One validation problem in the words of the source that caused it."""
    section, field, *_ = (*map(str, problem["loc"]), "", "")
    layer = next((one for one in layers if not field or field in (one.values.get(section) or {})), layers[-1])
    if not field:
        layer = next((one for one in layers if section in one.values), layer)
    name = layer.name(section, field)
    if problem["type"] == "extra_forbidden":
        known = Settings.model_fields if not field else dict(_section_model(section).model_fields)
        return f"{name}: unknown; known are {', '.join(known)}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{name}: {message[0].lower()}{message[1:]} (got {problem['input']!r})"


def _section_model(section: str) -> type[Section]:
    model = Settings.model_fields[section].annotation
    assert isinstance(model, type) and issubclass(model, Section)
    return model


def _fixed(resume: bool) -> list[tuple[str, str]]:
    """The settings of a run that nothing may change, as (section, field)."""
    sections = (*NETWORK_SECTIONS, "loss", "train") if resume else NETWORK_SECTIONS
    return [(s, field) for s, field, _ in fields() if s in sections and (s != "train" or field not in CHANGEABLE)]


def _refuse_contradictions(layers: list[Layer], resume: bool) -> None:
    """A run's networks are what they are: refuse sources that say otherwise."""
    run = merge(layers[-1:])
    asked = merge(layers)
    for section, field in _fixed(resume):
        have, want = (getattr(getattr(one, section), field) for one in (run, asked))
        if have != want:
            raise SettingsError(
                f"{source_of(layers, section, field)} is {want!r}, but the run was trained with {have!r}: "
                "leave it out, or train a new run"
            )
