"""Who is let in: nobody is refused who can be answered in time, whatever was asked before. Time is simulated."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batches import Batches

BUDGET_SECONDS = 0.1


class Scorer:
    """Scores batches one after the other, each in ``batch_seconds`` and ``candidate_seconds`` for each candidate."""

    def __init__(self, batch_seconds: float = 1e-3, candidate_seconds: float = 5e-6) -> None:
        self.now = 0.0
        self.batches: Batches[float] = Batches(BUDGET_SECONDS, lambda: self.now)
        self.costs = batch_seconds, candidate_seconds

    def ask(self, candidates: int) -> bool:
        return self.batches.admit(self.now, candidates, 1000)

    def answer_all(self) -> list[float]:
        """How long each waiting request waited for its answer."""
        waits = []
        while self.batches:
            batch = self.batches.take()
            self.now += self.costs[0] + batch.candidates * self.costs[1]
            self.batches.done(typical=True)
            waits += [self.now - came for came in batch.items]
        return waits


def test_large_requests_after_small_ones() -> None:
    """48 of these 50 were refused, when one candidate was taken to cost as much as a request of one."""
    scorer = Scorer()
    for _ in range(100):
        assert scorer.ask(1)
        scorer.answer_all()
    assert [scorer.ask(100) for _ in range(50)] == [True] * 50
    assert max(scorer.answer_all()) < BUDGET_SECONDS


def test_small_requests_after_large_ones() -> None:
    scorer = Scorer()
    for _ in range(100):
        assert scorer.ask(500)
        scorer.answer_all()
    assert [scorer.ask(1) for _ in range(4000)] == [True] * 4000
    assert max(scorer.answer_all()) < BUDGET_SECONDS


def test_only_who_would_wait_too_long_is_refused() -> None:
    scorer = Scorer(batch_seconds=4e-3, candidate_seconds=20e-6)
    for size in (1, 100, 300, 500) * 20:
        assert scorer.ask(size)
        scorer.answer_all()
    let_in = [scorer.ask(100) for _ in range(200)]
    # Five together cost 14 ms, so seven batches have their answers after 98 ms; of the eighth, nobody would in time.
    assert sum(let_in) == 35
    waits = scorer.answer_all()
    assert len(waits) == 35 and 0.9 * BUDGET_SECONDS < max(waits) < BUDGET_SECONDS
    assert all(scorer.ask(100) for _ in range(35)), "once they are answered, as many again"


def test_what_is_left_of_the_batch_that_is_being_scored_counts() -> None:
    scorer = Scorer()
    for _ in range(200):
        scorer.ask(500)
        scorer.batches.take()
        scorer.now += 0.08
        scorer.batches.done(typical=True)
    for elapsed, let_in in ((0.0, False), (0.075, True), (10.0, True)):
        assert scorer.ask(500)
        scorer.batches.take()
        scorer.now += elapsed
        assert scorer.ask(250), "nobody waits"
        assert scorer.ask(1) is let_in, elapsed
        while scorer.batches:
            scorer.batches.done(typical=False)
            scorer.batches.take()
        scorer.batches.done(typical=False)


def test_what_waits_is_bounded_in_bytes() -> None:
    batches: Batches[int] = Batches(1e9)
    let_in = [batches.admit(at, 1, 1 << 20) for at in range(100)]
    assert let_in == [True] * 64 + [False] * 36
    batches.take()
    batches.done(typical=True)
    assert batches.admit(100, 1, 1 << 30), "nobody waits"


_events = st.one_of(
    st.tuples(st.just("ask"), st.integers(1, 10_000), st.integers(0, 1 << 30)),
    st.tuples(st.just("scored"), st.floats(0, 1e4), st.booleans()),
)


@settings(max_examples=200)
@given(st.lists(_events, max_size=100), st.integers(1, 10_000))
def test_who_is_alone_is_never_refused(history: list[tuple[str, float, int]], last: int) -> None:
    """And none is lost, batches are as large as they may be, and costs are numbers of time, whatever happened."""
    now = 0.0
    batches: Batches[int] = Batches(BUDGET_SECONDS, lambda: now)
    let_in, scored = 0, 0
    for what, size, more in history:
        if what == "ask":
            alone = not batches
            admitted = batches.admit(let_in, int(size), more)
            assert admitted or not alone
            let_in += admitted
        elif batches:
            batch = batches.take()
            assert batch.candidates <= 512 or len(batch.items) == 1
            assert batch.items == list(range(scored, scored + len(batch.items)))
            now += size
            batches.done(typical=bool(more))
            scored += len(batch.items)
        assert all(math.isfinite(part) and part >= 0 for part in batches.cost)
    while batches:
        scored += len(batches.take().items)
        batches.done(typical=False)
    assert scored == let_in and batches.candidates == 0
    assert batches.admit(0, last, 1 << 40)
