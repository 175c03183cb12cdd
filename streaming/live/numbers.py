"""From what was read of keys to the numbers of a feature: log odds of shares, and logs of counts and of seconds
(``native/numbers.hpp``); or to lists."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from streaming.features.columns import Ids, Ragged
from streaming.live import _native
from streaming.live.settings import Age, Counting, Rates, Seen

_Doubles: TypeAlias = npt.NDArray[np.float64]


def numbers_of(definition: Counting, found: _Doubles, at: Ids, shares: _Doubles) -> npt.NDArray[np.float32]:
    """Return the numbers of k reads at the times ``at`` (ms), in the order of `numbers`, from what `Tally` ``found``. ``shares``
    [k or 1, actions] are how often each action followed on servings of any key up to then."""
    out = np.empty((len(found), found.shape[1] - (not isinstance(definition, Seen))), np.float32)
    match definition:
        case Rates():
            _native.rates(found, shares, definition.prior, out)
        case Age():
            _native.ages(found, at, definition.expire_after, out)
        case Seen():
            _native.seen(found, at, definition.within, out)
    return out


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


Found: TypeAlias = npt.NDArray[np.float32] | Lists
"""What k reads found of a definition: its numbers, float32 [k, numbers], or its lists."""
