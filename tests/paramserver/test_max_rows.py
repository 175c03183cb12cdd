"""A full table lets the longest unused rows go: against a list that is sorted each time."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from paramserver import _native
from paramserver.checksum import Checksums, checksum_of
from paramserver.delta import TableDelta
from paramserver.precision import rounded
from paramserver.settings import TablesSettings
from paramserver.table import Table

steps = st.lists(
    st.tuples(
        st.lists(st.integers(-30, 30), max_size=25),
        st.integers(-4, 9),
        st.sampled_from(["use", "use", "expire", "erase", "seal"]),
    ),
    max_size=40,
)


@given(steps, st.integers(1, 20), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_who_goes(steps: list[tuple[list[int], int, str]], max_rows: int, secret: int) -> None:
    table, replica = Table(2, max_rows=max_rows, expire_after_seconds=20, secret=secret), Table(2, row_format="float32")
    seen: dict[int, int] = {}
    published = Checksums("float32")
    now, evicted = 100, 0
    for ids, seconds, what in steps:
        now += seconds
        if what == "use":
            for i in ids:
                seen[i] = max(seen.get(i, 0), now)
            table.lookup_or_insert(np.array(ids, np.int64), now * 1000)
            for i in sorted(seen, key=lambda i: (seen[i], i))[: max(0, len(seen) - max_rows)]:
                del seen[i]
                evicted += 1
        elif what == "expire":
            for _ in range(2):
                table.expire(now * 1000, 10**6)
            seen = {i: at for i, at in seen.items() if at > now - 20}
        elif what == "erase":
            table.erase(np.array(ids, np.int64))
            seen = {i: at for i, at in seen.items() if i not in ids}
        else:
            rows = table.seal()
            published.take({"item": TableDelta(rows, np.zeros(len(rows.ids), np.int64))})
            replica.erase(rows.expired)
            replica.upsert(rows.ids, rows.embeddings)
            assert replica.export().ids.tolist() == sorted(seen)
            assert checksum_of(replica) == published.values()["item"]
        rows = table.export()
        assert dict(zip(rows.ids.tolist(), rows.last_seen_seconds.tolist(), strict=True)) == seen
        assert table.stats.evicted == evicted


def test_a_full_table_stays_full_for_long() -> None:
    """Many evictions for one look at all rows, with rows between that are used again."""
    table, random, seen = Table(1, max_rows=5_000), np.random.default_rng(0), {}
    for now in range(1, 200):
        ids = random.integers(0, 20_000, 400)
        table.lookup_or_insert(ids, now * 1000)
        seen |= dict.fromkeys(ids.tolist(), now)
        seen = dict(sorted(seen.items(), key=lambda item: (item[1], item[0]))[-5_000:])
        assert len(table) == len(seen)
    assert table.export().ids.tolist() == sorted(seen)


def test_more_rows_than_the_limit_are_restored_whole_and_go_at_the_next_batch() -> None:
    big, small = Table(1), Table(1, max_rows=10)
    for now in range(1, 4):
        big.lookup_or_insert(np.arange(20) + 20 * now, now * 1000)
    small.restore(big.export())
    assert len(small) == 60
    small.lookup_or_insert(np.array([1]), 5_000)
    assert small.export().ids.tolist() == [1, *range(71, 80)]
    assert small.seal().expired.tolist() == list(range(20, 71))


def test_the_limit_of_one_table() -> None:
    settings = TablesSettings.model_validate({"max_rows": 7, "only": {"user": {"max_rows": 3}}})
    for name, most in (("user", 3), ("item", 7)):
        table = settings.make(name, 2, 1)
        table.lookup_or_insert(np.arange(50), 1000)
        assert len(table) == most


def test_the_secret_moves_ids_and_no_value() -> None:
    ids = np.arange(1000)
    one, two = (TablesSettings().make("user", 4, 1, secret) for secret in (1, 2))
    np.testing.assert_array_equal(one.lookup_or_insert(ids, 0), two.lookup_or_insert(ids, 0))
    assert _native.bucket_hashes(1, "user", 1, 5) != _native.bucket_hashes(1, "user", 2, 5)


def test_of_equally_unused_rows_the_lowest_id_goes() -> None:
    """Ids are int64, so those below 0 first."""
    table = Table(1, max_rows=1)
    table.lookup_or_insert(np.array([-5, 3]), 1_000)
    assert table.ids().tolist() == [3]


def test_what_a_restore_removes_is_counted() -> None:
    table, other = Table(1), Table(1)
    for each in (table, other):
        each.lookup_or_insert(np.arange(10), 1_000)
    other.seal()
    other.erase(np.array([1, 2, 77]))
    table.restore(other.seal())
    stats = table.stats
    assert (stats.live, stats.erased) == (8, 2)
    assert stats.live == stats.inserted - stats.expired - stats.evicted - stats.erased


def test_rows_narrowed_to_int8_stay_as_they_are_when_narrowed_again() -> None:
    """However small: a subnormal scale would not."""
    random = np.random.default_rng(0)
    rows = (random.normal(size=(2_000, 3)) * 10.0 ** random.integers(-44, -34, (2_000, 1))).astype(np.float32)
    once, table, ids = rounded(rows, "int8"), Table(3, row_format="int8"), np.arange(2_000)
    for values in (rows, once):
        table.upsert(ids, values)
        assert np.array_equal(table.lookup(ids), once)
    assert np.array_equal(rounded(once, "int8"), once)
