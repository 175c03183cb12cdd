"""Mistakes in a log that files alone do not show: what a replay would refuse, or take for something else."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from basis.problems import Problem
from basis.settings import format_duration
from minutely.config import Pipeline
from streaming.features.columns import Ragged
from streaming.live.spec import actions_of
from streaming.records.events import MAX_RECORD_BYTES
from streaming.source.logged_events import Bools, LoggedEvents
from streaming.source.to_records import RequestRecords

LEAST_SPREAD_MS = 60_000
"""How far apart rows of one request may be, whatever the windows."""
_PER_IMPRESSION_BYTES = 64
"""More than a record has for an impression beside its features and its id."""


def used(pipeline: Pipeline, events: LoggedEvents) -> Bools:
    """Return the engagements that a label looks at, bool [m]; joiners count the others as ``unused``."""
    actions = {action for label in pipeline.labels.values() for action in (label.action, label.decided_by)}
    return np.isin(
        events.engagements.action, [at for at, name in enumerate(events.engagements.actions) if name in actions]
    )


def refused(pipeline: Pipeline, events: LoggedEvents) -> dict[str, Bools]:
    """Return the engagements that a joiner refuses, bool [m], by reason."""
    looked_at, has_impression = used(pipeline, events), events.engagements.row >= 0
    return {
        "unmatched": looked_at & ~has_impression,
        "before_served": looked_at & has_impression & (events.delays() < 0),
    }


def mistakes(pipeline: Pipeline, events: LoggedEvents) -> list[Problem]:
    """Actions that the log does not know, requests and engagements that a replay refuses, requests that are several."""
    log = events.engagements
    allowed = f"never happens in the log; allowed: {', '.join(log.actions[:20])}"
    named = [(f"labels.{name}.action", label.action) for name, label in pipeline.labels.items()]
    for name, definition in pipeline.live.definitions():
        named += [(f"live.{name}.of", action) for action in actions_of(definition)]
    found = [
        Problem(pipeline.name, place, repr(action), allowed) for place, action in named if action not in log.actions
    ]
    dead = refused(pipeline, events)
    if len(log) and (log.row < 0).all():
        value = f"request {log.request_id[0].as_py()!r}, impression {log.impression_id[0].as_py()!r}"
        allowed = f"none of the {len(log):,} engagements has an impression; allowed: the keys of the impressions' file"
        found.append(Problem(pipeline.name, "source.engagements", value, allowed))
    delays = events.delays()
    for code, action in enumerate(log.actions):
        of_action = (log.row >= 0) & (log.action == code)
        early = np.flatnonzero(of_action & dead["before_served"])
        if early.size:
            value = f"{early.size:,} of {of_action.sum():,} before their impression was served"
            first = f"{log.impression_id[int(early[0])].as_py()!r}, {format_duration(-int(delays[early[0]]))} before"
            allowed = f"such as that of {first}; allowed: at its serving or later"
            found.append(Problem(pipeline.name, f"action {action}", value, allowed))
    return found + _several_requests(pipeline, events) + _large_requests(pipeline, events)


def _several_requests(pipeline: Pipeline, events: LoggedEvents) -> list[Problem]:
    """Ids that came again later: all their impressions would count as served when the first was."""
    longest = max([LEAST_SPREAD_MS, *(label.window for label in pipeline.labels.values())])
    far = np.flatnonzero(events.spread > longest)
    if not far.size:
        return []
    worst = int(far[np.argmax(events.spread[far])])
    value = f"{events.request_ids[worst].as_py()!r}, whose rows are {format_duration(int(events.spread[worst]))} apart"
    allowed = f"{far.size:,} such requests; allowed: {format_duration(longest)} apart, the longest window or a minute; "
    allowed += "name requests by more columns"
    return [Problem(pipeline.name, "source.impressions.request", value, allowed)]


def _large_requests(pipeline: Pipeline, events: LoggedEvents) -> list[Problem]:
    """Requests that no record holds. Only those that may be too large are packed."""
    own = _PER_IMPRESSION_BYTES + 4 * len(pipeline.labels)
    sizes = np.full(events.impressions, own, np.int64)
    for column in events.features.values():
        if isinstance(column, Ragged):
            sizes += 4 + 8 * np.diff(column.offsets)
        else:
            sizes += column.itemsize * (column[:1].size or 1)
    sizes += np.asarray(pc.binary_length(events.impression_ids).to_numpy(zero_copy_only=False), np.int64)
    maker = RequestRecords(events, pipeline.features)
    scores = np.zeros((events.impressions, len(pipeline.labels)), np.float32)
    found = []
    for at in np.flatnonzero(np.add.reduceat(sizes, events.starts[:-1]) > MAX_RECORD_BYTES).tolist():
        (record,) = maker.requests(at, at + 1, scores, 0, 0)
        if len(record) > MAX_RECORD_BYTES:
            impressions = int(events.starts[at + 1] - events.starts[at])
            value = f"{events.request_ids[at].as_py()!r}: {len(record):,} bytes of {impressions:,} impressions"
            allowed = f"allowed: {MAX_RECORD_BYTES:,} bytes a request"
            found.append(Problem(pipeline.name, "request", value, allowed))
    return found
