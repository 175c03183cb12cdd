"""Several tables in one call do what each does in a call of its own."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from numpy.typing import NDArray

from paramserver.table import SGD, Adagrad, Normal, Rows, Table
from paramserver.tables import BatchIds, Tables

NAMES = ["user", "item", "none", "tag"]
DIM = 3


def make(row_format: str = "train") -> dict[str, Table]:
    if row_format != "train":
        return {name: Table(DIM, row_format="float32", name=name) for name in NAMES}
    return {
        name: Table(
            DIM,
            optimizer=Adagrad() if name == "item" else SGD(),
            initializer=Normal(0, 0.1),
            seed=1,
            name=name,
            expire_after_seconds=60,
        )
        for name in NAMES
    }


def batch(rng: np.random.Generator) -> BatchIds:
    """Some ids are there several times, one table has none."""
    sizes = [5, 40, 0, 300]
    return BatchIds(NAMES, rng.integers(0, 200, sum(sizes)), np.cumsum(sizes).tolist())


def bytes_of(rows: Rows) -> list[object]:
    columns = [getattr(rows, field.name) for field in fields(rows)]
    return [(column.shape, column.dtype, column.tobytes()) for column in columns]


def contents(tables: dict[str, Table]) -> list[bytes]:
    rows = [table.export() for table in tables.values()]
    return [
        values.tobytes() for each in rows for values in (each.ids, each.embeddings, each.last_seen_seconds, each.counts)
    ]


def test_they_do_what_each_does_alone() -> None:
    rng, alone, together = np.random.default_rng(1), make(), make()
    tables = Tables(together)
    gone = 0
    for minute in range(1, 20):
        now = 60_000 * minute
        given = batch(rng)
        gradients = rng.normal(size=(len(given.ids), DIM)).astype(np.float32)
        found, wanted = np.empty((2, len(given.ids), DIM), np.float32)
        tables.lookup_or_insert(given, now, found)
        for part in given.parts():
            alone[part.table].lookup_or_insert(part.ids, now, wanted[part.start : part.stop])
        assert found.tobytes() == wanted.tobytes()
        tables.apply(given, gradients, now)
        for part in given.parts():
            alone[part.table].apply(part.ids, gradients[part.start : part.stop], now)
        tables.lookup(given, found)
        for part in given.parts():
            alone[part.table].lookup(part.ids, wanted[part.start : part.stop])
        assert found.tobytes() == wanted.tobytes()
        expired = tables.expire(now, 8192)
        assert expired == sum(table.expire(now, 8192) for table in alone.values())
        gone += expired
        assert contents(together) == contents(alone)
        if minute % 2:
            tables["item"].apply_default_row(gradients[0])
            alone["item"].apply_default_row(gradients[0])
        else:
            sealed, wanted_rows = tables.seal(), {name: table.seal() for name, table in alone.items()}
            assert list(sealed) == NAMES
            assert [bytes_of(rows) for rows in sealed.values()] == [bytes_of(rows) for rows in wanted_rows.values()]
            assert not any(len(rows.ids) + len(rows.expired) for rows in tables.seal().values())
    assert gone, "rows were expired"
    assert list(tables) == NAMES
    assert len(tables) == len(NAMES)


@pytest.mark.parametrize("ends", [[1, 2, 3], [1, 2, 3, 5], [2, 1, 3, 4], [1, 2, 3, 4, 4]], ids=str)
def test_ends_that_are_not_those_of_the_ids_are_refused(ends: list[int]) -> None:
    tables, ids, rows = Tables(make()), np.arange(4), np.zeros((4, DIM), np.float32)
    wrong = BatchIds(NAMES, ids, ends)
    with pytest.raises(
        ValueError, match="lookup: ids: ends must ascend to the number of ids, 4, one for each of 4 tables"
    ):
        tables.lookup(wrong, rows)
    with pytest.raises(ValueError, match="lookup_or_insert: ids: ends"):
        tables.lookup_or_insert(wrong, 0, rows)
    with pytest.raises(ValueError, match="apply: ids: ends"):
        tables.apply(wrong, rows, 0)
    assert not any(map(len, tables.values()))


def test_buffers_and_times_are_checked() -> None:
    tables, given = Tables(make()), BatchIds(NAMES, np.arange(4), [1, 2, 3, 4])
    rows: NDArray[np.float32] = np.zeros((4, DIM), np.float32)
    with pytest.raises(ValueError, match="lookup: out: dimension 1 must be 3, got 2"):
        tables.lookup(given, rows[:, :2].copy())
    with pytest.raises(TypeError, match="apply: gradients: dtype must be float32, got float64"):
        tables.apply(given, rows.astype(np.float64), 0)
    with pytest.raises(ValueError, match="now_ms: event time must be within 0"):
        tables.lookup_or_insert(given, -1, rows)
    with pytest.raises(ValueError, match="budget must be at least 1"):
        tables.expire(0, 0)
    assert not any(map(len, tables.values()))


def test_replicas_only_read() -> None:
    tables, given = Tables(make("float32")), BatchIds(NAMES, np.arange(4), [1, 2, 3, 4])
    rows = np.ones((4, DIM), np.float32)
    tables.lookup(given, rows)
    assert not rows.any()
    for change in (
        lambda: tables.lookup_or_insert(given, 0, rows),
        lambda: tables.expire(0, 1),
        tables.seal,
        lambda: tables.apply(given, rows, 0),
    ):
        with pytest.raises(RuntimeError, match='table "user" is a replica'):
            change()


def test_rows_of_two_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="tables: rows of 2 and of 3 values; allowed: of one length"):
        Tables({"user": Table(2), "item": Table(3)})


def test_no_tables_have_no_rows() -> None:
    tables, given = Tables({}), BatchIds([], np.empty(0, np.int64), [])
    tables.lookup(given, np.empty((0, 8), np.float32))
    assert tables.expire(0, 1) == 0
    assert tables.seal() == {}
