"""Asking a service in this process, without sockets: whose clock a test sets."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from serving.answers import JSON, MSGPACK
from serving.http import Service


def ask(
    service: Service,
    method: str,
    path: str,
    body: Any = None,
    *,
    msgpack: bool = False,
    raw: bytes | None = None,
    accept_msgpack: bool = False,
) -> tuple[int, Any]:
    """The status and the decoded body of an answer."""
    wanted = MSGPACK if msgpack or accept_msgpack else JSON
    kind, codec = (MSGPACK, msgspec.msgpack) if msgpack else (JSON, msgspec.json)
    payload = raw if raw is not None else b"" if body is None else codec.encode(body)
    status, headers, content = answered(service, method, path, payload, {"content-type": kind, "accept": wanted})
    decoder = msgspec.msgpack if headers["content-type"] == MSGPACK else msgspec.json
    return status, decoder.decode(content)


def answered(
    service: Service, method: str, path: str, payload: bytes, headers: dict[str, str]
) -> tuple[int, dict[str, str], bytes]:
    """The status, the headers and the body of an answer."""
    sent: list[Any] = []
    came = [{"type": "http.request", "body": payload, "more_body": False}]

    async def receive() -> Any:
        return came.pop() if came else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    asyncio.run(service(scope, receive, send))
    content = b"".join(message.get("body", b"") for message in sent[1:])
    got = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], got, content
