"""What a data set or a run has come to, in a few words and numbers, for those verbs that tell of it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from pix2pixhd_cli import console
from pix2pixhd_cli.data.dataset import DatasetSpec
from pix2pixhd_cli.runs import Run, step_of
from pix2pixhd_cli.settings import Settings, settings_of_run

SIZES_SHOWN = 3


class Progress(NamedTuple):
    """How far a training has come; steps is 0 if nobody knows how many there will be."""

    step: int
    steps: int
    epoch: int
    epochs: int

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to train."""
        return self.step >= self.steps

    def __str__(self) -> str:
        if not self.steps:
            return f"step {self.step}"
        return f"step {self.step} of {self.steps}, epoch {self.epoch} of {self.epochs}"


class ClassShare(NamedTuple):
    """A class as a data set has it. kind: thing, ignored, or nothing. share: of all pixels."""

    identity: int
    name: str
    kind: str
    share: float
    instances: int


def progress(run: Run) -> Progress:
    """How far the training of a run has come."""
    settings, sources = settings_of_run(run.folder), run.sources()
    examples = len(run.spec().splits.get(settings.train.split, ()))
    epochs = settings.train.epochs + settings.train.decay_epochs
    steps = -(-examples // sources.step_size) * epochs if sources.step_size else 0
    step = int(max([last_losses(run).get("step", 0), *map(step_of, run.checkpoints())]))
    if not step and run.model.exists():  # It was handed on without its checkpoints.
        step = run.model_step()
    return Progress(step, steps, -(-step * epochs // steps) if steps else 0, epochs)


def last_losses(run: Run) -> dict[str, float]:
    """The last logged line of losses; empty if there is none that can be read."""
    last: dict[str, float] = {}
    for values in run.logged():
        if "g_gan" in values:
            last = numbers(values)
    return last


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """What of a logged line is a number."""
    return {key: value for key, value in line.items() if isinstance(value, int | float)}


def class_shares(spec: DatasetSpec) -> list[ClassShare]:
    """The classes that occur, those of most pixels first."""
    counts, instances = (_total(of_split) for of_split in (spec.pixels, spec.instances))
    things = {c.id for c in spec.classes if c.thing}
    return [
        ClassShare(
            identity,
            spec.class_name(identity),
            "ignored" if identity in spec.ignored else "thing" if identity in things else "",
            count / counts.total(),
            instances[identity],
        )
        for identity, count in sorted(counts.items(), key=lambda pair: -pair[1])
    ]


def _total(of_split: Mapping[str, Mapping[int, int]]) -> Counter[int]:
    """The sum over splits."""
    return sum((Counter(counts) for counts in of_split.values()), Counter())


def inputs(spec: DatasetSpec) -> str:
    """What the networks are given."""
    if spec.input == "rgb":
        return "RGB inputs"
    return f"{spec.labels} labels, {'instance maps' if spec.has_instances else 'no instance maps'}"


def sizes(spec: DatasetSpec, split: str) -> str:
    """The sizes of a split's pictures."""
    found = sorted({(entry.height, entry.width) for entry in spec.splits.get(split, ())})
    shown = ", ".join(f"{height}x{width}" for height, width in found[:SIZES_SHOWN])
    return shown + (f" and {len(found) - SIZES_SHOWN} more" if len(found) > SIZES_SHOWN else "")


def networks(settings: Settings) -> str:
    """The networks of a run, and how they were trained."""
    generator, chosen = settings.generator, settings.train
    parts = [f"{generator.kind} generator, {generator.filters} filters, {console.count(generator.blocks, 'block')}"]
    parts.append(f"{settings.discriminator.scales} discriminators")
    parts.append(f"encoder of {settings.encoder.channels} numbers" if settings.encoder.enabled else "no encoder")
    if chosen.precision != "float32":
        parts.append(chosen.precision)
    if chosen.ema:
        parts.append(f"average {chosen.ema}")
    return ", ".join(parts)
