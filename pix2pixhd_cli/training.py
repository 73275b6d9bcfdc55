"""The training loop: epochs, learning rate, and what is logged, sampled and saved on the way."""

import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pix2pixhd_cli import console, engine, images
from pix2pixhd_cli.boundary import boundary_map
from pix2pixhd_cli.console import TrainingDisplay
from pix2pixhd_cli.data.batches import Deal, plan_epoch, training_batches
from pix2pixhd_cli.data.records import PackedSplit
from pix2pixhd_cli.devices import Team, WorkerLost
from pix2pixhd_cli.errors import Interrupted, P2PHDError
from pix2pixhd_cli.memory import bytes_of, peak_of, room_of, total
from pix2pixhd_cli.model.build import build_loss_scale, build_optimizers, side_multiple
from pix2pixhd_cli.model.optimizers import NO_NUMBER
from pix2pixhd_cli.model.pix2pixhd import Batch, Pix2PixHD
from pix2pixhd_cli.runs import Run, checkpoint_state
from pix2pixhd_cli.settings import Settings, TrainSettings, parse_size
from pix2pixhd_cli.stepping import Portion, Stepper
from pix2pixhd_cli.validation import Validation, logged, told

SAMPLES, SAMPLE_COLUMNS = 4, ("label", "boundary", "fake", "photo")
NAMED = 8  # Examples, where something is wrong in a step.
FLAT_SAMPLES = 3  # So many samples of one colour in a row are worth a warning.


def learning_rate(settings: TrainSettings, epoch: int) -> float:
    """Constant for `epochs`, then linear; epoch counts from 1, and the last one still runs at rate / decay_epochs."""
    if epoch <= settings.epochs:
        return settings.learning_rate
    return settings.learning_rate * (1 - (epoch - 1 - settings.epochs) / settings.decay_epochs)


class Sample(NamedTuple):
    """An example as it is shown and judged: label and instance map, and fake and photo, float32 [H, W, 3] in [-1, 1]."""

    stem: str
    label: NDArray[np.integer]
    instance: NDArray[np.integer]
    fake: NDArray[np.float32]
    photo: NDArray[np.float32]


