"""The training loop: epochs, learning rate, and what is logged, sampled and saved on the way."""

import math
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType

import numpy as np
import tensorflow as tf

from pix2pixhd_cli import images
from pix2pixhd_cli.boundary import boundary_map
from pix2pixhd_cli.console import TrainingDisplay
from pix2pixhd_cli.data.batches import training_batches
from pix2pixhd_cli.data.dataset import Example
from pix2pixhd_cli.data.pictures import write_picture
from pix2pixhd_cli.data.records import PackedSplit
from pix2pixhd_cli.errors import Interrupted, P2PHDError
from pix2pixhd_cli.model.build import build_optimizers, side_multiple
from pix2pixhd_cli.model.pix2pixhd import Batch, Losses, Pix2PixHD
from pix2pixhd_cli.runs import Run, checkpoint_state
from pix2pixhd_cli.settings import Settings, TrainSettings, parse_size

SAMPLES = 4
ALIASES = ("Identity", "IdentityN", "InplaceUpdate", "Reshape")  # Operations whose results are no maps of their own.


def learning_rate(settings: TrainSettings, epoch: int) -> float:
    """Constant for `epochs`, then linear; epoch counts from 1, and the last one still runs at rate / decay_epochs."""
    if epoch <= settings.epochs:
        return settings.learning_rate
    return settings.learning_rate * (1 - (epoch - 1 - settings.epochs) / settings.decay_epochs)


@dataclass(frozen=True)
class Schedule:
    """How many steps and epochs there are."""

    settings: TrainSettings
    examples: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; the last one may be short."""
        return math.ceil(self.examples / self.settings.batch_size)

    @property
    def epochs(self) -> int:
        """All epochs, with decay."""
        return self.settings.epochs + self.settings.decay_epochs

    @property
    def steps(self) -> int:
        """All steps."""
        return self.epochs * self.steps_per_epoch


@dataclass
class Stop:
    """Set by the first Ctrl-C or SIGTERM; the second one leaves at once."""

    signal: int = 0
    previous: dict[int, object] = field(default_factory=dict)

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal and give the next one its usual effect."""
        del frame
        self.signal = number
        for one, handler in self.previous.items():
            signal.signal(one, handler)  # type: ignore[arg-type]


@contextmanager
def stopping_in_good_order() -> Iterator[Stop]:
    """Catch Ctrl-C and SIGTERM once, so that the step can be finished and saved."""
    stop = Stop()
    stop.previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in stop.previous:
        signal.signal(number, stop.ask)
    try:
        yield stop
    finally:
        for number, handler in stop.previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


