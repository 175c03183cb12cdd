"""The files of one version of a shard: what replicas need, and what recovery needs besides.

Both are Arrow IPC streams of one batch with one row a table, whose lists hold the values of all its changed rows end to
end; a base has the same form and holds all rows. Lists of the same table have the same order in both files. The default
row, what an id without a row reads as, is whole in every version, changed or not, so the newest file alone says what it is.

Rows file: ``table`` string, ``dim`` int32, ``default`` list<float32> (dim values), ``expired`` list<int64> (tombstones,
applied first), ``key`` list<int64>, ``embedding`` list<float32> (dim values a key). State file: ``table`` string,
``state_dim`` int32, ``default_state`` list<float32> (state_dim values, the default row's), ``state`` list<float32>,
``last_seen`` list<uint32> (seconds), ``count`` list<uint32>, ``version`` list<int64> (that last changed the row).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from basis.arrow import BatchCodec
from basis.problems import BadFile
from paramserver.table import Rows

_INT, _FLOAT, _COUNT = pa.large_list(pa.int64()), pa.large_list(pa.float32()), pa.large_list(pa.uint32())
_ROWS = BatchCodec(
    pa.schema(
        [
            ("table", pa.string()),
            ("dim", pa.int32()),
            ("default", _FLOAT),
            ("expired", _INT),
            ("key", _INT),
            ("embedding", _FLOAT),
        ]
    )
)
_STATE = BatchCodec(
    pa.schema(
        [
            ("table", pa.string()),
            ("state_dim", pa.int32()),
            ("default_state", _FLOAT),
            ("state", _FLOAT),
            ("last_seen", _COUNT),
            ("count", _COUNT),
            ("version", _INT),
        ]
    )
)

Ids: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TableDelta:
    """Rows of one table that changed, and the version that last changed each (int64 [n])."""

    rows: Rows
    versions: Ids


Delta: TypeAlias = Mapping[str, TableDelta]
"""One epoch, or a base: table name to rows."""


def encode_rows(delta: Delta) -> bytes:
    """The rows file."""
    parts = [table.rows for table in delta.values()]
    return _encode(
        _ROWS,
        [
            pa.array(list(delta), pa.string()),
            pa.array([rows.embeddings.shape[1] for rows in parts], pa.int32()),
            _lists(_FLOAT, [rows.default_embedding for rows in parts]),
            _lists(_INT, [rows.expired for rows in parts]),
            _lists(_INT, [rows.ids for rows in parts]),
            _lists(_FLOAT, [rows.embeddings.reshape(-1) for rows in parts]),
        ],
    )


def encode_state(delta: Delta) -> bytes:
    """The state file."""
    parts = [table.rows for table in delta.values()]
    return _encode(
        _STATE,
        [
            pa.array(list(delta), pa.string()),
            pa.array([rows.state.shape[1] for rows in parts], pa.int32()),
            _lists(_FLOAT, [rows.default_state for rows in parts]),
            _lists(_FLOAT, [rows.state.reshape(-1) for rows in parts]),
            _lists(_COUNT, [rows.last_seen_seconds for rows in parts]),
            _lists(_COUNT, [rows.counts for rows in parts]),
            _lists(_INT, [table.versions for table in delta.values()]),
        ],
    )


@dataclass(frozen=True)
class RowsChange:
    """What a rows file says of one table.

    ``expired`` int64 [m], ``keys`` int64 [n], ``embeddings`` float32 [n, dim], ``default`` float32 [dim].
    """

    expired: Ids
    keys: Ids
    embeddings: npt.NDArray[np.float32]
    default: npt.NDArray[np.float32]


def decode_rows(name: str, data: bytes) -> dict[str, RowsChange]:
    """The tables of a rows file, as views; `BadFile` where it is none."""
    batch = _decode(_ROWS, name, data)
    columns = ("expired", "key", "embedding", "default")
    expired, keys, values, default = (_split(batch.column(column)) for column in columns)
    changes = {}
    for at, (table, dim) in enumerate(
        zip(batch.column("table").to_pylist(), batch.column("dim").to_pylist(), strict=True)
    ):
        if len(values[at]) != dim * len(keys[at]):
            raise BadFile(f"{name}: table {table}: {len(values[at])} values for {len(keys[at])} rows of {dim}")
        if len(default[at]) != dim:
            raise BadFile(f"{name}: table {table}: a default row of {len(default[at])} values, rows of {dim}")
        changes[table] = RowsChange(expired[at], keys[at], values[at].reshape(-1, dim), default[at])
    return changes


def decode(rows_name: str, rows_data: bytes, state_name: str, state_data: bytes) -> dict[str, TableDelta]:
    """The whole of a version's two files; `BadFile` where they do not belong together."""
    changes = decode_rows(rows_name, rows_data)
    batch = _decode(_STATE, state_name, state_data)
    columns = ("state", "last_seen", "count", "version", "default_state")
    state, seen, count, version, default_state = (_split(batch.column(name)) for name in columns)
    tables = batch.column("table").to_pylist()
    if tables != list(changes):
        raise BadFile(f"{state_name}: tables {tables}, its rows file has {list(changes)}")
    delta = {}
    for at, (table, dim) in enumerate(zip(tables, batch.column("state_dim").to_pylist(), strict=True)):
        change = changes[table]
        if len(seen[at]) != len(change.keys) or len(state[at]) != dim * len(change.keys):
            raise BadFile(f"{state_name}: table {table}: {len(seen[at])} rows, its rows file has {len(change.keys)}")
        if len(default_state[at]) != dim:
            raise BadFile(f"{state_name}: table {table}: default state of {len(default_state[at])} values, not {dim}")
        rows = Rows(
            ids=change.keys,
            embeddings=change.embeddings,
            state=state[at].reshape(len(seen[at]), dim),
            last_seen_seconds=seen[at],
            counts=count[at],
            expired=change.expired,
            default_embedding=change.default,
            default_state=default_state[at],
        )
        delta[table] = TableDelta(rows, version[at])
    return delta


