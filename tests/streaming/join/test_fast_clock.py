"""Producers whose clocks are fast: what one record claims moves the watermark no further than its broker's time allows."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from streaming.clock import EventClock
from streaming.embedded_log import EmbeddedLog
from streaming.join.embedded import EmbeddedHistory, EmbeddedOutlet
from streaming.join.partition import JoinPartition
from streaming.join.settings import JoinSettings
from streaming.join.spec import JoinSpec
from streaming.join.state import JoinState
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, Record
from streaming.records.events import FORMAT_VERSION, Engagement, Request, decode_letter, encode
from streaming.records.examples import ExampleFormat
from streaming.records.labels import Label
from tests.streaming.join.join_lives import FEATURES
from tests.streaming.join.join_world import CLICK, Served, make_joiner, reasons, request_record

SECOND, MINUTE, HOUR = 1000, 60_000, 3_600_000
START = 1_700_000_000_000
REQUESTS, BACKLOG, AHEAD, OUTLIER = 3000, 45 * MINUTE, 40 * MINUTE, 1200
CLICK_AFTER = 5 * SECOND
SPEC = JoinSpec(FEATURES, {"click": Label(action="click", window="60s")}, JoinSettings(lateness="5s", max_future="1h"))


LAGS: dict[str, tuple[Sequence[int], Sequence[int]] | None] = {
    "living": None,
    "evenly": ([200], [200]),
    "engagements first": ([200], [4000]),
    "by turns": ([0, 20, 400], [0, 20, 400]),
}


class Sent(NamedTuple):
    """A record, and when its producer sends it."""

    at: int
    topic: str
    value: bytes


def request(number: int, served_at: int) -> bytes:
    ids = [f"{number}.0", f"{number}.1"]
    keys = number.to_bytes(8, "little") * 2
    return encode(
        Request(
            version=FORMAT_VERSION,
            request_id=f"r{number}",
            served_at=served_at,
            impression_ids=ids,
            features={"key": keys},
        )
    )


def click(number: int, happened_at: int) -> bytes:
    return encode(
        Engagement(
            version=FORMAT_VERSION,
            request_id=f"r{number}",
            impression_id=f"{number}.0",
            action="click",
            happened_at=happened_at,
        )
    )


def backlog(click_is_fast: bool) -> list[Sent]:
    """45 minutes of requests, of which the first impression is clicked; one is served by a clock that is 40 minutes fast."""
    sent = []
    for number in range(REQUESTS):
        at = START + number * BACKLOG // REQUESTS
        ahead = AHEAD if number == OUTLIER else 0
        sent.append(Sent(at, IMPRESSIONS, request(number, at + ahead)))
        clicked_at = at + CLICK_AFTER
        sent.append(Sent(clicked_at, ENGAGEMENTS, click(number, clicked_at + ahead * click_is_fast)))
    return sorted(sent)


class Worker:
    """One partition's joiner over an embedded log that stamps records as they are written."""

    def __init__(self, folder: Path, spec: JoinSpec = SPEC) -> None:
        self.clock = EventClock(START)
        self.log = EmbeddedLog(folder / "log", durable=False, clock=self.clock)
        self._folder, self._spec, self._lives = folder / "state", spec, 0
        self._begin()

    def _begin(self) -> None:
        self._lives += 1
        self._state = JoinState(self._folder, 1 << 30)
        self.join = JoinPartition(
            self._spec,
            self._state,
            EmbeddedOutlet(self.log, 0),
            EmbeddedHistory(self.log, 0),
            0,
            new_id=lambda: f"life {self._lives}",
        )
        for _ in self.join.recover():
            pass

    def lose_state(self) -> None:
        self._state.close()
        shutil.rmtree(self._folder)
        self._begin()

    def send(self, one: Sent) -> None:
        self.clock.move_to(one.at)
        self.log.append(one.topic, 0, [one.value])

    def step(self, **limits: int) -> bool:
        """Take up to so many records of each input, all where none is said; whether there was anything left to read."""
        ended = {}
        for topic in (IMPRESSIONS, ENGAGEMENTS):
            if limit := limits.get(topic, 1 << 20):
                self.join.take(topic, self.log.read(topic, 0, self.join.offsets[topic], limit))
            ended[topic] = self.join.offsets[topic] == self.log.end(topic, 0)
        self.join.step(ended, self.clock.now_ms(), SECOND)
        while self.join.busy:
            self.join.step(ended, self.clock.now_ms(), SECOND)
        return not all(ended.values())

    def finish(self) -> None:
        """Read what is left when every window is over."""
        self.clock.move_to(self.clock.now_ms() + 2 * HOUR)
        while self.step():
            pass

    def examples(self) -> list[dict[str, Any]]:
        records = self.log.read(EXAMPLES, 0, 0, 1 << 20)
        form = ExampleFormat(self._spec.features, self._spec.labels)
        rows = [
            row for record in records for row in form.decode(record.value)[0].drop_columns(["score.click"]).to_pylist()
        ]
        return sorted(rows, key=lambda row: str(row["example_id"]))

    def letters(self) -> list[tuple[str, str, bytes]]:
        found = [decode_letter(record.value) for record in self.log.read(DEAD_LETTERS, 0, 0, 1 << 20)]
        return sorted((letter.topic, letter.reason, letter.payload) for letter in found)

    def close(self) -> None:
        self._state.close()
        self.log.close()


