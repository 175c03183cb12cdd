"""A socket that answers HTTP: uvicorn's server, with our connections, stopped by its owner."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.answers import JSON, Problem, encode
from serving.connections import Connection, Connections

_OTHER_FILES = 256
_AGAIN_SECONDS = 0.05
_TAKEN_AT_ONCE = 16
_CLOSE: tuple[bytes, bytes] = (b"connection", b"close")
HEALTH_PATHS = ("/v2/health/live", "/v2/health/ready", "/v1/status", "/metrics")


class Listener(uvicorn.Server):
    """Answers on a socket that is bound already. It leaves signals alone; ``should_exit`` ends it."""

    def __init__(self, config: uvicorn.Config, bound: socket.socket, connections: Connections) -> None:
        super().__init__(config)
        self._bound = bound
        self._connections = connections
        self._opening: set[asyncio.Task[object]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. The loop's own server would report a connection only after its TLS handshake, and stop when files run out."""
        self._bound.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())
        self.servers = []
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more, and finish what came."""
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._bound.close()
        for opening in self._opening:
            opening.cancel()
        await super().shutdown(sockets)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        taken = 0
        while True:
            try:
                accepted, client = await loop.sock_accept(self._bound)
            except OSError:  # it has gone again, or there are no files for now
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            taken += 1
            if taken % _TAKEN_AT_ONCE == 0:
                await asyncio.sleep(0)  # a crowd does not get all of the loop
            connection = Connection(self._connections, self.config, self.server_state)
            if not connection.accept(client) and self.config.ssl:
                accepted.close()  # saying why would take a handshake
                continue
            opening: asyncio.Task[object] = loop.create_task(self._open(connection, accepted))
            connection.open(opening)
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    async def _open(self, connection: Connection, accepted: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, accepted, ssl=self.config.ssl)

    def drain(self) -> None:
        """Go on answering, and close each connection with its next answer, so that clients go elsewhere."""
        self.config.encoded_headers = [*self.config.encoded_headers, _CLOSE]
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do not."""
        yield


class HealthOnly:
    """The answers that monitoring needs, for a listener of its own."""

    def __init__(self, service: ASGIApp) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is about health; 404 for the rest."""
        if scope["path"] in HEALTH_PATHS:
            await self._service(scope, receive, send)
            return
        content = encode(Problem(f"only {', '.join(HEALTH_PATHS)} here"), msgpack=False)
        headers = [(b"content-type", JSON.encode()), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def room_for_files(wanted: int) -> int:
    """For how many of so many open files the system leaves room beside the process's others; raises the soft limit to fit them.

    None or less where even the others hardly fit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    total = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < total:
        soft = total if hard == resource.RLIM_INFINITY else min(total, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - _OTHER_FILES)
