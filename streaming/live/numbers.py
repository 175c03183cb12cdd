"""From what is kept of a key to the numbers of a feature: log odds of shares, and logs of counts and of seconds; or to lists."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streaming.features.columns import Ids, Ragged
from streaming.live.settings import Age, Counting, Rates, Seen

_Doubles = npt.NDArray[np.float64]
_LEAST = 1e-6
"""Shares closer to 0 and 1 count as this close, so that log odds are finite whatever comes in."""


class Raw(NamedTuple):
    """What k reads found: ``times`` float64 [k, times] in ms, NaN where unknown, the newest event first; ``counts`` float64
    [k, counts], those of servings first, for one half-life after another."""

    times: _Doubles
    counts: _Doubles

    @classmethod
    def unknown(cls, definition: Counting, count: int) -> Raw:
        """Return what is found of keys at which nothing happened."""
        match definition:
            case Rates():
                times, counts = 1, len(definition.numbers())
            case Age():
                times, counts = 1 + len(definition.numbers()), 0
            case Seen():
                times, counts = 1, 1
        return cls(np.full((count, times), np.nan), np.zeros((count, counts)))

    def put(self, known: npt.NDArray[np.bool_], found: _Doubles) -> None:
        """Put what was ``found`` [known, times + counts] where keys are ``known``, bool [k]."""
        self.times[known] = found[:, : self.times.shape[1]]
        self.counts[known] = found[:, self.times.shape[1] :]


def numbers_of(definition: Counting, raw: Raw, at: Ids, shares: _Doubles) -> npt.NDArray[np.float32]:
    """Return the numbers of k reads at the times ``at`` (ms), in the order of `numbers`. ``shares`` [k, actions] are how often each
    action followed on servings of any key up to then."""
    match definition:
        case Rates():
            found = _rates(definition, raw.counts, shares)
        case Age():
            # A key that was never served appears now.
            missing = np.array([0, *[definition.expire_after] * (raw.times.shape[1] - 2)])
            found = _log_seconds(raw.times[:, 1:], at, missing)
        case Seen():
            since = _log_seconds(raw.times, at, np.array([definition.within]))
            found = np.concatenate((np.log1p(raw.counts), since), axis=1)
    numbers: npt.NDArray[np.float32] = found.astype(np.float32)
    return numbers


def _rates(definition: Rates, counts: _Doubles, shares: _Doubles) -> _Doubles:
    half_lives, width = len(definition.half_life), counts.shape[1]
    by_half_life = counts.reshape(len(counts), half_lives, width // half_lives)
    served, done = by_half_life[:, :, :1], by_half_life[:, :, 1:]
    share = (done + definition.prior * shares[:, None, :]) / (served + definition.prior)
    share = np.clip(share, _LEAST, 1 - _LEAST)
    return np.concatenate((np.log1p(served), np.log(share / (1 - share))), axis=2).reshape(counts.shape)


def _log_seconds(times: _Doubles, at: Ids, missing_ms: npt.NDArray[np.int64]) -> _Doubles:
    """Return log(1 + seconds) from times [k, m] to ``at`` [k]; where there is none, that of ``missing_ms`` [m]."""
    elapsed = np.where(np.isnan(times), missing_ms, at[:, None] - times)
    found: _Doubles = np.log1p(np.maximum(elapsed, 0) / 1000)
    return found


class Lists(NamedTuple):
    """What k reads found of a sequence: ``ids`` int64 [m, lists], rows ``offsets[i]`` to ``offsets[i + 1]`` those of read i;
    ``offsets`` int64 [k + 1]."""

    offsets: Ids
    ids: Ids

    def column(self, at: int) -> Ragged:
        """Return one of the lists, in the order of `numbers`."""
        return Ragged(self.offsets, self.ids[:, at])


def lists_of(found: Ids, lengths: Ids, at: Ids) -> Lists:
    """Return the lists of k reads at the times ``at`` (ms), which found ``lengths`` [k] actions each: ``found`` int64
    [m, 2 + fields], which are turned into lists in place, are the time (ms), the action and the ids of each."""
    elapsed = np.maximum(np.repeat(at, lengths) - found[:, 0], 0)
    found[:, 0] = np.log2(1 + elapsed / 1000).astype(np.int64)
    return Lists(np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths))), found)
