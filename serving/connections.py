"""Connections: how many there are, from whom, and how long they may say nothing. Uvicorn bounds none of it by itself."""

from __future__ import annotations

import asyncio
import http
import ipaddress
import threading
from collections import Counter
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from serving.answers import JSON, Problem, encode
from serving.gone import tell_gone

Reason: TypeAlias = Literal[
    "connections",
    "connections_by_peer",
    "displaced",
    "header_slow",
    "header_large",
    "not_http",
    "pipelined",
    "reader_slow",
]
"""Why a connection was refused or ended by us. ``displaced``: it was idle the longest when others needed its place."""
REASONS: tuple[Reason, ...] = get_args(Reason)

_HEADER_BYTES = 64 << 10
_PIPELINED = 16
"""Requests that may wait behind the one that is being answered. Uvicorn stops reading at the first, but parses all that it has
read by then, and 256 KiB of requests take 29 MiB and half a second."""


class Limits(NamedTuple):
    """How many connections there may be, and from one peer; for how many seconds a request's header may be on its way, and
    an answer may wait for a client that does not read it, and a connection for its next request."""

    connections: int
    by_peer: int
    header_seconds: float
    reader_seconds: float
    idle_seconds: float


class Connections:
    """Who is connected. Where there is no room for a new connection, the one that is idle the longest makes room: of the same
    peer where that has as many as one may, else of the peer that has most. Where all are busy, the new one is refused.

    A connection is idle while none of its requests is being answered. A peer is an address, or a network of 64 bits in IPv6.
    ``refused`` is called for every connection that is turned away or ended.
    """

    def __init__(self, limits: Limits, refused: Callable[[Reason], None]) -> None:
        self.limits = limits
        self.refused = refused
        self._counts: Counter[str] = Counter()
        self._idle: dict[str, dict[Connection, None]] = {}

    def admit(self, connection: Connection) -> bool:
        """Whether a new connection, idle for now, has a place."""
        peer, full = connection.peer, self._counts.total() >= self.limits.connections
        crowd: str | None = peer
        if self._counts[peer] < self.limits.by_peer:
            crowd = max(self._idle, key=self._counts.__getitem__, default=None) if full else None
        if crowd is not None or full:
            if crowd is None or crowd not in self._idle:
                self.refused("connections_by_peer" if crowd == peer else "connections")
                return False
            next(iter(self._idle[crowd])).end("displaced")
        self._counts[peer] += 1
        self._idle.setdefault(peer, {})[connection] = None
        return True

    def idle(self, connection: Connection) -> None:
        """Nothing is being answered on it any more."""
        self._idle.setdefault(connection.peer, {})[connection] = None

    def busy(self, connection: Connection) -> None:
        """A request came on it."""
        of_peer = self._idle.get(connection.peer, {})
        of_peer.pop(connection, None)
        if not of_peer:
            self._idle.pop(connection.peer, None)

    def remove(self, connection: Connection) -> None:
        """It has ended; its place is free."""
        self.busy(connection)
        self._counts[connection.peer] -= 1
        if not self._counts[connection.peer]:
            del self._counts[connection.peer]


