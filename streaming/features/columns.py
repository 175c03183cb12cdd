"""Columns: the features of a batch of impressions, in memory, in a request's record and in an Arrow batch.

A batch of n impressions holds one column per feature: ``int64 [n]`` for a sparse feature of one id, `Ragged` for a
list of ids, ``float32 [n]`` for a dense feature, ``float32 [n, size]`` for a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streaming.features.ids import MISSING
from streaming.features.kinds import DenseFeature, Feature, Packed, SparseFeature, VectorFeature, WeightFeature

Ids: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]


class Ragged(NamedTuple):
    """Lists of ids: the list of impression i is ``values[offsets[i]:offsets[i + 1]]``; ``offsets`` is int64 [n + 1].

    >>> import numpy as np
    >>> from streaming.features.columns import Ragged
    >>> lists = Ragged(np.array([0, 2, 2, 3]), np.array([7, 8, 9]))
    >>> lists.rows(0, 2)
    Ragged(offsets=array([0, 2, 2]), values=array([7, 8]))
    >>> lists.take(np.array([2, 0]))
    Ragged(offsets=array([0, 1, 3]), values=array([9, 7, 8]))
    """

    offsets: Ids
    values: Ids

    def rows(self, start: int, stop: int) -> Ragged:
        """Return the lists of impressions ``start`` to ``stop``; ``values`` is a view."""
        offsets = self.offsets[start : stop + 1]
        return Ragged(offsets - offsets[0], self.values[offsets[0] : offsets[-1]])

    def take(self, index: Ids) -> Ragged:
        """Return the lists of the impressions in ``index``, in that order; an empty list for -1."""
        starts = self.offsets[index]
        lengths = np.where(index < 0, 0, self.offsets[index + 1] - starts)
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
        source = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(offsets, self.values[source])


Column: TypeAlias = Ids | Floats | Ragged
Columns: TypeAlias = Mapping[str, Column]


class Repeated(NamedTuple):
    """One list per request, for all its impressions: list i is that of ``counts[i]`` impressions; ``counts`` int64 [requests]."""

    lists: Ragged
    counts: Ids

    def rows(self, start: int, stop: int) -> Repeated:
        """Return the lists of impressions ``start`` to ``stop``."""
        ends = np.cumsum(self.counts)
        counts = np.minimum(ends, stop) - np.maximum(ends - self.counts, start)
        kept = np.flatnonzero(counts > 0)
        return Repeated(self.lists.take(kept), counts[kept])

    def take(self, index: Ids) -> Ragged:
        """Return the lists of the impressions in ``index``, in that order."""
        return self.lists.take(np.searchsorted(np.cumsum(self.counts), index, side="right"))


ScoringColumns: TypeAlias = Mapping[str, Column | Repeated]
"""Columns for scoring: a value that a request has once need not be repeated for its impressions."""


def repeated(column: Column, count: int) -> Column | Repeated:
    """Repeat a column of one impression for ``count``, without copies; return one of ``count`` as it is."""
    if isinstance(column, Ragged):
        return column if len(column.offsets) == count + 1 else Repeated(column, np.array([count]))
    if len(column) == count:
        return column
    spread: Any = np.broadcast_to(column, (count, *column.shape[1:]))
    return cast(Ids | Floats, spread)


def missing_column(feature: Feature, count: int) -> Column:
    """Return missing values for ``count`` impressions, as files give them: the id of an empty text, an empty list, or a number."""
    match feature:
        case SparseFeature(is_list=True):
            return Ragged(np.zeros(count + 1, np.int64), np.zeros(0, np.int64))
        case SparseFeature():
            return np.full(count, 0 if feature.bucket else MISSING, np.int64)  # buckets are made from numbers
        case DenseFeature():
            return np.full(count, missing_number(feature), np.float32)
        case VectorFeature():
            return np.zeros((count, feature.size), np.float32)


def missing_number(feature: Feature) -> float:
    """Return what a missing number of a feature counts as."""
    return 1.0 if isinstance(feature, WeightFeature) else 0.0


def columns_bytes(columns: ScoringColumns) -> int:
    """Return the bytes of the arrays of all columns."""
    return sum(map(_column_bytes, columns.values()))


def _column_bytes(column: Any) -> int:
    return sum(map(_column_bytes, column)) if isinstance(column, tuple) else column.nbytes


def slice_columns(columns: ScoringColumns, start: int, stop: int) -> dict[str, Column | Repeated]:
    """Return impressions ``start`` to ``stop`` of every column, as views."""
    return {
        name: column.rows(start, stop) if isinstance(column, Ragged | Repeated) else column[start:stop]
        for name, column in columns.items()
    }


def pack(column: Column, start: int, stop: int) -> Packed:
    """Pack impressions ``start`` to ``stop`` of a column for a record."""
    if isinstance(column, Ragged):
        part = column.rows(start, stop)
        return np.diff(part.offsets).astype("<i4").tobytes(), part.values.tobytes()
    return column[start:stop].tobytes()


def packed_width(feature: Feature) -> int:
    """Return the bytes per impression of a packed column; -1 for lists of ids, whose length varies."""
    match feature:
        case SparseFeature():
            return -1 if feature.is_list else 8
        case DenseFeature():
            return 4
        case VectorFeature():
            return 4 * feature.size


def all_finite(packed: bytes) -> bool:
    """Whether these little-endian float32 values are finite."""
    return 0 not in np.isfinite(np.frombuffer(packed, "<f4")).tobytes()  # `all` takes longer for so few


def check_packed(name: str, feature: Feature, packed: Any, impressions: int) -> str | None:
    """Return what is wrong with a packed column of ``impressions`` impressions, or None."""
    if isinstance(feature, SparseFeature) and feature.is_list:
        if not isinstance(packed, tuple):
            return f"feature {name}: one value an impression, lists of ids are expected"
        lengths = np.frombuffer(packed[0], "<i4") if len(packed[0]) == 4 * impressions else None
        if lengths is None:
            return f"feature {name}: {len(packed[0])} bytes of lengths for {impressions} impressions of 4 bytes"
        if len(packed[1]) % 8 or (lengths < 0).any() or int(lengths.sum()) * 8 != len(packed[1]):
            return f"feature {name}: {len(packed[1])} bytes of ids do not match the lengths of its lists"
        return None
    width = packed_width(feature)
    if not isinstance(packed, bytes):
        return f"feature {name}: lists of ids, one value an impression is expected"
    if len(packed) != width * impressions:
        return f"feature {name}: {len(packed)} bytes for {impressions} impressions of {width} bytes"
    if not isinstance(feature, SparseFeature) and not all_finite(packed):
        return f"feature {name}: a value is not finite"
    return None


def unpack(feature: Feature, parts: Sequence[Any]) -> Column:
    """Concatenate packed columns that passed `check_packed` into one column."""
    if isinstance(feature, SparseFeature) and feature.is_list:
        lengths = np.frombuffer(b"".join([part[0] for part in parts]), "<i4")
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return Ragged(offsets, np.frombuffer(b"".join([part[1] for part in parts]), "<i8"))
    joined = b"".join(parts)
    if isinstance(feature, SparseFeature):
        return np.frombuffer(joined, "<i8")
    values: Floats = np.frombuffer(joined, "<f4")
    return values.reshape(-1, feature.size) if isinstance(feature, VectorFeature) else values


def arrow_type(feature: Feature) -> pa.DataType:
    """Return the type of a feature's column in an examples batch."""
    match feature:
        case SparseFeature():
            return pa.list_(pa.int64()) if feature.is_list else pa.int64()
        case DenseFeature():
            return pa.float32()
        case VectorFeature():
            return pa.list_(pa.float32(), feature.size)


def to_arrow(column: Column, feature: Feature) -> pa.Array:
    """Return a column as an Arrow array of `arrow_type`, without copying its values."""
    if isinstance(column, Ragged):
        return pa.ListArray.from_arrays(pa.array(column.offsets.astype(np.int32)), pa.array(column.values))
    if isinstance(feature, VectorFeature):
        return pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), feature.size)
    return pa.array(column)


def from_arrow(array: pa.Array, feature: Feature) -> Column:
    """Return the column of an Arrow array of `arrow_type`, as a view if its layout allows."""
    if isinstance(feature, SparseFeature) and feature.is_list:
        offsets = array.offsets.to_numpy().astype(np.int64)
        return Ragged(offsets - offsets[0], array.flatten().to_numpy())
    if isinstance(feature, VectorFeature):
        vectors: Floats = array.flatten().to_numpy().reshape(-1, feature.size)
        return vectors
    values: Ids | Floats = array.to_numpy()
    return values
