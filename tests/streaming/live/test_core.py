"""The core: what it keeps does not depend on the order of arrival, and keys that nothing happens at give their memory back."""

from __future__ import annotations

from itertools import pairwise, permutations
from typing import TypeAlias

import numpy as np
import pytest

from streaming.live import _native
from streaming.live._native import Tally, Trail
from streaming.live.core import FIRST_ACTION, READ, SERVED, LiveCore, Operations
from streaming.live.numbers import Found, Lists
from streaming.live.settings import LiveSettings

DAY = 86_400_000
Actions: TypeAlias = list[list[int]]
"""Time, action and ids of each."""


def take(tally: Tally, *operations: tuple[int, int, int, int]) -> np.ndarray:
    """Operations of key, what, at and counted_at; what the reads among them found."""
    keys, what, at, counted_at = (np.array(column, np.int64) for column in zip(*operations, strict=True))
    out = np.empty((int((what == READ).sum()), tally.width))
    tally.take(keys, what.astype(np.int32), at, counted_at, out)
    return out


def test_what_is_kept_does_not_depend_on_the_order_of_arrival() -> None:
    happened = [
        (5, SERVED, 100, 100),
        (5, SERVED, 2600, 2600),
        (5, FIRST_ACTION, 900, 100),
        (5, FIRST_ACTION, 2600, 2600),
    ]
    found = []
    for order in permutations(happened):
        tally = Tally(expire_ms=20_000, half_lives_ms=[1000.0, 500.0], actions=1, keeps_times=True)
        found.append(take(tally, *order, (5, READ, 3100, 3100))[0])
    decayed = [2.0 ** ((at - 3100) / half) for half in (1000, 500) for at in (100, 2600)]
    counts = [sum(decayed[:2])] * 2 + [sum(decayed[2:])] * 2
    for each in found:
        assert each.tolist() == pytest.approx([2600, 100, 2600, 2600, *counts], rel=1e-12)


def test_a_late_event_from_before_a_key_was_forgotten_is_passed_over() -> None:
    tally = Tally(expire_ms=1000, half_lives_ms=[float("inf")], actions=0, keeps_times=False)
    found = take(tally, (1, SERVED, 0, 0), (1, SERVED, 5000, 5000), (1, SERVED, 10, 10), (1, READ, 5000, 5000))
    assert found.tolist() == [[5000, 1]]


def test_a_key_is_forgotten_after_its_time_and_not_before() -> None:
    tally = Tally(expire_ms=1000, half_lives_ms=[float("inf")], actions=0, keeps_times=False)
    found = take(tally, (1, SERVED, 0, 0), (1, READ, 1000, 1000), (1, READ, 1001, 1001))
    assert found[0].tolist() == [0, 1]
    assert np.isnan(found[1, 0]) and found[1, 1] == 0


def test_counts_do_not_grow_before_their_newest_event() -> None:
    """The clock of who reads may be behind that of who served."""
    tally = Tally(expire_ms=100_000, half_lives_ms=[1000.0], actions=0, keeps_times=False)
    found = take(tally, (1, SERVED, 50_000, 50_000), (1, READ, 10_000, 10_000))
    assert found.tolist() == [[50_000, 1]]


def bits_of(found: Found) -> list[bytes]:
    """What each read found."""
    if isinstance(found, Lists):
        return [found.ids[start:stop].tobytes() for start, stop in pairwise(found.offsets.tolist())]
    return [row.tobytes() for row in found]


