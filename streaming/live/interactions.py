"""The `interactions` topic: what happened at the keys of live features, in the partition that owns each key.

A joiner knows the features of every impression, so it writes its servings and actions by the keys of each definition, some thousand
in a record. Format: docs/state-format.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import msgspec
import numpy as np

from basis.decoding import refusing
from streaming.features.columns import Ids
from streaming.live.core import FIRST_ACTION, SERVED, Happened, are_totals
from streaming.records.events import MAX_TIME_MS, MIN_TIME_MS, BadRecord, bad_record, check_size

_VERSION = 1
_AT_ONCE = 1 << 14
"""Things in a record; each takes 25 bytes, and 8 for each id that a sequence keeps."""
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


class _Part(msgspec.Struct, array_like=True, gc=False):
    """What happened at keys of one definition, as little-endian columns: int64, int8, int64 and int64; and of a sequence
    int64 [m, fields]."""

    definition: str
    keys: bytes
    what: bytes
    at: bytes
    counted_at: bytes
    ids: bytes = b""


class _Interactions(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """``actions`` are those that are counted, by code; ``totals`` int64 [1 + actions] of what the joiner counts only here."""

    version: int
    actions: list[str]
    parts: list[_Part] = []
    totals: bytes = b""


_decoder = msgspec.msgpack.Decoder(_Interactions)
_encoder = msgspec.msgpack.Encoder()


def owner_of(keys: Ids, partitions: int) -> Ids:
    """Return which of so many partitions owns each key, int64 [m]."""
    spread = keys.view(np.uint64) * _SPREAD >> np.uint64(33)
    return spread.astype(np.int64) % partitions


def interactions_records(
    actions: Sequence[str], happened: Mapping[str, Happened], totals: Ids, partition: int, partitions: int
) -> Iterator[tuple[int, bytes]]:
    """Yield what happened, by the names of definitions, as records with their partitions. ``totals`` go to one of them."""
    parts: dict[int, list[_Part]] = {partition: []}
    for definition, each in happened.items():
        owners = owner_of(each.keys, partitions)
        order = np.argsort(owners, kind="stable")
        ends = np.searchsorted(owners[order], np.arange(partitions + 1))
        for owner in np.flatnonzero(np.diff(ends)).tolist():
            for start in range(ends[owner], ends[owner + 1], _AT_ONCE):
                rows = order[start : min(start + _AT_ONCE, ends[owner + 1])]
                parts.setdefault(owner, []).append(
                    _Part(
                        definition,
                        each.keys[rows].tobytes(),
                        each.what[rows].astype(np.int8).tobytes(),
                        each.at[rows].tobytes(),
                        each.counted_at[rows].tobytes(),
                        each.ids[rows].tobytes(),
                    )
                )
    for owner, found in parts.items():
        left = totals.tobytes() if owner == partition else b""
        for part in _filled(found):
            record = _Interactions(version=_VERSION, actions=list(actions), parts=part, totals=left)
            yield owner, _encoder.encode(record)
            left = b""


def _filled(parts: list[_Part]) -> Iterator[list[_Part]]:
    """Yield parts in lists that fill a record; at least one list."""
    found: list[_Part] = []
    room = _AT_ONCE
    for part in parts:
        if found and len(part.what) > room:
            yield found
            found, room = [], _AT_ONCE
        found.append(part)
        room -= len(part.what)
    yield found


class Interactions:
    """What a record says: how often what happened in all, by action (``None``: servings), and what at keys of which definition."""

    def __init__(self, payload: bytes) -> None:
        """Decode a record; `BadRecord` if it is none."""
        check_size(len(payload))
        with refusing(partial(bad_record, payload, allowed=_VERSION)):
            record = _decoder.decode(payload)
        if record.version != _VERSION:
            raise BadRecord("version", f"record version {record.version}; allowed: {_VERSION}")
        self.actions = record.actions
        with refusing(partial(BadRecord, "malformed")):
            totals = np.frombuffer(record.totals, "<i8")
            if len(totals) not in (0, 1 + len(self.actions)):
                raise ValueError(f"{len(totals)} totals of {len(self.actions)} actions")
            if not are_totals(totals):
                raise ValueError("totals; allowed: 0 to 2^48")
            self.totals: dict[str | None, int] = dict(zip((None, *self.actions), totals.tolist(), strict=False))
            self.happened = [(part.definition, self._happened(part)) for part in record.parts]

    def _happened(self, part: _Part) -> Happened:
        keys, at, counted_at = (np.frombuffer(each, "<i8") for each in (part.keys, part.at, part.counted_at))
        what = np.frombuffer(part.what, np.int8).astype(np.int32)
        if not len(keys) == len(what) == len(at) == len(counted_at):
            raise ValueError(f"columns of {len(keys)}, {len(what)}, {len(at)} and {len(counted_at)} rows")
        if len(what) and not SERVED <= what.min() <= what.max() < FIRST_ACTION + len(self.actions):
            raise ValueError(f"codes {what.min()} to {what.max()}; allowed: {SERVED} to {SERVED + len(self.actions)}")
        if any(len(each) and not MIN_TIME_MS <= each.min() <= each.max() <= MAX_TIME_MS for each in (at, counted_at)):
            raise ValueError(f"times beyond {MIN_TIME_MS} to {MAX_TIME_MS}")
        ids = np.frombuffer(part.ids, "<i8")
        if len(ids) % max(len(keys), 1):
            raise ValueError(f"{len(ids)} ids of {len(keys)} rows")
        return Happened(keys, what, at, counted_at, ids.reshape(len(keys), len(ids) // max(len(keys), 1)))
