"""From what was asked to answers: requests scored together, each ordered by the weighted formula over its labels' predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from basis.problems import Problem
from serving.requests import Query, RankQuery
from streaming.features.columns import Column, Ragged, Repeated, ScoringColumns, pack, packed_width
from streaming.features.kinds import Feature
from streaming.records.events import FORMAT_VERSION, MAX_RECORD_BYTES, Request, encode
from streaming.records.labels import Label

if TYPE_CHECKING:  # `minutely check` reads this module and shall not wait seconds for torch
    from serving.replica import Replica, Versions

_ID_BYTES = 36  # two of msgpack's, 32 digits of the request's id, a dot, and a digit of the place
_POSITION_BYTES = _LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class Ranking:
    """The predictions for what was asked, float32 [count, labels], their combined scores, float32 [count], and their versions."""

    scores: npt.NDArray[np.float32]
    combined: npt.NDArray[np.float32]
    versions: Versions


class Ranker:
    """Scores with a replica; ``weights`` are by label, and may be replaced at any time."""

    def __init__(self, replica: Replica, labels: Mapping[str, Label], weights: Mapping[str, float]) -> None:
        self._replica = replica
        self.labels = list(labels)
        self.weights = dict(weights) or {self.labels[0]: 1.0}

    @property
    def loaded(self) -> bool:
        """Whether there is a model, or one that takes over is worth waiting for."""
        return self._replica.loaded

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each label in the combined score; labels without one do not count."""
        return dict(zip(self.labels, self._weights.tolist(), strict=True))

    @weights.setter
    def weights(self, weights: Mapping[str, float]) -> None:
        unknown = sorted(weights.keys() - set(self.labels))
        if unknown:
            raise ValueError(f"score: {', '.join(unknown)[:200]}; allowed: {', '.join(self.labels)}")
        self._weights = np.array([weights.get(label, 0.0) for label in self.labels])

    def combine(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The combined scores of predictions [..., labels]; float32 [...]."""
        combined: npt.NDArray[np.float32] = (scores @ self._weights).astype(np.float32)
        return combined

    def answer(self, batch: Sequence[Query]) -> list[Ranking] | None:
        """Answers to requests that are scored together; None while another model takes over, when it is to be asked again."""
        columns = batch[0].columns if len(batch) == 1 else _together([asked.columns for asked in batch])
        total = sum(asked.count for asked in batch)
        if not self._replica.whole:
            return None
        scored = self._replica.score_with_versions(columns, total)
        if not self._replica.whole:
            return None
        combined = self.combine(scored.scores)
        answers, at = [], 0
        for asked in batch:
            part = slice(at, at + asked.count)
            answers.append(Ranking(scored.scores[part], combined[part], scored.versions))
            at += asked.count
        return answers


def order_of(asked: RankQuery, answer: Ranking) -> npt.NDArray[np.int64]:
    """Which candidates are answered, best first; of equal ones that which was asked first. int64 [limit]."""
    return np.argsort(-answer.combined, kind="stable")[: asked.limit]


def impression_ids(asked: RankQuery, order: npt.NDArray[np.int64]) -> list[str]:
    """The impressions of an answer, in its order: the request's id and the candidate's place in what was asked."""
    return [f"{asked.request_id}.{place}" for place in order.tolist()]


def least_impression_bytes(features: Mapping[str, Feature], labels: int) -> int:
    """What an impression takes in its record at least: with empty lists, and a request's id of our own."""
    own = [packed_width(feature) for feature in features.values() if feature.scope == "impression"]
    return _ID_BYTES + _POSITION_BYTES + 4 * labels + sum(_LENGTH_BYTES if width < 0 else width for width in own)


def record_problems(name: str, features: Mapping[str, Feature], labels: int, max_candidates: int) -> list[Problem]:
    """What is wrong with a configuration, ``name``, whose largest answers no joiner would take."""
    each = least_impression_bytes(features, labels)
    if each * max_candidates <= MAX_RECORD_BYTES:
        return []
    said = f"their record has {each * max_candidates} bytes, {each} each; allowed: {MAX_RECORD_BYTES} bytes, "
    said += f"so max_candidates: {MAX_RECORD_BYTES // each} at most, smaller vectors, or log: false"
    return [Problem(name, "serve.max_candidates", str(max_candidates), said)]


def impressions_record(
    features: Mapping[str, Feature], schema: str, asked: RankQuery, answer: Ranking, order: npt.NDArray[np.int64]
) -> bytes:
    """What was served, as `impressions` holds it: the features that were scored, in the order that was answered.

    ``schema`` is the fingerprint of the config, by which a joiner with another one takes it over. It says where live features are
    missing, since no other replica may know them better."""
    shared, own = {}, {}
    for name, feature in features.items():
        if name in asked.missing:
            continue
        column = asked.columns[name]
        if feature.scope == "request":
            shared[name] = pack(column.lists if isinstance(column, Repeated) else column, 0, 1)
        else:
            taken = column.take(order) if isinstance(column, Ragged | Repeated) else column[order]
            own[name] = pack(taken, 0, len(order))
    return encode(
        Request(
            version=FORMAT_VERSION,
            request_id=asked.request_id,
            served_at=asked.asked_at,
            impression_ids=impression_ids(asked, order),
            shared=shared,
            features=own,
            positions=np.arange(len(order), dtype="<i4").tobytes(),
            scores=np.ascontiguousarray(answer.scores[order]).tobytes(),
            sparse_version=answer.versions.sparse,
            dense_version=answer.versions.dense,
            schema=schema,
            columns="some" if asked.missing else "all",
        )
    )


def _together(parts: Sequence[ScoringColumns]) -> ScoringColumns:
    """The columns of several requests end to end."""
    return {name: _end_to_end([part[name] for part in parts]) for name in parts[0]}


def _end_to_end(columns: Sequence[Column | Repeated]) -> Column | Repeated:
    if any(isinstance(column, Repeated) for column in columns):
        each = [column if isinstance(column, Repeated) else _once(column) for column in columns]
        return Repeated(_lists_end_to_end([one.lists for one in each]), np.concatenate([one.counts for one in each]))
    ragged = [column for column in columns if isinstance(column, Ragged)]
    if ragged:
        return _lists_end_to_end(ragged)
    joined: Column = np.concatenate([column for column in columns if not isinstance(column, Ragged | Repeated)])
    return joined


def _once(column: Column) -> Repeated:
    assert isinstance(column, Ragged), "lists stay lists"
    return Repeated(column, np.ones(len(column.offsets) - 1, np.int64))


def _lists_end_to_end(lists: Sequence[Ragged]) -> Ragged:
    lengths = np.concatenate([np.diff(each.offsets) for each in lists])
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    return Ragged(offsets, np.concatenate([each.values for each in lists]))
