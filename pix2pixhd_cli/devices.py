"""The devices that work together: one, several of this machine, or those of several machines.

TensorFlow distributes: `MirroredStrategy` over the GPUs of a machine, `MultiWorkerMirroredStrategy` over the workers that
`TF_CONFIG` names. What is here takes them, and says in a line what went wrong.
"""

import faulthandler
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tensorflow as tf

from pix2pixhd_cli import console
from pix2pixhd_cli.errors import P2PHDError, SettingsError
from pix2pixhd_cli.meeting import Cluster, meet, read_cluster
from pix2pixhd_cli.settings import whole_number

# What TensorFlow says of workers that are gone; other errors are the program's own.
OF_WORKERS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.FailedPreconditionError,
)
# Prints a line, unless the pipe to it is closed in time.
LAST_WORDS = """
import select, sys
if not select.select([0], [], [], float(sys.argv[1]))[0]:
    print(sys.argv[2], file=sys.stderr)
"""


class WorkerLost(P2PHDError):
    """Another worker is gone, and this one cannot go on alone; `reason` is what TensorFlow says of it."""

    def __init__(self, reason: str = "") -> None:
        said = f" (TensorFlow: {' '.join(reason.split())[:200]})" if reason else ""
        super().__init__(
            f"another worker stopped or cannot be reached{said}; once all are back, start each with --resume"
        )


