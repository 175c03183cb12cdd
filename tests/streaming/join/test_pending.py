"""The store of pending requests against a dictionary: whatever is on disk, each is woken when it is time, and none is lost."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rocksdict import Options, Rdict

from streaming.join.pending import Pending, PendingStore
from streaming.join.timers import NEVER

STEPS = st.lists(st.tuples(st.sampled_from(["add", "add", "wake", "get", "due"]), st.integers(0, 9)), max_size=40)


def open_store(folder: str | Path, memory_bytes: int) -> PendingStore:
    return PendingStore(memory_bytes, lambda: Rdict(str(Path(folder, "pending")), Options(raw_mode=True)))


@settings(max_examples=40)
@given(STEPS, st.sampled_from([1, 2500, 5000]), st.integers(0, 2**32))
def test_it_is_a_dictionary_with_an_alarm_clock(steps: list[tuple[str, int]], memory_bytes: int, seed: int) -> None:
    rng = random.Random(seed)
    wake_at: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder, memory_bytes)
        for step, number in steps:
            name = f"r{number}"
            if step == "add" and name not in wake_at:
                pending = Pending(served_at=number)
                wake_at[name] = rng.randint(0, 20)
                store.wake(name, pending, wake_at[name])
                store.add(name, pending, rng.randint(0, 2000))
            elif step in ("wake", "get"):
                pending_or_none = store.get(name)
                assert (pending_or_none is not None) == (name in wake_at)
                if pending_or_none is not None:
                    assert pending_or_none.served_at == number
                    if step == "wake":
                        at = rng.randint(0, 20)
                        store.wake(name, pending_or_none, at)
                        wake_at[name] = min(at, wake_at[name])
            elif step == "due":
                due_in_turns(store, wake_at, rng)
            assert len(store) == len(wake_at)
            assert store.next_due() == min(wake_at.values(), default=NEVER)
        store.close()


def due_in_turns(store: PendingStore, wake_at: dict[str, int], rng: random.Random) -> None:
    """Take everything before a time, a few at once; some go, the others want to be woken later, or never more."""
    before, limit = rng.randint(0, 20), rng.randint(1, 3)
    expected = {name for name, at in wake_at.items() if at < before}
    found = []
    while names := store.due(before, limit):
        assert len(names) <= limit
        for name in names:
            found.append(name)
            pending = store.get(name)
            assert pending is not None
            if rng.random() < 0.4:
                store.drop(name)
                del wake_at[name]
            else:
                wake_at[name] = rng.randint(before, 25)
                pending.wake_at = NEVER
                store.wake(name, pending, wake_at[name])
    assert sorted(found) == sorted(expected)


def test_one_that_wants_to_be_woken_before_those_that_went_is_not_passed_over(tmp_path: Path) -> None:
    store = open_store(tmp_path, 1)
    for name, at in (("a", 100), ("b", 200), ("c", 300)):
        pending = Pending()
        store.wake(name, pending, at)
        store.add(name, pending, 10)
    assert store.spilled == 2
    assert store.due(250, 10) == ["a", "b"]
    for name in ("a", "b"):
        assert store.get(name) is not None
        store.drop(name)
    early, other = Pending(), Pending()
    store.wake("early", early, 50)
    store.add("early", early, 10)
    store.wake("other", other, 400)
    store.add("other", other, 10)
    assert store.next_due() == 50
    assert store.due(60, 10) == ["early"]
    store.close()


def test_what_it_holds_survives_the_disk_as_it_was(tmp_path: Path) -> None:
    store = open_store(tmp_path, 1)
    pending = Pending(served_at=7, impression_ids=["x", "y"], emitted=bytearray(b"\1\0"))
    pending.events = {1: [(8, "click", 1.5)]}
    pending.waiting = [(3, b"\xff raw")]
    store.wake("näme", pending, 9)
    store.add("näme", pending, 100)
    other = Pending()
    store.wake("other", other, 1)
    store.add("other", other, 100)
    assert store.spilled == 1
    again = store.get("näme")
    assert again is not None
    assert again is not pending
    assert again == pending
    assert isinstance(again.emitted, bytearray)
    store.close()


@pytest.mark.parametrize("count", [50])
def test_a_roomy_store_opens_no_database(count: int) -> None:
    def fail() -> Rdict:
        raise AssertionError("opened")

    store = PendingStore(1 << 20, fail)
    for number in range(count):
        pending = Pending()
        store.wake(f"r{number}", pending, number)
        store.add(f"r{number}", pending, 10)
    assert store.due(10, 100) == [f"r{number}" for number in range(10)]
    store.close()
