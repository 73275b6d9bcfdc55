"""One model for many pages: it does one thing at a time, the newest of each page, and keeps few waiting."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

Made = TypeVar("Made")
MOST_WAITING = 32


class Overtaken(Exception):
    """A newer request of the same page took this one's place."""


class Busy(Exception):
    """Too many pages wait already."""


class _Ticket(NamedTuple):
    edit: int
    turn: "asyncio.Future[None]"


class Easel:
    """Gives each client the model in turn.

    Of a client's requests only the newest waits, at the place of its oldest. A request that has begun is finished, though nobody
    may wait for it any more.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "model")
        self._waiting: dict[str, _Ticket] = {}
        self._busy = False

    async def work(self, client: str, edit: int, make: Callable[[], Made]) -> Made:
        """What `make` gives, made in the model's own thread; raises `Overtaken`, and `Busy`."""
        await self._turn(client, edit)
        try:
            making = asyncio.get_running_loop().run_in_executor(self._thread, make)
        except BaseException:
            self._leave()
            raise
        making.add_done_callback(lambda _: self._leave())
        return await asyncio.shield(making)

    def begin(self, make: Callable[[], object]) -> None:
        """Make something before anyone asks."""
        self._thread.submit(make)

    def close(self) -> None:
        """Let the thread end after what it is at."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, client: str, edit: int) -> None:
        """Wait until the model is this request's alone."""
        older = self._waiting.get(client)
        if older is not None:
            if older.edit > edit:
                raise Overtaken
            older.turn.set_exception(Overtaken)
        elif len(self._waiting) >= MOST_WAITING:
            raise Busy
        ticket = _Ticket(edit, asyncio.get_running_loop().create_future())
        self._waiting[client] = ticket
        self._call()
        try:
            await ticket.turn
        except asyncio.CancelledError:
            if self._waiting.get(client) is ticket:
                del self._waiting[client]
            elif not ticket.turn.cancelled() and ticket.turn.exception() is None:
                self._leave()  # It was called, and has gone.
            raise

    def _call(self) -> None:
        """Call whoever waits longest, if the model is free."""
        if not self._busy and self._waiting:
            client = next(iter(self._waiting))
            self._busy = True
            self._waiting.pop(client).turn.set_result(None)

    def _leave(self) -> None:
        self._busy = False
        self._call()
