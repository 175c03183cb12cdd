"""What is asked of a replica, as JSON or msgpack, and how it becomes columns.

A ranking request has its own features (user, context) once, and a column for each feature of its candidates, as records of
`impressions` have them::

    {"features": {"user": "u7"}, "candidates": {"ids": ["a", "b"], "features": {"item": [12, 15], "price": [0.5, 2]}}}

In msgpack a column may also be packed (`streaming.columns`): little-endian bytes, which need no conversion.

Features that come from the time of the event, and crosses of others, are made here, as they are made of logs.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from streaming.columns import Column, Columns, Ragged, check_packed, unpack
from streaming.events import (
    MAX_ID_LENGTH,
    MAX_TIME_MS,
    MIN_TIME_MS,
    SCHEMA_VERSION,
    BadRecord,
    Engagement,
    Id,
    decode_engagement,
    encode,
)
from streaming.features import Feature, SparseFeature
from streaming.json_records import column_of_values
from streaming.transforms import derived, is_derived

_MAX_ENGAGEMENTS = 1000
_MAX_REQUEST_ID = MAX_ID_LENGTH - 8  # an impression's id is its request's, and its place


class BadRequest(ValueError):
    """A request breaks the contract; ``status`` is HTTP's word for it."""

    def __init__(self, detail: str, status: int = 422) -> None:
        super().__init__(detail)
        self.status = status


class Candidates(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be ranked: an id for each, unique in the request, and a column for each feature of scope ``impression``."""

    ids: Annotated[list[str | int], msgspec.Meta(min_length=1)]
    features: dict[str, Any] = {}


class RankRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Rank candidates for a user. The first ``limit`` of them (all by default) are answered, and logged as impressions."""

    candidates: Candidates
    features: dict[str, Any] = {}
    request_id: Annotated[str, msgspec.Meta(min_length=1, max_length=_MAX_REQUEST_ID)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1)] | None = None


class EngagementBody(msgspec.Struct, forbid_unknown_fields=True):
    """An action on an impression that was answered; it happened now where ``happened_at`` (ms since 1970) is not given."""

    request_id: Id
    impression_id: Id
    action: Id
    value: float = 1.0
    happened_at: Annotated[int, msgspec.Meta(ge=MIN_TIME_MS, le=MAX_TIME_MS)] | None = None


class EngagementsBody(msgspec.Struct, forbid_unknown_fields=True):
    """Actions of the product's users."""

    engagements: Annotated[list[EngagementBody], msgspec.Meta(min_length=1, max_length=_MAX_ENGAGEMENTS)]


class ScoreBody(msgspec.Struct, forbid_unknown_fields=True):
    """The weight of each label in the score that orders candidates."""

    score: Annotated[dict[str, Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]], msgspec.Meta(min_length=1)]


class PinBody(msgspec.Struct, forbid_unknown_fields=True):
    """The version to stay at; the one that is served now where it is not given."""

    version: Annotated[int, msgspec.Meta(ge=1)] | None = None


class ShadowBody(msgspec.Struct, forbid_unknown_fields=True):
    """A version that is to score a share of the requests beside those that are answered."""

    version: Annotated[int, msgspec.Meta(ge=1)]
    share: Annotated[float, msgspec.Meta(gt=0, le=1)]


T = TypeVar("T")


@cache
def _decoder(body: Any, msgpack: bool) -> Any:
    kind: Any = msgspec.msgpack.Decoder if msgpack else msgspec.json.Decoder
    return kind(body)


def decode(body: type[T], payload: bytes, *, msgpack: bool) -> T:
    """A body of some type; `BadRequest` where it is none: 400 where it cannot be read, 422 where it does not fit."""
    try:
        decoded: T = _decoder(body, msgpack).decode(payload)  # type: ignore[arg-type]  # types are hashable
        return decoded
    except msgspec.ValidationError as error:
        raise BadRequest(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"not {'msgpack' if msgpack else 'JSON'}: {error}", 400) from None


@dataclass(frozen=True, slots=True)
class Asked:
    """Candidates to score: their feature columns, request features repeated for each."""

    columns: Columns
    count: int


@dataclass(frozen=True, slots=True)
class RankAsked(Asked):
    """A ranking request whose features are right; ``asked_at`` in ms."""

    request_id: str
    ids: Sequence[str | int]
    limit: int
    asked_at: int


