"""What was refused stays refused, once, when it is read again after a crash."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streaming.features.kinds import Feature, VectorFeature
from streaming.join import core
from streaming.join.counts import JoinCounts
from streaming.join.partition import JoinPartition
from streaming.join.settings import JoinSettings
from streaming.join.state import JoinState
from streaming.kafka.settings import MAX_OUTPUT_BYTES
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, IMPRESSIONS, BrokerError, Record
from streaming.records.events import (
    MAX_DETAIL,
    MAX_RECORD_BYTES,
    MAX_TIME_MS,
    BadRecord,
    DeadLetter,
    Request,
    decode_letter,
    decode_request,
    encode,
)
from streaming.records.json_records import pack_request
from tests.streaming.join import changing
from tests.streaming.join.join_lives import (
    SETTINGS,
    TAKEN_AT,
    Crash,
    World,
    clicked,
    letters,
    life,
    published,
    request,
    take,
)


@pytest.mark.parametrize("lost", [False, True], ids=["state kept", "state lost"])
def test_a_request_that_was_refused_as_late_is_not_taken_when_it_is_read_again(lost: bool, tmp_path: Path) -> None:
    """Else its engagements, which wait for it, count towards examples that nobody gets, and vanish."""
    world = World(random.Random(1), tmp_path)
    brokers, ended = world.brokers, {IMPRESSIONS: True, ENGAGEMENTS: True}
    join = life(world)
    take(join, brokers, IMPRESSIONS, request(0, 19_000))
    join.step(ended, 20_000, 0)
    take(join, brokers, IMPRESSIONS, request(1, 10_000))
    clicks = (("r1", "1.0", 10_900), ("r1", "1.0", 19_800))
    take(join, brokers, ENGAGEMENTS, *(encode(clicked(*click)) for click in clicks))
    join.step(ended, 20_050, 0)
    refused = [(ENGAGEMENTS, 0, "unmatched"), (IMPRESSIONS, 1, "late")]
    assert letters(brokers) == refused
    join.state.close()
    if lost:
        shutil.rmtree(world.folders[0])
    join = life(world)
    join.step(ended, 30_000, 0)
    assert letters(brokers) == sorted([*refused, (ENGAGEMENTS, 1, "unmatched")])
    assert published(brokers).keys() == {"r0/0.0"}


def test_a_letter_fits_however_large_its_record_is(tmp_path: Path) -> None:
    """Inputs may allow more than a record may have, and then no transaction with the whole record would ever be taken."""
    world = World(random.Random(1), tmp_path)
    join, size = life(world), MAX_OUTPUT_BYTES + 1
    take(join, world.brokers, IMPRESSIONS, b"\xc1" * size, b"short")
    join.step({IMPRESSIONS: True, ENGAGEMENTS: True}, 20_000, 0)
    cut, whole = (value for value in world.brokers.topics[DEAD_LETTERS] if value is not None)
    assert len(cut) < MAX_OUTPUT_BYTES
    letter = decode_letter(cut)
    assert (letter.reason, letter.cut_from, len(letter.payload)) == ("too_large", size, MAX_RECORD_BYTES)
    assert decode_letter(whole).cut_from == 0
    join.state.close()


def test_a_letter_fits_however_much_there_is_to_say() -> None:
    letter = DeadLetter(topic=IMPRESSIONS, partition=0, offset=0, reason="malformed", detail="é" * 5000, payload=b"")
    assert len(letter.detail) == MAX_DETAIL and decode_letter(encode(letter)) == letter


@pytest.mark.parametrize("lost", [False, True], ids=["state kept", "state lost"])
def test_whether_a_request_is_from_the_future_is_not_judged_twice(lost: bool, tmp_path: Path) -> None:
    """Though ``max_future`` is longer when it is read again, so that what was refused would be taken, or shorter."""
    world = World(random.Random(1), tmp_path)
    brokers, ended = world.brokers, {IMPRESSIONS: True, ENGAGEMENTS: True}
    ahead = TAKEN_AT + SETTINGS.max_future
    for life_number, max_future in enumerate(("1h", "2h", "1m")):
        world.spec = world.spec._replace(settings=JoinSettings(lateness="300ms", max_future=max_future))
        join = life(world)
        if not life_number:
            join.step(ended, 20_000, 0)
            take(join, brokers, IMPRESSIONS, request(0, 19_900), request(1, ahead), request(2, ahead + 1))
            join.step(ended, 20_050, 0)
        assert letters(brokers) == [(IMPRESSIONS, 2, "future")]
        assert join.pending == 2
        join.state.close()
        if lost:
            shutil.rmtree(world.folders[0])
    join = life(world)
    join.step(ended, ahead + 10_000, 0)
    assert letters(brokers) == [(IMPRESSIONS, 2, "future")]
    assert published(brokers).keys() == {"r0/0.0", "r1/1.0"}


@pytest.mark.parametrize("lost", [False, True], ids=["state kept", "state lost"])
def test_what_waited_in_vain_is_refused_once_though_more_is_due_than_a_batch_takes(lost: bool, tmp_path: Path) -> None:
    world = World(random.Random(1), tmp_path, requests_at_once=3)
    brokers, ended = world.brokers, {IMPRESSIONS: True, ENGAGEMENTS: True}
    join = life(world)
    join.step(ended, 10_000, 0)
    take(join, brokers, ENGAGEMENTS, *(encode(clicked(f"r{number}", "none", 10_000)) for number in range(8)))
    join.step(ended, 10_050, 0)
    join.step(ended, 14_000, 0)  # the state goes to disk every 5 s, so it is the one of 10,000
    assert join.busy and 0 < len(letters(brokers)) < 8
    join.state.close()
    if lost:
        shutil.rmtree(world.folders[0])
    join = life(world)
    while join.busy:
        join.step(ended, 14_000, 0)
    assert letters(brokers) == [(ENGAGEMENTS, offset, "unmatched") for offset in range(8)]


def test_letters_about_topics_that_were_made_anew_are_of_no_account(tmp_path: Path) -> None:
    """Who begins where nothing is committed cannot have refused what older letters are about."""
    world = World(random.Random(1), tmp_path)
    brokers, ended = world.brokers, {IMPRESSIONS: True, ENGAGEMENTS: True}
    letter = DeadLetter(topic=IMPRESSIONS, partition=0, offset=0, reason="late", detail="", payload=b"")
    brokers.topics[DEAD_LETTERS] += [encode(letter), b"no letter", encode(letter), None]
    join = life(world)
    take(join, brokers, IMPRESSIONS, request(0, 19_000))
    join.step(ended, 19_100, 0)
    join.state.close()
    shutil.rmtree(world.folders[0])
    join = life(world)
    join.step(ended, 30_000, 0)
    assert published(brokers).keys() == {"r0/0.0"}


@pytest.mark.parametrize("crash", ["", "before", "after"])
def test_every_request_that_only_a_re_read_refuses_gets_its_letter(
    crash: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later program may refuse what one before took. However many there are: their letters are sent as the recovery goes, so that
    it need not hold them."""
    world = World(random.Random(1), tmp_path)
    brokers, ended = world.brokers, {IMPRESSIONS: True, ENGAGEMENTS: True}
    join = life(world)
    take(join, brokers, IMPRESSIONS, *(request(number, 19_000) for number in range(250)))
    join.step(ended, 19_100, 0)
    committed = brokers.open()
    world.spec = world.spec._replace(limits=world.spec.limits._replace(batch_bytes=10_000))
    monkeypatch.setattr(core, "decode_request", _refuse)
    join.state.close()
    shutil.rmtree(world.folders[0])
    brokers.crash = crash
    if crash:
        state = JoinState(world.folders[0], 1 << 20)
        with pytest.raises(Crash):
            list(world.join(state, brokers).recover())
        state.close()
        brokers.crash = ""
    before = len(letters(brokers))
    assert before == 0 if crash != "after" else 0 < before < 50
    join = life(world)
    refused = [(IMPRESSIONS, offset, "feature") for offset in range(250)]
    assert letters(brokers) == refused
    assert brokers.open() == committed, "nothing else has happened"
    assert join.joiner.counts == JoinCounts(refused=Counter(feature=250 - before))
    for lost in (False, True):
        join.state.close()
        if lost:
            shutil.rmtree(world.folders[0])
        join = life(world)
        join.step(ended, 30_000, 0)
        assert letters(brokers) == refused and not join.pending


