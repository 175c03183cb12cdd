"""A small client of a replica, over one connection. Not for several threads at once: make one for each.

client = Client("http://127.0.0.1:8080", token="...")
answer = client.rank({"user": "u7"}, ["a", "b"], {"item": [12, 15]}, limit=10)
client.engage(answer.request_id, answer.impression_ids[0], "click")
"""

from __future__ import annotations

import http.client
import ssl
import urllib.parse
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from basis.decoding import refusing
from serving.answers import MSGPACK, Accepted, Pinned, Problem, RankResponse, Readiness, Score, Shadowed
from serving.status import Status

T = TypeVar("T")

_ANSWERS: tuple[type, ...] = (RankResponse, Accepted, Status, Readiness, Score, Pinned, Shadowed, Problem)
_decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {kind: msgspec.msgpack.Decoder(kind) for kind in _ANSWERS}
"""Made once: msgspec crashes where two threads look into a type for the first time."""
_UNUSED_TOO_LONG = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


class RefusedError(RuntimeError):
    """The replica refused a request: its ``status``, what was wrong, and after how many seconds to try again (None: do not)."""

    def __init__(self, status: int, error: str, retry_after: int | None) -> None:
        super().__init__(f"{status}: {error}")
        self.status = status
        self.retry_after = retry_after


class Client:
    """Asks the replica at ``url``. ``OSError`` where it cannot be reached, `RefusedError` where it says no."""

    def __init__(
        self, url: str, *, token: str | None = None, timeout_seconds: float = 5.0, tls: ssl.SSLContext | None = None
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r}; allowed: http://HOST:PORT or https://HOST:PORT")
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            self._connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout_seconds, context=tls or ssl.create_default_context()
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_seconds)
        self._headers = {"Content-Type": MSGPACK, "Accept": MSGPACK}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def rank(
        self,
        features: Mapping[str, Any],
        ids: Sequence[str | int],
        candidate_features: Mapping[str, Sequence[Any] | np.ndarray[Any, Any]],
        *,
        limit: int | None = None,
        request_id: str | None = None,
    ) -> RankResponse:
        """Candidates by their combined score. A column is a list, or an array: int64 ids, float32 numbers (faster)."""
        columns = {name: _column(column) for name, column in candidate_features.items()}
        body: dict[str, Any] = {
            "request_id": request_id or uuid.uuid4().hex,  # so that a request that is sent again is joined once
            "features": features,
            "candidates": {"ids": list(ids), "features": columns},
        }
        if limit is not None:
            body["limit"] = limit
        return self._ask("POST", "/v1/rank", body, RankResponse)

    def engage(
        self, request_id: str, impression_id: str, action: str, value: float = 1.0, happened_at: int | None = None
    ) -> None:
        """Tell of an action on an impression; ``happened_at`` in ms since 1970, now where it is None."""
        engagement = {"request_id": request_id, "impression_id": impression_id, "action": action, "value": value}
        if happened_at is not None:
            engagement["happened_at"] = happened_at
        self._ask("POST", "/v1/engagements", {"engagements": [engagement]}, Accepted)

    def status(self) -> Status:
        """Versions and freshness."""
        return self._ask("GET", "/v1/status", None, Status)

    def ready(self) -> bool:
        """Whether it should get requests."""
        try:
            return self._ask("GET", "/v2/health/ready", None, Readiness).ready
        except RefusedError:
            return False

    def set_score(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Change the weights of the combined score (admin); those that are in force."""
        return self._ask("PUT", "/v1/score", {"score": dict(weights)}, Score).score

    def pin(self, version: int | None = None) -> int | None:
        """Stay at a version, the one that is served where it is None (admin)."""
        return self._ask("PUT", "/v1/pin", {} if version is None else {"version": version}, Pinned).version

    def unpin(self) -> None:
        """Follow the newest version again, or a rollback's (admin)."""
        self._ask("DELETE", "/v1/pin", None, Pinned)

    def shadow(self, version: int, share: float) -> None:
        """Score a share of the requests with a second version, beside; `status` has the comparison (admin)."""
        self._ask("PUT", "/v1/shadow", {"version": version, "share": share}, Shadowed)

    def end_shadow(self) -> None:
        """Score with no second version (admin)."""
        self._ask("DELETE", "/v1/shadow", None, Shadowed)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()

    def _ask(self, method: str, path: str, body: Any, kind: type[T]) -> T:
        payload = None if body is None else msgspec.msgpack.encode(body)
        status, retry, data = self._send(method, path, payload)
        if status >= 400:
            try:
                error = _decoders[Problem].decode(data).error
            except Exception:
                error = data[:200].decode(errors="replace")
            raise RefusedError(status, error, retry)
        with refusing(lambda why: RefusedError(status, f"not what a replica answers: {why}", None)):
            found: T = _decoders[kind].decode(data)
            return found

    def _send(self, method: str, path: str, payload: bytes | None) -> tuple[int, int | None, bytes]:
        again = self._connection.sock is not None
        while True:
            try:
                self._connection.request(method, path, payload, self._headers)
                answer = self._connection.getresponse()
                retry = answer.headers.get("Retry-After", "")
                return answer.status, int(retry) if retry.isdigit() else None, answer.read()
            except _UNUSED_TOO_LONG:
                self._connection.close()
                if not again:
                    raise
                again = False
            except BaseException:  # an answer that is still to come would be taken for the next one's
                self._connection.close()
                raise


def _column(column: Sequence[Any] | np.ndarray[Any, Any]) -> Any:
    if not isinstance(column, np.ndarray):
        return list(column)
    if column.dtype.kind not in "iuf":
        return column.tolist()
    return column.astype("<i8" if column.dtype.kind in "iu" else "<f4", copy=False).tobytes()
