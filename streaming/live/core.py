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
from streaming.live.numbers import Found, lists_of, numbers_of
from streaming.live.settings import Age, Counting, Definition, LiveSettings, Rates, Seen, Sequence, kept_ms
from streaming.live.spec import actions_of, fields_of
from streaming.records.events import MAX_TIME_MS, MIN_TIME_MS

READ, SERVED, FIRST_ACTION = 0, 1, 2
"""What an operation is, as ``native/records.hpp`` numbers it; `FIRST_ACTION` + i is action i."""
_NEVER = np.iinfo(np.int64).min


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


_Bools: TypeAlias = npt.NDArray[np.bool_]
_Doubles: TypeAlias = npt.NDArray[np.float64]
Packed: TypeAlias = npt.NDArray[np.uint64]
"""What is kept of k keys of a definition, uint64 [k, words], as ``native/records.hpp`` keeps it."""


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
        self._kept = {name: _kept(each, actions) for name, each in settings.definitions()}
        self._totals = np.zeros(1 + len(actions), np.int64)

    def take(self, operations: Operations) -> dict[str, Found]:
        """Take operations. Return what the reads among them found of each definition."""
        what = operations.what
        reads = np.flatnonzero(what == READ)
        happened = what[:, None] == np.arange(SERVED, SERVED + len(self._totals))
        totals = self._totals + np.cumsum(happened, axis=0)
        self._totals = totals[-1] if len(totals) else self._totals
        shares = _shares(totals[reads])
        return {name: kept.take(operations, name, reads, shares) for name, kept in self._kept.items()}

    def read(self, keys: Mapping[str, Ids], at_ms: int) -> dict[str, Found]:
        """Return what reads of keys of definitions at a time find, as `take` of nothing but reads does."""
        shares = _shares(self._totals[None])
        return {name: self._kept[name].read(each, at_ms, shares) for name, each in keys.items()}

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

    def sound(self, name: str, packed: Packed) -> _Bools:
        """Return which of keys another core can have `packed`, bool [k]: with times that there are, and counts that are numbers or
        actions that are counted."""
        return self._kept[name].sound(packed)

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
    def take(self, operations: Operations, name: str, reads: Ids, shares: _Doubles) -> Found:
        """Take the operations that concern the definition; return what all reads found. Nothing happens without a key, so what is
        read without one is as of a new key."""

    @abstractmethod
    def read(self, keys: Ids, at_ms: int, shares: _Doubles) -> Found:
        """Return what reads of keys at a time find."""

    @abstractmethod
    def sound(self, packed: Packed) -> _Bools:
        """Return which of keys another core can have packed, bool [k]."""

    def _concern(self, operations: Operations, name: str) -> tuple[npt.NDArray[np.int32], _Bools]:
        """Return the own codes of all operations, and which of them concern the definition."""
        codes = self._codes[operations.what]
        return codes, (operations.has_key[name] | (codes == READ)) & (codes >= 0)


class _Counted(_Kept):
    """Counts and times."""

    def __init__(self, definition: Counting, actions: list[str]) -> None:
        super().__init__(definition, actions)
        self._definition = definition
        half_lives = _half_lives(definition)
        self._counts = len(half_lives) * (1 + len(self._own))
        self.native = self._tally = Tally(
            expire_ms=kept_ms(definition),
            half_lives_ms=half_lives,
            actions=len(self._own),
            keeps_times=isinstance(definition, Age),
        )

    def note(self, happened: Happened) -> None:
        codes = self._codes[happened.what]
        own = codes >= 0
        nothing = np.empty((0, self._tally.width))
        self._tally.take(happened.keys[own], codes[own], happened.at[own], happened.counted_at[own], nothing)

    def take(self, operations: Operations, name: str, reads: Ids, shares: _Doubles) -> Found:
        codes, own = self._concern(operations, name)
        found = np.empty((len(reads), self._tally.width))
        at = operations.at
        self._tally.take(operations.keys[name][own], codes[own], at[own], operations.counted_at[own], found)
        return numbers_of(self._definition, found, at[reads], shares.take(self._own, axis=1))

    def read(self, keys: Ids, at_ms: int, shares: _Doubles) -> Found:
        at, found = np.full(len(keys), at_ms), np.empty((len(keys), self._tally.width))
        self._tally.take(keys, np.full(len(keys), READ, np.int32), at, at, found)
        return numbers_of(self._definition, found, at, shares.take(self._own, axis=1))

    def sound(self, packed: Packed) -> _Bools:
        times, counted = np.split(packed, [packed.shape[1] - self._counts], axis=1)
        amounts = counted.view(np.float64)
        found: _Bools = _are_times(times.view(np.int64)) & ((amounts >= 0) & (amounts < np.inf)).all(1)
        return found


