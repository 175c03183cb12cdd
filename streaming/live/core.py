"""The core of live features: what happened goes in as columns, in the order of its time, and numbers come out where keys are read.

It does no I/O and has no clock, and keeps one packed record for each key of each definition (``native/records.hpp``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from streaming.features.columns import Ids
from streaming.live._native import Tally, Trail
from streaming.live.numbers import Lists, Raw, lists_of, numbers_of
from streaming.live.settings import Age, Counting, Definition, LiveSettings, Rates, Seen, Sequence, kept_ms
from streaming.live.spec import actions_of, fields_of

READ, SERVED, FIRST_ACTION = 0, 1, 2
"""What an operation is, as ``native/records.hpp`` numbers it; `FIRST_ACTION` + i is action i."""


class Operations(NamedTuple):
    """m operations in the order in which they count. ``what`` int32 [m]; ``at`` int64 [m] (ms) when each happens, ``counted_at`` as
    of when one counts: an action as of its serving. By definition, ``keys`` int64 [m] and ``has_key`` bool [m]; and of sequences
    ``ids`` int64 [m, fields], what they keep of each impression."""

    what: npt.NDArray[np.int32]
    at: Ids
    counted_at: Ids
    keys: Mapping[str, Ids]
    has_key: Mapping[str, npt.NDArray[np.bool_]]
    ids: Mapping[str, Ids]


class Happened(NamedTuple):
    """What happened at m keys of a definition, in any order: ``keys`` int64 [m]; ``what`` int32 [m], never `READ`; ``at`` and
    ``counted_at`` int64 [m] (ms) and ``ids`` int64 [m, fields] as in `Operations`."""

    keys: Ids
    what: npt.NDArray[np.int32]
    at: Ids
    counted_at: Ids
    ids: Ids


Found: TypeAlias = npt.NDArray[np.float32] | Lists
"""What k reads found of a definition: its numbers, float32 [k, numbers], or its lists."""
Packed: TypeAlias = npt.NDArray[np.uint64]
"""What is kept of k keys of a definition, uint64 [k, words], as ``native/records.hpp`` keeps it."""


class KeysKept(NamedTuple):
    """How many keys a definition has, and the bytes of all of them with their index."""

    keys: int
    bytes: int


class LiveCore:
    """Keeps all definitions of a config; ``actions`` are those that operations may name, in the order of their codes."""

    def __init__(self, settings: LiveSettings, actions: list[str]) -> None:
        self._kept = {name: _kept(each, actions) for name, each in settings.definitions()}
        self._totals = np.zeros(1 + len(actions), np.int64)

    def take(self, operations: Operations) -> dict[str, Found]:
        """Take operations. Return what the reads among them found of each definition."""
        what = operations.what
        reads = np.flatnonzero(what == READ)
        happened = what[:, None] == np.arange(SERVED, SERVED + len(self._totals))
        totals = self._totals + np.cumsum(happened, axis=0)
        self._totals = totals[-1] if len(totals) else self._totals
        before = totals[reads]
        shares = (before[:, 1:] + 1) / (before[:, :1] + 2)
        return {name: kept.take(operations, name, reads, shares) for name, kept in self._kept.items()}

    def note(self, name: str, happened: Happened) -> None:
        """Take what happened at keys of one definition; `totals` are the caller's to count."""
        self._kept[name].note(happened)

    def packed(self, name: str, keys: Ids) -> Packed:
        """Return what is kept of keys of a definition."""
        out = np.empty((len(keys), self._kept[name].native.width), np.uint64)
        self._kept[name].native.pack(keys, out)
        return out

    def put(self, name: str, keys: Ids, packed: Packed) -> None:
        """Keep of keys what another core `packed`, in place of what was kept."""
        self._kept[name].native.put(keys, packed)

    def words(self, name: str) -> int:
        """Return how many words `packed` has for a key of a definition."""
        return self._kept[name].native.width

    @property
    def totals(self) -> Ids:
        """How many servings there were, and of each action, int64 [1 + actions]."""
        return self._totals

    @totals.setter
    def totals(self, totals: Ids) -> None:
        self._totals = totals

    def kept(self) -> dict[str, KeysKept]:
        """Return how many keys each definition has, and what they cost."""
        return {name: KeysKept(each.native.keys, each.native.bytes) for name, each in self._kept.items()}