class Connection(HttpToolsProtocol):
    """One connection: uvicorn's, ended where a header or the reading of an answer takes too long, or a header is too large."""

    def __init__(self, connections: Connections, config: Config, state: ServerState) -> None:
        super().__init__(config, state, {})
        self.timeout_keep_alive = connections.limits.idle_seconds  # type: ignore[assignment]  # any number of seconds
        self.peer = ""
        self._all = connections
        self._has_place = False
        self._answering: RequestResponseCycle | None = None
        self._opening: asyncio.Task[object] | None = None
        self._refused = False
        self._left = threading.Event()  # the client has left, or seems to have (`serving.gone`)
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._in_header = False
        self._taken = False  # whether the parser took what came last, and did not only keep it
        self._header_bytes = 0

    def accept(self, client: tuple[str, int]) -> bool:
        """Take a place, or be refused: before TLS, which costs more than that."""
        self.peer = _peer(client)
        self._has_place = self._all.admit(self)
        if self._has_place:
            self._wait()
        return self._has_place

    def open(self, opening: asyncio.Task[object]) -> None:
        """It is open when the task is done, or gives its place back."""
        self._opening = opening
        opening.add_done_callback(self._opened)

    def _opened(self, opening: asyncio.Task[object]) -> None:
        self._opening = None
        if opening.cancelled() or opening.exception() is not None:
            self._leave()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Await a request, or say that there is no place."""
        super().connection_made(transport)
        if self._has_place:
            self._waited()
            self._wait()
        else:
            self._answer_and_close(503, "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back, and keep nothing: after a reset, uvicorn would keep it for as long as it may be idle."""
        self._unset_keepalive_if_required()
        self._leave()
        self._disconnect()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # as uvicorn has it
        """The client sends no more, and may or may not read: what came whole is answered, if only by saying that its client seems
        to have left (`serving.gone`), then it is closed."""
        self._left.set()
        if self.scheme == "https" or not self._is_busy or self.cycle.more_body:
            return False  # TLS has no connections that are open on one side
        self.cycle.keep_alive = False
        return True

    def data_received(self, data: bytes) -> None:
        """Read on; what is no HTTP is refused."""
        if self._refused or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        if not self._is_busy:
            self._wait()
        self._taken = False
        try:
            self._read(memoryview(data))
        except httptools.HttpParserError:
            if not self._refused:
                self._refuse("not_http", 400, "not HTTP")
            return
        self._header_bytes = 0 if self._taken else self._header_bytes + len(data)
        if self._header_bytes > _HEADER_BYTES:
            self._refuse("header_large", 431, f"a header of more than {_HEADER_BYTES} bytes")

    def on_message_begin(self) -> None:
        """A header begins."""
        self._in_header = self._taken = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A request has come."""
        if self.parser.should_upgrade():
            return  # it comes again
        self._in_header, self._taken = False, True
        if len(self.pipeline) >= _PIPELINED:
            self._refuse("pipelined", 400, f"more than {_PIPELINED} requests wait for an answer")
            raise httptools.HttpParserError("nothing more is read")
        self._all.busy(self)
        self._waited()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._taken = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Its body is here; a header may follow."""
        if self.parser.should_upgrade():
            return
        self._taken = True
        if not self._is_busy:  # the rest of a body that was refused
            self._waited()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It is answered."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._wait()  # for what is on its way to be read
        elif self.pipeline:
            self.flow.pause_reading()  # else each answer would let a bufferful of further requests in
        elif not self._is_busy:
            self._all.idle(self)

    def pause_writing(self) -> None:
        """The client does not read: it has a while."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self._all.limits.reader_seconds, self.end, "reader_slow")

    def resume_writing(self) -> None:
        """The client reads again."""
        self._unstall()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for long: closing would wait for a client that does not read."""
        self.transport.abort()

    def end(self, reason: Reason) -> None:
        """End it now, and free its place."""
        self._all.refused(reason)
        self._leave()
        self._disconnect()
        if self.transport is not None:
            self.transport.abort()
        elif self._opening is not None:
            self._opening.cancel()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        tell_gone(cycle.scope, self._left.is_set)  # not by a method of ours: the scope, which we have, would have us
        super()._start_asgi_task(cycle, app)

    def _disconnect(self) -> None:
        """Notify the request that is being answered: else it would write to a closed transport. Uvicorn notifies the last one
        that was read, which waits behind it where requests are pipelined."""
        self._left.set()
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def _read(self, data: memoryview) -> None:
        """Where a request offers another protocol, the parser takes its header for the whole of it. We have no other, so it is
        parsed again without the offer: then its body is its body, and not the next request. By another parser: where the request
        also closes the connection, this one is done."""
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offered:
                if self.parser.get_method() == b"CONNECT":  # which is an offer by itself
                    raise httptools.HttpParserError("CONNECT") from None
                data = data[offered.args[0] :]
                head = [self.parser.get_method(), b" ", self.url, b" HTTP/", self.parser.get_http_version().encode()]
                for name, value in self.headers:
                    if name != b"upgrade":
                        head += [b"\r\n", name, b": ", value]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
                self.parser.feed_data(b"".join([*head, b"\r\n\r\n"]))

    @property
    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        """Give it so long to send a header, the rest of an unwanted body, or to be closed."""
        if self._timer is None:
            self._timer = self.loop.call_later(self._all.limits.header_seconds, self._too_slow)

    def _waited(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _unstall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.transport is None:
            self.end("header_slow")
        elif self.transport.is_closing():
            self.transport.abort()
        elif self._in_header:
            self._refuse("header_slow", 408, f"a header took longer than {self._all.limits.header_seconds:g} s")
        else:
            self.end("header_slow")

    def _leave(self) -> None:
        self._waited()
        self._unstall()
        if self._has_place:
            self._has_place = False
            self._all.remove(self)

    def _refuse(self, reason: Reason, status: int, error: str) -> None:
        """Answer what cannot be read, once what came before is answered, and close."""
        self._all.refused(reason)
        self._refused = True
        if self._is_busy:
            self.cycle.keep_alive = False
        else:
            self._answer_and_close(status, error)

    def _answer_and_close(self, status: int, error: str) -> None:
        content = encode(Problem(error), msgpack=False)
        head = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n"
            f"content-type: {JSON}\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
        self.transport.close()
        self._wait()


def _peer(client: tuple[str, int] | None) -> str:
    if client is None:
        return ""
    try:
        address = ipaddress.ip_address(client[0].split("%")[0])
    except ValueError:
        return client[0]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
