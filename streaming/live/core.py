"""The core of live features: what happened goes in as columns, in the order of its time, and numbers come out where keys are read.

It does no I/O and has no clock, and keeps one packed record for each key of each definition (``native/tally.hpp``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from streaming.features.columns import Ids
from streaming.live._native import Tally
from streaming.live.numbers import numbers_of
from streaming.live.settings import Age, Definition, LiveSettings, Rates, Seen, kept_ms
from streaming.live.spec import actions_of
from streaming.records.events import MAX_TIME_MS, MIN_TIME_MS

READ, SERVED, FIRST_ACTION = 0, 1, 2
"""What an operation is, as ``native/tally.hpp`` numbers it; `FIRST_ACTION` + i is action i."""
_NEVER = np.iinfo(np.int64).min


class Operations(NamedTuple):
    """m operations in the order in which they count. ``what`` int32 [m]; ``at`` int64 [m] (ms) when each happens, ``counted_at`` as
    of when one counts: an action as of its serving. ``keys`` int64 [m] and ``has_key`` bool [m] by definition."""

    what: npt.NDArray[np.int32]
    at: Ids
    counted_at: Ids
    keys: Mapping[str, Ids]
    has_key: Mapping[str, npt.NDArray[np.bool_]]


class Happened(NamedTuple):
    """What happened at m keys of a definition, in any order: ``keys`` int64 [m]; ``what`` int32 [m], never `READ`; ``at`` and
    ``counted_at`` int64 [m] (ms) as in `Operations`."""

    keys: Ids
    what: npt.NDArray[np.int32]
    at: Ids
    counted_at: Ids


Numbers: TypeAlias = npt.NDArray[np.float32]
_Doubles: TypeAlias = npt.NDArray[np.float64]
Packed: TypeAlias = npt.NDArray[np.uint64]
"""What is kept of k keys of a definition, uint64 [k, words], as ``native/tally.hpp`` keeps it."""


def are_totals(totals: Ids) -> bool:
    """Whether these can be `LiveCore.totals`."""
    return bool(((totals >= 0) & (totals <= 1 << 53)).all())


class KeysKept(NamedTuple):
    """How many keys a definition has, and the bytes of all of them with their index."""

    keys: int
    bytes: int


class LiveCore:
    """Keeps all definitions of a config; ``actions`` are those that operations may name, in the order of their codes."""

    def __init__(self, settings: LiveSettings, actions: list[str]) -> None:
        self._kept = {name: _Kept(each, actions) for name, each in settings.definitions()}
        self._totals = np.zeros(1 + len(actions), np.int64)

    def take(self, operations: Operations) -> dict[str, Numbers]:
        """Take operations. Return the numbers of each definition, float32 [reads, numbers]."""
        what = operations.what
        reads = np.flatnonzero(what == READ)
        happened = what[:, None] == np.arange(SERVED, SERVED + len(self._totals))
        totals = self._totals + np.cumsum(happened, axis=0)
        self._totals = totals[-1] if len(totals) else self._totals
        shares = _shares(totals[reads])
        return {name: kept.take(operations, name, reads, shares) for name, kept in self._kept.items()}

    def read(self, keys: Mapping[str, Ids], at_ms: int) -> dict[str, Numbers]:
        """Return the numbers of keys of definitions at a time, float32 [keys, numbers], as `take` of nothing but reads does."""
        shares = _shares(self._totals[None])
        return {name: self._kept[name].read(each, at_ms, shares) for name, each in keys.items()}

    def note(self, name: str, happened: Happened) -> None:
        """Take what happened at keys of one definition; `totals` are the caller's to count."""
        self._kept[name].note(happened)

    def packed(self, name: str, keys: Ids) -> Packed:
        """Return what is kept of keys of a definition."""
        out = np.empty((len(keys), self._kept[name].tally.width), np.uint64)
        self._kept[name].tally.pack(keys, out)
        return out

    def put(self, name: str, keys: Ids, packed: Packed) -> None:
        """Keep of keys what another core `packed`, in place of what was kept."""
        self._kept[name].tally.put(keys, packed)

    def sound(self, name: str, packed: Packed) -> npt.NDArray[np.bool_]:
        """Return which of keys another core can have `packed`, bool [k]: with times that there are, and counts that are numbers."""
        counts = self._kept[name].counts
        times, counted = packed[:, : packed.shape[1] - counts].view(np.int64), packed[:, packed.shape[1] - counts :]
        has_times = ((times >= MIN_TIME_MS) & (times <= MAX_TIME_MS)) | (times == _NEVER)
        amounts = counted.view(np.float64)
        found: npt.NDArray[np.bool_] = has_times.all(1) & ((amounts >= 0) & (amounts < np.inf)).all(1)
        return found

    def words(self, name: str) -> int:
        """Return how many words `packed` has for a key of a definition."""
        return self._kept[name].tally.width

    @property
    def totals(self) -> Ids:
        """How many servings there were, and of each action, int64 [1 + actions]."""
        return self._totals

    @totals.setter
    def totals(self, totals: Ids) -> None:
        self._totals = totals

    def kept(self) -> dict[str, KeysKept]:
        """Return how many keys each definition has, and what they cost."""
        return {name: KeysKept(each.tally.keys, each.tally.bytes) for name, each in self._kept.items()}


