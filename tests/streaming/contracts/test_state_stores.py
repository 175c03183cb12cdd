"""What a joiner's state relies on, of every store that it runs over."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.join.store import JoinStore
from tests.streaming.contracts.stores import EVERY_STORE, STORES

KEYS = st.binary(min_size=1, max_size=2)
STEPS = st.lists(
    st.one_of(
        st.dictionaries(KEYS, st.none() | st.binary(max_size=3), max_size=4),
        st.tuples(KEYS, KEYS),
        st.just("clear"),
        st.just("reopen"),
    ),
    max_size=12,
)


@pytest.fixture(params=EVERY_STORE)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JoinStore]:
    store = STORES[request.param](tmp_path)()
    yield store
    store.close()


def write(store: JoinStore, changes: Mapping[bytes, bytes | None]) -> None:
    batch = store.batch()
    for key, value in changes.items():
        if value is None:
            batch.delete(key)
        else:
            batch.put(key, value)
    store.write(batch)


def keys(store: JoinStore, start: bytes = b"") -> list[bytes]:
    cursor, found = store.iter(), []
    cursor.seek(start)
    while cursor.valid():
        found.append(cursor.key())
        cursor.next()
    cursor.status()
    return found


def test_a_new_store_is_empty(store: JoinStore) -> None:
    assert store.get(b"a") is None
    assert store.get([b"a", b"b"]) == [None, None]
    assert keys(store) == []
    store.delete_range(b"a", b"z")
    store.clear()
    assert keys(store) == []


def test_a_batch_is_nothing_until_it_is_written(store: JoinStore) -> None:
    write(store, {b"a": b"1", b"b": b"2"})
    batch = store.batch()
    batch.delete(b"a")
    batch.put(b"c", b"3")
    assert (store.get([b"a", b"b", b"c"]), keys(store)) == ([b"1", b"2", None], [b"a", b"b"])
    store.write(batch)
    assert (store.get([b"a", b"b", b"c"]), keys(store)) == ([None, b"2", b"3"], [b"b", b"c"])


def test_of_one_key_in_a_batch_the_last_change_counts(store: JoinStore) -> None:
    batch = store.batch()
    batch.put(b"a", b"1")
    batch.put(b"a", b"2")
    batch.put(b"b", b"1")
    batch.delete(b"b")
    batch.delete(b"c")
    batch.put(b"c", b"3")
    store.write(batch)
    assert store.get([b"a", b"b", b"c"]) == [b"2", None, b"3"]


def test_a_cursor_stands_at_the_first_key_that_is_not_before_what_it_seeks(store: JoinStore) -> None:
    write(store, {b"t\0\1": b"", b"t\0\xff": b"", b"t\1": b"", b"p": b"", b"u": b""})
    assert keys(store, b"t") == [b"t\0\1", b"t\0\xff", b"t\1", b"u"]
    assert keys(store, b"t\0\2")[0] == b"t\0\xff"
    store.delete_range(b"t", b"t\1")
    assert keys(store) == [b"p", b"t\1", b"u"], "the end of a range stays"
    assert keys(store, b"v") == []


@pytest.mark.parametrize("kind", EVERY_STORE)
@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_it_is_a_dictionary_in_order(kind: str, steps: list[object]) -> None:
    expected: dict[bytes, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        open_store = STORES[kind](Path(folder))
        store = open_store()
        for step in steps:
            match step:
                case dict():
                    write(store, step)
                    expected |= step
                    expected = {key: value for key, value in expected.items() if value is not None}
                case (bytes() as begin, bytes() as end) if begin <= end:
                    store.delete_range(begin, end)
                    expected = {key: value for key, value in expected.items() if not begin <= key < end}
                case "clear":
                    store.clear()
                    expected = {}
                case "reopen":
                    store.close()
                    store = open_store()
            assert keys(store) == sorted(expected)
            assert store.get(sorted(expected)) == [expected[key] for key in sorted(expected)]
        store.close()