@contextmanager
def working(folder: Path, spec: JoinSpec = SPEC) -> Iterator[Worker]:
    with closing(Worker(folder, spec)) as worker:
        yield worker


def lagging(worker: Worker, sent: list[Sent], impressions: Sequence[int], engagements: Sequence[int]) -> None:
    """It begins when all was sent, and reads so many of each input at once, one of these by chance."""
    for one in sent:
        worker.send(one)
    rng = random.Random(1)
    while worker.step(impressions=rng.choice(impressions), engagements=rng.choice(engagements)):
        pass


def living(worker: Worker, sent: list[Sent]) -> None:
    """It joins what is sent at once, every ten seconds."""
    stepped_at = START
    for one in sent:
        worker.send(one)
        if one.at >= stepped_at + 10 * SECOND:
            worker.step()
            stepped_at = one.at


@pytest.mark.parametrize("click_is_fast", [True, False], ids=["with its click", "alone"])
def test_one_record_far_ahead_in_a_backlog_loses_nothing_but_itself(click_is_fast: bool, tmp_path: Path) -> None:
    sent = backlog(click_is_fast)
    found = []
    for name, at_once in LAGS.items():
        with working(tmp_path / name) as worker:
            if at_once is None:
                living(worker, sent)
            else:
                lagging(worker, sent, *at_once)
            worker.finish()
            examples, letters = worker.examples(), worker.letters()
        assert len(examples) == 2 * REQUESTS == len({row["example_id"] for row in examples}), name
        positive = {row["example_id"] for row in examples if row["label.click"]}
        wanted = {f"r{number}/{number}.0" for number in range(REQUESTS) if number != OUTLIER or click_is_fast}
        assert positive == wanted, name
        # A click by a clock that is right came before its impression, by what that claims.
        early = click(OUTLIER, START + OUTLIER * BACKLOG // REQUESTS + CLICK_AFTER)
        assert letters == ([] if click_is_fast else [(ENGAGEMENTS, "before_served", early)]), name
        found.append(examples)
    assert all(examples == found[0] for examples in found), "what lags gives another result"


def test_an_impression_far_ahead_is_read_again_by_a_rebuild(tmp_path: Path) -> None:
    """However many windows have closed since: it is still pending."""
    spec = JoinSpec(FEATURES, CLICK, JoinSettings(lateness="50ms"))
    with working(tmp_path, spec) as worker:
        worker.send(Sent(START, IMPRESSIONS, request(0, START + MINUTE)))
        for number in range(1, 200):
            worker.send(Sent(START + 100 * number, IMPRESSIONS, request(number, START + 100 * number)))
            worker.step()
        worker.lose_state()
        assert worker.join.pending > 1
        worker.finish()
        assert [row["example_id"] for row in worker.examples()].count("r0/0.0") == 1
        assert len(worker.examples()) == 400
        assert worker.letters() == []


def test_rebuilds_begin_later_again_once_an_impression_far_ahead_is_out(tmp_path: Path) -> None:
    spec = JoinSpec(FEATURES, CLICK, JoinSettings(lateness="50ms"))
    with working(tmp_path, spec) as worker:
        worker.send(Sent(START, IMPRESSIONS, request(0, START + 5 * SECOND)))
        for number in range(1, 200):
            worker.send(Sent(START + 100 * number, IMPRESSIONS, request(number, START + 100 * number)))
            worker.step()
        committed = EmbeddedOutlet(worker.log, 0).open()
        assert committed is not None
        assert 150 < committed.lowest[IMPRESSIONS] < 200


@pytest.mark.parametrize(("ahead", "refused"), [(HOUR, False), (HOUR + 1, True)])
def test_what_is_too_far_ahead_is_so_by_its_brokers_time_whenever_it_is_read(ahead: int, refused: bool) -> None:
    core = make_joiner(CLICK)
    record = Record(7, request_record(Served("r1", START + ahead, 2)), START)
    core.add(IMPRESSIONS, record)
    assert reasons(core.drain().dead_letters) == ([(IMPRESSIONS, 7, "future")] if refused else [])
    assert core.reached.newest == (0 if refused else START + ahead)


@pytest.mark.parametrize("claimed", [-MINUTE, 0, 5 * SECOND, 5 * SECOND + 1, HOUR])
def test_how_far_a_record_moves_the_watermark(claimed: int) -> None:
    core = make_joiner(CLICK)
    core.add(IMPRESSIONS, Record(0, request_record(Served("r1", START + claimed, 2)), START))
    assert core.reached.inputs == {IMPRESSIONS: START + min(claimed, 5 * SECOND), ENGAGEMENTS: 0}
    core.add(IMPRESSIONS, Record(1, request_record(Served("r2", START - HOUR, 2)), START))
    assert core.reached.inputs[IMPRESSIONS] == START + min(claimed, 5 * SECOND), "it never goes back"
