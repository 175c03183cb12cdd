"""From what was read of keys to the numbers of a feature: log odds of shares, and logs of counts and of seconds
(``native/numbers.hpp``)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streaming.features.columns import Ids
from streaming.live import _native
from streaming.live.settings import Age, Definition, Rates, Seen

_Doubles = npt.NDArray[np.float64]


def numbers_of(definition: Definition, found: _Doubles, at: Ids, shares: _Doubles) -> npt.NDArray[np.float32]:
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
