"""Turns logged events into records for the log's two inputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from streaming.features.columns import pack
from streaming.features.kinds import Feature
from streaming.records.events import FORMAT_VERSION, DeadLetter, Engagement, Request, encode
from streaming.source.logged_events import LoggedEvents


class RequestRecords:
    """Makes records from a log, a range at a time."""

    def __init__(self, events: LoggedEvents, features: Mapping[str, Feature]) -> None:
        self._events = events
        self._shared = {name: events.features[name] for name, item in features.items() if item.scope == "request"}
        self._own = {name: events.features[name] for name in features if name not in self._shared}

    def requests(
        self, start: int, stop: int, scores: npt.NDArray[np.float32], sparse_version: int, dense_version: int
    ) -> list[bytes]:
        """Return requests ``start`` to ``stop`` as served; ``scores`` float32 [impressions of the log, labels]."""
        events = self._events
        bounds = events.starts[start : stop + 1].tolist()
        first, last = bounds[0], bounds[-1]
        request_ids = events.request_ids.slice(start, stop - start).to_pylist()
        impression_ids = events.impression_ids.slice(first, last - first).to_pylist()
        times = events.served_at[start:stop].tolist()
        records = []
        for at, (request_id, served_at) in enumerate(zip(request_ids, times, strict=True)):
            begin, end = bounds[at], bounds[at + 1]
            request = Request(
                version=FORMAT_VERSION,
                request_id=request_id,
                served_at=served_at,
                impression_ids=impression_ids[begin - first : end - first],
                shared={name: pack(column, begin, begin + 1) for name, column in self._shared.items()},
                features={name: pack(column, begin, end) for name, column in self._own.items()},
                scores=scores[begin:end].tobytes(),
                sparse_version=sparse_version,
                dense_version=dense_version,
            )
            records.append(encode(request))
        return records

    def engagements(self, start: int, stop: int) -> list[bytes]:
        """Return engagements ``start`` to ``stop``."""
        events = self._events.engagements
        return [
            encode(
                Engagement(
                    version=FORMAT_VERSION,
                    request_id=request_id,
                    impression_id=impression_id,
                    action=events.actions[action],
                    happened_at=happened_at,
                    value=value,
                )
            )
            for request_id, impression_id, action, happened_at, value in zip(
                events.request_id.slice(start, stop - start).to_pylist(),
                events.impression_id.slice(start, stop - start).to_pylist(),
                events.action[start:stop].tolist(),
                events.happened_at[start:stop].tolist(),
                events.value[start:stop].tolist(),
                strict=True,
            )
        ]

    def rejects(self) -> list[bytes]:
        """Return rows of the files that could not be used, as dead letters of the topic ``source``."""
        return [
            encode(
                DeadLetter(
                    topic="source",
                    partition=0,
                    offset=offset,
                    reason=reject.reason,
                    detail=f"{reject.file}: {reject.place}: {reject.value}; {reject.detail}",
                    payload=reject.value.encode(),
                )
            )
            for offset, reject in enumerate(self._events.rejects)
        ]