def test_what_is_read_alone_is_what_is_read_among_operations() -> None:
    """Of keys that are there, that are not, and that lack a part; and nothing changes by it."""
    live = LiveSettings.model_validate(
        {
            "rates": {"item": {"key": ["item"], "of": ["click", "buy"], "half_life": ["1s", "1h"]}},
            "age": {"item": {"key": ["item"], "of": ["buy"]}},
            "seen": {"item": {"key": ["item"]}},
            "sequences": {"item": {"key": ["item"], "of": ["click", "buy"], "fields": ["user", "item"], "last": 4}},
        }
    )
    one, other = LiveCore(live, ["buy", "click"]), LiveCore(live, ["buy", "click"])
    rng = np.random.default_rng(2)
    names = [name for name, _ in live.definitions()]
    for round_ in range(3):
        what = rng.integers(SERVED, FIRST_ACTION + 2, 500).astype(np.int32)
        keys, at = rng.integers(0, 50, 500), 1000 * round_ + np.sort(rng.integers(0, 1000, 500))
        known = keys > 0
        ids = {"sequences.item": rng.integers(0, 9, (500, 2))}
        happened = Operations(what, at, at, dict.fromkeys(names, keys), dict.fromkeys(names, known), ids)
        assert all(bits_of(found) == [] for core in (one, other) for found in core.take(happened).values())
        wanted, now = np.arange(60), np.full(60, 1000 * round_ + 5000)
        has_key, nothing = dict.fromkeys(names, wanted > 0), {"sequences.item": np.zeros((60, 2), np.int64)}
        reads = Operations(np.full(60, READ, np.int32), now, now, dict.fromkeys(names, wanted), has_key, nothing)
        among = one.take(reads)
        for name, alone in other.read(dict.fromkeys(names, wanted), int(now[0])).items():
            assert bits_of(alone) == bits_of(among[name])
            assert len(set(bits_of(alone))) > 10


def test_shares_that_fit_no_read_are_refused() -> None:
    found, out = np.zeros((3, 3)), np.zeros((3, 2), np.float32)
    for shape in ((2, 1), (3, 2)):
        with pytest.raises(ValueError, match="shares: allowed: one row, or one for each read"):
            _native.rates(found, np.zeros(shape), 1.0, out)


def test_memory_is_that_of_the_keys_that_are_in_use() -> None:
    """A million keys, of which a thousand a day are in use for two days."""
    tally = Tally(expire_ms=2 * DAY, half_lives_ms=[float(DAY)], actions=0, keeps_times=False)
    for day in range(1000):
        keys = np.arange(day * 1000, (day + 1) * 1000)
        what, at = np.full(1000, SERVED, np.int32), np.full(1000, day * DAY)
        tally.take(keys, what, at, at, np.empty((0, tally.width)))
    assert 3000 <= tally.keys < 10_000
    assert tally.bytes < 1_000_000
    last = take(tally, *[(key, READ, 999 * DAY, 999 * DAY) for key in (999_999, 997_000, 996_999)])
    assert last[:, 1].tolist() == [1, 0.25, 0]


def test_every_key_is_found_among_many() -> None:
    rng = np.random.default_rng(1)
    keys = np.unique(rng.integers(-(2**63), 2**63, 50_000))
    rng.shuffle(keys)
    tally = Tally(expire_ms=DAY, half_lives_ms=[float("inf")], actions=0, keeps_times=False)
    count = np.arange(len(keys)) % 3 + 1
    repeated = np.repeat(keys, count)
    at = np.arange(len(repeated))
    tally.take(repeated, np.full(len(at), SERVED, np.int32), at, at, np.empty((0, 2)))
    out = np.empty((len(keys), 2))
    now = np.full(len(keys), len(at))
    tally.take(keys, np.full(len(keys), READ, np.int32), now, now, out)
    assert tally.keys == len(keys)
    assert out[:, 1].tolist() == count.tolist()
    assert out[:, 0].tolist() == (np.cumsum(count) - 1).tolist()


@pytest.mark.parametrize("what", [-1, FIRST_ACTION + 1])
def test_operations_that_it_does_not_know_are_refused(what: int) -> None:
    tally = Tally(expire_ms=1, half_lives_ms=[], actions=1, keeps_times=True)
    with pytest.raises(ValueError, match="what: allowed: 0 to 2"):
        take(tally, (1, what, 0, 0))
    assert tally.keys == 0