class _Kept(ABC):
    """What is kept for one definition."""

    native: Tally | Trail

    def __init__(self, definition: Definition, actions: list[str]) -> None:
        self._own = np.array([actions.index(action) for action in actions_of(definition)], np.int64)
        self._codes = np.full(FIRST_ACTION + len(actions), -1, np.int32)
        self._codes[[READ, SERVED]] = READ, SERVED
        self._codes[FIRST_ACTION + self._own] = FIRST_ACTION + np.arange(len(self._own))

    @abstractmethod
    def note(self, happened: Happened) -> None:
        """Take what happened."""

    @abstractmethod
    def take(self, operations: Operations, name: str, reads: Ids, shares: npt.NDArray[np.float64]) -> Found:
        """Take the operations that concern the definition; return what all reads found."""


class _Counted(_Kept):
    """Counts and times."""

    def __init__(self, definition: Counting, actions: list[str]) -> None:
        super().__init__(definition, actions)
        self._definition = definition
        self.native = self._tally = Tally(
            expire_ms=kept_ms(definition),
            half_lives_ms=_half_lives(definition),
            actions=len(self._own),
            keeps_times=isinstance(definition, Age),
        )

    def note(self, happened: Happened) -> None:
        codes = self._codes[happened.what]
        own = codes >= 0
        nothing = np.empty((0, self._tally.width))
        self._tally.take(happened.keys[own], codes[own], happened.at[own], happened.counted_at[own], nothing)

    def take(self, operations: Operations, name: str, reads: Ids, shares: npt.NDArray[np.float64]) -> Found:
        keys, has_key, codes = operations.keys[name], operations.has_key[name], self._codes[operations.what]
        chosen = has_key & (codes >= 0)
        known = has_key[reads]
        found = np.empty((int(known.sum()), self._tally.width))
        at = operations.at
        self._tally.take(keys[chosen], codes[chosen], at[chosen], operations.counted_at[chosen], found)
        raw = Raw.unknown(self._definition, len(reads))
        raw.put(known, found)
        return numbers_of(self._definition, raw, at[reads], shares[:, self._own])


class _Listed(_Kept):
    """Sequences."""

    def __init__(self, definition: Sequence, actions: list[str]) -> None:
        super().__init__(definition, actions)
        self._codes[SERVED] = -1
        self.native = self._trail = Trail(
            within_ms=definition.within,
            last=definition.last,
            actions=len(self._own),
            fields=len(fields_of(definition)),
        )

    def note(self, happened: Happened) -> None:
        codes = self._codes[happened.what]
        own = codes >= 0
        nothing = np.empty(0, np.int64)
        self._trail.take(happened.keys[own], codes[own], happened.at[own], happened.ids[own], nothing)

    def take(self, operations: Operations, name: str, reads: Ids, shares: npt.NDArray[np.float64]) -> Found:
        has_key, codes = operations.has_key[name], self._codes[operations.what]
        chosen = has_key & (codes >= 0)
        known = has_key[reads]
        lengths = np.zeros(len(reads), np.int64)
        of_known = np.empty(int(known.sum()), np.int64)
        keys, ids, at = operations.keys[name][chosen], operations.ids[name][chosen], operations.at[chosen]
        count = self._trail.take(keys, codes[chosen], at, ids, of_known)
        found = np.empty((count, 2 + ids.shape[1]), np.int64)
        self._trail.found(found)
        lengths[known] = of_known
        return lists_of(found, lengths, operations.at[reads])


def _kept(definition: Definition, actions: list[str]) -> _Kept:
    return _Listed(definition, actions) if isinstance(definition, Sequence) else _Counted(definition, actions)


def _half_lives(definition: Counting) -> list[float]:
    """Return the half-lives (ms) of a definition's counts."""
    match definition:
        case Rates():
            return [float(each) for each in definition.half_life]
        case Age():
            return []
        case Seen():
            return [float("inf")]
