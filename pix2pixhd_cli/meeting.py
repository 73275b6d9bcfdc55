"""The workers that `TF_CONFIG` names: who they are, and how they find each other before TensorFlow is told of them.

All report to the chief by plain sockets, with the terms on which they want to work; it sends all of them on at once, or away
with the reason.
"""

import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

from pix2pixhd_cli.errors import P2PHDError, SettingsError
from pix2pixhd_cli.settings import whole_number


class Cluster(NamedTuple):
    """The workers' addresses, HOST:PORT each, and which of them this one is; the first is the chief."""

    addresses: tuple[str, ...]
    number: int

    @property
    def others(self) -> range:
        """The workers that are not the chief."""
        return range(1, len(self.addresses))


class Guest(NamedTuple):
    """A worker that has come to the chief: the line to it, and the terms on which it wants to work."""

    line: socket.socket
    terms: Mapping[str, str]


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
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        example = '{"cluster": {"worker": ["HOST:PORT", …]}, "task": {"type": "worker", "index": 0}}'
        raise SettingsError(f"TF_CONFIG: is not of the form {example}") from None
    if len(chiefs) > 1:
        raise SettingsError("TF_CONFIG: names more than one chief; the others are workers")
    if strange:
        raise SettingsError(f"TF_CONFIG: there is no use for {', '.join(sorted(strange))} here; name workers only")
    for address in addresses:
        if not _is_address(address):
            raise SettingsError(f"TF_CONFIG: {address!r} is not HOST:PORT, with a port from 1 to 65535")
    if len(set(addresses)) < len(addresses):
        raise SettingsError("TF_CONFIG: two workers have one address")
    if not known:
        raise SettingsError(f"TF_CONFIG: there is no {task['type']} {task['index']} in its cluster")
    return Cluster(addresses, index)


def meet(cluster: Cluster, terms: Mapping[str, str], deadline: float) -> None:
    """Wait until all workers are there on equal terms; raises `P2PHDError` naming who is not."""
    own = cluster.addresses[cluster.number]
    try:
        family = _family(own, deadline)
        port = _host_and_port(own)[1]
        with socket.create_server(("", port), family=family, backlog=len(cluster.addresses)) as server:
            if cluster.number == 0:
                _wait_for_all(server, cluster, terms, deadline)
    except OSError as error:
        raise P2PHDError(f"TF_CONFIG: {own} cannot be used by this worker ({error.strerror or error})") from None
    if cluster.number:
        _report_to_chief(cluster, terms, deadline)


def _family(address: str, deadline: float) -> int:
    """Which kind of address it is; a name may become known only once all workers are started."""
    while True:
        try:
            return socket.getaddrinfo(*_host_and_port(address))[0][0]
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _wait_for_all(server: socket.socket, cluster: Cluster, terms: Mapping[str, str], deadline: float) -> None:
    """The chief's part: hear every other worker, and then send all of them on at once."""
    found: dict[int, Guest] = {}
    with ExitStack() as lines:
        while len(found) < len(cluster.others):
            left = deadline - time.monotonic()
            if left <= 0:
                missing = ", ".join(cluster.addresses[number] for number in cluster.others if number not in found)
                raise P2PHDError(f"TF_CONFIG: no worker came from {missing}; start all with the same command")
            server.settimeout(min(left, 1.0))  # Or Ctrl-C would not be heard before.
            with suppress(OSError, ValueError, KeyError, TypeError):
                line = lines.enter_context(server.accept()[0])
                line.settimeout(5.0)
                _hear(line, cluster, found)
            found = {number: guest for number, guest in found.items() if not _has_left(guest.line)}
        problem = _disagreement(cluster, terms, found)
        for guest in found.values():
            with suppress(OSError):
                _say(guest.line, {"error": problem})
        if problem:
            raise P2PHDError(problem)


def _hear(line: socket.socket, cluster: Cluster, found: dict[int, Guest]) -> None:
    """Add who speaks to those that were found, if it is one of ours; strangers speak otherwise, and raise all kinds of errors."""
    said = json.loads(_read_line(line))
    if said["cluster"] != list(cluster.addresses):
        _say(line, {"error": "another cluster is named in the chief's TF_CONFIG; start all workers with one cluster"})
    elif said["index"] in cluster.others:
        found[said["index"]] = Guest(line, dict(said["terms"]))


def _has_left(line: socket.socket) -> bool:
    """Whether the other side has closed its end."""
    line.settimeout(0.0)
    try:
        return not line.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        line.settimeout(5.0)


def _disagreement(cluster: Cluster, terms: Mapping[str, str], found: Mapping[int, Guest]) -> str:
    """The first thing in which a worker differs from the chief; empty if there is none."""
    for number, guest in sorted(found.items()):
        for name in (*terms, *guest.terms):
            theirs, ours = (one.get(name, "unknown") for one in (guest.terms, terms))
            if theirs != ours:
                return (
                    f"worker {number + 1} at {cluster.addresses[number]} has {name} {theirs}, and the chief {ours}; start all "
                    "workers with the same command, settings and data"
                )
    return ""


def _report_to_chief(cluster: Cluster, terms: Mapping[str, str], deadline: float) -> None:
    """Another worker's part: tell the chief, and wait until all are there."""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise P2PHDError(
                f"TF_CONFIG: the chief at {cluster.addresses[0]} cannot be reached, or waits for others in vain; start all with "
                "the same command"
            )
        try:
            with socket.create_connection(_host_and_port(cluster.addresses[0]), timeout=min(left, 5.0)) as line:
                _say(line, {"cluster": cluster.addresses, "index": cluster.number, "terms": terms})
                problem = json.loads(_wait_for_line(line, deadline))["error"]
        except (OSError, ValueError, KeyError, TypeError):  # Nobody is there, or a stranger.
            time.sleep(0.2)
            continue
        if problem:
            raise P2PHDError(str(problem))
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


def _is_address(text: str) -> bool:
    """Whether it is HOST:PORT, as far as one can see."""
    host, _, port = text.rpartition(":")
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    number = whole_number(port)
    return bool(host) and number is not None and 1 <= number < 1 << 16


def _host_and_port(address: str) -> tuple[str, int]:
    """The two as sockets take them; an address of IPv6 stands in brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
