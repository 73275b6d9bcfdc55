"""The devices that work together: one, several of this machine, or those of several machines.

TensorFlow distributes: `MirroredStrategy` over the GPUs of a machine, `MultiWorkerMirroredStrategy` over the workers that
`TF_CONFIG` names. What is here finds them, brings workers together within a time limit, and says in a line what went wrong.
"""

import faulthandler
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import tensorflow as tf

from pix2pixhd_cli import console
from pix2pixhd_cli.errors import P2PHDError, SettingsError
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


class WorkerLost(P2PHDError):
    """Another worker is gone, and this one cannot go on alone."""

    def __init__(self) -> None:
        super().__init__("another worker stopped or cannot be reached; once all are back, start each with --resume")


class Cluster(NamedTuple):
    """The workers' addresses, HOST:PORT each, and which of them this one is; the first is the chief."""

    addresses: tuple[str, ...]
    number: int


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
        devices = f"{len(self.devices)} device{'s' if len(self.devices) > 1 else ''}"
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

    def check_agreement(self, digest: bytes) -> None:
        """Refuse to work on if the workers' digests, of as many bytes each, are not all the same; raises `P2PHDError`."""
        if self.workers == 1:
            return
        own = tf.constant(list(digest))
        if self.anyone(bool(tf.reduce_any(own != self._from_chief(own)))):
            raise P2PHDError(
                "the workers do not agree: all must be started with the same command, the same settings and the same data"
            )

    def _from_chief(self, tensor: tf.Tensor) -> tf.Tensor:
        """The chief's tensor: the others add zeros to each of its bytes."""
        octets = tf.cast(tf.bitcast(tensor, tf.uint8), tf.float32)
        summed = self._sum(octets if self.is_chief else tf.zeros_like(octets))
        return tf.bitcast(tf.cast(summed, tf.uint8), tensor.dtype)

    def _sum(self, tensor: tf.Tensor) -> tf.Tensor:
        with together():
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


@contextmanager
def together() -> Iterator[None]:
    """Say in a line that another worker is gone, instead of TensorFlow's many."""
    try:
        yield
    except OF_WORKERS:
        if not os.environ.get("TF_CONFIG"):
            raise
        raise WorkerLost from None


def gather_team(devices: str, join_minutes: float) -> Team:
    """Take the devices that `--devices` names, and join the other workers of `TF_CONFIG`, if there are any.

    Raises `SettingsError` for devices that are not there or a cluster that is none, and `P2PHDError` if the workers have not come
    together after `join_minutes`. It must come before TensorFlow does any work.
    """
    cluster = read_cluster(os.environ.get("TF_CONFIG"))
    if cluster is None or len(cluster.addresses) == 1:
        return take_devices(devices)
    _take(devices)
    return _join(cluster, 60 * join_minutes)


def take_devices(devices: str) -> Team:
    """Take the devices of this machine that `--devices` names; raises `SettingsError` if they are not there."""
    taken = _take(devices)
    strategy = tf.distribute.MirroredStrategy(list(taken)) if len(taken) > 1 else tf.distribute.get_strategy()
    return Team(strategy, taken)


def is_chief() -> bool:
    """Whether this process locks and writes the run, by `TF_CONFIG`; raises `SettingsError` for a cluster that is none."""
    cluster = read_cluster(os.environ.get("TF_CONFIG"))
    return cluster is None or cluster.number == 0


def read_cluster(text: str | None) -> Cluster | None:
    """Read `TF_CONFIG`, the way in which TensorFlow is told of workers; None if there is none. Raises `SettingsError`."""
    if not text:
        return None
    try:
        config = json.loads(text)
        jobs, task = config["cluster"], config["task"]
        strange = set(jobs) - {"chief", "worker"}
        chiefs, workers = jobs.get("chief", []), jobs.get("worker", [])
        addresses = (*map(str, chiefs), *map(str, workers))
        index = int(task["index"]) + (len(chiefs) if task["type"] == "worker" else 0)
        known = task["type"] in jobs and 0 <= int(task["index"]) < len(jobs[task["type"]])
    except (ValueError, KeyError, TypeError, AttributeError):
        example = '{"cluster": {"worker": ["HOST:PORT", …]}, "task": {"type": "worker", "index": 0}}'
        raise SettingsError(f"TF_CONFIG: is not of the form {example}") from None
    if strange:
        raise SettingsError(f"TF_CONFIG: there is no use for {', '.join(sorted(strange))} here; name workers only")
    for address in addresses:
        if not all(address.rpartition(":")) or whole_number(address.rpartition(":")[2]) is None:
            raise SettingsError(f"TF_CONFIG: {address!r} is not HOST:PORT")
    if len(set(addresses)) < len(addresses):
        raise SettingsError("TF_CONFIG: two workers have one address")
    if not known:
        raise SettingsError(f"TF_CONFIG: there is no {task['type']} {task['index']} in its cluster")
    return Cluster(addresses, index)


