"""The run directory: settings, metrics, checkpoints, samples, and the model that later verbs load.

run/   settings.json  dataset.json  sources.json  metrics.jsonl  samples/
       checkpoints/step-00001000/{networks.npz, training.npz, score.json}  model/weights.npz

Every file is whole or absent, and those that a training goes on from outlive a loss of power. A checkpoint's networks and
`model/weights.npz` are safe to take from strangers: they hold arrays, checked against the settings, and nothing else.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pix2pixhd_cli import console
from pix2pixhd_cli.data.arrays import ArrayFile, open_arrays, write_arrays
from pix2pixhd_cli.data.dataset import DatasetSpec
from pix2pixhd_cli.data.files import make_folder, refuse_links, sweep, sync, write_text
from pix2pixhd_cli.errors import P2PHDError, check_regular, naming
from pix2pixhd_cli.images import Sheet
from pix2pixhd_cli.model.build import Optimizers, build_model, least_parameters
from pix2pixhd_cli.model.layers import blank_weights
from pix2pixhd_cli.model.optimizers import LossScale
from pix2pixhd_cli.model.pix2pixhd import Pix2PixHD
from pix2pixhd_cli.sealed import read_sealed, seal, unseal
from pix2pixhd_cli.settings import Settings, save_settings
from pix2pixhd_cli.urls import Location, Remembered

LOCK = ".lock"
NETWORKS, TRAINING, SCORE = "networks.npz", "training.npz", "score.json"  # A checkpoint's files.
NETWORK_NAMES = ("generator", "encoder", "discriminator", "average")
CHECKPOINT = re.compile(r"step-\d{8,15}")
State = dict[str, list[tf.Variable]]  # Variables in order, by what they belong to.


class Sources(BaseModel):
    """`sources.json`: what a run was made from.

    packed: folder of the packed data set. examples: checksum of what is in it. init_from: the run that the networks started
    from. init_step: which of its checkpoints. imported: folder of the reference's checkpoint. perceptual: name and SHA-256 of the
    perceptual loss's file. threads: so many worked on an operation, which decides the last bits of sums. step_size: examples in a
    step. changes: settings that were others before a step. environment: the versions that it was last trained with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    packed: Remembered | None = None
    examples: str | None = None
    init_from: Remembered | None = None
    init_step: int | None = None
    imported: Path | None = None
    perceptual: dict[str, str] | None = None
    threads: int | None = None
    step_size: int | None = None
    changes: tuple[dict[str, Any], ...] = ()
    environment: dict[str, str] = {}


class Score(BaseModel):
    """`score.json` of a checkpoint: how far it is from good, if anybody knows; less is better.

    It is the mean L1 distance of the samples' fakes from their photos or, where there is a split to evaluate, what was found
    there (with its sign changed where more is better).
    """

    distance: float | None = Field(allow_inf_nan=False)


