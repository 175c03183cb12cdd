"""What a replica answers over HTTP besides the Open Inference Protocol, and in which form."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from serving.ranking import Ranking, impression_ids
from serving.requests import RankQuery

JSON, MSGPACK = "application/json", "application/msgpack"


class RankResponse(msgspec.Struct, omit_defaults=True):
    """Candidates by their combined score, best first, in columns. ``impression_ids`` are for sending engagements.

    Rows were of version ``sparse_version``, or where a delta was being applied of one up to ``sparse_version_until``. ``missing``,
    where there are such, are the live features whose values the replica does not know.
    """

    request_id: str
    ids: list[str | int]
    impression_ids: list[str]
    score: list[float | None]
    scores: dict[str, list[float | None]]
    sparse_version: int
    sparse_version_until: int
    dense_version: int
    freshness_seconds: float | None
    missing: list[str] = []


class Accepted(msgspec.Struct, omit_defaults=True):
    """How many engagements will be logged, and how many of them have an action that no label looks at."""

    accepted: int
    unused: int = 0


class Readiness(msgspec.Struct):
    """Whether the replica should get requests; ``state`` is that of its freshness, or says why not."""

    ready: bool
    state: str


class Live(msgspec.Struct):
    """It answers."""

    live: bool = True


class Score(msgspec.Struct):
    """The weight of each label in the score that orders candidates."""

    score: dict[str, float]


class Pinned(msgspec.Struct):
    """The version of the replica's own pin; null without one: it follows the newest, or what a rollback holds all replicas at."""

    version: int | None


class Shadowed(msgspec.Struct):
    """The version that scores a share of the requests beside; null and 0 where none does."""

    version: int | None
    share: float


class Problem(msgspec.Struct):
    """What was wrong, and what is allowed."""

    error: str


def rank_answer(
    asked: RankQuery, answer: Ranking, order: npt.NDArray[np.int64], labels: list[str], freshness: float | None
) -> RankResponse:
    """The answer to a ranking request, with its candidates in ``order`` int64 [limit]."""
    scores = answer.scores[order]
    versions = answer.versions
    ids = asked.ids
    return RankResponse(
        request_id=asked.request_id,
        ids=[ids[place] for place in order.tolist()],
        impression_ids=impression_ids(asked, order),
        score=answer.combined[order].tolist(),
        scores={label: scores[:, at].tolist() for at, label in enumerate(labels)},
        sparse_version=versions.sparse,
        sparse_version_until=versions.sparse_until,
        dense_version=versions.dense,
        freshness_seconds=freshness,
        missing=list(asked.missing),
    )


_json = msgspec.json.Encoder()
_msgpack = msgspec.msgpack.Encoder()


def encode(answer: msgspec.Struct, *, msgpack: bool) -> bytes:
    """An answer's bytes; numbers that are not finite are null in JSON."""
    return _msgpack.encode(answer) if msgpack else _json.encode(answer)
