"""The files of one version of a shard: what replicas need, and what recovery needs besides.

Both are Arrow IPC streams of one batch with one row a table, whose lists hold the values of all its changed rows end to
end; a base has the same form and holds all rows. Lists of the same table have the same order in both files. The default
row, what an id without a row reads as, is whole in every version, changed or not, so the newest file alone says what it is.

Rows file: ``table`` string, ``dim`` int32, ``default`` list<float32> (dim values), ``expired`` list<int64> (tombstones,
applied first), ``key`` list<int64>, ``embedding`` list<float32 or float16 or int8> (dim values a key), and where that is int8
``scale`` list<float32> (one a key, a value is level x scale). State file: ``table`` string, ``state_dim`` int32,
``default_state`` list<float32> (state_dim values, the default row's), ``state`` list<float32>, ``last_seen`` list<uint32>
(seconds), ``count`` list<uint32>, ``version`` list<int64> (that last changed the row), and where the rows file is not exact
``embedding`` list<float32> (dim values a key). docs/delta-format.md says it for readers in other languages.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from basis.arrow import BatchCodec
from basis.decoding import refusing
from basis.problems import BadFile, NotFiniteError
from paramserver.precision import Precision, narrow, widen
from paramserver.table import Rows

_INT, _FLOAT, _COUNT = pa.large_list(pa.int64()), pa.large_list(pa.float32()), pa.large_list(pa.uint32())
_EMBEDDING = {"float32": _FLOAT, "float16": pa.large_list(pa.float16()), "int8": pa.large_list(pa.int8())}


def _rows_codec(precision: Precision) -> BatchCodec:
    columns = [
        ("table", pa.string()),
        ("dim", pa.int32()),
        ("default", _FLOAT),
        ("expired", _INT),
        ("key", _INT),
        ("embedding", _EMBEDDING[precision]),
    ]
    return BatchCodec(pa.schema(columns + [("scale", _FLOAT)] * (precision == "int8")))


_STATE_COLUMNS = [
    ("table", pa.string()),
    ("state_dim", pa.int32()),
    ("default_state", _FLOAT),
    ("state", _FLOAT),
    ("last_seen", _COUNT),
    ("count", _COUNT),
    ("version", _INT),
]
_ROWS: dict[Precision, BatchCodec] = {
    "float32": _rows_codec("float32"),
    "float16": _rows_codec("float16"),
    "int8": _rows_codec("int8"),
}
_STATE = BatchCodec(pa.schema(_STATE_COLUMNS))
_EXACT_STATE = BatchCodec(pa.schema([*_STATE_COLUMNS, ("embedding", _FLOAT)]))

_MOST_VALUES = 4096
"""Of a row, as tables have it."""

Ids: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TableDelta:
    """Rows of one table that changed, and the version that last changed each (int64 [n])."""

    rows: Rows
    versions: Ids


Delta: TypeAlias = Mapping[str, TableDelta]
"""One epoch, or a base: table name to rows."""


def encode_rows(delta: Delta, precision: Precision = "float32") -> bytes:
    """The rows file; `NotFiniteError` where a value is not, or would not be in ``precision``."""
    parts = [table.rows for table in delta.values()]
    columns = [
        _names(tuple(delta)),
        _widths(tuple([rows.embeddings.shape[1] for rows in parts])),
        _floats(delta, "default row", [rows.default_embedding for rows in parts]),
        _wholes(_INT, [rows.expired for rows in parts]),
        _wholes(_INT, [rows.ids for rows in parts]),
    ]
    if precision == "float32":
        embeddings = [rows.embeddings.reshape(-1) for rows in parts]
        columns.append(_floats(delta, "embedding", embeddings))
    else:
        narrowed = [narrow(rows.embeddings, precision) for rows in parts]
        values = [levels.reshape(-1) for levels, _ in narrowed]
        if precision == "int8":
            columns.append(_wholes(_EMBEDDING[precision], values))
            columns.append(_floats(delta, "scale", [scales for _, scales in narrowed]))
        else:
            columns.append(_floats(delta, "embedding", values, _EMBEDDING[precision]))
    return _encode(_ROWS[precision], columns)


def encode_state(delta: Delta, precision: Precision = "float32") -> bytes:
    """The state file that goes with a rows file of ``precision``; `NotFiniteError`."""
    parts = [table.rows for table in delta.values()]
    columns = [
        _names(tuple(delta)),
        _widths(tuple([rows.state.shape[1] for rows in parts])),
        _floats(delta, "default row's state", [rows.default_state for rows in parts]),
        _floats(delta, "state", [rows.state.reshape(-1) for rows in parts]),
        _wholes(_COUNT, [rows.last_seen_seconds for rows in parts]),
        _wholes(_COUNT, [rows.counts for rows in parts]),
        _wholes(_INT, [table.versions for table in delta.values()]),
    ]
    if precision == "float32":
        return _encode(_STATE, columns)
    exact = [rows.embeddings.reshape(-1) for rows in parts]
    return _encode(_EXACT_STATE, [*columns, _floats(delta, "embedding", exact)])


class RowsChange(NamedTuple):
    """What a rows file says of one table.

    ``expired`` int64 [m], ``keys`` int64 [n], ``embeddings`` float32 [n, dim], ``default`` float32 [dim].
    """

    expired: Ids
    keys: Ids
    embeddings: npt.NDArray[np.float32]
    default: npt.NDArray[np.float32]


def decode_rows(name: str, data: bytes) -> dict[str, RowsChange]:
    """The tables of a rows file, exact ones as views; `BadFile` where it is none."""
    with refusing(lambda why: BadFile(f"{name}: {why}"), BadFile):
        return _decode_rows(name, data)


def _decode_rows(name: str, data: bytes) -> dict[str, RowsChange]:
    codec, found = _decode(_ROWS.values(), name, data)
    for what in ("embedding", "default", "scale"):
        if what in found and (wrong := found[what].not_finite()) is not None:
            raise BadFile(f"{name}: table {found['table'][wrong]}: a value that is no finite number")
    expired, keys, values, default = (found[what].parts() for what in ("expired", "key", "embedding", "default"))
    scales = found["scale"].parts() if codec is _ROWS["int8"] else [None] * len(keys)
    changes: dict[str, RowsChange] = {}
    for at, (table, dim) in enumerate(zip(found["table"], found["dim"], strict=True)):
        if table in changes:
            raise BadFile(f"{name}: table {table} twice")
        if not 1 <= dim <= _MOST_VALUES:
            raise BadFile(f"{name}: table {table}: rows of {dim} values; allowed: 1 to {_MOST_VALUES}")
        scale = scales[at]
        if len(values[at]) != dim * len(keys[at]) or (scale is not None and len(scale) != len(keys[at])):
            raise BadFile(f"{name}: table {table}: {len(values[at])} values for {len(keys[at])} rows of {dim}")
        if len(default[at]) != dim:
            raise BadFile(f"{name}: table {table}: a default row of {len(default[at])} values, rows of {dim}")
        changes[table] = RowsChange(expired[at], keys[at], widen(values[at].reshape(-1, dim), scale), default[at])
    return changes


def decode(rows_name: str, rows_data: bytes, state_name: str, state_data: bytes) -> dict[str, TableDelta]:
    """The whole of a version's two files, embeddings exact; `BadFile` where they do not belong together."""
    changes = decode_rows(rows_name, rows_data)
    with refusing(lambda why: BadFile(f"{state_name}: {why}"), BadFile):
        return _decode_state(changes, state_name, state_data)