class _Kept:
    """What is kept for one definition."""

    def __init__(self, definition: Definition, actions: list[str]) -> None:
        self._definition = definition
        own = actions_of(definition)
        self._own = np.array([actions.index(action) for action in own], np.int64)
        self._codes = np.full(FIRST_ACTION + len(actions), -1, np.int32)
        self._codes[[READ, SERVED]] = READ, SERVED
        self._codes[FIRST_ACTION + self._own] = FIRST_ACTION + np.arange(len(own))
        half_lives = _half_lives(definition)
        self.counts = len(half_lives) * (1 + len(own))
        self.tally = Tally(
            expire_ms=kept_ms(definition),
            half_lives_ms=half_lives,
            actions=len(own),
            keeps_times=isinstance(definition, Age),
        )

    def note(self, happened: Happened) -> None:
        codes = self._codes[happened.what]
        own = codes >= 0
        nothing = np.empty((0, self.tally.width))
        self.tally.take(happened.keys[own], codes[own], happened.at[own], happened.counted_at[own], nothing)

    def take(self, operations: Operations, name: str, reads: Ids, shares: _Doubles) -> Numbers:
        """Take the operations that concern the definition; return its numbers of all reads. Nothing counts without a key, so what
        is read without one is as of a new key."""
        codes = self._codes[operations.what]
        chosen = (operations.has_key[name] | (codes == READ)) & (codes >= 0)
        found = np.empty((len(reads), self.tally.width))
        at = operations.at
        self.tally.take(operations.keys[name][chosen], codes[chosen], at[chosen], operations.counted_at[chosen], found)
        return numbers_of(self._definition, found, at[reads], shares.take(self._own, axis=1))

    def read(self, keys: Ids, at_ms: int, shares: _Doubles) -> Numbers:
        at, found = np.full(len(keys), at_ms), np.empty((len(keys), self.tally.width))
        self.tally.take(keys, np.full(len(keys), READ, np.int32), at, at, found)
        return numbers_of(self._definition, found, at, shares.take(self._own, axis=1))


def _shares(totals: Ids) -> _Doubles:
    """Return how often each action followed on servings, [k, actions], by totals [k, 1 + actions]."""
    found: _Doubles = (totals[:, 1:] + 1) / (totals[:, :1] + 2)
    return found


def _half_lives(definition: Definition) -> list[float]:
    """Return the half-lives (ms) of a definition's counts."""
    match definition:
        case Rates():
            return [float(each) for each in definition.half_life]
        case Age():
            return []
        case Seen():
            return [float("inf")]
