"""Dense features on one scale, which no single row moves far and old rows leave."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

START_ROWS = 128
_FEW_ROWS = 32
_FAR = 10.0
"""How many times as far as others, or as those that are apart, one may count: less than nine in a thousand of them cannot carry
the scale away."""
_FEW_APART = 0.1
"""The largest share that is few. Measured by those that are apart at any share, what is far out takes the scale so far that fewer
of the others are, and with that further still: .5 % of stand-ins did so with a number that varies anyway."""
_LEAST = 1e-6
_MAD_TO_DEVIATION = 1.4826
NEVER_NEGATIVE = ("count", "squares", "apart")

_Columns = slice | Tensor


class RunningNorm(nn.Module):
    """Standardises dense features by the mean and variance of the rows trained on (Welford, by batches), with three bounds.

    A row counts at most as ten standard deviations from the mean (Winsorization). Of a number that nearly always has one value,
    where less than a tenth of the rows are apart from the mean, by more than half a deviation, it is ten times as far as those
    are, so that they are measured by each other: what keeps coming moves the bound geometrically, however rare it is. The first
    128 rows have no such scale, so they are kept, and cut at ten deviations by their median and median absolute deviation. And
    old rows weigh less, by a half-life of event time, though never less than those 128 did: a feature may change its range for
    good.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor
    apart: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(width, dtype=torch.float64))  # a feature may have come later
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("apart", torch.zeros(width, dtype=torch.float64))
        self._seen = torch.zeros(width, dtype=torch.int64)
        self._first = torch.zeros(0, width)
        self._starting = True
        self._learned_at = 0

    def forward(self, values: Tensor) -> Tensor:
        """float32 [n, width]: in standard deviations, or in tenths of how far apart rows usually are, where those are more; cut at
        ten times that distance."""
        distance = self._distance(slice(None))
        bound = _FAR * distance
        return (
            (values - self.mean).clamp(-bound, bound) / torch.maximum(self._deviation(slice(None)), distance / _FAR)
        ).float()

    def learn(self, values: Tensor, now_ms: int, half_life_ms: int) -> None:
        """Take float32 [n, width] of event time ``now_ms``; rows with a value that is not finite are passed over."""
        values = values.double()
        if not values.isfinite().all():
            values = values[values.isfinite().all(1)]
        self._forget(now_ms, half_life_ms)
        if not self._starting:
            self._learn(slice(None), values)
            return
        if not len(self._first):  # replicas learn nothing, and need none
            self._first = torch.zeros(START_ROWS, len(self._seen))
        missing = START_ROWS - self._seen
        for rows in sorted(set(missing.tolist())):
            columns = (missing == rows).nonzero().flatten()
            if rows:
                self._begin(columns, values[:rows, columns])
            self._learn(columns, values[rows:, columns])
        self._end_start()

    def learning(self) -> dict[str, Tensor]:
        """What going on needs besides the buffers: rows seen of the start, those rows, and the event time of the newest (ms)."""
        first = self._first[: int(self._seen.max())] if len(self._first) else self._first
        return {"seen": self._seen, "first": first.contiguous(), "at": torch.tensor(self._learned_at)}

    def go_on(self, learning: Mapping[str, Tensor]) -> None:
        """Go on from what `learning` gave; without it, features with rows are past their start. The buffers are loaded before.

        ``ValueError`` where its parts do not belong together.
        """
        self._seen = torch.where(self.count > 0, START_ROWS, 0)
        self._first = torch.zeros(START_ROWS, len(self.count))
        self._learned_at = int(learning.get("at", torch.tensor(0)))
        if learning:
            if missing := {"seen", "first", "at"} - learning.keys():
                raise ValueError(f"norm.{min(missing)}: not there")
            first = learning["first"]
            self._seen = learning["seen"].clone()
            least = int(self._seen.where(self._seen < START_ROWS, 0).max())
            if not least <= len(first) <= START_ROWS:
                raise ValueError(f"norm.first: {len(first)} rows; allowed: {least} to {START_ROWS}")
            self._first[: len(first)] = first
        self._end_start()

    def _end_start(self) -> None:
        self._starting = bool((self._seen < START_ROWS).any())
        if not self._starting:
            self._first = self._first[:0].clone()

    def _deviation(self, columns: _Columns) -> Tensor:
        return (self.squares[columns] / self.count[columns].clamp(min=1)).sqrt().clamp(min=_LEAST)

    def _distance(self, columns: _Columns) -> Tensor:
        """How far rows are from the mean (root mean square): all of them, or those that are apart where these are few."""
        count, apart = self.count[columns], self.apart[columns]
        squared = self.squares[columns] / apart.where(apart < count * _FEW_APART, count)
        return squared.nan_to_num(0, 0).sqrt().clamp(min=_LEAST)

    def _forget(self, now_ms: int, half_life_ms: int) -> None:
        passed = now_ms - self._learned_at
        if passed <= 0:
            return
        if self._learned_at:
            least = (START_ROWS / self.count.clamp(min=START_ROWS)).clamp(max=1)
            left = least.clamp(min=2 ** (-passed / half_life_ms))
            self.count *= left
            self.squares *= left
            self.apart *= left
        self._learned_at = now_ms

    def _begin(self, columns: Tensor, values: Tensor) -> None:
        """Take rows of the start of ``columns``, which have seen as many as each other."""
        before = int(self._seen[columns[0]])
        total = before + len(values)
        self._first[before:total, columns] = values.float()
        self._seen[columns] = total
        rows = self._first[:total, columns].double()
        if total >= _FEW_ROWS:
            middle = rows.median(0).values
            bound = _FAR * _robust_deviation((rows - middle).abs())
            rows = rows.clamp(middle - bound, middle + bound)
        if total:
            self.count[columns] = torch.full_like(self.count[columns], total)
            self.mean[columns] = rows.mean(0)
            self.squares[columns] = ((rows - self.mean[columns]) ** 2).sum(0)
            self.apart[columns] = self._are_apart(columns, rows - self.mean[columns])

    def _are_apart(self, columns: _Columns, distances: Tensor) -> Tensor:
        return (distances.abs() > self._deviation(columns) / 2).double().sum(0)

    def _learn(self, columns: _Columns, values: Tensor) -> None:
        count = len(values)
        if not count:
            return
        before, bound = self.mean[columns], _FAR * self._distance(columns)
        values = values.clamp(before - bound, before + bound)
        self.apart[columns] += self._are_apart(columns, values - before)
        mean = values.mean(0)
        delta = mean - before
        total = self.count[columns] + count
        added = ((values - mean) ** 2).sum(0) + delta**2 * (self.count[columns] * count / total)
        self.squares[columns] += added
        self.mean[columns] += delta * (count / total)
        self.count[columns] += count


def _robust_deviation(distances: Tensor) -> Tensor:
    """The scale of distances [n, width] from their median: by their own median; where that is 0, by that of the others, if more
    than one row is there."""
    usual = _MAD_TO_DEVIATION * distances.median(0).values
    apart = distances > 0
    rare = distances.where(apart, torch.nan).nanmedian(0).values
    return torch.where(usual > 0, usual, torch.where(apart.sum(0) > 1, rare, 0.0))