def _decode_state(changes: Mapping[str, RowsChange], state_name: str, state_data: bytes) -> dict[str, TableDelta]:
    codec, found = _decode((_STATE, _EXACT_STATE), state_name, state_data)
    columns = ("state", "last_seen", "count", "version", "default_state")
    state, seen, count, version, default_state = (found[what].parts() for what in columns)
    exact = found["embedding"].parts() if codec is _EXACT_STATE else None
    tables = found["table"]
    if tables != list(changes):
        raise BadFile(f"{state_name}: tables {tables}, its rows file has {list(changes)}")
    delta = {}
    for at, (table, dim) in enumerate(zip(tables, found["state_dim"], strict=True)):
        change = changes[table]
        embeddings = change.embeddings
        if exact is not None and len(exact[at]) == embeddings.size:
            embeddings = exact[at].reshape(embeddings.shape)
        elif exact is not None:
            raise BadFile(f"{state_name}: table {table}: {len(exact[at])} values for {len(change.keys)} rows")
        for part in (seen[at], count[at], version[at]):
            if len(part) != len(change.keys):
                raise BadFile(f"{state_name}: table {table}: {len(part)} rows, its rows file has {len(change.keys)}")
        if not 0 <= dim <= 4 * _MOST_VALUES or len(state[at]) != dim * len(change.keys):
            raise BadFile(f"{state_name}: table {table}: {len(state[at])} values of state, {dim} a row")
        if len(default_state[at]) != dim:
            raise BadFile(f"{state_name}: table {table}: default state of {len(default_state[at])} values, not {dim}")
        rows = Rows(
            ids=change.keys,
            embeddings=embeddings,
            state=state[at].reshape(len(seen[at]), dim),
            last_seen_seconds=seen[at],
            counts=count[at],
            expired=change.expired,
            default_embedding=change.default,
            default_state=default_state[at],
        )
        delta[table] = TableDelta(rows, version[at])
    return delta


