"""A socket that answers HTTP: uvicorn's server, with our connections, stopped by whoever runs it."""

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
_CLOSE: tuple[bytes, bytes] = (b"connection", b"close")
HEALTH_PATHS = ("/v2/health/live", "/v2/health/ready", "/v1/status", "/metrics")


class Listener(uvicorn.Server):
    """Answers on a socket that is bound already. It leaves signals alone; ``should_exit`` ends it."""

    def __init__(self, config: uvicorn.Config, bound: socket.socket, connections: Connections) -> None:
        super().__init__(config)
        self._bound = bound
        self._connections = connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self._connections, self.config, self.server_state),
            sock=self._bound,
            ssl=self.config.ssl,
            backlog=self.config.backlog,
            ssl_handshake_timeout=self._connections.limits.header_seconds if self.config.ssl else None,
        )
        self.servers = [server]
        self.started = True

    def drain(self) -> None:
        """Go on answering, and close each connection with its next answer, so that clients go elsewhere."""
        self.config.encoded_headers = [*self.config.encoded_headers, _CLOSE]
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do not."""
        yield


class HealthOnly:
    """Those answers of a service that whoever watches it needs, for a listener of their own."""

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