def test_columns_that_do_not_fit_are_refused() -> None:
    tally = Tally(expire_ms=1, half_lives_ms=[], actions=0, keeps_times=False)
    one = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="out: dimension 0 must be 1"):
        tally.take(one, np.zeros(1, np.int32), one, one, np.empty((0, 1)))
    with pytest.raises(TypeError, match="what: dtype must be int32"):
        tally.take(one, one, one, one, np.empty((1, 1)))  # type: ignore[arg-type]


def test_what_is_packed_is_kept_elsewhere() -> None:
    options = {"expire_ms": DAY, "half_lives_ms": [1000.0], "actions": 1, "keeps_times": True}
    first, second = Tally(**options), Tally(**options)  # type: ignore[arg-type]
    take(first, (5, SERVED, 100, 100), (5, FIRST_ACTION, 900, 100), (-6, SERVED, 2000, 2000))
    take(second, (5, SERVED, 50, 50), (7, SERVED, 60, 60))
    keys = np.array([5, -6, 99])
    packed = np.empty((3, first.width), np.uint64)
    first.pack(keys, packed)
    second.put(keys, packed)  # nothing is kept of the last
    reads = [(key, READ, 3000, 3000) for key in (5, -6)]
    assert take(second, *reads).tobytes() == take(first, *reads).tobytes()
    assert second.keys == 3


def follow(trail: Trail, *operations: tuple[int, int, int, int]) -> list[Actions]:
    """Operations of key, what, at and id; what each read among them found."""
    keys, what, at, ids = (np.array(column, np.int64) for column in zip(*operations, strict=True))
    lengths = np.empty(int((what == READ).sum()), np.int64)
    out = np.empty((trail.take(keys, what.astype(np.int32), at, ids[:, None], lengths), 3), np.int64)
    trail.found(out)
    ends = [0, *np.cumsum(lengths).tolist()]
    return [out[start:stop].tolist() for start, stop in pairwise(ends)]


def test_the_last_actions_of_a_key_do_not_depend_on_the_order_of_arrival() -> None:
    happened = [
        (5, FIRST_ACTION, 100, 7),
        (5, FIRST_ACTION + 1, 200, 8),
        (5, FIRST_ACTION, 200, 9),
        (5, FIRST_ACTION, 300, -2),
    ]
    for order in permutations(happened):
        trail = Trail(within_ms=1000, last=3, actions=2, fields=1)
        found = follow(trail, *order, (5, READ, 300, 0), (5, READ, 1201, 0), (5, READ, 1301, 0), (6, READ, 300, 0))
        assert found == [[[200, 0, 9], [200, 1, 8], [300, 0, -2]], [[300, 0, -2]], [], []]


def test_what_is_packed_of_actions_goes_on_elsewhere() -> None:
    one, other = (Trail(within_ms=DAY, last=2, actions=1, fields=1) for _ in range(2))
    follow(one, (5, FIRST_ACTION, 100, 7), (6, FIRST_ACTION, 100, 8))
    follow(other, (5, FIRST_ACTION, 50, 1))
    keys = np.array([5, 6, 7], np.int64)
    packed = np.empty((3, one.width), np.uint64)
    one.pack(keys, packed)
    other.put(keys, packed)
    assert other.keys == 2
    found = follow(other, (5, FIRST_ACTION, 200, 9), (5, READ, 200, 0), (6, READ, 200, 0), (7, READ, 200, 0))
    assert found == [[[100, 0, 7], [200, 0, 9]], [[100, 0, 8]], []]


def test_memory_of_actions_is_that_of_the_keys_that_are_in_use() -> None:
    trail = Trail(within_ms=2 * DAY, last=4, actions=1, fields=2)
    for day in range(1000):
        keys = np.arange(day * 100, (day + 1) * 100)
        what, at = np.full(100, FIRST_ACTION, np.int32), np.full(100, day * DAY)
        trail.take(keys, what, at, np.zeros((100, 2), np.int64), np.empty(0, np.int64))
    assert 300 <= trail.keys < 1000
    assert trail.bytes < 1000 * 8 * (2 + 4 * 4) * 2
