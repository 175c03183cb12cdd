"""The product's side of the contract: what was served and what was done, checked as joiners check it, and sent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

import msgspec
from pydantic import ValidationError

from basis.decoding import refusing
from basis.problems import Problem, Problems
from minutely.client.sender import Lost, Sender
from streaming.features.kinds import NUMBERS_ALLOWED
from streaming.kafka.settings import KafkaSettings
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from streaming.records.events import (
    FORMAT_VERSION,
    BadRecord,
    Engagement,
    check_served,
    decode_engagement,
    encode,
)
from streaming.records.json_requests import JsonRequest, check_count, decode_json_request

MEMORY_BYTES = 32 << 20
WAIT_SECONDS = 5.0
DELIVERY_SECONDS = 120.0
_EARLIEST_MS = 631_152_000_000
"""1990, as `source.earliest` has it by default: what is before is most often seconds."""
_AHEAD_MS = 3_600_000
"""As `join.max_future` has it by default."""


class Client:
    """Sends what a product served, and what its users did with it. Any thread may call it; each process makes one of its own.

    ``bootstrap``, ``prefix``, ``tls`` and ``sasl`` are those of the ``kafka`` section. ``on_lost`` is told of each record that was
    taken and that brokers did not acknowledge in ``delivery_seconds``.
    """

    def __init__(
        self,
        *,
        on_lost: Callable[[Lost], None],
        bootstrap: str | None = None,
        prefix: str = "",
        tls: Mapping[str, str] | None = None,
        sasl: Mapping[str, str] | None = None,
        memory_bytes: int = MEMORY_BYTES,
        wait_seconds: float = WAIT_SECONDS,
        delivery_seconds: float = DELIVERY_SECONDS,
    ) -> None:
        settings = _settings(bootstrap, prefix, tls, sasl)
        self._impressions, self._engagements = settings.topic(IMPRESSIONS), settings.topic(ENGAGEMENTS)
        self._sender = Sender(
            settings,
            on_lost,
            memory_bytes=memory_bytes,
            wait_seconds=wait_seconds,
            delivery_seconds=delivery_seconds,
        )

    def served(
        self,
        *,
        request_id: str,
        impressions: Sequence[str],
        features: Mapping[str, Sequence[Any]],
        shared: Mapping[str, Any] | None = None,
        served_at: int | None = None,
        scores: Sequence[Sequence[float]] = (),
        positions: Sequence[int] = (),
    ) -> None:
        """Send a request: the ids of its impressions, and the values that they were scored on.

        ``features`` has one value an impression, ``shared`` one for all; ``scores`` a row an impression with one a label, in the
        config's order; ``positions`` one an impression, by default the order of the list. ``served_at`` is in ms, now by default.

        Raises:
            BadRecord: the request breaks the contract.
            BrokerError: it was not taken: brokers are away or refuse, or too much waits for them (`NoRoom`).
        """
        now = _now_ms()
        count = len(impressions)
        with _of(request_id):
            _check_rows(features, scores, positions, count)
            value = _encoder.encode(
                JsonRequest(
                    version=FORMAT_VERSION,
                    request_id=request_id,
                    served_at=now if served_at is None else served_at,
                    impression_ids=list(impressions),
                    shared=dict(shared or {}),
                    features={name: list(values) for name, values in features.items()},
                    positions=list(positions),
                    scores=[list(row) for row in scores],
                )
            )
            if b"null" in value:  # also what JSON has in place of numbers that are not finite
                for name, given in (*features.items(), *(shared or {}).items()):
                    _check_finite(name, given)
            read = decode_json_request(value)
            check_served(read.served_at, read.impression_ids, now + _AHEAD_MS, _EARLIEST_MS)
        self._sender.send(self._impressions, request_id, value)

    def engaged(
        self,
        request_id: str,
        impression_id: str,
        action: str,
        *,
        value: float = 1.0,
        happened_at: int | None = None,
    ) -> None:
        """Send an action on an impression; ``happened_at`` is in ms, now by default.

        Raises:
            BadRecord: it breaks the contract.
            BrokerError: it was not taken: brokers are away or refuse, or too much waits for them (`NoRoom`).
        """
        now = _now_ms()
        with _of(request_id):
            record = encode(
                Engagement(
                    version=FORMAT_VERSION,
                    request_id=request_id,
                    impression_id=impression_id,
                    action=action,
                    happened_at=now if happened_at is None else happened_at,
                    value=value,
                )
            )
            decode_engagement(record, now + _AHEAD_MS, _EARLIEST_MS)
        self._sender.send(self._engagements, request_id, record)

    def flush(self, seconds: float = WAIT_SECONDS) -> int:
        """Wait until brokers have everything, or for so long. Return how many records they lack."""
        return self._sender.flush(seconds)

    def close(self, seconds: float = WAIT_SECONDS) -> int:
        """Send what waits, for at most so long; ``on_lost`` is told of the rest. Return how many records that were."""
        return self._sender.close(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@contextmanager
def _of(request_id: str) -> Iterator[None]:
    """Say of which request a refusal is."""
    try:
        with refusing(partial(BadRecord, "malformed"), BadRecord):
            yield
    except BadRecord as error:
        raise BadRecord(error.reason, f"request {request_id!r:.80}: {error}") from None


def _unknown(value: Any) -> None:
    kinds = "numbers, texts, booleans, None and lists of them, such as tolist() makes of an array"
    raise TypeError(f"a value of type {type(value).__name__}; allowed: {kinds}")


_encoder = msgspec.json.Encoder(enc_hook=_unknown)


def _check_rows(
    features: Mapping[str, Sequence[Any]], scores: Sequence[Sequence[float]], positions: Sequence[int], impressions: int
) -> None:
    """Raise `BadRecord` for what is not there once for each impression."""
    for name, values in features.items():
        if isinstance(values, str):
            raise BadRecord("feature", f"feature {name}: {values!r:.60}; allowed: a list with one value an impression")
        check_count(name, len(values), impressions)
    for name, rows in (("scores", scores), ("positions", positions)):
        if len(rows) not in (0, impressions):
            raise BadRecord("malformed", f"{name}: {len(rows)} for {impressions} impressions")
    for position in positions:
        if not -(2**31) <= position < 2**31:
            raise BadRecord("malformed", f"positions: {position}; allowed: integers of 32 bits")
    if len({len(row) for row in scores}) > 1:
        raise BadRecord("malformed", "scores: rows of different lengths; allowed: one score a label in each")


def _check_finite(name: str, value: Any) -> None:
    """Raise `BadRecord` for an infinite number: in JSON it would be null, a value that is missing, as NaN is."""
    if isinstance(value, float) and math.isinf(value):
        raise BadRecord("feature", f"feature {name}: {value}; {NUMBERS_ALLOWED}")
    if isinstance(value, list | tuple):
        for each in value:
            _check_finite(name, each)


def _settings(
    bootstrap: str | None, prefix: str, tls: Mapping[str, str] | None, sasl: Mapping[str, str] | None
) -> KafkaSettings:
    """Return settings; `Problems` where they are wrong, which show nothing of ``sasl``: it may hold a password by mistake."""
    given = {"bootstrap": bootstrap, "prefix": prefix, "tls": tls and dict(tls), "sasl": sasl and dict(sasl)}
    try:
        return KafkaSettings.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        found = []
        for item in error.errors(include_url=False, include_context=False):
            value = "" if item["loc"][0] == "sasl" or isinstance(item["input"], dict) else repr(item["input"])
            found.append(Problem("kafka", ".".join(map(str, item["loc"])), value, item["msg"]))
        raise Problems(found) from None
