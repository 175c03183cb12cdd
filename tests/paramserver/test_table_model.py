"""The table against a plain dict, every operation, in any order."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from paramserver import _native
from paramserver.table import SGD, Normal, Rows, Table

DIM = 3
RATE = 0.5
EXPIRE_AFTER = 50
CANDIDATES = 4
EXTREMES = [0, -1, 1, -(2**63), 2**63 - 1]
INITIALIZER = Normal(0.0, 1.0)

ids_of = st.lists(st.sampled_from(EXTREMES) | st.integers(-20, 20), max_size=40)
# Small integers, so that sums are exact in float32 whatever their order.
values = st.integers(-4, 4)


@dataclass
class Row:
    embedding: NDArray[np.float32]
    last_seen: int
    count: int


def array(ids: list[int]) -> NDArray[np.int64]:
    return np.array(ids, np.int64)


class Model(RuleBasedStateMachine):
    @initialize(
        admit_after=st.sampled_from([1, 2, 3]),
        kernels=st.sampled_from(_native.available_kernels()),
    )
    def make(self, admit_after: int, kernels: str) -> None:
        def table() -> Table:
            return Table(
                DIM,
                optimizer=SGD(learning_rate=RATE),
                initializer=INITIALIZER,
                seed=3,
                name="model",
                expire_after_seconds=EXPIRE_AFTER,
                admit_after=admit_after,
                candidates=CANDIDATES,
                kernels=kernels,
            )

        self.new_table = table
        self.table = table()
        self.admit_after = admit_after
        self.rows: dict[int, Row] = {}
        self.candidates: dict[int, tuple[int, int]] = {}  # id: (count, last seen), the oldest first
        self.changed: set[int] = set()
        self.gone: set[int] = set()
        self.default = np.zeros(DIM, np.float32)
        self.now = 1000
        self.rejected = 0
        self.dropped = 0
        fresh = Table(DIM, initializer=INITIALIZER, seed=3, name="model")
        known = array(EXTREMES + list(range(-20, 21)))
        self.first = {int(i): row for i, row in zip(known, fresh.lookup_or_insert(known, 0), strict=True)}

    def expected(self, ids: list[int]) -> NDArray[np.float32]:
        found = [self.rows[i].embedding if i in self.rows else self.default for i in ids]
        return np.array(found, np.float32).reshape(len(ids), DIM)

    @rule(seconds=st.integers(0, 30))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(ids=ids_of)
    def lookup(self, ids: list[int]) -> None:
        np.testing.assert_array_equal(self.table.lookup(array(ids)), self.expected(ids))
        assert self.table.contains(array(ids)).tolist() == [i in self.rows for i in ids]

    @rule(ids=ids_of)
    def lookup_or_insert(self, ids: list[int]) -> None:
        wanted = []
        # Ids that are there before the batch are handled before those that are not; it only shows in the candidates' order.
        for i in ids:
            if i in self.rows:
                row = self.rows[i]
                row.last_seen = max(row.last_seen, self.now)
                row.count += 1
                self.changed.add(i)
            elif self.admit(i):
                self.rows[i] = Row(self.first[i].copy(), self.now, self.admit_after)
                self.changed.add(i)
            wanted.append(self.expected([i])[0])
        got = self.table.lookup_or_insert(array(ids), self.now * 1000)
        np.testing.assert_array_equal(got, np.array(wanted, np.float32).reshape(len(ids), DIM))

    def admit(self, i: int) -> bool:
        if self.admit_after == 1:
            return True
        if i not in self.candidates and len(self.candidates) == CANDIDATES:
            del self.candidates[next(iter(self.candidates))]
            self.dropped += 1
        count, last_seen = self.candidates.pop(i, (0, 0))
        if count + 1 == self.admit_after:
            return True
        self.candidates[i] = (count + 1, max(last_seen, self.now))
        return False

    @rule(ids=ids_of, data=st.data(), bad=st.sampled_from([None, None, np.nan, np.inf, -np.inf, 3e38]))
    def apply(self, ids: list[int], data: st.DataObject, bad: float | None) -> None:
        drawn = data.draw(st.lists(st.tuples(values, values, values), min_size=len(ids), max_size=len(ids)))
        gradients = np.array(drawn, np.float32).reshape(len(ids), DIM)
        if bad is not None and ids:
            gradients[data.draw(st.integers(0, len(ids) - 1)), 1] = bad
        sums: dict[int, NDArray[np.float32]] = {}
        for i, gradient in zip(ids, gradients, strict=True):
            if np.abs(gradient).max() < 1e9:
                sums[i] = sums.get(i, np.zeros(DIM, np.float32)) + gradient
            else:
                self.rejected += 1
        for i, total in sums.items():
            if i in self.rows:
                row = self.rows[i]
                row.embedding = row.embedding - np.float32(RATE) * total
                if i not in self.changed:
                    row.last_seen = max(row.last_seen, self.now)
                self.changed.add(i)
        self.table.apply(array(ids), gradients, self.now * 1000)

    @rule(gradient=st.tuples(values, values, values), bad=st.sampled_from([None, None, np.nan, np.inf, 3e38]))
    def apply_default_row(self, gradient: tuple[float, float, float], bad: float | None) -> None:
        step = np.array(gradient if bad is None else (gradient[0], bad, gradient[2]), np.float32)
        if bad is None:
            self.default = self.default - np.float32(RATE) * step
        else:
            self.rejected += 1
        self.table.apply_default_row(step)

    @rule(ids=ids_of, data=st.data())
    def upsert(self, ids: list[int], data: st.DataObject) -> None:
        drawn = data.draw(st.lists(st.tuples(values, values, values), min_size=len(ids), max_size=len(ids)))
        embeddings = np.array(drawn, np.float32).reshape(len(ids), DIM)
        self.table.lookup_or_insert(
            array([]), self.now * 1000
        )  # tells the table the time, which new rows are stamped with
        for i, embedding in zip(ids, embeddings, strict=True):
            row = self.rows.setdefault(i, Row(embedding, self.now, 0))
            row.embedding = embedding
            self.changed.add(i)
        self.table.upsert(array(ids), embeddings)

    @rule(ids=ids_of)
    def erase(self, ids: list[int]) -> None:
        there = set(ids) & set(self.rows)
        assert self.table.erase(array(ids)) == len(there)
        self.forget(there)

    def forget(self, ids: set[int]) -> None:
        for i in ids:
            del self.rows[i]
        self.changed -= ids
        self.gone |= ids

    @rule()
    def expire(self) -> None:
        until = self.now - EXPIRE_AFTER
        due = {i for i, row in self.rows.items() if row.last_seen <= until}
        # A budget this large goes round the table; a sweep that began elsewhere needs a second call.
        assert sum(self.table.expire(self.now * 1000, 10**6) for _ in range(2)) == len(due)
        self.forget(due)
        while self.candidates and next(iter(self.candidates.values()))[1] <= until:
            del self.candidates[next(iter(self.candidates))]

    @rule()
    def seal(self) -> None:
        sealed = self.table.seal()
        assert sealed.ids.tolist() == sorted(self.changed)
        assert sealed.expired.tolist() == sorted(self.gone)
        self.same(sealed)
        self.changed.clear()
        self.gone.clear()

    @rule(rows=st.sampled_from([0, 40, 5_000]))
    def reserve(self, rows: int) -> None:
        self.table.reserve(rows)

    @rule()
    def recover(self) -> None:
        rows = self.table.export()
        if self.admit_after > 1 or self.gone or self.changed:
            return  # candidates and what was not sealed are no part of rows; the default row is
        recovered = self.new_table()
        recovered.restore(rows)
        self.table = recovered
        self.rejected = 0
        assert recovered.seal().ids.size == 0

    def same(self, rows: Rows) -> None:
        ids = rows.ids.tolist()
        np.testing.assert_array_equal(rows.embeddings, self.expected(ids))
        assert rows.last_seen_seconds.tolist() == [self.rows[i].last_seen for i in ids]
        assert rows.counts.tolist() == [self.rows[i].count for i in ids]
        np.testing.assert_array_equal(rows.default_embedding, self.default)

    @invariant()
    def all_rows(self) -> None:
        if not hasattr(self, "table"):
            return
        rows = self.table.export()
        assert rows.ids.tolist() == sorted(self.rows)
        self.same(rows)
        stats = self.table.stats
        assert len(self.table) == stats.live == len(self.rows)
        assert stats.rejected_gradients == self.rejected
        assert stats.candidates == len(self.candidates)
        assert stats.candidates_dropped == self.dropped


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
