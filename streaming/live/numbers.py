"""From what is kept of a key to the numbers of a feature: log odds of shares, and logs of counts and of seconds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streaming.features.columns import Ids
from streaming.live.settings import Age, Definition, Rates, Seen

_Doubles = npt.NDArray[np.float64]
_LEAST = 1e-6
"""Shares closer to 0 and 1 count as this close, so that log odds are finite whatever comes in."""


def numbers_of(
    definition: Definition, times: _Doubles, counts: _Doubles, at: Ids, shares: _Doubles
) -> npt.NDArray[np.float32]:
    """Return the numbers of k reads at the times ``at`` (ms), in the order of `numbers`.

    ``times`` [k, times] are in ms, NaN where unknown, the newest event first; ``counts`` [k, counts] those of servings first, for
    one half-life after another; ``shares`` [k or 1, actions] how often each action followed on servings of any key up to then.
    """
    match definition:
        case Rates():
            found = _rates(definition, counts, shares)
        case Age():
            # A key that was never served appears now.
            missing = np.array([0, *[definition.expire_after] * (times.shape[1] - 2)])
            found = _log_seconds(times[:, 1:], at, missing)
        case Seen():
            since = _log_seconds(times, at, np.array([definition.within]))
            found = np.concatenate((np.log1p(counts), since), axis=1)
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