class Run:
    """One training run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = folder / "metrics.jsonl"
        self.model = folder / "model" / "weights.npz"
        self.features = folder / "features.npz"
        self.clusters = folder / "clusters.npz"
        self._unlogged = ""
        self._told: set[Path] = set()

    def create(self, settings: Settings, spec: DatasetSpec, sources: Sources) -> None:
        """Write what a run starts with; `settings.json`, which makes it a run, comes last."""
        write_text(self.folder / "dataset.json", seal(spec.model_dump(mode="json")))
        self.save_sources(sources)
        self.save_settings(settings)

    def save_settings(self, settings: Settings) -> None:
        """Keep the settings the run was made with."""
        write_text(self.folder / "settings.json", save_settings(settings))

    def save_section(self, settings: Settings, section: str) -> None:
        """Change one section of the run's settings and leave what training wrote."""
        path = self.folder / "settings.json"
        kept = unseal(path.read_text(encoding="utf-8"))
        kept[section] = getattr(settings, section).model_dump(mode="json")
        write_text(path, seal(kept))

    def save_sources(self, sources: Sources) -> None:
        """Record where things came from."""
        write_text(self.folder / "sources.json", seal(sources.model_dump(mode="json")))

    @property
    def exists(self) -> bool:
        """Whether training has begun here."""
        return (self.folder / "settings.json").exists()

    def spec(self) -> DatasetSpec:
        """The description of the data it was trained on."""
        path = self.folder / "dataset.json"
        if not path.exists():
            raise P2PHDError(f"{self.folder}: no trained run here (dataset.json is missing)")
        return read_sealed(path, DatasetSpec)

    def packed(self) -> Location:
        """Where the packed data lay when training began."""
        path = self.sources().packed
        if path is None:
            raise P2PHDError(f"{self.folder}: does not know its packed data set; name it after RUN")
        if not path.exists():
            raise P2PHDError(f"{path}: the packed data set is not there any more; if it moved, name it after RUN")
        return path

    def sources(self) -> Sources:
        """What the run was made from; raises `P2PHDError`."""
        path = self.folder / "sources.json"
        try:
            return read_sealed(path, Sources)
        except FileNotFoundError:
            raise P2PHDError(f"{path}: is missing; bring it back from a copy") from None

    @contextmanager
    def lock(self, *, shared: bool = False) -> Iterator[None]:
        """Keep other processes from writing here at the same time; the system opens the lock of one that died.

        Those that share it, on one machine or many, keep only those from it that do not. A folder that was made for it and holds
        nothing else afterwards is taken away again. Raises `P2PHDError` naming who writes here already.
        """
        made = not self.folder.exists()
        make_folder(self.folder)
        refuse_links(*self.folder.glob("*"), *self.folder.glob("checkpoints/*"))
        path = self.folder / LOCK
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            self._take(descriptor, path, shared)
            if not shared:
                self._sweep()
            try:
                yield
            finally:
                with suppress(OSError):
                    if [found.name for found in self.folder.iterdir()] == [LOCK]:
                        path.unlink()
                        if made:
                            self.folder.rmdir()
        finally:
            os.close(descriptor)

    def _sweep(self) -> None:
        """Delete what processes that died were writing."""
        sweep(self.folder, self.model.parent, self.folder / "samples")
        for left in self.folder.glob("checkpoints/.step-*.partial"):
            shutil.rmtree(left, ignore_errors=True)

    def _take(self, lock: int, path: Path, shared: bool) -> None:
        """Lock the file that was opened at `path`, and write into it who did."""
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(lock, 1000, 0).decode(errors="replace").strip() or "another process"
            raise P2PHDError(f"{self.folder}: {who} is writing here; wait for it, or name another run") from None
        except OSError as error:
            console.warn(f"{self.folder}: cannot be locked ({error.strerror}); see to it that nothing else writes here")
        if not path.exists() or path.stat().st_ino != os.fstat(lock).st_ino:
            raise P2PHDError(f"{self.folder}: another process has just left it; run the command again")
        with suppress(OSError):  # On a full disk the lock holds, without a name.
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    @property
    def is_free(self) -> bool:
        """Whether a run may be made here: there is nothing, or what a run leaves that died while it was made."""
        return not self.folder.is_dir() or all(is_left_over(path.name) for path in self.folder.iterdir())

    def check_classes(self, spec: DatasetSpec, where: Location) -> None:
        """Refuse data whose inputs are not the run's; the classes of an imported run have no names that could differ."""
        ours = self.spec()
        named = () if self.sources().imported else ("ignored", "classes")
        for field in ("input", "labels", *named):
            if getattr(ours, field) != getattr(spec, field):
                raise P2PHDError(f"{where}: its {field} differ from those that {self.folder} was trained with")

    def load_model(self, settings: Settings, checkpoint: Path | None = None) -> Pix2PixHD:
        """Generator and encoder with their trained weights, or as a checkpoint has them."""
        spec, file = self.spec(), checkpoint / NETWORKS if checkpoint is not None else self.model
        if not file.exists():
            raise P2PHDError(f"{self.folder}: has no trained model yet ({file.name} is missing); train it first")
        _check_size(file, least_parameters(settings, training=False))
        with blank_weights():
            model = build_model(settings, labels=spec.labels, ignored=spec.ignored, training=False)
        state = network_variables(model)
        if settings.train.ema and settings.generate.ema:
            state["average"] = state.pop("generator")
        read_variables(file, state)
        return model

    def load_networks(self, settings: Settings) -> tuple[Pix2PixHD, int]:
        """All networks as the newest checkpoint has them, and its step; one that it does not hold has fresh weights."""
        spec, checkpoint = self.spec(), self._newest_checkpoint()
        _check_size(
            checkpoint / NETWORKS, least_parameters(settings, training="discriminator" in _networks_held(checkpoint))
        )
        model = build_model(settings, labels=spec.labels, ignored=spec.ignored, training=True)
        self._restore_networks(model, checkpoint)
        return model, step_of(checkpoint)

    def save_model(self, model: Pix2PixHD, step: int = 0) -> None:
        """Write what later verbs need: the weights of generator and encoder after a step."""
        _write_variables(self.model, _painting_variables(model), step)

    def model_step(self) -> int:
        """The step after which the model was saved."""
        return self.step_and_mark()[0]

    def model_mark(self) -> str:
        """What tells the model from others: the step after which it was saved, and a digest of its weights."""
        return self.step_and_mark()[1]

    def step_and_mark(self, checkpoint: Path | None = None) -> tuple[int, str]:
        """Both, of the model or of a checkpoint's networks."""
        path = checkpoint / NETWORKS if checkpoint is not None else self.model
        with open_arrays(path, "`p2phd train --resume` makes it anew") as file:
            step = int(file.read("step", (), np.int64))
            return step, f"step {step}, {file.digest}"

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        found = (self.folder / "checkpoints").glob("step-*")
        return sorted(path for path in found if CHECKPOINT.fullmatch(path.name) and path.is_dir())

    def save_checkpoint(self, state: State, step: int, keep: int, distance: float | None = None) -> None:
        """Write a checkpoint beside its name and rename it, then delete all but the newest `keep` and the best.

        `distance` says how good it is: less is better. What was logged before is made to last first.
        """
        target = self.folder / "checkpoints" / f"step-{step:08d}"
        staging = target.with_name(f".{target.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        try:
            for file, variables in _parts(state).items():
                _write_variables(staging / file, variables, step)
            write_text(staging / SCORE, seal({"distance": distance}))
            if self._unlogged:
                self._write_log()
            if self.metrics.exists():
                sync(self.metrics)
            sync(self.folder)
            _delete(target)
            staging.replace(target)
            sync(target.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self.prune(keep)

    def check_sizes(self, settings: Settings, height: int, width: int) -> None:
        """Refuse settings whose networks, or pool of pictures, are much larger than any checkpoint's, before they are built."""
        networks = least_parameters(settings, training=True)
        pool = 4 * settings.train.pool_size * height * width  # A label channel at the least, and three colours.
        for file, least in {NETWORKS: networks, TRAINING: networks + pool}.items():
            found = [path / file for path in self.checkpoints() if (path / file).exists()]
            if found:
                _check_size(max(found, key=lambda path: path.stat().st_size), least)

    def prune(self, keep: int) -> None:
        """Delete all checkpoints but the newest `keep`, the best, and those of which nobody can say how good they are."""
        for old in set(self.checkpoints()[:-keep]) & set(self._scores()) - {self.best_checkpoint()}:
            try:
                _delete(old)
            except OSError as error:
                console.warn(f"{told(error)}; {old.name} could not be deleted")

    def best_checkpoint(self) -> Path | None:
        """The checkpoint of the smallest distance, the newest of several; None if no distances are known."""
        scores = {path: distance for path, distance in self._scores().items() if distance is not None}
        return min(reversed(scores), key=lambda path: scores[path], default=None)

    def best_distance(self) -> float | None:
        """The smallest distance of a checkpoint, if any are known."""
        return min((distance for distance in self._scores().values() if distance is not None), default=None)

    def _scores(self) -> dict[Path, float | None]:
        """The distances of checkpoints, None for those that have none; scores that cannot be read are told of, once."""
        found = {}
        for path in self.checkpoints():
            try:
                found[path] = read_sealed(path / SCORE, Score).distance
            except (P2PHDError, OSError) as error:
                if path not in self._told:
                    console.warn(f"{told(error)}; this checkpoint is kept, and is never the best")
                self._told.add(path)
        return found

    def restore_checkpoint(self, state: State) -> int:
        """Restore the newest whole checkpoint and return its step; 0, with nothing restored, if there is none.

        Damaged ones are told of and deleted once an older one is found to be whole. Raises `P2PHDError` if none is.
        """
        damaged: list[Path] = []
        for folder in reversed(self.checkpoints()):
            try:
                for file, variables in _parts(state).items():
                    read_variables(folder / file, variables)
            except (P2PHDError, OSError) as error:
                if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.EIO):
                    raise
                console.warn(told(error))
                damaged.append(folder)
                continue
            for path in damaged:
                _delete(path)
            return step_of(folder)
        if damaged:
            raise P2PHDError(f"{self.folder}: no checkpoint is whole; train a new run, or bring one back")
        return 0

    @property
    def has_discriminator(self) -> bool:
        """Whether the newest checkpoint holds one; an imported run may have come without."""
        return "discriminator" in _networks_held(self._newest_checkpoint())

    def choose_model(self, model: Pix2PixHD, which: Literal["newest", "best"]) -> bool:
        """Make the newest or the best checkpoint's networks those that later verbs work with.

        A damaged model is made anew, and a damaged best checkpoint gives way to the newest. Returns whether `model` got other
        weights on the way.
        """
        best = [self.best_checkpoint()] if which == "best" else []
        newest, step, touched = self._newest_checkpoint(), self._step_of_whole_model(model), False
        for checkpoint in (*filter(None, best), newest):
            if step == step_of(checkpoint):
                break
            touched = True
            try:
                self._restore_networks(model, checkpoint)
            except (P2PHDError, OSError) as error:
                if checkpoint == newest:
                    raise
                console.warn(told(error))
                continue
            self.save_model(model, step_of(checkpoint))
            console.info(f"{self.folder}: later verbs now work with step {step_of(checkpoint)}")
            break
        return touched

    def _step_of_whole_model(self, model: Pix2PixHD) -> int | None:
        """The step after which the model was saved, if every array of it is there and can be read."""
        try:
            with open_arrays(self.model, "it is made anew") as file:
                for _ in _read_all(file, _painting_variables(model)):
                    pass
                return int(file.read("step", (), np.int64))
        except FileNotFoundError:
            return None
        except (P2PHDError, OSError) as error:
            console.warn(told(error))
            return None

    def _restore_networks(self, model: Pix2PixHD, checkpoint: Path) -> None:
        held = _networks_held(checkpoint)
        read_variables(checkpoint / NETWORKS, {n: v for n, v in network_variables(model).items() if n in held})

    def _newest_checkpoint(self) -> Path:
        if not self.checkpoints():
            raise P2PHDError(f"{self.folder}: has no checkpoint to start from; train it first")
        return self.checkpoints()[-1]

    def start_metrics(self, step: int) -> None:
        """Drop what was logged after `step`, so that a resumed run logs every step once."""
        if not self.metrics.exists():
            return
        check_regular(self.metrics)
        with naming(self.metrics):
            lines = [line for line in self.metrics.read_bytes().splitlines() if _step(line) <= step]
        write_text(self.metrics, "".join(f"{line.decode()}\n" for line in lines))

    def logged(self) -> Iterator[dict[str, Any]]:
        """The lines of `metrics.jsonl`, oldest first, but those that cannot be read."""
        if not self.metrics.exists():
            return
        check_regular(self.metrics)
        for line in self.metrics.read_bytes().splitlines():
            if np.isfinite(_step(line)):
                yield json.loads(line)

    def log(self, values: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`; one that could not be written goes with the next, or with the next checkpoint."""
        self._unlogged += json.dumps(values) + "\n"
        self._write_log()

    def _write_log(self) -> None:
        """Write all that waits, or nothing."""
        with naming(self.metrics), self.metrics.open("ab", buffering=0) as file:
            end, rest = file.tell(), self._unlogged.encode()
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(end)
                raise
        self._unlogged = ""

    def sample(self, step: int) -> Path:
        """Where the sample picture of a step goes."""
        return self.folder / "samples" / f"step-{step:08d}.png"

    def save_sample(self, step: int, sheet: Sheet) -> None:
        """Write the sample pictures of a step."""
        sheet.save(self.sample(step))


def is_left_over(name: str) -> bool:
    """Whether this is what a run leaves that died while it was made."""
    return name in (LOCK, "dataset.json", "sources.json") or name.endswith(".partial")


def checkpoint_state(model: Pix2PixHD, optimizers: Optimizers, scale: LossScale | None = None) -> State:
    """Everything that a training needs to go on exactly."""
    state = network_variables(model)
    for name, optimizer in optimizers._asdict().items():
        if optimizer is not None:
            state[f"{name}_optimizer"] = [variable.value for variable in optimizer.variables]
    if scale is not None:
        state["loss_scale"] = [scale.value, scale.good, scale.skipped]
    return state | ({"pool": [model.pool.history, model.pool.seen]} if model.pool is not None else {})


def network_variables(model: Pix2PixHD) -> State:
    """The weights of each network, and the average of G's with the steps that it has seen."""
    found = {name: [weight.value for weight in network.weights] for name, network in model.networks.items()}
    average = model.average
    return found | ({"average": [*average.values, average.steps]} if average is not None else {})


def _painting_variables(model: Pix2PixHD) -> State:
    """The weights that later verbs need."""
    return {name: variables for name, variables in network_variables(model).items() if name != "discriminator"}


def _parts(state: State) -> dict[str, State]:
    """What goes to which of a checkpoint's files of arrays."""
    networks = {name: variables for name, variables in state.items() if name in NETWORK_NAMES}
    return {NETWORKS: networks, TRAINING: {name: state[name] for name in state if name not in networks}}


def _write_variables(path: Path, state: State, step: int) -> None:
    """Write the step and every variable as NAME/NUMBER; raises `P2PHDError` rather than writing what is no number."""

    def arrays() -> Iterator[tuple[str, NDArray[Any]]]:
        yield "step", np.array(step, np.int64)
        for name, variables in state.items():
            for number, variable in enumerate(variables):
                value = variable.numpy()
                if not np.isfinite(value).all():
                    raise P2PHDError(f"the {name.replace('_', ' ')} holds values that are no numbers")
                yield f"{name}/{number:03d}", value

    write_arrays(path, arrays())


def read_variables(path: Path, state: State) -> None:
    """Assign to every variable; raises `P2PHDError` if the file holds others."""
    with open_arrays(path, "it is not of this run's settings, or must come back from a copy") as file:
        for variable, array in _read_all(file, state):
            variable.assign(array)


def _read_all(file: ArrayFile, state: State) -> Iterator[tuple[tf.Variable, NDArray[Any]]]:
    """Every variable with its array."""
    for name, variables in state.items():
        for number, variable in enumerate(variables):
            yield variable, file.read(f"{name}/{number:03d}", tuple(variable.shape), variable.dtype.as_numpy_dtype)


def _check_size(path: Path, least: int) -> None:
    """Compare a file with the fewest numbers that the settings ask for, before memory is taken for these."""
    if path.exists() and path.stat().st_size < 4 * least:
        raise P2PHDError(f"{path}: is too small for this run's settings; one of both is damaged")


def _networks_held(checkpoint: Path) -> set[str]:
    """The networks whose weights a checkpoint has."""
    try:
        with open_arrays(checkpoint / NETWORKS, "it must come back from a copy") as file:
            return {name.partition("/")[0] for name in file.names if "/" in name}
    except FileNotFoundError:
        raise P2PHDError(f"{checkpoint / NETWORKS}: is missing") from None


def _delete(checkpoint: Path) -> None:
    """Take a checkpoint's name away before its files, so that none is ever half there."""
    if checkpoint.exists():
        going = checkpoint.with_name(f".{checkpoint.name}.deleted.partial")
        shutil.rmtree(going, ignore_errors=True)
        checkpoint.replace(going)
        sync(checkpoint.parent)
        shutil.rmtree(going, ignore_errors=True)


def told(error: P2PHDError | OSError) -> str:
    """What is wrong with a file, as a user reads it."""
    return str(error) if isinstance(error, P2PHDError) else f"{error.filename or 'a file'}: {error.strerror or error}"


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def _step(line: bytes) -> float:
    try:
        return float(json.loads(line.decode())["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")  # A line cut short is dropped.
