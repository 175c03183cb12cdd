"""Those who come to a replica and want nothing good: connections that say nothing, slow headers, requests that are none."""

from __future__ import annotations

import random
import re
import resource
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence

_PEERS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
_LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
_SLOW_HEADER = b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nX-A: "
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Z]")
_OPENED_A_ROUND = 100
_PATIENCE_SECONDS = 1.0
_ROUND_SECONDS = 0.05
_BYTE_EVERY_SECONDS = 0.5
_PIECES = (
    b"\r\n", b"\r\n\r\n", b"\x00", b"\xff\xfe", b" ", b":", b"%", b"%00", b"%7B", b"/../", b"?" * 50, b"Content-Length: -1\r\n",
    b"Content-Length: 99999999999999999999\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n", b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"Accept: application/msgpack\r\n",
    b"Content-Type: application/msgpack\r\n", b"Authorization: Bearer \xe9\r\n", b"1e999", b"-1", b"null", b"NaN",
    b'"\\ud800"', b"[[[[",
    b"FFFFFFFFFFFFFFFFF\r\n", b"0\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00", b"X: " + b"y" * 70_000,
)  # fmt: skip


class RawRequests:
    """Bytes for a connection: right requests, most of them cut, doubled, mixed, or with other bytes. One seed, one series."""

    def __init__(self, bodies: Sequence[tuple[str, str, bytes]], seed: int) -> None:
        """``bodies``: path, content type, body."""
        self._random = random.Random(seed)
        self._right = [
            b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in (b"/v1/status", b"/metrics", b"/openapi.json")
        ]
        for path, kind, body in bodies:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n".encode()
            self._right.append(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            half = len(body) // 2
            chunks = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in (body[:half], body[half:]) if each)
            self._right.append(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")

    def next(self) -> bytes:
        """What one connection sends."""
        chosen = self._random
        data = bytearray(b"".join(chosen.choices(self._right, k=chosen.choice((1, 1, 1, 2, 8)))))
        for _ in range(chosen.choice((0, 1, 1, 2, 5))):
            at = chosen.randrange(len(data) + 1)
            match chosen.randrange(5):
                case 0:
                    data[at : at + 1] = bytes([chosen.randrange(256)])
                case 1:
                    del data[at : at + chosen.choice((1, 2, 50))]
                case 2:
                    data[at:at] = chosen.choice(_PIECES)
                case 3:
                    ends = [found.end() for found in re.finditer(rb"\r\n", data)] or [0]
                    place = chosen.choice(ends)  # where a header may stand
                    data[place:place] = chosen.choice(_PIECES)
                case _:
                    data[at:] = data[: chosen.randrange(1, 200)]
        return bytes(data) or b"\n"


def send_raw(port: int, data: bytes) -> list[int]:
    """The statuses of what is answered to some bytes, until nothing comes for a while. ``AssertionError`` where it is no HTTP."""
    answer = bytearray()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(data)
            connection.settimeout(_PATIENCE_SECONDS)
            while part := connection.recv(1 << 16):
                answer += part
    except OSError:
        pass
    assert not answer or answer.startswith(b"HTTP/1.1 "), bytes(answer[:200])
    return [int(status) for status in _STATUS.findall(answer)]


class Crowd:
    """Holds ``count`` connections from a few addresses: two fifths say nothing, two fifths nothing more after one answer, and
    a fifth sends a header, a byte now and then. Those that the replica ends are opened anew."""

    def __init__(self, port: int, count: int) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 500)), hard))
        self._port, self._count = port, count
        self._selector = selectors.DefaultSelector()
        self.held = self.most_held = self.opened = 0
        self.statuses: Counter[int] = Counter()

    def run(self, stop: threading.Event) -> None:
        """Hold them until told to stop."""
        slow_at = 0.0
        while not stop.wait(_ROUND_SECONDS):
            for _ in range(min(_OPENED_A_ROUND, self._count - self.held)):
                self._open()
            for key, _ in self._selector.select(0):
                self._read(key.fileobj)  # type: ignore[arg-type]  # sockets alone
            self.most_held = max(self.most_held, self.held)
            if (now := time.monotonic()) > slow_at:
                slow_at = now + _BYTE_EVERY_SECONDS
                for key in list(self._selector.get_map().values()):
                    if key.data:
                        self._send(key.fileobj, b"y")  # type: ignore[arg-type]
        for key in list(self._selector.get_map().values()):
            self._close(key.fileobj)  # type: ignore[arg-type]

    def _open(self) -> None:
        at = self.opened
        self.opened += 1
        try:
            made = socket.create_connection(
                ("127.0.0.1", self._port), timeout=5, source_address=(_PEERS[at % len(_PEERS)], 0)
            )
        except OSError:
            return
        made.setblocking(False)
        self._selector.register(made, selectors.EVENT_READ, at % 5 == 4)
        self.held += 1
        if at % 5 >= 2:
            self._send(made, _SLOW_HEADER if at % 5 == 4 else _LIVE)

    def _send(self, to: socket.socket, data: bytes) -> None:
        try:
            to.send(data)
        except OSError:
            self._close(to)

    def _read(self, source: socket.socket) -> None:
        try:
            data = source.recv(1 << 16)
        except OSError:
            data = b""
        self.statuses.update(int(status) for status in _STATUS.findall(data))
        if not data:
            self._close(source)

    def _close(self, which: socket.socket) -> None:
        if which.fileno() >= 0:
            self._selector.unregister(which)
            which.close()
            self.held -= 1