class _Listed(_Kept):
    """Sequences."""

    def __init__(self, definition: Sequence, actions: list[str]) -> None:
        super().__init__(definition, actions)
        self._codes[SERVED] = -1
        self._last, self._fields = definition.last, len(fields_of(definition))
        self.native = self._trail = Trail(
            within_ms=definition.within, last=self._last, actions=len(self._own), fields=self._fields
        )

    def note(self, happened: Happened) -> None:
        codes = self._codes[happened.what]
        own = codes >= 0
        nothing = np.empty(0, np.int64)
        self._trail.take(happened.keys[own], codes[own], happened.at[own], happened.ids[own], nothing)

    def take(self, operations: Operations, name: str, reads: Ids, shares: _Doubles) -> Found:
        codes, own = self._concern(operations, name)
        at = operations.at
        return self._lists(operations.keys[name][own], codes[own], at[own], operations.ids[name][own], at[reads])

    def read(self, keys: Ids, at_ms: int, shares: _Doubles) -> Found:
        at, ids = np.full(len(keys), at_ms), np.zeros((len(keys), self._fields), np.int64)
        return self._lists(keys, np.full(len(keys), READ, np.int32), at, ids, at)

    def sound(self, packed: Packed) -> _Bools:
        words = packed.view(np.int64)
        newest, kept = words[:, 0], words[:, 1:].reshape(len(words), self._last, 2 + self._fields)
        times, actions = kept[:, :, 0], kept[:, :, 1]
        in_order = np.all(times[:, 1:] >= times[:, :-1], axis=1) & (times[:, -1] == newest)
        found: _Bools = _are_times(times) & in_order & np.all((actions >= 0) & (actions < len(self._own)), axis=1)
        return found

    def _lists(self, keys: Ids, codes: npt.NDArray[np.int32], at: Ids, ids: Ids, read_at: Ids) -> Found:
        """Take own operations; return the lists of the reads among them, which were at ``read_at``."""
        lengths = np.empty(len(read_at), np.int64)
        found = np.empty((self._trail.take(keys, codes, at, ids, lengths), 2 + self._fields), np.int64)
        self._trail.found(found)
        return lists_of(found, lengths, read_at)


def _kept(definition: Definition, actions: list[str]) -> _Kept:
    return _Listed(definition, actions) if isinstance(definition, Sequence) else _Counted(definition, actions)


def _shares(totals: Ids) -> _Doubles:
    """Return how often each action followed on servings, [k, actions], by totals [k, 1 + actions]."""
    found: _Doubles = (totals[:, 1:] + 1) / (totals[:, :1] + 2)
    return found


def _are_times(times: Ids) -> _Bools:
    """Return which rows of [k, m] have no time that cannot be, bool [k]."""
    found: _Bools = np.all(((times >= MIN_TIME_MS) & (times <= MAX_TIME_MS)) | (times == _NEVER), axis=1)
    return found


def _half_lives(definition: Counting) -> list[float]:
    """Return the half-lives (ms) of a definition's counts."""
    match definition:
        case Rates():
            return [float(each) for each in definition.half_life]
        case Age():
            return []
        case Seen():
            return [float("inf")]