class Trainer:
    """A model with its optimisers, its data and its run."""

    def __init__(self, model: Pix2PixHD, split: PackedSplit, settings: Settings) -> None:
        self.model = model
        self.split = split
        self.settings = settings
        self.schedule = Schedule(settings.train, len(split))
        self.optimizers = build_optimizers(settings, model)
        if settings.train.pool_size:
            height, width = parse_size(settings.train.crop) if settings.train.crop else sizes(split)[0]
            model.add_pool(settings.train.pool_size, height, width, settings.train.seed)
        self.state = checkpoint_state(model, self.optimizers)
        generator, discriminator, outermost = self.optimizers

        def train_step(fixed_global: bool, batch: Batch) -> Losses:
            optimizer = outermost if fixed_global else generator
            return model.train_step(batch, optimizer, discriminator, fixed_global=fixed_global)

        # Sides are fixed before running where all pictures have the same: which way is taken to convolve must depend on the
        # data alone, not on what came first, or a resumed run would differ in the last bit.
        found = [parse_size(settings.train.crop)] if settings.train.crop else sizes(split)
        spec = batch_spec(split.rgb, None, *(found[0] if len(found) == 1 else (None, None)))
        self._steps = [tf.function(partial(train_step, fixed), input_signature=[spec]) for fixed in (False, True)]
        self._reconstruct = tf.function(model.reconstruct)  # Traced for each size, for the same reason.

    def batches(self, start: int) -> Iterator[tuple[int, int, Batch]]:
        """(step, epoch, batch) from the step after `start` to the last; steps and epochs count from 1."""
        chosen, per_epoch = self.settings.train, self.schedule.steps_per_epoch
        batches = training_batches(
            self.split,
            batch_size=chosen.batch_size,
            seed=chosen.seed,
            epochs=range(start // per_epoch + 1, self.schedule.epochs + 1),
            flip=chosen.flip,
            crop=parse_size(chosen.crop) if chosen.crop else None,
            skip=start % per_epoch,
        )
        for step, batch in enumerate(batches, start=start + 1):
            yield step, (step - 1) // per_epoch + 1, Batch(*batch)

    def step(self, batch: Batch, epoch: int) -> dict[str, float]:
        """Train on one batch, as the epoch's phase has it, and return its losses by name."""
        losses: Losses = self._steps[epoch <= self.settings.train.fixed_global_epochs](batch)
        return {name: float(value) for name, value in losses._asdict().items()}

    def fit(self, run: Run, start: int) -> None:
        """Train from the step after `start` to the end; raises `Interrupted` once the user's wish to stop is met."""
        chosen = self.settings.train
        run.start_metrics(start)
        summaries = _summary_writer(run) if chosen.tensorboard else None
        if not start:
            self.sample(run, 0)
        with (
            stopping_in_good_order() as stop,
            TrainingDisplay(self.schedule.steps, self.schedule.epochs, start) as display,
        ):
            step = saved = start
            for step, epoch, batch in self.batches(start):
                began = time.perf_counter()
                rate = learning_rate(chosen, epoch)
                for optimizer in filter(None, self.optimizers):
                    optimizer.learning_rate.assign(rate)
                losses = self.step(batch, epoch)
                _check_finite(losses, step, saved)
                display.update(step, epoch, losses, len(batch.photo))
                if step % chosen.log_every == 0 or step in (1, self.schedule.steps):
                    seconds = round(time.perf_counter() - began, 4)
                    run.log({"step": step, "epoch": epoch} | losses | {"learning_rate": rate, "seconds": seconds})
                    _summarise(summaries, step, losses)
                if step % chosen.sample_every == 0 or step == self.schedule.steps:
                    self.sample(run, step)
                if step % chosen.checkpoint_every == 0 or step == self.schedule.steps or stop.signal:
                    self.save(run, step)
                    saved = step
                if stop.signal:
                    break
        if stop.signal:
            raise Interrupted(
                f"stopped and saved at step {saved} of {self.schedule.steps}; go on with "
                f"`{shlex.join(['p2phd', 'train', str(self.split.packed), str(run.folder), '--resume'])}`",
                128 + stop.signal,
            )

    def save(self, run: Run, step: int) -> None:
        """Write the model for later verbs, and a checkpoint to go on from."""
        run.save_model(self.model)
        run.save_checkpoint(self.state, step, self.settings.train.keep_checkpoints)

    def sample(self, run: Run, step: int) -> None:
        """Write label map, boundary map, fake and photo of the same few examples."""
        rows = [self._sample_row(self.split.example(number)) for number in range(min(SAMPLES, len(self.split)))]
        scale = max(1, 256 // rows[0][0].shape[1])
        write_picture(run.sample(step), images.grid(rows, ["label", "boundary", "fake", "photo"], scale=scale))

    def _sample_row(self, example: Example) -> list[images.Picture]:
        assert example.photo is not None
        multiple = side_multiple(self.settings)
        height, width = (side // multiple * multiple for side in example.instance.shape)
        label, instance, photo = (a[:height, :width] for a in (example.label, example.instance, example.photo))
        batch = Batch(label[None], instance[None], photo[None].astype(np.float32) / 127.5 - 1)
        fake = self._reconstruct(Batch(*map(tf.constant, batch)))[0].numpy()
        colours = images.colour_labels(label, self.split.spec.dataset.classes)
        return [colours, images.from_mask(boundary_map(instance)), images.to_uint8(fake), photo.astype(np.uint8)]

    def measure(self, steps: int = 3) -> float:
        """Median seconds per step over a few real ones, after one for the graph. Changes the weights."""
        seconds: list[float] = []
        while len(seconds) <= steps:
            for _, epoch, batch in self.batches(0):
                began = time.perf_counter()
                self.step(batch, epoch)
                seconds.append(time.perf_counter() - began)
                if len(seconds) > steps:
                    break
        return float(np.median(seconds[1:]))


def batch_spec(rgb: bool, size: int | None, height: int | None, width: int | None) -> Batch:
    """What a batch looks like; None stands for a number that is known only when running."""
    sides = [size, height, width]
    label = tf.TensorSpec([*sides, 3], tf.uint8) if rgb else tf.TensorSpec(sides, tf.int32)
    return Batch(label, tf.TensorSpec(sides, tf.int32), tf.TensorSpec([*sides, 3], tf.float32))


def estimate_memory(model: Pix2PixHD, batch_size: int, height: int, width: int) -> int:
    """A first estimate of a training step's memory in bytes: weights, gradients, Adam's moments, and activations.

    Activations are what the forward pass computes, counted off its graph; recomputing needs much less than that.
    """
    spec = batch_spec(not model.labels, batch_size, height, width)
    graph = tf.function(model.losses).get_concrete_function(spec).graph
    operations = [operation for operation in graph.get_operations() if operation.type not in ALIASES]
    activations = sum(_bytes(output) for operation in operations for output in operation.outputs)
    weights = sum(network.count_params() for network in model.networks.values()) * 4
    return activations + 4 * weights


def _check_finite(losses: dict[str, float], step: int, saved: int) -> None:
    """Stop before weights that are no numbers are saved over good ones."""
    for name, value in losses.items():
        if not math.isfinite(value):
            kept = f"the checkpoint of step {saved} is kept" if saved else "nothing was saved yet"
            raise P2PHDError(f"step {step}: {name} is {value}; {kept}. Try a smaller --learning-rate")


def _bytes(tensor: tf.Tensor) -> int:
    if tensor.dtype != tf.float32 or not tensor.shape.is_fully_defined():
        return 0
    return 4 * int(tensor.shape.num_elements())


def _summary_writer(run: Run) -> tf.summary.SummaryWriter:
    return tf.summary.create_file_writer(str(run.folder / "tensorboard"))


def _summarise(writer: tf.summary.SummaryWriter | None, step: int, losses: dict[str, float]) -> None:
    if writer is not None:
        with writer.as_default(step=step):
            for name, value in losses.items():
                tf.summary.scalar(name, value)
        writer.flush()


def sizes(split: PackedSplit) -> Sequence[tuple[int, int]]:
    """The different sizes of a split's examples, as (height, width)."""
    return sorted({(entry.height, entry.width) for entry in split.entries})
