"""Who may speak to the studio, and how much they may say.

A page elsewhere must not drive it: the name in `Host` must be ours, `Origin` must be the page's own, and with a token every call
carries it. Bodies are bounded, each and together, and nothing is read of those that are refused.
"""

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
API = "/api/"
SECONDS = 30.0  # A body must have come by then.
TOGETHER = 4  # Bodies of the largest size that may be held at once.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


class _Refused(Exception):
    """A request that is not answered otherwise."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Guard:
    """Stands before an ASGI app.

    Args:
        app: what it guards.
        hosts: names in `Host` that are ours; None takes every address in digits too.
        token: what calls must carry as `Authorization: Bearer TOKEN`; None where anyone on this machine may call.
        most: bytes of a body.
    """

    def __init__(self, app: App, *, hosts: Collection[str], any_address: bool, token: str | None, most: int) -> None:
        self.app = app
        self.hosts = frozenset(hosts)
        self.any_address = any_address
        self.token = token
        self.most = most
        self.held = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer, or let the app answer."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, _with_headers(send))

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        held = 0
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self._check(scope["path"], headers)
            length = self._length(headers)
            held, self.held = length, self.held + length
            body = await asyncio.wait_for(_read(receive, length), SECONDS)
            await self.app(scope, _again(body, receive), send)
        except _Refused as refused:
            await _refuse(send, refused.status, refused.why)
        except TimeoutError:
            await _refuse(send, 408, "the body did not come in time")
        finally:
            self.held -= held

    def _check(self, path: str, headers: dict[str, str]) -> None:
        """Refuse calls of others."""
        host = headers.get("host", "")
        name = (urlsplit(f"//{host}").hostname if _is_netloc(host) else None) or ""
        if name not in self.hosts and not (self.any_address and _is_address(name)):
            raise _Refused(421, "this is not the host that the studio serves")
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            raise _Refused(403, "the studio answers to its own page alone")
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and path.startswith(API):
            raise _Refused(403, "the studio answers to its own page alone")
        if self.token is not None and path.startswith(API):
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                raise _Refused(401, "open the URL that the studio printed; it carries the token")

    def _length(self, headers: dict[str, str]) -> int:
        """How long the body says it is; refuse what is too long, or does not say."""
        if "transfer-encoding" in headers:
            raise _Refused(411, "say how long the body is")
        length = int(headers.get("content-length", "0"))  # The server has checked that it is a number.
        if length > self.most:
            raise _Refused(413, f"a body may have {self.most:,} bytes; see --max-pixels")
        if self.held + length > TOGETHER * self.most:
            raise _Refused(503, "too much at once; try again")
        return length


async def _read(receive: Receive, length: int) -> bytes:
    """The whole body."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Refused(400, "gone")
        body += message.get("body", b"")
        if not message.get("more_body") or len(body) > length:
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Hands the body out once, and then whatever comes."""
    first = [body]

    async def read() -> Message:
        return {"type": "http.request", "body": first.pop(), "more_body": False} if first else await receive()

    return read


def _with_headers(send: Send) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *ours]}
        await send(message)

    return answer


async def _refuse(send: Send, status: int, why: str) -> None:
    body = json.dumps({"detail": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    headers += [(b"retry-after", b"1")] if status == 503 else []
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def _is_netloc(host: str) -> bool:
    """Whether it can stand after `//` in a URL."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.netloc == host and "@" not in host and (parts.port is None or True)
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
