"""Several workers on this machine, as a cluster would start them: python local.py 2 p2phd train packed run --epochs 10

Each gets the same command and its own TF_CONFIG. Their lines are shown with their numbers; Ctrl-C and SIGTERM go to all of them.
Exits with the first worker's code that is not 0.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from types import FrameType
from typing import IO


def free_addresses(count: int) -> list[str]:
    """So many addresses of this machine on which nobody listens."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]


def start(command: list[str], addresses: list[str], number: int) -> subprocess.Popen[str]:
    """Start one worker."""
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": number}}
    environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def show(number: int, lines: IO[str]) -> None:
    """Pass a worker's lines on."""
    for line in lines:
        sys.stdout.write(f"[{number}] {line}")
        sys.stdout.flush()


def main(count: int, command: list[str]) -> int:
    """Start all workers and wait for them."""
    addresses = free_addresses(count)
    try:
        workers = [start(command, addresses, number) for number in range(count)]
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        for worker in workers:
            worker.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    readers = [threading.Thread(target=show, args=(n, worker.stdout)) for n, worker in enumerate(workers)]
    for reader in readers:
        reader.start()
    codes = [worker.wait() for worker in workers]
    for reader in readers:
        reader.join()
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    if len(sys.argv) < 3 or not sys.argv[1].isdecimal() or sys.argv[1] == "0":
        sys.exit("usage: python local.py WORKERS COMMAND …")
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
