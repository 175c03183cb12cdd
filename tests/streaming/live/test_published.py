"""What is folded from `features` is what published it, however it comes; what is no record of it is passed over and counted."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.features.kinds import FeatureSet
from streaming.live.core import LiveCore
from streaming.live.published import Kept, published_keys, published_place
from streaming.live.spec import LiveSpec
from streaming.records.events import MAX_TIME_MS
from tests.streaming.live.brute_force import Done, Shown, events_of
from tests.streaming.live.publishing import Publishing, Records
from tests.streaming.live.test_live import LABELS, busy_log, live_of, logs
from tests.streaming.source.own_logs import T, features

SPEC = LiveSpec.of(live_of(), LABELS)
FEATURES: FeatureSet = features(**{name: {"column": name} for name in ("user", "item")})


def published(log: list[Shown], done: list[Done], at_once: int) -> tuple[Publishing, Records]:
    """What some events at a time make of a log."""
    publishing = Publishing(SPEC, FEATURES)
    events = events_of(log, done, SPEC.windows)
    pieces = [events[at : at + at_once] for at in range(0, len(events), at_once)]
    return publishing, [record for piece in pieces for record in publishing.take(piece)]


def differences(core: LiveCore, publishing: Publishing, records: Records) -> list[str]:
    """Where a core differs from those that published."""
    found = []
    for name, _ in SPEC.settings.definitions():
        for partition, publisher in enumerate(publishing.cores):
            said = Kept(SPEC, FEATURES).read(value for to, _, value in records if to == partition)
            keys = said.keys[name][0] if name in said.keys else np.empty(0, np.int64)
            if core.packed(name, keys).tobytes() != publisher.packed(name, keys).tobytes():
                found.append(f"{name} of partition {partition}")
        if core.kept()[name].keys != sum(each.kept()[name].keys for each in publishing.cores):
            found.append(f"keys of {name}")
    if core.totals.tolist() != sum(each.totals for each in publishing.cores).tolist():  # type: ignore[union-attr]
        found.append(f"totals {core.totals}")
    return found


@settings(max_examples=60, deadline=None)
@given(logs(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_what_is_folded_is_what_published(drawn: tuple[list[Shown], list[Done]], at_once: int, random: object) -> None:
    """Records of a partition come in their order, in any pieces, between those of other partitions."""
    log, done = drawn
    publishing, records = published(sorted(log, key=lambda each: each.served_at), done, at_once)
    left = {partition: [value for to, _, value in records if to == partition] for partition in range(3)}
    kept = Kept(SPEC, FEATURES)
    while any(left.values()):
        partition = random.choice([each for each in left if left[each]])  # type: ignore[attr-defined]
        count = random.randint(1, 4)  # type: ignore[attr-defined]
        kept.fold(partition, left[partition][:count])
        del left[partition][:count]
    assert differences(kept.core, publishing, records) == []
    assert not kept.skipped


def test_the_newest_record_of_a_key_says_all() -> None:
    """As after compaction: what stood before it in its partition is not needed."""
    publishing, records = published(*busy_log(), 10)
    newest = {(partition, key): (partition, key, value) for partition, key, value in records}
    assert len(newest) < len(records) / 2
    kept = Kept(SPEC, FEATURES)
    for partition, _, value in newest.values():
        kept.fold(partition, [value])
    assert differences(kept.core, publishing, records) == []


def key_record(change: Callable[[np.ndarray], None], definition: str = "rates.item") -> bytes:
    """A record of one key, with other words than were kept."""
    publishing, _ = published(*busy_log(), 10)
    identity = SPEC.identities(FEATURES)[definition]
    keys = np.array([1])
    packed = next(
        core.packed(definition, keys)
        for core in publishing.cores
        if core.packed(definition, keys).view(np.int64)[0, 0] > 0
    )
    change(packed[0])
    return next(published_keys(identity, keys, packed))[1]


def set_word(at: int, value: float | int) -> Callable[[np.ndarray], None]:
    def change(words: np.ndarray) -> None:
        words.view(np.float64 if isinstance(value, float) else np.int64)[at] = value

    return change


REFUSED = {
    "no msgpack": (b"\xc1", "malformed"),
    "another shape": (msgspec.msgpack.encode({"version": 1}), "malformed"),
    "another version": (msgspec.msgpack.encode([2, "rates.item", 1, b""]), "version"),
    "too few words": (msgspec.msgpack.encode([1, SPEC.identities(FEATURES)["rates.item"], 1, b"12345678"]), "malformed"),
    "a key beyond 64 bits": (msgspec.msgpack.encode([1, "rates.other-0", 2**63, b""]), "malformed"),
    "too large": (b"\x90" * (5 << 20), "too_large"),
    "a definition of another config": (next(published_keys("rates.item-00000000", np.array([1]), np.zeros((1, 9), np.uint64)))[1],
        "of another config",
    ),
    "no number": (key_record(set_word(-1, float("nan"))), "malformed"),
    "more than any number": (key_record(set_word(1, float("inf"))), "malformed"),
    "fewer than none": (key_record(set_word(2, -1.0)), "malformed"),
    "a time beyond all": (key_record(set_word(0, MAX_TIME_MS + 1)), "malformed"),
    "a time before all": (key_record(set_word(2, -1), "age.item"), "malformed"),
    "an action before all": (key_record(set_word(-3, -1), "sequences.item"), "malformed"),
    "an action that there is not": (key_record(set_word(-2, 2), "sequences.item"), "malformed"),
    "an action that none counts": (key_record(set_word(-2, -1), "sequences.item"), "malformed"),
    "an action after the newest": (key_record(set_word(-3, T + 10**9), "sequences.item"), "malformed"),
    "actions out of order": (key_record(set_word(1, T), "sequences.item"), "malformed"),
    "totals below none": (published_place(3, ["click"], np.array([3, -1]))[1], "malformed"),
    "totals without end": (published_place(3, ["click"], np.array([1 << 60, 1]))[1], "malformed"),
    "totals of other actions than it says": (msgspec.msgpack.encode([1, "", 0, bytes(8), ["click"]]), "malformed"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_record_is_passed_over_and_counted(name: str) -> None:
    """What stands beside it is folded as if it were not there."""
    wrong, reason = REFUSED[name]
    publishing, records = published(*busy_log(), 10)
    kept = Kept(SPEC, FEATURES)
    for partition in range(3):
        kept.fold(partition, [wrong, *(value for to, _, value in records if to == partition), wrong])
    assert kept.skipped == {reason: 6}
    assert differences(kept.core, publishing, records) == []


def test_a_key_that_was_forgotten_is_no_damage() -> None:
    kept = Kept(SPEC, FEATURES)
    kept.fold(0, [b"", key_record(lambda words: None)])
    assert not kept.skipped
    assert kept.core.kept()["rates.item"].keys == 1
    assert kept.core.packed("rates.item", np.array([1])).view(np.int64)[0, 0] > T


def test_totals_are_by_the_names_of_actions() -> None:
    """A config may count other actions than the one that published, in another order."""
    kept = Kept(SPEC, FEATURES)
    assert kept.actions == ["click", "share", "buy", "play"]
    kept.fold(0, [published_place(3, ["like", "buy", "click"], np.array([9, 1, 2, 3]))[1]])
    kept.fold(1, [published_place(3, ["share"], np.array([1, 1]))[1]])
    kept.fold(0, [published_place(3, ["buy", "click"], np.array([10, 2, 4]))[1]])
    assert kept.core.totals.tolist() == [11, 4, 1, 2, 0]