def _take(devices: str) -> tuple[str, ...]:
    """Make just the wanted devices visible, and name them."""
    gpus, count = tf.config.list_physical_devices("GPU"), whole_number(devices)
    if gpus and devices != "cpu":
        if count and count > len(gpus):
            raise SettingsError(f"--devices {count}: there are {len(gpus)} GPUs here")
        tf.config.set_visible_devices(gpus[:count], "GPU")
        return tuple(f"GPU:{number}" for number in range(count or len(gpus)))
    if gpus:
        tf.config.set_visible_devices([], "GPU")
    there = len(tf.config.list_logical_devices("CPU")) if count and count > 1 else 1  # To ask starts TensorFlow.
    if count and count > there:
        raise SettingsError(f"--devices {count}: there are no GPUs here")
    return tuple(f"CPU:{number}" for number in range(count or 1))


def _join(cluster: Cluster, seconds: float) -> Team:
    """Bring all workers together.

    TensorFlow itself would wait for ever for one that does not come, deaf to Ctrl-C; so all meet by plain sockets before.
    """
    console.info(f"worker {cluster.number + 1} of {len(cluster.addresses)} waits for the others")
    deadline = time.monotonic() + seconds
    _meet(cluster, deadline)
    # Deaf as it is, only this can end it if a worker is lost right now.
    faulthandler.dump_traceback_later(max(60.0, deadline - time.monotonic()), exit=True)
    try:
        with together():
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except (RuntimeError, ValueError) as error:
        raise P2PHDError(f"TF_CONFIG: TensorFlow could not join the workers ({error})") from None
    finally:
        faulthandler.cancel_dump_traceback_later()
    devices = tuple(name.partition("device:")[2] for name in strategy.extended.worker_devices)
    return Team(strategy, devices, cluster.number, len(cluster.addresses))


def _meet(cluster: Cluster, deadline: float) -> None:
    """Wait until all workers are there; raises `P2PHDError` naming who is not."""
    own = cluster.addresses[cluster.number]
    host, port = own.rpartition(":")[::2]
    try:
        family = socket.getaddrinfo(host, int(port))[0][0]
        with socket.create_server(("", int(port)), family=family, backlog=len(cluster.addresses)) as server:
            if cluster.number == 0:
                _wait_for_all(server, cluster, deadline)
    except OSError as error:
        raise P2PHDError(f"TF_CONFIG: {own} cannot be used by this worker ({error.strerror or error})") from None
    if cluster.number:
        _report_to_chief(cluster, deadline)


def _wait_for_all(server: socket.socket, cluster: Cluster, deadline: float) -> None:
    """The chief's part: hear every other worker, and then send all of them on at once."""
    found: dict[int, socket.socket] = {}
    try:
        while len(found) < len(cluster.addresses) - 1:
            left = deadline - time.monotonic()
            if left <= 0:
                missing = [a for n, a in enumerate(cluster.addresses) if n and n not in found]
                raise P2PHDError(
                    f"TF_CONFIG: no worker came from {', '.join(missing)}; start all with the same command"
                )
            server.settimeout(min(left, 1.0))  # Or Ctrl-C would not be heard before.
            with suppress(OSError, ValueError):
                line, _ = server.accept()
                line.settimeout(5.0)
                if (index := _hear(line, cluster)) is not None:
                    found[index] = line
        for line in found.values():
            _say(line, {"go": True})
    finally:
        for line in found.values():
            line.close()


def _hear(line: socket.socket, cluster: Cluster) -> int | None:
    """Which worker of our cluster it is that speaks, if it is one; raises `OSError` or `ValueError` for what is none."""
    said = json.loads(_read_line(line))
    if isinstance(said, dict) and said.get("cluster") == list(cluster.addresses):
        return int(said["index"])
    with line:
        _say(line, {"error": "another cluster is named in the chief's TF_CONFIG"})
    return None


def _report_to_chief(cluster: Cluster, deadline: float) -> None:
    """Another worker's part: tell the chief, and wait until all are there."""
    host, port = cluster.addresses[0].rpartition(":")[::2]
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise P2PHDError(
                f"TF_CONFIG: the chief at {cluster.addresses[0]} cannot be reached, or waits for others in vain; start all with "
                "the same command"
            )
        try:
            with socket.create_connection((host, int(port)), timeout=min(left, 5.0)) as line:
                _say(line, {"cluster": list(cluster.addresses), "index": cluster.number})
                answer = json.loads(_wait_for_line(line, deadline))
        except (OSError, ValueError):
            time.sleep(0.2)
            continue
        if "error" in answer:
            raise P2PHDError(f"TF_CONFIG: {answer['error']}; start all workers with one cluster")
        return


def _say(line: socket.socket, message: dict[str, Any]) -> None:
    line.sendall(json.dumps(message).encode() + b"\n")


def _wait_for_line(line: socket.socket, deadline: float) -> bytes:
    """A line, for which Ctrl-C need not wait."""
    while time.monotonic() < deadline:
        line.settimeout(1.0)
        try:
            return _read_line(line)
        except TimeoutError:
            continue
    raise TimeoutError


def _read_line(line: socket.socket) -> bytes:
    """Up to 64 KiB; raises `OSError` if the other side leaves before."""
    said = b""
    while not said.endswith(b"\n") and len(said) < 1 << 16:
        more = line.recv(4096)
        if not more:
            raise ConnectionResetError
        said += more
    return said
