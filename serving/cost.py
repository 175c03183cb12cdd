"""What scoring a batch costs: a fixed part, and a part for each of its candidates."""

from __future__ import annotations

from typing import NamedTuple

_FORGETTING = 0.98
_UNIT = 1000
_FIRST_GUESS_SECONDS = 1e-5
_PRIOR_WEIGHT = 1e-3


class Cost(NamedTuple):
    """Seconds of a batch, and of each candidate in it; both finite and at least zero."""

    batch_seconds: float
    candidate_seconds: float

    def of(self, batches: int, candidates: int) -> float:
        """Seconds of so many batches with so many candidates in all."""
        return batches * self.batch_seconds + candidates * self.candidate_seconds


class BatchCost:
    """Learns both parts from batches that were scored, the last fifty or so.

    Recursive least squares with exponential forgetting (Ljung, "System Identification", 11.2) in its information form, whose
    solution for two coefficients that may not be negative is closed (Lawson and Hanson, "Solving Least Squares Problems", 23).
    Batches of one size do not tell the parts apart, and forgetting would let such an estimate wander (estimator windup): a weak
    prior, 10 us a candidate, is never forgotten.
    """

    def __init__(self) -> None:
        # Sums over batches, the older the less: weights, candidates (in units of 1,000), their squares, and seconds with both.
        self._weight = self._x = self._xx = self._t = self._xt = 0.0
        self.cost = Cost(0.0, _FIRST_GUESS_SECONDS)

    def observe(self, candidates: int, seconds: float) -> None:
        """Learn that a batch of so many candidates took so long."""
        x = candidates / _UNIT
        self._weight = _FORGETTING * self._weight + 1.0
        self._x = _FORGETTING * self._x + x
        self._xx = _FORGETTING * self._xx + x * x
        self._t = _FORGETTING * self._t + seconds
        self._xt = _FORGETTING * self._xt + x * seconds
        self.cost = self._solve()

    def _solve(self) -> Cost:
        one, x, xx = self._weight + _PRIOR_WEIGHT, self._x, self._xx + _PRIOR_WEIGHT
        t, xt = self._t, self._xt + _PRIOR_WEIGHT * _FIRST_GUESS_SECONDS * _UNIT
        determinant = one * xx - x * x  # positive by the prior's weight
        fixed, each = (xx * t - x * xt) / determinant, (one * xt - x * t) / determinant
        # No sum is negative, so at most one coefficient is; the least squares then lie where it is zero.
        if fixed < 0:
            fixed, each = 0.0, xt / xx
        elif each < 0:
            fixed, each = t / one, 0.0
        return Cost(fixed, each / _UNIT)