def fold(deltas: Sequence[Delta]) -> dict[str, TableDelta]:
    """One base out of a base and the deltas after it, in order: the last state of each row that has not expired since.

    The default row is the last one's.
    """
    return {name: _fold_table([delta[name] for delta in deltas if name in delta]) for name in deltas[-1]}


def _fold_table(parts: Sequence[TableDelta]) -> TableDelta:
    keys = np.concatenate([part for table in parts for part in (table.rows.expired, table.rows.ids)])
    sizes = [size for table in parts for size in (len(table.rows.expired), len(table.rows.ids))]
    alive = np.repeat(np.arange(len(sizes)) % 2 == 1, sizes)
    _, last_from_end = np.unique(keys[::-1], return_index=True)
    last = len(keys) - 1 - last_from_end
    kept = last[alive[last]]
    row = np.cumsum(alive)[kept] - 1  # where the kept ones stand among the rows alone

    def take(name: str) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = np.concatenate([getattr(table.rows, name) for table in parts])[row]
        return values

    names = ("ids", "embeddings", "state", "last_seen_seconds", "counts")
    newest = parts[-1].rows
    rows = Rows(
        **{name: take(name) for name in names},
        expired=np.empty(0, np.int64),
        default_embedding=newest.default_embedding,
        default_state=newest.default_state,
    )
    return TableDelta(rows, np.concatenate([table.versions for table in parts])[row])


def _lists(kind: pa.DataType, parts: Sequence[npt.NDArray[Any]]) -> pa.Array:
    """A large_list column over numpy's own memory; by ``pa.array`` it costs seven times as much, 7 times an epoch."""
    offsets = np.array([0, *accumulate(map(len, parts))], np.int64)
    values = parts[0] if len(parts) == 1 else np.concatenate(parts)
    flat = pa.Array.from_buffers(kind.value_type, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])
    return pa.Array.from_buffers(kind, len(parts), [None, pa.py_buffer(offsets)], children=[flat])


def _split(column: pa.Array) -> list[npt.NDArray[Any]]:
    offsets, values = column.offsets.to_numpy().tolist(), column.values.to_numpy()
    return [values[start:stop] for start, stop in pairwise(offsets)]


def _encode(codec: BatchCodec, arrays: list[pa.Array]) -> bytes:
    return codec.encode(pa.RecordBatch.from_arrays(arrays, schema=codec.schema))


def _decode(codec: BatchCodec, name: str, data: bytes) -> pa.RecordBatch:
    try:
        return codec.decode(data)
    except ValueError as error:
        raise BadFile(f"{name}: {error}") from None
