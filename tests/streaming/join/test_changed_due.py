"""What decides when requests are due changes between two starts, and then the state is lost: nothing that was accepted vanishes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import msgspec
import pytest

from streaming.join.commit import decode_commit
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, IMPRESSIONS
from streaming.records.events import (
    FORMAT_VERSION,
    MIN_TIME_MS,
    Engagement,
    decode_letter,
    encode,
)
from tests.streaming.join.config_lives import CHANGE, ENDED, LATE_BY, START, Config, Lives
from tests.streaming.join.join_lives import clicked, letters, published, take
from tests.streaming.join.join_lives import request as request_of

CHANGES = {
    "emitted at once": (Config(emit="window"), Config()),
    "emitted when windows close": (Config(), Config(emit="window")),
    "more lateness": (Config(), Config(lateness=3000)),
    "less lateness": (Config(lateness=3000), Config()),
    "begins later": (Config(), Config(earliest_ms=CHANGE - 600)),
    "a label removed": (Config(buys=True), Config()),
    "a label added": (Config(), Config(buys=True)),
}


@pytest.mark.parametrize("lost_at", [CHANGE, CHANGE + 500, CHANGE + 3000])
@pytest.mark.parametrize("configs", CHANGES.values(), ids=CHANGES)
def test_nothing_that_was_accepted_vanishes(configs: tuple[Config, Config], lost_at: int, tmp_path: Path) -> None:
    """The state is lost at once, or when windows have passed under the other config."""
    before, after = configs
    lives = Lives(tmp_path, 0.5)
    lives.start(before)
    lives.run(CHANGE)
    if lost_at > CHANGE:
        lives.start(after)
        lives.run(lost_at)
    lives.start(after, lost=True)
    lives.finish()


@pytest.mark.parametrize("keep", [1.0, 0.5])
@pytest.mark.parametrize("lost", [False, True], ids=["state kept", "state lost"])
@pytest.mark.parametrize("emits", [("decided", "window", "decided"), ("window", "decided", "window")], ids=str)
def test_emitted_at_another_time_and_back_again(
    emits: tuple[str, str, str], lost: bool, keep: float, tmp_path: Path
) -> None:
    lives = Lives(tmp_path, keep)
    for number, emit in enumerate(emits):
        lives.start(Config(emit=emit), lost=lost)
        lives.run(CHANGE + 700 * number)
    lives.start(Config(emit=emits[-1]), lost=True)
    lives.finish()


@pytest.mark.parametrize("seed", range(5))
def test_nothing_vanishes_however_configs_and_states_change(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    lives = Lives(tmp_path / "lives", rng.choice([1.0, 0.5]), rng.choice([1, 3, 100]))
    older = tmp_path / "older"
    configs = [
        Config(
            emit=rng.choice(["decided", "window"]),
            lateness=rng.choice([LATE_BY, 2 * LATE_BY, 3000]),
            earliest_ms=rng.choice([MIN_TIME_MS, START + 2000]),
            buys=rng.random() < 0.5,
            ages=rng.random() < 0.5,
        )
        for _ in range(3)
    ]
    while lives.now < 40_000:
        match rng.randrange(5):
            case 0 if older.exists():
                shutil.rmtree(lives.folder, ignore_errors=True)
                shutil.copytree(older, lives.folder)
            case 1 if lives.folder.exists():
                shutil.rmtree(older, ignore_errors=True)
                shutil.copytree(lives.folder, older)
            case 2 | 3:
                shutil.rmtree(lives.folder, ignore_errors=True)
        lives.start(rng.choice(configs), write_every_ms=rng.choice([0, 1 << 40]))
        lives.run(lives.now + rng.randrange(1, 3000), rng.choice([50, 250]))
        lives.stop()
    lives.start(rng.choice(configs))
    lives.finish()


def test_more_changes_than_a_commit_names(tmp_path: Path) -> None:
    """The oldest are one, under any of whose schemas requests were taken; no config refuses a request that it never took."""
    lives = Lives(tmp_path, 1.0)
    brokers = lives.world.brokers
    first = msgspec.json.encode(
        {
            "version": FORMAT_VERSION,
            "request_id": "first",
            "served_at": START,
            "impression_ids": ["a"],
            "features": {"key": [1], "age": ["old"]},  # which nobody reads
        }
    )
    for number in range(12):
        join = lives.start(Config(buys=number % 2 == 0))
        take(join, brokers, IMPRESSIONS, *([] if number else [first]), request_of(number, START + number))
        join.step(ENDED, START + 100, 0)
    assert len(brokers.committed or "") < 2000
    join = lives.start(Config(ages=True), lost=True)
    for as_of_ms in range(START + 20_000, START + 30_000, 1000):
        join.step(ENDED, as_of_ms, 0)
    lives.stop()
    assert sorted(published(brokers)) == sorted(["first/a", *(f"r{number}/{number}.0" for number in range(12))])
    assert letters(brokers) == []


@pytest.mark.parametrize("buys", [True, False], ids=["nothing", "a label removed"])
def test_what_was_emitted_since_the_state_was_written_is_emitted_once(buys: bool, tmp_path: Path) -> None:
    """Also if the engagement that decided it counts for nothing any more."""
    lives = Lives(tmp_path, 1.0)
    brokers = lives.world.brokers
    join = lives.start(Config(buys=True))
    take(join, brokers, IMPRESSIONS, request_of(1, START))
    take(join, brokers, ENGAGEMENTS, encode(clicked("r1", "1.0", START + 100)))
    join.step(ENDED, START + 200, 0)
    join = lives.start(Config(buys=True), write_every_ms=1 << 40)
    buy = Engagement(
        version=FORMAT_VERSION, request_id="r1", impression_id="1.0", action="buy", happened_at=START + 300
    )
    take(join, brokers, ENGAGEMENTS, encode(buy))
    join.step(ENDED, START + 1000, 0)
    assert published(brokers).keys() == {"r1/1.0"}, "decided at once"
    join = lives.start(Config(buys=buys))
    for as_of_ms in range(START + 1100, START + 60_000, 1000):
        join.step(ENDED, as_of_ms, 0)
    lives.stop()
    assert {name: len(items) for name, items in published(brokers).items()} == {"r1/1.0": 1}


def test_an_engagement_that_waits_is_refused_once(tmp_path: Path) -> None:
    """Its letter is newer than the state in which it waits, and it waits for longer there than the config that refused it says."""
    lives = Lives(tmp_path, 1.0)
    brokers = lives.world.brokers
    join = lives.start(Config(lateness=3000))
    take(join, brokers, IMPRESSIONS, request_of(1, START))
    take(join, brokers, ENGAGEMENTS, encode(clicked("nobody's", "a", START + 500)))
    join.step(ENDED, START + 3600, 0)
    join = lives.start(Config(), write_every_ms=1 << 40)
    take(join, brokers, ENGAGEMENTS, encode(clicked("nobody's", "a", START + 501)))
    for as_of_ms in (START + 2200, START + 2300):
        join.step(ENDED, as_of_ms, 0)
    refused = [(ENGAGEMENTS, 0, "unmatched"), (ENGAGEMENTS, 1, "unmatched")]
    assert letters(brokers) == refused
    join = lives.start(Config())
    for as_of_ms in (START + 2400, START + 3000, START + 6000):
        join.step(ENDED, as_of_ms, 0)
    assert not join.pending
    lives.stop()
    assert letters(brokers) == refused


def test_a_label_removed_leaves_rebuild_points_where_its_window_needs_them(tmp_path: Path) -> None:
    lives = Lives(tmp_path, 1.0)
    lives.start(Config(buys=True))
    lives.run(CHANGE)
    lives.start(Config())
    lives.run(CHANGE + 10_000)
    commit = decode_commit(lives.world.brokers.committed or "")
    assert commit.lowest[IMPRESSIONS] == 0, "16 s are not over"
    lives.run(40_000)
    commit = decode_commit(lives.world.brokers.committed or "")
    assert commit.lowest[IMPRESSIONS] > 100 and len(commit.configs) == 1
    lives.stop()


def test_what_was_forgotten_is_not_taken_again_under_a_longer_window(tmp_path: Path) -> None:
    lives = Lives(tmp_path, 1.0)
    brokers = lives.world.brokers
    join = lives.start(Config())
    take(join, brokers, IMPRESSIONS, request_of(1, START))
    join.step(ENDED, START + 4000, 0)
    join.step(ENDED, START + 4100, 0)
    assert not join.pending
    join = lives.start(Config(buys=True))
    take(join, brokers, IMPRESSIONS, request_of(1, START), request_of(2, START + 3900))
    join.step(ENDED, START + 20_000, 0)
    lives.stop()
    (letter,) = (decode_letter(value) for value in brokers.topics[DEAD_LETTERS] if value is not None)
    assert (letter.reason, letter.offset) == ("late", 1)
    assert {name: len(each) for name, each in published(brokers).items()} == {"r1/1.0": 1, "r2/2.0": 1}


@pytest.mark.parametrize("longer", [Config(lateness=3000), Config(buys=True)], ids=["lateness", "window"])
def test_an_engagement_that_waits_for_as_long_as_an_earlier_config_said_does_not_vanish(
    longer: Config, tmp_path: Path
) -> None:
    """A kept state looks at it when it meant to; so what a rebuild finds may still have waited there."""
    lives = Lives(tmp_path, 1.0)
    brokers = lives.world.brokers
    join = lives.start(longer)
    take(join, brokers, IMPRESSIONS, request_of(1, START))
    take(join, brokers, ENGAGEMENTS, encode(clicked("nobody's", "a", START + 500)))
    join.step(ENDED, START + 600 + longer.lateness, 0)
    join = lives.start(Config())
    join.step(ENDED, START + 3000, 0)
    assert letters(brokers) == []
    join = lives.start(Config(), lost=True)
    join.step(ENDED, START + 20_000, 0)
    lives.stop()
    assert letters(brokers) == [(ENGAGEMENTS, 0, "unmatched")]


def test_nor_does_it_where_all_requests_are_of_the_later_config(tmp_path: Path) -> None:
    """The config that it waits by is known for as long as it may wait, though a rebuild reads no request of that one."""
    longer = Config(lateness=3000)
    lives = Lives(tmp_path, 1.0)
    brokers = lives.world.brokers
    join = lives.start(longer)
    take(join, brokers, IMPRESSIONS, request_of(1, START))
    for at in range(START, START + 20_000, 100):
        take(join, brokers, ENGAGEMENTS, encode(clicked("r1", "1.0", at)))
        join.step(ENDED, at + longer.lateness, 0)
    take(join, brokers, ENGAGEMENTS, encode(clicked("nobody's", "a", START + 20_000)))
    join.step(ENDED, START + 20_100 + longer.lateness, 0)
    before = letters(brokers)
    join = lives.start(Config())
    for at in (20_300, 22_000):
        take(join, brokers, ENGAGEMENTS, encode(clicked("r1", "1.0", START + at - 1500)))
        join.step(ENDED, START + at + LATE_BY, 0)
    before = letters(brokers)
    join = lives.start(Config(), lost=True)
    join.step(ENDED, START + 60_000, 0)
    lives.stop()
    assert [each for each in letters(brokers) if each not in before] == [(ENGAGEMENTS, 200, "unmatched")]


@pytest.mark.parametrize("lost", [False, True], ids=["state kept", "state lost"])
@pytest.mark.parametrize("shorter_between", [False, True])
def test_what_was_forgotten_while_more_was_due_is_not_taken_again(
    shorter_between: bool, lost: bool, tmp_path: Path
) -> None:
    """The published watermark stays behind until all that is due is out; markers are dropped by the one ahead of it."""
    short, long = Config(), Config(lateness=8000)
    lives = Lives(tmp_path, 1.0, requests_at_once=2)
    brokers = lives.world.brokers
    first, between = (long, short) if shorter_between else (short, short)
    join = lives.start(first)
    take(join, brokers, IMPRESSIONS, *(request_of(number, START + 1000 + number) for number in range(8)))
    join.step(ENDED, START + 1000 + first.lateness, 0)
    join.step(ENDED, START + 9700 + first.lateness, 0)
    assert join.busy
    join = lives.start(between)
    join.step(ENDED, START + 9700, 0)
    assert join.busy and "r1/1.0" in published(brokers)
    join = lives.start(long, lost=lost)
    while join.busy:
        join.step(ENDED, START + 9700, 0)
    take(join, brokers, IMPRESSIONS, *(request_of(number, START + 1000 + number) for number in range(8)))
    join.step(ENDED, START + 40_000, 0)
    while join.busy:
        join.step(ENDED, START + 40_000, 0)
    lives.stop()
    assert {name: len(each) for name, each in published(brokers).items()} == {f"r{at}/{at}.0": 1 for at in range(8)}