class RequestReader:
    """Makes columns of what was asked, by a pipeline's features."""

    def __init__(self, features: Mapping[str, Feature], max_candidates: int) -> None:
        self.features = dict(features)
        self._max_candidates = max_candidates
        self._derived = {name: item for name, item in features.items() if is_derived(item)}
        self.of_request = {
            name: item for name, item in features.items() if item.scope == "request" and name not in self._derived
        }
        self.of_candidates = {
            name: item for name, item in features.items() if item.scope == "impression" and name not in self._derived
        }

    def rank(self, payload: bytes, *, msgpack: bool, now_ms: int) -> RankAsked:
        """The ranking request in ``payload``; `BadRequest` where it breaks the contract."""
        body = decode(RankRequest, payload, msgpack=msgpack)
        ids = body.candidates.ids
        self.check_count(len(ids))
        if len(set(ids) if len(set(map(type, ids))) == 1 else set(map(str, ids))) != len(ids):
            raise BadRequest("candidates.ids: an id stands there twice")
        columns = _columns(self.of_request, body.features, 1, "features")
        repeated = {name: repeat(column, len(ids)) for name, column in columns.items()}
        repeated |= _columns(self.of_candidates, body.candidates.features, len(ids), "candidates.features")
        return RankAsked(
            columns=self.complete(repeated, len(ids), now_ms),
            count=len(ids),
            request_id=uuid.uuid4().hex if body.request_id is None else body.request_id,
            ids=ids,
            limit=len(ids) if body.limit is None else min(body.limit, len(ids)),
            asked_at=now_ms,
        )

    def check_count(self, count: int) -> None:
        """`BadRequest` where these are too many candidates."""
        if count > self._max_candidates:
            raise BadRequest(f"{count} candidates; allowed: {self._max_candidates}", 413)

    def complete(self, given: Mapping[str, Column], count: int, now_ms: int) -> dict[str, Column]:
        """All features in the order of the configuration: those given, the time's, and crosses."""
        columns: dict[str, Column] = dict(given)
        served_at = np.full(count, now_ms)
        for name, feature in self._derived.items():
            assert isinstance(feature, SparseFeature)
            columns[name] = derived(feature, columns, served_at)
        return {name: columns[name] for name in self.features}


def _columns(features: Mapping[str, Feature], given: Mapping[str, Any], count: int, place: str) -> dict[str, Column]:
    if given.keys() != features.keys():
        missing, unknown = sorted(features.keys() - given.keys()), sorted(given.keys() - features.keys())
        said = [f"missing {', '.join(missing)}"] if missing else []
        said += [f"unknown {', '.join(unknown)[:200]}"] if unknown else []
        raise BadRequest(f"{place}: {'; '.join(said)}; allowed: {', '.join(features) or 'none'}")
    made = {}
    for name, feature in features.items():
        value = given[name] if place != "features" or isinstance(given[name], bytes) else [given[name]]
        made[name] = column_of(f"{place}.{name}", feature, value, count)
    return made


def column_of(place: str, feature: Feature, value: Any, count: int) -> Column:
    """A list of ``count`` values, or their packed bytes, as a column; `BadRequest` where they do not fit the feature."""
    try:
        if isinstance(value, bytes) or _is_packed_list(feature, value):
            packed = tuple(value) if isinstance(value, list) else value
            problem = check_packed(place, feature, packed, count)
            if problem is not None:
                raise BadRequest(problem)
            return unpack(feature, [packed])
        if not isinstance(value, list) or len(value) != count:
            length = f"{len(value)} values" if isinstance(value, list) else "no list"
            raise BadRequest(f"{place}: {length}; allowed: {count}, one for each candidate")
        if isinstance(feature, SparseFeature):
            return column_of_values(place, feature, value)
        with np.errstate(over="ignore"):
            column = column_of_values(place, feature, value)
    except BadRecord as error:
        raise BadRequest(str(error)) from None
    assert not isinstance(column, Ragged), "only ids come in lists of any length"
    if not np.isfinite(column).all():
        raise BadRequest(f"{place}: a value is not finite in 32 bits")
    return column


def _is_packed_list(feature: Feature, value: Any) -> bool:
    """Whether lists of ids came as lengths and values, both in bytes."""
    is_pair = isinstance(value, list) and len(value) == 2 and all(isinstance(part, bytes) for part in value)
    return is_pair and isinstance(feature, SparseFeature) and feature.is_list


def repeat(column: Column, count: int) -> Column:
    """A column of one value, for ``count`` candidates."""
    if isinstance(column, Ragged):
        return Ragged(np.arange(count + 1) * len(column.values), np.tile(column.values, count))
    return column[np.zeros(count, np.int64)]


def engagement_of(body: EngagementBody, now_ms: int, max_future_ms: int) -> Engagement:
    """The engagement as its record has it; `BadRequest` where it breaks the contract."""
    engagement = Engagement(
        version=SCHEMA_VERSION,
        request_id=body.request_id,
        impression_id=body.impression_id,
        action=body.action,
        happened_at=now_ms if body.happened_at is None else body.happened_at,
        value=body.value,
    )
    try:
        return decode_engagement(encode(engagement), now_ms + max_future_ms)
    except BadRecord as error:
        raise BadRequest(str(error)) from None