def _floats(delta: Delta, what: str, parts: list[npt.NDArray[Any]], kind: pa.DataType = _FLOAT) -> pa.Array:
    """A column of numbers that are all finite. Looked at as one: 20 tables in the time of one."""
    values = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if not np.isfinite(values).all():
        _name_what_is_not_finite(delta, what, parts)
    return _lists(kind, [len(part) for part in parts], values)


def _name_what_is_not_finite(delta: Delta, what: str, parts: list[npt.NDArray[Any]]) -> None:
    for (name, table), values in zip(delta.items(), parts, strict=True):
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            ids = table.rows.ids
            whose = "" if what.startswith("default") else f"id {ids[wrong[0] * len(ids) // len(values)]}: "
            raise NotFiniteError(f"table {name}: {whose}{what} holds {values[wrong[0]]}")


def _wholes(kind: pa.DataType, parts: list[npt.NDArray[Any]]) -> pa.Array:
    return _lists(kind, [len(part) for part in parts], parts[0] if len(parts) == 1 else np.concatenate(parts))


def _lists(kind: pa.DataType, lengths: list[int], values: npt.NDArray[Any]) -> pa.Array:
    """A large_list column over numpy's own memory; by ``pa.array`` it costs seven times as much, 7 times an epoch."""
    flat = pa.Array.from_buffers(kind.value_type, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])
    return pa.Array.from_buffers(kind, len(lengths), [None, _offsets(tuple(lengths))], children=[flat])


@lru_cache(maxsize=8)
def _names(tables: tuple[str, ...]) -> pa.Array:
    """The same in every file of a model, as the widths of rows are."""
    return pa.array(tables, pa.string())


@lru_cache(maxsize=8)
def _widths(widths: tuple[int, ...]) -> pa.Array:
    return pa.array(widths, pa.int32())


@lru_cache(maxsize=64)
def _offsets(lengths: tuple[int, ...]) -> pa.Buffer:
    """Where lists begin and end; most columns of a file have the same."""
    return pa.py_buffer(np.array([0, *accumulate(lengths)], np.int64))


class _Lists(NamedTuple):
    """A column of lists: those of all tables end to end, and where each begins and ends."""

    values: npt.NDArray[Any]
    bounds: list[int]

    def parts(self) -> list[npt.NDArray[Any]]:
        """The list of each table."""
        return [self.values[start:stop] for start, stop in pairwise(self.bounds)]

    def not_finite(self) -> int | None:
        """The first list with a value that is no finite number. Looked at as one: 20 tables in the time of one."""
        wrong = ~np.isfinite(self.values[self.bounds[0] : self.bounds[-1]])
        return bisect_right(self.bounds, self.bounds[0] + int(wrong.argmax())) - 1 if wrong.any() else None


def _encode(codec: BatchCodec, arrays: list[pa.Array]) -> bytes:
    return codec.encode(pa.RecordBatch.from_arrays(arrays, schema=codec.schema))


def _decode(codecs: Iterable[BatchCodec], name: str, data: bytes) -> tuple[BatchCodec, dict[str, Any]]:
    """The codec whose schema it has, and the columns by name: `_Lists`, or a list of values."""
    problem = ""
    for codec in sorted(codecs, key=lambda codec: not codec.begins(data)):
        try:
            batch = codec.decode(data)
        except ValueError as error:
            problem = problem or str(error)
            continue
        return codec, {what: _column(name, what, batch.column(at)) for at, what in enumerate(codec.schema.names)}
    raise BadFile(f"{name}: {problem}")


def _column(name: str, what: str, column: pa.Array) -> _Lists | list[Any]:
    flat = column.values if isinstance(column, pa.LargeListArray) else column
    if column.null_count or flat.null_count:
        raise BadFile(f"{name}: column {what} holds nulls")
    if flat is column:
        return list(column.to_pylist())
    values = flat.to_numpy()
    if not values.flags.aligned:  # no writer of ours would
        values = values.copy()
    return _Lists(values, column.offsets.to_numpy().tolist())
