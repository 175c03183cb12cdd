"""Live features as their definitions say, one impression at a time, from all events before it; and logs to compare by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Several
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from basis.settings import format_duration
from streaming.features.columns import Column, Ragged, Repeated
from streaming.features.ids import MISSING
from streaming.live.settings import HALF_LIVES_KEPT, Age, Counting, Definition, LiveSettings, Rates, Sequence

LEAST = 1e-6


class Shown(NamedTuple):
    """An impression: its id, its request, when that was served (ms), and the ids of its features, None where one is missing."""

    id: int
    request: int
    served_at: int
    ids: Mapping[str, int | None]


class Done(NamedTuple):
    """An engagement with an impression."""

    impression: int
    action: str
    at: int


class Event(NamedTuple):
    """What counts: when it is seen, as of when it counts, and whether it is a serving (None) or an action."""

    at: int
    counted_at: int
    action: str | None
    shown: Shown


def events_of(log: Several[Shown], done: Several[Done], windows: Mapping[str, int]) -> list[Event]:
    """All servings, and the first of each action on an impression within its window, in the order of time."""
    first: dict[tuple[int, str], int] = {}
    served = {each.id: each for each in log}
    for each in done:
        shown = served.get(each.impression)
        if shown is not None and each.action in windows and 0 <= each.at - shown.served_at <= windows[each.action]:
            key = each.impression, each.action
            first[key] = min(first.get(key, each.at), each.at)
    found = [Event(each.served_at, each.served_at, None, each) for each in log]
    found += [Event(at, served[row].served_at, action, served[row]) for (row, action), at in first.items()]
    return sorted(found, key=lambda event: event.at)


def key_of(definition: Definition, shown: Shown) -> tuple[int, ...] | None:
    parts = [shown.ids[part] for part in definition.key]
    known = [part for part in parts if part is not None]
    return tuple(known) if len(known) == len(parts) else None


def since_its_last_rest(events: Several[Event], at: int, rest_ms: int) -> list[Event]:
    """The events of a key since it was last forgotten; none where it is forgotten at ``at``."""
    found: list[Event] = []
    for event in events:
        if found and event.at - found[-1].at > rest_ms:
            found = []
        found.append(event)
    return [] if not found or at - found[-1].at > rest_ms else found


def numbers(definition: Counting, shown: Shown, seen: Several[Event]) -> dict[str, float]:
    """The numbers of a definition for an impression before which ``seen`` happened, in the order of time."""
    key, at = key_of(definition, shown), shown.served_at
    own = [event for event in seen if key is not None and key_of(definition, event.shown) == key]
    if isinstance(definition, Rates):
        own = [event for event in own if event.action is None or event.action in definition.of]
        own = since_its_last_rest(own, at, HALF_LIVES_KEPT * max(definition.half_life))
        return dict(_rates(definition, own, at, seen))
    if isinstance(definition, Age):
        own = [event for event in own if event.action is None or event.action in definition.of]
        own = since_its_last_rest(own, at, definition.expire_after)
        served = [event.at for event in own if event.action is None]
        found = {"first": at - min(served, default=at), "served": _ago(served, at, definition.expire_after)}
        for action in definition.of:
            found[action] = _ago([event.at for event in own if event.action == action], at, definition.expire_after)
        return {name: math.log1p(each / 1000) for name, each in found.items()}
    own = since_its_last_rest([event for event in own if event.action is None], at, definition.within)
    since = _ago([event.at for event in own], at, definition.within)
    return {"times": math.log1p(len(own)), "since": math.log1p(since / 1000)}


def lists(definition: Sequence, shown: Shown, seen: Several[Event]) -> dict[str, list[int]]:
    """The lists of a sequence for an impression before which ``seen`` happened."""
    key, at = key_of(definition, shown), shown.served_at
    own = [
        (event.at, definition.of.index(event.action), *(_id(event.shown.ids[field]) for field in definition.fields))
        for event in seen
        if key is not None and key_of(definition, event.shown) == key and event.action in definition.of
    ]
    last = [each for each in sorted(own)[-definition.last :] if at - each[0] <= definition.within]
    found = {
        "age": [int(math.log2(1 + (at - each[0]) / 1000)) for each in last],
        "action": [each[1] for each in last],
    }
    return found | {field: [each[2 + place] for each in last] for place, field in enumerate(definition.fields)}


def _id(found: int | None) -> int:
    return MISSING if found is None else found


def _ago(times: Several[int], at: int, never: int) -> int:
    return at - max(times) if times else never


def _rates(definition: Rates, own: Several[Event], at: int, seen: Several[Event]) -> Iterator[tuple[str, float]]:
    for half_life in definition.half_life:
        name = format_duration(half_life)

        def decayed(action: str | None, half_life: int = half_life) -> float:
            return sum(2 ** ((each.counted_at - at) / half_life) for each in own if each.action == action)

        served = decayed(None)
        yield f"served.{name}", math.log1p(served)
        for action in dict.fromkeys(definition.of):
            total = sum(each.action is None for each in seen)
            common = (sum(each.action == action for each in seen) + 1) / (total + 2)
            share = (decayed(action) + definition.prior * common) / (served + definition.prior)
            share = min(max(share, LEAST), 1 - LEAST)
            yield f"{action}.{name}", math.log(share / (1 - share))


def values(
    settings: LiveSettings, log: Several[Shown], done: Several[Done], windows: Mapping[str, int]
) -> dict[str, dict[int, dict[str, Any]]]:
    """The numbers and lists of all impressions by definition, by the ids of the impressions."""
    events = events_of(log, done, windows)
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name, _ in settings.definitions()}
    for shown in log:
        seen = [event for event in events if event.at < shown.served_at - settings.visible_after]
        for name, definition in settings.definitions():
            says = (
                lists(definition, shown, seen) if isinstance(definition, Sequence) else numbers(definition, shown, seen)
            )
            found[name][shown.id] = says
    return found


def lists_of(column: Column | Repeated) -> list[list[int]]:
    """The lists of a column of lists."""
    if isinstance(column, Repeated):
        column = column.take(np.arange(column.counts.sum()))
    assert isinstance(column, Ragged)
    return [column.values[start:stop].tolist() for start, stop in pairwise(column.offsets.tolist())]


def rows_of(log: Several[Shown]) -> list[dict[str, Any]]:
    """The impressions as rows of a file."""
    return [{"t": each.served_at, "request": each.request, "id": each.id, **each.ids} for each in log]


def engagement_rows(log: Several[Shown], done: Several[Done]) -> list[dict[str, Any]]:
    """The engagements as rows of a file; those of no impression have a request that is none."""
    request = {each.id: each.request for each in log}
    return [
        {"at": each.at, "request": request.get(each.impression, -1), "id": each.impression, "what": each.action}
        for each in done
    ]
