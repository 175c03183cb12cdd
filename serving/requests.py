"""What is asked of a replica, as JSON or msgpack, and how it becomes columns.

A ranking request has its own features (user, context) once, and a column for each feature of its candidates, with the values that
the product has and logs::

    {"features": {"user": "u7"}, "candidates": {"ids": ["a", "b"], "features": {"item": [12, 15], "price": [0.5, 2]}}}

In msgpack a column may also be packed: little-endian bytes, which need no conversion.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
import numpy as np

from basis.decoding import why
from serving.inputs import BadRequest, Inputs, ids_in_lists, is_packed, raw_column
from serving.live import LiveValues
from streaming.features.columns import Column, ScoringColumns, missing_column, repeated
from streaming.features.kinds import Feature, live_address
from streaming.features.transforms import Raw, derived, from_raw, is_derived
from streaming.records.events import (
    FORMAT_VERSION,
    MAX_ID_LENGTH,
    MAX_TIME_MS,
    MIN_TIME_MS,
    BadRecord,
    Engagement,
    Id,
    decode_engagement,
    encode,
)
from streaming.source.rows.side_tables import SideTable

ItemNumber: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_MAX_ENGAGEMENTS = 1000
_MAX_REQUEST_ID = MAX_ID_LENGTH - 8  # an impression's id is its request's, and its place


class Candidates(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be ranked: an id for each, unique in the request, and a column for each feature of scope ``impression``."""

    ids: Annotated[list[str | ItemNumber], msgspec.Meta(min_length=1)]
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
    except Exception as error:
        raise BadRequest(f"not {'msgpack' if msgpack else 'JSON'}: {why(error)}", 400) from None


@dataclass(frozen=True, slots=True)
class Query:
    """Candidates to score, with the columns of their features, and the names of what was given beyond those. ``missing`` are live
    features whose values are not known; their columns have missing values."""

    columns: ScoringColumns
    count: int
    unknown: Sequence[str] = field(default=(), kw_only=True)
    missing: Sequence[str] = field(default=(), kw_only=True)


@dataclass(frozen=True, slots=True)
class RankQuery(Query):
    """A ranking request whose features are right; ``asked_at`` in ms."""

    request_id: str
    ids: Sequence[str | int]
    limit: int
    asked_at: int


@dataclass(frozen=True, slots=True)
class Given:
    """What was given for a feature at some place of a request: ``count`` values, or their packed bytes."""

    name: str
    place: str
    feature: Feature
    value: Any
    count: int


class RequestReader:
    """Makes columns of what was asked, by a pipeline's features, as they are made of logs: ``sides`` gives the side tables."""

    def __init__(
        self,
        features: Mapping[str, Feature],
        inputs: Inputs,
        sides: Callable[[], Mapping[str, SideTable]],
        max_candidates: int,
        max_ids: int,
        live: LiveValues | None = None,
    ) -> None:
        self.features = dict(features)
        self.inputs = inputs
        self._sides = sides
        self._max_candidates = max_candidates
        self._max_ids = max_ids
        self._live = live

    def rank(self, payload: bytes, *, msgpack: bool, now_ms: int) -> RankQuery:
        """The ranking request in ``payload``; `BadRequest` where it breaks the contract."""
        body = decode(RankRequest, payload, msgpack=msgpack)
        ids = body.candidates.ids
        count = len(ids)
        self.check_count(count)
        if len(set(ids) if len(set(map(type, ids))) == 1 else set(map(str, ids))) != count:
            raise BadRequest("candidates.ids: an id is given twice")
        once = {name: value if is_packed(value) else [value] for name, value in body.features.items()}
        given = [
            *_given(self.inputs.of_request, once, 1, "features"),
            *_given(self.inputs.of_candidates, body.candidates.features, count, "candidates.features"),
        ]
        columns, missing = self.columns(self.raw_columns(given), count, now_ms)
        return RankQuery(
            columns=columns,
            count=count,
            request_id=uuid.uuid4().hex if body.request_id is None else body.request_id,
            ids=ids,
            limit=count if body.limit is None else min(body.limit, count),
            asked_at=now_ms,
            unknown=sorted(
                (once.keys() - self.inputs.of_request.keys())
                | (body.candidates.features.keys() - self.inputs.of_candidates.keys())
            ),
            missing=missing,
        )

    def check_count(self, count: int) -> None:
        """`BadRequest` where these are too many candidates."""
        if count > self._max_candidates:
            raise BadRequest(f"{count} candidates; allowed: {self._max_candidates}", 413)

    def raw_columns(self, given: Sequence[Given]) -> dict[str, Raw]:
        """The raw columns of what was given, by feature; `BadRequest` where it does not fit or is too much. Lists are
        counted first, since a request may have any number of ids in them."""
        ids = [ids_in_lists(each.feature, each.value) for each in given]
        if sum(ids) > self._max_ids:
            most = max(range(len(ids)), key=ids.__getitem__)
            said = f"{given[most].place}: {ids[most]} of {sum(ids)} ids in lists"
            raise BadRequest(f"{said}; allowed: {self._max_ids} in a request (serve.max_ids)", 413)
        return {each.name: raw_column(each.place, each.feature, each.value, each.count) for each in given}

    def columns(self, given: Mapping[str, Raw], count: int, now_ms: int) -> tuple[ScoringColumns, Sequence[str]]:
        """All features of ``count`` candidates, in the order of the configuration, and the names of live ones that are missing.
        What the request says is there once, whatever the number of candidates."""
        sides, served_at, sizes = self._sides(), np.array([now_ms]), np.array([count])
        places = {
            side: sides[side].find([np.asarray(given[key.name]) for key in keys])
            for side, keys in self.inputs.keys.items()
        }
        made: dict[str, Column] = {}
        for name, feature in self.features.items():
            if live_address(feature) is not None:
                continue
            if is_derived(feature):
                made[name] = derived(feature, made, served_at, sizes)
                continue
            if feature.side is not None:
                raw = sides[feature.side].take(name, places[feature.side])
            else:
                raw = given[name]
            made[name] = from_raw(feature, raw, served_at)
        missing: list[str] = []
        if self._live is not None:
            values = self._live.values(made, now_ms)
            if values is None:
                missing = list(self._live.features)
                values = {name: missing_column(self.features[name], 1) for name in missing}
            made |= values
        return {name: repeated(made[name], count) for name in self.features}, missing


def _given(inputs: Mapping[str, Feature], given: Mapping[str, Any], count: int, place: str) -> list[Given]:
    """What is not among the inputs is ignored: products send a feature before every replica has the config with it."""
    if missing := sorted(inputs.keys() - given.keys()):
        unknown = sorted(given.keys() - inputs.keys())
        said = f"missing {', '.join(missing)}" + (f"; unknown {', '.join(unknown)[:200]}" if unknown else "")
        raise BadRequest(f"{place}: {said}; allowed: {', '.join(inputs)}")
    return [Given(name, f"{place}.{name}", feature, given[name], count) for name, feature in inputs.items()]


def engagement_of(body: EngagementBody, now_ms: int, max_future_ms: int, earliest_ms: int) -> Engagement:
    """The engagement as its record has it; `BadRequest` where it breaks the contract, as joiners check it."""
    engagement = Engagement(
        version=FORMAT_VERSION,
        request_id=body.request_id,
        impression_id=body.impression_id,
        action=body.action,
        happened_at=now_ms if body.happened_at is None else body.happened_at,
        value=body.value,
    )
    try:
        return decode_engagement(encode(engagement), now_ms + max_future_ms, earliest_ms)
    except BadRecord as error:
        raise BadRequest(str(error)) from None
