"""Requests as JSON, for producers that do not pack columns: features are lists with one value per impression.

``{"version": 1, "request_id": "r1", "served_at": 1700000000000, "impression_ids": ["a", "b"],
"shared": {"user": "u7"}, "features": {"item": [12, 15], "tags": [[1, 2], []], "price": [0.5, 2]}}``
"""

from __future__ import annotations

from typing import Any

import msgspec

from basis.decoding import refusing
from streaming.records.events import (
    FORMAT_VERSION,
    BadRecord,
    Id,
    ImpressionIds,
    Int64,
    bad_record,
    check_size,
    unmarked,
)


class JsonRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A request as JSON has it: `Request` with values in place of packed columns."""

    version: Int64
    request_id: Id
    served_at: Int64
    impression_ids: ImpressionIds
    shared: dict[str, Any] = {}
    features: dict[str, list[Any]] = {}
    positions: list[int] = []
    scores: list[list[float]] = []
    sparse_version: Int64 = 0
    dense_version: Int64 = 0
    schema: str = ""


_decoder = msgspec.json.Decoder(JsonRequest)


def decode_json_request(payload: bytes) -> JsonRequest:
    """Decode a request; `BadRecord` if it breaks the contract in what can be said without its features."""
    check_size(len(payload))
    with refusing(lambda said: bad_record(payload, said, FORMAT_VERSION)):
        return _decoder.decode(unmarked(payload))


def check_count(name: str, values: int, impressions: int) -> None:
    """Raise `BadRecord` where a feature has not one value for each impression."""
    if values != impressions:
        raise BadRecord("feature", f"feature {name}: {values} values for {impressions} impressions")