@dataclass(frozen=True)
class Schedule:
    """How many steps and epochs there are."""

    settings: TrainSettings
    examples: int
    deal: Deal

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch; the last one may be short of examples."""
        return self.deal.steps(self.examples)

    @property
    def epochs(self) -> int:
        """All epochs, with decay."""
        return self.settings.epochs + self.settings.decay_epochs

    @property
    def steps(self) -> int:
        """All steps."""
        return self.epochs * self.steps_per_epoch


class Stop:
    """Set by the first Ctrl-C or SIGTERM; the second one leaves at once.

    The interpreter hears no signal while TensorFlow works on a step, so a thread listens to what the system writes for each.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, last_words: Callable[[], str]) -> None:
        self.signal = 0
        self._last_words = last_words

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal."""
        del frame
        self.signal = number

    def listen(self, pipe: int) -> None:
        """Answer the first signal in the pipe, and leave at the second."""
        for said in (False, True):
            number = 0
            while number not in self.SIGNALS:
                if not (byte := os.read(pipe, 1)):
                    return
                number = byte[0]
            console.info(self._last_words() if said else "finishing the step and saving; once more leaves at once")
        console.out.show_cursor()
        os._exit(128 + number)


@contextmanager
def stopping_in_good_order(last_words: Callable[[], str]) -> Iterator[Stop]:
    """Catch Ctrl-C and SIGTERM once, so that the step can be finished and saved; `last_words` come with the second.

    Threads other than the main one hear no signals.
    """
    stop = Stop(last_words)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    listener = threading.Thread(target=stop.listen, args=(reader,), daemon=True)
    listener.start()
    heard = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, stop.ask) for number in stop.SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(heard)
        os.close(writer)
        listener.join()
        os.close(reader)


class Trainer:
    """A model with its optimisers and its data, on the devices of a team under whose strategy the model was built."""

    def __init__(
        self, model: Pix2PixHD, split: PackedSplit, settings: Settings, team: Team, held_out: PackedSplit | None = None
    ) -> None:
        self.model = model
        self.team = team
        self.split = split
        self.settings = settings
        self.deal = Deal(settings.train.batch_size, settings.train.accumulate, team.replicas, team.own)
        self.schedule = Schedule(settings.train, len(split), self.deal)
        with team.strategy.scope():
            self.optimizers = build_optimizers(settings, model)
            self.scale = build_loss_scale(settings)
        if model.average is not None:
            model.average.start()
        found = trained_sizes(split, settings)
        if settings.train.pool_size:
            model.add_pool(settings.train.pool_size, *found[0], settings.train.seed)
        self.state = checkpoint_state(model, self.optimizers, self.scale)
        self._validation = Validation(held_out, settings.train, model.vgg) if held_out is not None else None
        self._flat_samples = self._saved = 0
        # What never changes is fixed before running: which way is taken to convolve must depend on the data alone, not on what
        # came first, or a resumed run would differ in the last bit.
        size = settings.train.batch_size if len(split) % self.deal.step_size == 0 else None
        spec = batch_spec(split.rgb, size, *(found[0] if len(found) == 1 else (None, None)))
        self._stepper = Stepper(model, self.optimizers, self.scale, team.strategy, turns=self.deal.turns, spec=spec)
        self._reconstruct = tf.function(model.reconstruct)  # Traced for each size, for the same reason.

    def portions(self, start: int) -> Iterator[tuple[int, int, list[list[Portion]]]]:
        """(step, epoch, portions by turn and replica) from the step after `start` to the last; both count from 1."""
        chosen, per_epoch, width = self.settings.train, self.schedule.steps_per_epoch, len(self.deal.own)
        batches = training_batches(
            self.split,
            deal=self.deal,
            seed=chosen.seed,
            epochs=range(start // per_epoch + 1, self.schedule.epochs + 1),
            flip=chosen.flip,
            crop=parse_size(chosen.crop) if chosen.crop else None,
            skip=start % per_epoch,
        )
        for step in range(start + 1, self.schedule.steps + 1):
            shares = self.deal.shares((step - 1) % per_epoch, len(self.split))
            hands = [Portion(Batch(*next(batches)), share) for share in shares]
            yield step, (step - 1) // per_epoch + 1, [hands[n : n + width] for n in range(0, len(hands), width)]

    def step(self, turns: Sequence[Sequence[Portion]], epoch: int) -> dict[str, float]:
        """Train on one step's portions, as the epoch's phase has it, and return its losses by name.

        Raises `P2PHDError` naming the first loss that is no number, or the gradients, with the weights as they were.
        """
        try:
            with self.team.together():
                losses = self._stepper(turns, fixed_global=epoch <= self.settings.train.fixed_global_epochs)
        except tf.errors.InvalidArgumentError as error:
            if NO_NUMBER not in error.message:
                raise
            raise P2PHDError(self._what_is_no_number(turns)) from None
        return {name: float(value) for name, value in losses._asdict().items()}

    def _what_is_no_number(self, turns: Sequence[Sequence[Portion]]) -> str:
        for losses in (losses for portions in turns for losses in self._stepper.losses(portions)):
            for name, value in losses._asdict().items():
                if not np.isfinite(value):
                    return f"{name} is {float(value)}"
        if self.team.workers > 1:
            return "a loss or a gradient of a worker is no number"
        skipped = "" if self.scale is None else ", unscaled too, step after step"
        return f"the losses' gradients are too large for numbers{skipped}"

    def fit(self, run: Run, start: int) -> None:
        """Train from the step after `start` to the end; raises `Interrupted` once the user's wish to stop is met.

        What cannot be written, because the disk is full or gone, is told and tried again at the next save. Raises `P2PHDError`
        for a loss that is no number, and if the last save of all fails.
        """
        self._saved, steps = start, self.schedule.steps
        if self.team.is_chief:
            run.start_metrics(start)
            if self._validation is not None:
                self._validation.recall(run.logged())
        going_on = shlex.join(["p2phd", "train", str(self.split.packed), str(run.folder), "--resume"])

        def last_words() -> str:
            return f"stopped at once; `{going_on}` goes on after step {self._saved}"

        with stopping_in_good_order(last_words) as stop, TrainingDisplay(steps, self.schedule.epochs, start) as display:
            over = self.team.anyone(self._is_over)
            step, stopped = (start, False) if over else self._train_on(run, start, stop, display)
        over = self.team.anyone(self._is_over)  # Nobody leaves before the chief has saved.
        if self._saved < step and self.team.is_chief:
            raise P2PHDError(
                f"{run.folder}: steps {self._saved + 1} to {step} could not be saved; make room, and train them again with "
                f"`{going_on}`"
            )
        if over and step < steps:
            self._tell_of_the_best(run, step)
        elif stopped and step < steps:
            raise Interrupted(
                f"stopped and saved at step {step} of {steps}; go on with `{going_on}`",
                128 + (stop.signal or signal.SIGTERM),
            )

    def _tell_of_the_best(self, run: Run, step: int) -> None:
        """Say why a training stopped by itself, and how to go on."""
        if self._validation is not None and self.team.is_chief:
            best = run.best_checkpoint()
            console.info(
                f"stopped after step {step} of {self.schedule.steps}: no better {self._validation.by} in "
                f"{self._validation.waited} evaluations; the best is {best.name if best is not None else 'gone'}. --resume with "
                "--model best lets later verbs work with it, and with a larger --patience goes on"
            )

    def _train_on(self, run: Run, start: int, stop: Stop, display: TrainingDisplay) -> tuple[int, bool]:
        """Train, log, sample and save until the end or until a worker is asked to stop; returns the last step, and whether one
        was.
        """
        chosen, step, stopping = self.settings.train, start, False
        summaries = _summary_writer(run) if chosen.tensorboard and self.team.is_chief else None
        saved_at = time.monotonic()
        if not start and self.team.is_chief:
            _tried(0, self.sample, run, 0, summaries)
        for step, epoch, turns in self.portions(start):
            began = time.perf_counter()
            self._set_rate(epoch)
            with self._naming_examples(step):
                losses = self.step(turns, epoch)
            examples = self.deal.size((step - 1) % self.schedule.steps_per_epoch, len(self.split))
            display.update(step, epoch, losses, examples, self._scaling())
            seconds = time.perf_counter() - began
            values = self._evaluate(step) if self.team.is_chief else {}
            stopping = self.team.anyone(bool(stop.signal) or self._is_over)
            if self.team.is_chief:
                self._log(run, summaries, step, epoch, losses, seconds)
                if values:
                    _tried(step, run.log, {"step": step, "epoch": epoch, **logged(values)})
                    _tried(step, _summarise, summaries, step, logged(values))
                late = chosen.checkpoint_minutes and time.monotonic() - saved_at >= 60 * chosen.checkpoint_minutes
                planned = step % chosen.checkpoint_every == 0 or step == self.schedule.steps
                if planned or late or stopping or values:
                    with self._naming_examples(step):
                        self._saved = step if _tried(step, self.save, run, step, planned, values) else self._saved
                    saved_at = time.monotonic()
            if stopping:
                break
        return step, stopping

    @property
    def _is_over(self) -> bool:
        """Whether evaluations have not become better for long enough."""
        return self._validation is not None and self._validation.is_over

    def _evaluate(self, step: int) -> dict[str, float]:
        """If it is time, what is found on the held-out split."""
        validation = self._validation
        if validation is None or (step % self.settings.train.evaluate_every and step != self.schedule.steps):
            return {}
        pairs = self._reconstructions(validation.split, validation.count)
        values = validation.measure((images.to_uint8(one.fake), images.to_uint8(one.photo)) for one in pairs)
        best = " (the best so far)" if validation.follow(values) else ""
        console.info(f"step {step}, {validation.split.split!r}: {told(values)}{best}")
        return values

    def _log(
        self,
        run: Run,
        summaries: tf.summary.SummaryWriter | None,
        step: int,
        epoch: int,
        losses: dict[str, float],
        seconds: float,
    ) -> None:
        """Write a line and a sample, if it is time."""
        chosen, last = self.settings.train, self.schedule.steps
        if step % chosen.log_every == 0 or step in (1, last):
            line = {"step": step, "epoch": epoch, **losses, "learning_rate": learning_rate(chosen, epoch)}
            _tried(step, run.log, line | self._scaling() | {"seconds": round(seconds, 4)})
            _tried(step, _summarise, summaries, step, losses)
        if step % chosen.sample_every == 0 or step == last:
            _tried(step, self.sample, run, step, summaries)

    def _scaling(self) -> dict[str, float]:
        """The loss scale and how many steps it skipped, where there is one."""
        if self.scale is None:
            return {}
        return {"loss_scale": float(self.scale.value.numpy()), "skipped": int(self.scale.skipped.numpy())}

    def _set_rate(self, epoch: int) -> None:
        for optimizer in filter(None, self.optimizers):
            optimizer.learning_rate.assign(learning_rate(self.settings.train, epoch))

    @contextmanager
    def _naming_examples(self, step: int) -> Iterator[None]:
        """What makes no numbers ends the training, with the step and the examples named."""
        try:
            yield
        except WorkerLost:
            raise
        except P2PHDError as error:
            advice = "Look at these examples, or train a new run with a smaller --learning-rate"
            if self.scale is not None:
                advice += ", or with --precision mixed_bfloat16"
            kept = "nothing was saved yet" if self.team.is_chief else "the chief says what was saved"
            if self._saved and self.team.is_chief:
                kept = f"the checkpoint of step {self._saved} is kept"
                if self._saved > self._scaling().get("skipped", 0):
                    advice += ", from this one with --init-from"
            stems = self.stems(step)
            more = f" and {len(stems) - NAMED} more" if len(stems) > NAMED else ""
            raise P2PHDError(f"step {step}: {error}, on {', '.join(stems[:NAMED])}{more}; {kept}. {advice}") from None

    def stems(self, step: int) -> list[str]:
        """The examples that a step sees."""
        chosen, per_epoch = self.settings.train, self.schedule.steps_per_epoch
        epoch, place = (step - 1) // per_epoch + 1, (step - 1) % per_epoch * self.deal.step_size
        order = plan_epoch(len(self.split), chosen.seed, epoch, flip=chosen.flip).record
        return [self.split.entries[number].stem for number in order[place : place + self.deal.step_size]]

    def save(self, run: Run, step: int, planned: bool, values: dict[str, float] | None = None) -> None:
        """Write a checkpoint to go on from, and the model for later verbs; `values` are what was found on the held-out split.

        Those that were not planned compete for no best, or a run that was stopped would end with another model; nor do those
        that were not evaluated, where there is a split for it.
        """
        chosen, distance = self.settings.train, None
        if self._validation is not None and values:
            distance = self._validation.score(values)
        elif self._validation is None and planned:
            distance = self.distance()
        best = run.best_distance()
        if chosen.model == "newest" or best is None or (distance is not None and distance <= best):
            run.save_model(self.model, step)
        run.save_checkpoint(self.state, step, chosen.keep_checkpoints, distance)

    def distance(self) -> float:
        """Mean L1 distance of the samples' fakes from their photos, in [0, 2]: the checkpoint of the least is the best."""
        return float(np.mean([np.abs(sample.fake - sample.photo).mean() for sample in self._samples()]))

    def sample(self, run: Run, step: int, summaries: tf.summary.SummaryWriter | None = None) -> None:
        """Write label map, boundary map, fake and photo of the same few examples."""
        rows, stems, flat = [], [], []
        for sample in self._samples():
            fake, photo = (images.to_uint8(picture) for picture in (sample.fake, sample.photo))
            colours = images.colour_labels(sample.label, self.split.spec.dataset.classes)
            stems.append(sample.stem)
            rows.append([colours, images.from_mask(boundary_map(sample.instance)), fake, photo])
            flat += [images.is_flat(fake)] if not images.is_flat(photo) else []
        scale = max(1, 256 // rows[0][0].shape[1])
        sheet = images.grid(rows, SAMPLE_COLUMNS, stems, scale)
        self._flat_samples = self._flat_samples + 1 if step and flat and all(flat) else 0
        if self._flat_samples == FLAT_SAMPLES:
            console.warn(
                f"step {step}: the last {FLAT_SAMPLES} samples are of one colour, or black and white; the networks have stopped "
                "to learn: look at the samples, and train a new run with a smaller --learning-rate"
            )
        run.save_sample(step, sheet)
        if summaries is not None:
            with summaries.as_default(step=step):
                tf.summary.image("samples", sheet.picture[None])
            summaries.flush()

    def _samples(self) -> Iterator[Sample]:
        """The first few examples with their fakes."""
        return self._reconstructions(self.split, SAMPLES)

    def _reconstructions(self, split: PackedSplit, count: int) -> Iterator[Sample]:
        """The first examples of a split with their fakes."""
        multiple = side_multiple(self.settings)
        for number in range(min(count, len(split))):
            example = split.example(number)
            assert example.photo is not None
            height, width = (side // multiple * multiple for side in example.instance.shape)
            label, instance, photo = (a[:height, :width] for a in (example.label, example.instance, example.photo))
            batch = Batch(label[None], instance[None], photo[None].astype(np.float32) / 127.5 - 1)
            with self.model.averaged():
                fake = self._reconstruct(Batch(*map(tf.constant, batch)))[0].numpy()
            yield Sample(example.stem, label, instance, fake, batch.photo[0])

    @property
    def largest(self) -> tuple[int, int]:
        """Height and width of the largest pictures that are trained on."""
        return max(trained_sizes(self.split, self.settings), key=lambda sides: sides[0] * sides[1])

    def memory(
        self, batch_size: int | None = None, *, recompute: bool | None = None, sides: tuple[int, int] | None = None
    ) -> int:
        """The bytes that a step will take, about, of each GPU or, without any, of this machine.

        In steps of as many examples, but of batches of another size, with or without recomputing, and of pictures of other
        height and width, if these are given.
        """
        size = batch_size or self.deal.batch_size
        turns = self.deal.turns * -(-self.deal.batch_size // size)
        height, width = sides or self.largest
        model = self.model
        chosen = model.recompute if recompute is None else recompute
        graph = self._stepper.trace(batch_spec(self.split.rgb, size, height, width), turns, recompute=chosen)
        trained = sum(
            bytes_of(variable.value) for variable in (*model.generator_variables, *model.discriminator_variables)
        )
        kept = sum(bytes_of(variable) for variables in self.state.values() for variable in variables)
        kept += sum(map(bytes_of, model.vgg.variables)) if model.vgg is not None else 0
        kept += trained * (
            (turns > 1) + (self.team.replicas > 1)
        )  # Sums over turns, and copies to be sent to other devices.
        return total(kept + peak_of(graph) + room_of(graph), len(self.team.devices))

    def measure(self, steps: int = 3) -> float:
        """Median seconds per step over a few real ones, after one for the graph. Changes the weights."""
        seconds: list[float] = []
        while len(seconds) <= steps:
            for _, epoch, turns in self.portions(0):
                began = time.perf_counter()
                self.step(turns, epoch)
                seconds.append(time.perf_counter() - began)
                if len(seconds) > steps:
                    break
        return float(np.median(seconds[1:]))


def batch_spec(rgb: bool, size: int | None, height: int | None, width: int | None) -> Batch:
    """What a batch looks like; None stands for a number that is known only when running."""
    sides = [size, height, width]
    label = tf.TensorSpec([*sides, 3], tf.uint8) if rgb else tf.TensorSpec(sides, tf.int32)
    return Batch(label, tf.TensorSpec(sides, tf.int32), tf.TensorSpec([*sides, 3], tf.float32))


def _tried(step: int, write: Callable[..., None], *arguments: object) -> bool:
    """Whether something could be written; if not, the user hears of it."""
    try:
        write(*arguments)
    except (OSError, tf.errors.OpError) as error:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        what = error.strerror if isinstance(error, OSError) else engine.reason(error)
        console.warn(
            f"step {step}: {where}{what or error}; not written. Training goes on, and tries again at the next save"
        )
        return False
    return True


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


def trained_sizes(split: PackedSplit, settings: Settings) -> Sequence[tuple[int, int]]:
    """The different sizes that are trained on: those of the examples, or what is cropped of them."""
    return [parse_size(settings.train.crop)] if settings.train.crop else sizes(split)
