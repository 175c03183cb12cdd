"""`minutely serve` in a process of its own, and a plain client of it."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from minutely.config import Pipeline
from stack.ports import free_ports
from tests.kafka.services import Service, write_config

_START_SECONDS = 120


class Server:
    """Serves from ``deltas``; ``folder`` takes its config and what it says."""

    def __init__(
        self,
        pipeline: Pipeline,
        deltas: Path | str,
        folder: Path,
        name: str = "replica",
        tls: ssl.SSLContext | None = None,
        health_port: int | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._tls = tls
        self.health_port = health_port
        self.port = free_ports(1)[0]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        arguments = ["serve", str(write_config(pipeline, folder)), "--deltas", str(deltas)]
        arguments += ["--listen", f"{host}:{self.port}", "--name", name]
        if health_port is not None:
            arguments += ["--health", f"127.0.0.1:{health_port}"]
        self.process = Service(name, arguments, folder, folder / f"{name}.log")

    def start(self) -> Server:
        self.process.start()
        return self

    def wait(self, path: str = "/v2/health/ready", status: int = 200, seconds: float = _START_SECONDS) -> float:
        """How many seconds until a path answers so."""
        started = time.monotonic()
        while True:
            try:
                found = self.ask("GET", path)[0]
            except OSError:
                found = 0
            if found == status:
                return time.monotonic() - started
            late = time.monotonic() - started > seconds
            assert self.process.runs and not late, f"{path} answers {found}: {self.process.output}"
            time.sleep(0.05)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        msgpack: bool = False,
        health: bool = False,
    ) -> tuple[int, Any]:
        """Status and decoded answer, of the listener for ``health`` where that is asked."""
        kind = "application/msgpack" if msgpack else "application/json"
        sent = {"Content-Type": kind, **({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
        if raw is None and body is not None:
            raw = msgspec.msgpack.encode(body) if msgpack else json.dumps(body).encode()
        port = self.health_port if health else self.port
        connection = (
            http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=self._tls)
            if self._tls and not health
            else http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        )
        try:
            connection.request(method, path, raw, sent)
            answer = connection.getresponse()
            data = answer.read()
            if answer.headers.get_content_type() == "application/msgpack":
                return answer.status, msgspec.msgpack.decode(data)
            is_json = data and answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(data) if is_json else data.decode()
        finally:
            connection.close()