def _refuse(packed: bytes, latest_ms: int, earliest_ms: int = 0) -> Request:
    raise BadRecord("feature", "not taken any more")


def test_letters_of_a_recovery_that_was_cut_off_are_counted_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(random.Random(1), tmp_path)
    brokers, ended = world.brokers, {IMPRESSIONS: True, ENGAGEMENTS: True}
    join = life(world)
    take(join, brokers, IMPRESSIONS, *(request(number, 19_000) for number in range(20)))
    join.step(ended, 19_100, 0)
    monkeypatch.setattr(core, "decode_request", _refuse)
    join.state.close()
    shutil.rmtree(world.folders[0])
    reads, failures, told = brokers.read, [BrokerError("no answer", "TIMED_OUT")], list[DeadLetter]()

    def fails_once(topic: str, start: int, stop: int) -> Iterator[list[Record]]:
        for at, records in enumerate(reads(topic, start, stop)):
            if topic == IMPRESSIONS and at == 1 and failures:
                raise failures.pop()
            yield records

    monkeypatch.setattr(brokers, "read", fails_once)
    state = JoinState(world.folders[0], 1 << 20)
    join = JoinPartition(world.spec, state, brokers, brokers, 0, new_id=lambda: "new", refused=told.extend)
    with pytest.raises(BrokerError):
        list(join.recover())
    assert 0 < len(letters(brokers)) < 20
    list(join.recover())
    assert len(letters(brokers)) == len(told) == 20 and all(letter.accepted for letter in told)
    assert join.joiner.counts.refused == {"feature": 20}
    state.close()


