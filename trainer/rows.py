"""From columns of ids to rows of tables, and gradients back: one call, whatever the number of features and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from paramserver.tables import BatchIds
from streaming.features.columns import Column, Columns, Floats, Ids, Ragged, Repeated, ScoringColumns
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature, WeightFeature

Lookup: TypeAlias = Callable[[BatchIds, npt.NDArray[np.float32]], object]
"""Writes the rows of a batch's ids, float32 [n, row_dim], into its last argument."""


@dataclass(frozen=True)
class _Slot:
    name: str
    pool: str | None


class RowPlan:
    """Which table serves which features. ``fields`` is the number of embeddings that an impression has, ``field_names`` whose they
    are, in order, and ``dense_names`` what the dense features' numbers are called."""

    def __init__(self, features: Mapping[str, Feature]) -> None:
        slots: dict[str, list[_Slot]] = {}
        for name, feature in features.items():
            if isinstance(feature, SparseFeature):
                pool = feature.pool if feature.is_list else None
                slots.setdefault(feature.table or name, []).append(_Slot(name, pool))
        self._slots = slots
        self._pooled = any(slot.pool for group in slots.values() for slot in group)
        self._dense = [name for name, feature in features.items() if _width(feature)]
        self._weight = next((name for name, feature in features.items() if isinstance(feature, WeightFeature)), None)
        self.field_names = [slot.name for group in slots.values() for slot in group]
        self.dense_names = [f"{name}/{at}" for name, feature in features.items() for at in range(_width(feature))]
        self.tables = list(slots)
        self.fields = sum(map(len, slots.values()))
        self.dense_width = sum(_width(feature) for feature in features.values())

    def ids(self, columns: ScoringColumns) -> BatchIds:
        """The ids of a batch by table."""
        parts = {table: [_values(columns[slot.name]) for slot in slots] for table, slots in self._slots.items()}
        ends = list(accumulate(sum(map(len, of_table)) for of_table in parts.values()))
        every = [part for of_table in parts.values() for part in of_table]
        return BatchIds(self.tables, np.concatenate(every) if every else np.empty(0, np.int64), ends)

    def examples(self, columns: Columns, impressions: int) -> Ids:
        """In which impression each of a batch's ids is, int64 [ids], in the order of `ids`."""
        each = np.arange(impressions)
        parts = [
            np.repeat(each, np.diff(column.offsets)) if isinstance(column, Ragged) else each
            for slots in self._slots.values()
            for column in (columns[slot.name] for slot in slots)
        ]
        return np.concatenate(parts) if parts else each[:0]

    def fetch(self, ids: BatchIds, row_dim: int, lookup: Lookup) -> Tensor:
        """The rows of a batch, float32 [ids, row_dim]."""
        rows = np.empty((len(ids.ids), row_dim), np.float32)
        lookup(ids, rows)
        return torch.from_numpy(rows)

    def stack(self, rows: Tensor, columns: ScoringColumns, impressions: int) -> Tensor:
        """The rows as embeddings of impressions, float32 [fields, impressions, row_dim], lists pooled."""
        if not self._pooled:
            return rows.view(self.fields, impressions, rows.shape[1])
        return torch.stack(list(self._pool(rows, columns, impressions)))

    def _pool(self, rows: Tensor, columns: ScoringColumns, impressions: int) -> Iterator[Tensor]:
        start = 0
        for slots in self._slots.values():
            for slot in slots:
                column = columns[slot.name]
                if not isinstance(column, Ragged | Repeated):
                    yield rows[start : start + impressions]
                    start += impressions
                    continue
                lists = column.lists if isinstance(column, Repeated) else column
                stop = start + len(lists.values)
                offsets = torch.from_numpy(lists.offsets[:-1].copy())
                everyone = torch.arange(stop - start)
                assert slot.pool is not None
                pooled = functional.embedding_bag(everyone, rows[start:stop], offsets, mode=slot.pool)
                if isinstance(column, Repeated):
                    pooled = pooled.repeat_interleave(torch.from_numpy(column.counts), 0, output_size=impressions)
                yield pooled
                start = stop

    def dense(self, columns: ScoringColumns, impressions: int) -> Tensor:
        """Dense and vector features, float32 [impressions, dense_width]."""
        if not self._dense:
            return torch.empty(impressions, 0)
        parts = [_floats(columns[name]).reshape(impressions, -1) for name in self._dense]
        return torch.from_numpy(np.concatenate(parts, axis=1))

    def weights(self, columns: ScoringColumns) -> Tensor | None:
        """What the loss of each impression is multiplied by, float32 [impressions]; None where nothing says so.

        A weight below 0, which only records can have that were made while it was another feature, is NaN: no step can use it.
        """
        if self._weight is None:
            return None
        found = torch.from_numpy(_floats(columns[self._weight]).copy())
        return found.where(found >= 0, torch.nan)


def _width(feature: Feature) -> int:
    match feature:
        case WeightFeature():
            return 0
        case DenseFeature():
            return 1
        case VectorFeature():
            return feature.size
        case _:
            return 0


def _values(column: Column | Repeated) -> Ids:
    if isinstance(column, Repeated):
        return column.lists.values
    return column.values if isinstance(column, Ragged) else column.astype(np.int64, copy=False)


def _floats(column: Column | Repeated) -> Floats:
    assert not isinstance(column, Ragged | Repeated)
    return column.astype(np.float32, copy=False)
