"""The state of pending requests against a dictionary: wherever they are, each is woken when it is time, and none is lost."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.join.pending import Pending
from streaming.join.state import JoinState
from streaming.join.timers import NEVER
from streaming.log import IMPRESSIONS
from streaming.records.events import DeadLetter
from streaming.records.examples import Published
from tests.simulation.store import StoreFolder
from tests.streaming.contracts.stores import EVERY_STORE, STORES
from tests.streaming.join.join_world import (
    HEAD,
    SpillingState,
    memory_store,
)

STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "wake", "get", "due", "write"]), st.integers(0, 9)), max_size=40
)


@pytest.mark.parametrize("kind", EVERY_STORE)
@settings(max_examples=25, deadline=None)
@given(STEPS, st.sampled_from([1, 2500, 5000, 1 << 20]), st.integers(0, 2**32))
def test_it_is_a_dictionary_with_an_alarm_clock(
    kind: str, steps: list[tuple[str, int]], memory_bytes: int, seed: int
) -> None:
    rng = random.Random(seed)
    wake_at: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        open_store = STORES[kind](Path(folder))
        state = JoinState(Path(folder), memory_bytes, lambda _: open_store())
        for step, number in steps:
            name = f"r{number}"
            if step == "add" and name not in wake_at:
                pending = Pending(served_at=number)
                wake_at[name] = rng.randint(0, 20)
                state.wake(name, pending, wake_at[name])
                state.add(name, pending, rng.randint(0, 2000))
            elif step in ("wake", "get"):
                found = state.get(name)
                assert (found is not None) == (name in wake_at)
                if found is not None:
                    assert found.served_at == number
                    if step == "wake":
                        at = rng.randint(0, 20)
                        state.wake(name, found, at)
                        wake_at[name] = min(at, wake_at[name])
            elif step == "due":
                due_in_turns(state, wake_at, rng)
            if step == "write" or state.must_write:
                state.write(HEAD)
                assert not state.must_write
            assert len(state) == len(wake_at)
            assert state.next_due() == min(wake_at.values(), default=NEVER)
        state.close()


def due_in_turns(state: JoinState, wake_at: dict[str, int], rng: random.Random) -> None:
    """Take everything before a time, a few at once; some go, the others want to be woken later, or never more."""
    before, limit = rng.randint(0, 20), rng.randint(1, 3)
    expected = {name for name, at in wake_at.items() if at < before}
    found = []
    while names := state.take_due(before, limit):
        assert len(names) <= limit
        for name in names:
            found.append(name)
            pending = state.get(name)
            assert pending is not None
            if rng.random() < 0.4:
                state.drop(name)
                del wake_at[name]
            else:
                wake_at[name] = rng.randint(before, 25)
                pending.wake_at = NEVER
                state.wake(name, pending, wake_at[name])
    assert sorted(found) == sorted(expected)


def test_one_that_wants_to_be_woken_before_those_that_went_is_not_passed_over(tmp_path: Path) -> None:
    state = SpillingState(tmp_path)
    for name, at in (("a", 100), ("b", 200), ("c", 300)):
        pending = Pending()
        state.wake(name, pending, at)
        state.add(name, pending, 10)
    assert state.in_memory == 0
    assert state.take_due(250, 10) == ["a", "b"]
    for name in ("a", "b"):
        assert state.get(name) is not None
        state.drop(name)
    early, other = Pending(), Pending()
    state.wake("early", early, 50)
    state.add("early", early, 10)
    state.wake("other", other, 400)
    state.add("other", other, 10)
    assert state.next_due() == 50
    assert state.take_due(60, 10) == ["early"]
    state.close()


@pytest.mark.parametrize("goes", [False, True])
def test_the_time_that_the_disk_has_of_one_in_memory_does_not_count(goes: bool, tmp_path: Path) -> None:
    state = SpillingState(tmp_path)
    for name, at in (("a", 100), ("b", 300)):
        pending = Pending()
        state.wake(name, pending, at)
        state.add(name, pending, 10)
    early = state.get("a")
    assert early is not None
    state.wake("a", early, 50)
    assert state.take_due(60, 10) == ["a"]
    if goes:
        state.drop("a")
    else:
        early.wake_at = NEVER
        state.wake("a", early, 200)
    assert state.next_due() == (300 if goes else 200)
    state.close()


def test_what_it_holds_survives_the_disk_as_it_was(tmp_path: Path) -> None:
    state = SpillingState(tmp_path)
    pending = Pending(served_at=7, impression_ids=["x", "y"], emitted=bytearray(b"\1\0"))
    pending.events = {1: [(8, "click", 1.5)]}
    pending.waiting, pending.waiting_bytes, pending.event_count = [(3, b"\xff raw")], 5, 1
    pending.digest = 2**64 - 1
    state.wake("näme", pending, 9)
    state.add("näme", pending, 100)
    assert state.in_memory == 0
    again = state.get("näme")
    assert again is not None
    assert again is not pending
    assert again == pending
    assert isinstance(again.emitted, bytearray)
    state.close()


@pytest.mark.parametrize("kind", EVERY_STORE)
def test_what_was_sent_is_known_until_it_is_forgotten(kind: str, tmp_path: Path) -> None:
    """Also by who opens the folder again before that."""
    open_store = STORES[kind](tmp_path)

    def open_state() -> JoinState:
        return JoinState(tmp_path, 1 << 20, lambda _: open_store())

    def known(state: JoinState) -> tuple[list[int], dict[int, str | None]]:
        return list(state.sent.emitted("r1", 7, ["x", "y"])), state.sent.letters(IMPRESSIONS, [3, 4, 5])

    sent, nothing = ([3, 0], {4: "why", 5: None}), ([0, 0], {})
    state = open_state()
    assert known(state) == nothing
    state.sent.note_emitted(Published([("r1/x", 7, 2)]))
    letters = [(4, "schema", "why", True), (5, "late", "why not", False)]
    state.sent.note_letters(
        DeadLetter(topic=IMPRESSIONS, partition=0, offset=at, reason=reason, detail=why, payload=b"", accepted=accepted)
        for at, reason, why, accepted in letters
    )
    for _ in range(2):
        assert known(state) == sent
        state.close()
        state = open_state()
    state.reload()
    assert known(state) == sent
    state.sent.forget()
    assert known(state) == nothing
    state.close()
    state = open_state()
    assert known(state) == nothing
    state.close()


def test_a_roomy_state_writes_nothing() -> None:
    folder = StoreFolder()
    state = JoinState(Path("nowhere"), 1 << 20, lambda _: memory_store(folder))
    for number in range(50):
        pending = Pending()
        state.wake(f"r{number}", pending, number)
        state.add(f"r{number}", pending, 10)
    assert state.take_due(10, 100) == [f"r{number}" for number in range(10)]
    assert not state.must_write
    assert not folder.values
    state.discard()
    assert (len(state), state.next_due()) == (0, NEVER)
    state.close()