def sized(size: int, **changes: Any) -> bytes:
    """A request of so many bytes."""
    record: Any = msgspec.msgpack.decode(changing.request(2, changing.START, changing.FEATURES, **changes))
    record["shared"]["pad"] = b"x" * (size - 70_000)
    record["shared"]["pad"] = b"x" * (size - 70_000 + size - len(encode(record)))
    assert len(encode(record)) == size
    return encode(record)


@pytest.mark.parametrize("short_of", [0, 100])
def test_a_request_as_large_as_may_be_is_given_up_once(short_of: int, tmp_path: Path) -> None:
    """Its letter says its schema, which it did not, and must not be cut for that: the next joiner could not read whose it is. Sent
    again, it is given up again."""
    pipeline = changing.Pipeline(tmp_path)
    join = pipeline.start(changing.BEFORE)
    payload = sized(MAX_RECORD_BYTES - short_of)
    pipeline.take(join, IMPRESSIONS, payload)
    join.step(changing.ENDED, changing.START + 100, 0)
    changed = changing.REFUSED["a label added"][:2]
    join = pipeline.start(changed, writes=False)
    pipeline.take(join, ENGAGEMENTS, changing.done(2, "like", changing.START + 200))
    join.step(changing.ENDED, changing.START + 300, 0)
    join = pipeline.start(changed)
    for at in (changing.END, changing.END + 1000):
        join.step(changing.ENDED, at, 0)
    found = [letter for letter in pipeline.dead_letters() if letter.topic == IMPRESSIONS]
    assert [(letter.reason, letter.accepted, letter.cut_from) for letter in found] == [("schema", True, 0)]
    pipeline.take(join, IMPRESSIONS, found[0].payload)
    join.step(changing.ENDED, changing.END + 2000, 0)
    again = pipeline.dead_letters()[-1]
    assert (again.reason, again.offset, again.cut_from, again.payload) == ("schema", 1, 0, found[0].payload)
    pipeline.stop()


@pytest.mark.parametrize("over", [1, 900, 1024, 1025])
@pytest.mark.parametrize("schema", ["", "0123456789abcdef"])
def test_a_producer_s_request_is_refused_beyond_what_one_may_have(schema: str, over: int) -> None:
    """What joiners add has room of its own."""
    said = len(encode({"schema": schema})) - 1 if schema else 0
    payload = sized(MAX_RECORD_BYTES + over + said, schema=schema)
    with pytest.raises(BadRecord, match=f"419[0-9]+ bytes; allowed: {MAX_RECORD_BYTES}") as refused:
        decode_request(payload, MAX_TIME_MS)
    assert refused.value.reason == "too_large"
    assert decode_request(sized(MAX_RECORD_BYTES + said, schema=schema), MAX_TIME_MS).schema == schema


def test_json_is_refused_by_what_it_is_packed() -> None:
    """A null is short until it is packed, as any vector."""
    features: dict[str, Feature] = {"e": VectorFeature(kind="vector", column="e", size=512)}
    for impressions, is_too_large in ((2044, True), (2043, False)):
        names = [f"{name}" for name in range(impressions)]
        wanted = {"version": 1, "request_id": "r", "served_at": 1, "impression_ids": names}
        packed = pack_request(msgspec.json.encode(wanted | {"features": {"e": [None] * impressions}}), features)
        assert (MAX_RECORD_BYTES < len(packed) <= MAX_RECORD_BYTES + 1024) == is_too_large
        with pytest.raises(BadRecord, match="bytes; allowed") if is_too_large else nullcontext():
            decode_request(packed, MAX_TIME_MS)