@dataclass(frozen=True)
class Team:
    """The replicas that train together, and this process's place among them.

    strategy: TensorFlow's own; the default one for a single device.
    devices: this process's, such as GPU:0; every worker has as many.
    worker, workers: this process's number, from 0, and how many there are.
    """

    strategy: tf.distribute.Strategy
    devices: tuple[str, ...]
    worker: int = 0
    workers: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether this process locks and writes the run."""
        return self.worker == 0

    @property
    def replicas(self) -> int:
        """Devices that work on a step, over all workers."""
        return int(self.strategy.num_replicas_in_sync)

    @property
    def own(self) -> tuple[int, ...]:
        """The replicas of this process."""
        width = len(self.devices)
        return tuple(range(self.worker * width, (self.worker + 1) * width))

    @property
    def role(self) -> str:
        """This process among the others, as a user reads it."""
        devices = console.count(len(self.devices), "device")
        if self.workers == 1:
            return devices
        return f"worker {self.worker + 1} of {self.workers}{', the chief,' if self.is_chief else ''} with {devices}"

    def anyone(self, wish: bool) -> bool:
        """Whether any worker wishes it; all of them wait for each other here."""
        return bool(self._sum(tf.constant(float(wish)))) if self.workers > 1 else wish

    def share(self, variables: Iterable[tf.Variable]) -> None:
        """Give every worker the chief's values, bit by bit."""
        if self.workers > 1:
            for variable in variables:
                variable.assign(self._from_chief(tf.convert_to_tensor(variable)))

    def first(self, number: int) -> int:
        """The chief's number, for all workers."""
        return int(self._from_chief(tf.constant(number, tf.int64))) if self.workers > 1 else number

    @contextmanager
    def together(self) -> Iterator[None]:
        """Say in a line that another worker is gone, instead of TensorFlow's many."""
        try:
            yield
        except OF_WORKERS as error:
            if self.workers == 1:
                raise
            raise WorkerLost(error.message) from None

    def _from_chief(self, tensor: tf.Tensor) -> tf.Tensor:
        """The chief's tensor: the others add zeros to each of its bytes."""
        octets = tf.cast(tf.bitcast(tensor, tf.uint8), tf.float32)
        summed = self._sum(octets if self.is_chief else tf.zeros_like(octets))
        return tf.bitcast(tf.cast(summed, tf.uint8), tensor.dtype)

    def _sum(self, tensor: tf.Tensor) -> tf.Tensor:
        with self.together():
            return self._summing(tensor)

    @cached_property
    def _summing(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Sums each worker's float32 tensor, in all workers."""

        def sum_up(tensor: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            speaks = context.replica_id_in_sync_group % len(self.devices) == 0  # One replica for its worker.
            said = tf.where(speaks, tensor, tf.zeros_like(tensor))
            return context.all_reduce(tf.distribute.ReduceOp.SUM, said)

        return tf.function(
            lambda tensor: self.strategy.experimental_local_results(self.strategy.run(sum_up, (tensor,)))[0]
        )


def gather_team(devices: str, join_minutes: float, terms: Mapping[str, str]) -> Team:
    """Take the devices that `--devices` names, and join the other workers of `TF_CONFIG`, if there are any.

    `terms` is what all of them must have alike, by what a user calls it. Raises `SettingsError` for devices that are not there
    or a cluster that is none, and `P2PHDError` if the workers do not agree or have not come together after `join_minutes`. It
    must come before TensorFlow does any work.
    """
    cluster = read_cluster(os.environ.get("TF_CONFIG"))
    if cluster is None or len(cluster.addresses) == 1:
        return take_devices(devices)
    count = len(_take(devices))
    return _join(cluster, {**terms, "devices": str(count)}, 60 * join_minutes)


def take_devices(devices: str) -> Team:
    """Take the devices of this machine that `--devices` names; raises `SettingsError` if they are not there."""
    taken = _take(devices)
    strategy = tf.distribute.MirroredStrategy(list(taken)) if len(taken) > 1 else tf.distribute.get_strategy()
    return Team(strategy, taken)


def _take(devices: str) -> tuple[str, ...]:
    """Make just the wanted devices visible, and name them."""
    gpus, count = tf.config.list_physical_devices("GPU"), whole_number(devices)
    if gpus and devices != "cpu":
        if count and count > len(gpus):
            raise SettingsError(f"--devices {count}: there are {len(gpus)} GPUs here")
        _show(gpus[:count])
        return tuple(f"GPU:{number}" for number in range(count or len(gpus)))
    _show([])
    there = tf.config.get_logical_device_configuration(tf.config.list_physical_devices("CPU")[0])
    if count and (not there or count > len(there)):
        raise SettingsError(f"--devices {count}: there are no GPUs here; leave it out to work on the CPU")
    return tuple(f"CPU:{number}" for number in range(count or 1))


def _show(gpus: list[tf.config.PhysicalDevice]) -> None:
    """Let TensorFlow see just these GPUs."""
    if tf.config.get_visible_devices("GPU") == gpus:
        return
    try:
        tf.config.set_visible_devices(gpus, "GPU")
    except RuntimeError:
        raise SettingsError("--devices: TensorFlow is at work with other devices in this process already") from None


def _join(cluster: Cluster, terms: Mapping[str, str], seconds: float) -> Team:
    """Bring all workers together.

    TensorFlow itself would wait for ever for one that does not come, deaf to Ctrl-C; so all meet by plain sockets before.
    """
    console.info(f"worker {cluster.number + 1} of {len(cluster.addresses)} waits for the others")
    deadline = time.monotonic() + seconds
    meet(cluster, terms, deadline)
    try:
        with _watched(max(60.0, deadline - time.monotonic())):
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except OF_WORKERS as error:
        raise WorkerLost(error.message) from None
    except (RuntimeError, ValueError) as error:
        raise P2PHDError(f"TF_CONFIG: TensorFlow could not join the workers ({error})") from None
    devices = tuple(name.partition("device:")[2] for name in strategy.extended.worker_devices)
    return Team(strategy, devices, cluster.number, len(cluster.addresses))


@contextmanager
def _watched(seconds: float) -> Iterator[None]:
    """End this process after so long, and say why: TensorFlow lets no Python in it run while it waits for a worker.

    It ends by itself, for no process may kill the first one of a container; another process says why.
    """
    words = [sys.executable, "-S", "-E", "-c", LAST_WORDS, str(seconds), f"error: {WorkerLost()}"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as speaker, Path(os.devnull).open("w") as nowhere:
        assert speaker.stdin is not None
        faulthandler.dump_traceback_later(seconds + 1, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            speaker.stdin.close()
