"""Dead letters from refusal to a fix: listed with their reasons, sent again, joined."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from threading import Timer
from typing import Any

import msgspec
import pytest
from confluent_kafka.admin import AdminClient
from rich.console import Console

from basis.problems import Problems
from minutely.config import Pipeline
from minutely.services import again
from minutely.services.again import send_again
from minutely.services.dead_letters import dead_letters, show
from minutely.services.join import make_join_service
from stack.kafka import BrokerUnavailable, Cluster
from streaming.clock import WallClock
from streaming.join.service import JoinService
from streaming.kafka import history
from streaming.kafka.outlet import Transactions
from streaming.kafka.settings import BOOTSTRAP, KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, BrokerError
from streaming.records.events import MAX_RECORD_BYTES, DeadLetter, encode
from streaming.records.examples import ExampleFormat
from tests.commands import execute, missing
from tests.kafka.joining import MINUTE, Tomorrow, joined_through, now_ms, run_until
from tests.kafka.services import Service, started, write_config
from tests.kafka.traffic import (
    Event,
    check_examples,
    make_pipeline,
    make_traffic,
    producer_of,
    read_dead_letters,
    read_examples,
    read_topic,
    send,
)
from trainer.worker import NOT_FINITE


def run(command: str) -> str:
    done = execute(f"minutely dead-letters {command}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_a_wrong_config_refused_is_joined_after_the_fix(
    kafka: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product whose clock is ahead by more than the config allows; broken bytes stay refused, whatever is fixed,
    and an example that training left out is no input to send again."""
    right = make_pipeline(kafka)
    wrong = right.model_copy(update={"join": right.join.model_copy(update={"max_future": MINUTE})})
    ensure_topics(kafka)
    there = make_traffic(7, 40, 2, now_ms() - 5 * MINUTE, 100)
    ahead = make_traffic(8, 40, 2, now_ms() + 30 * MINUTE, 100, first=40)
    broken = Event(0, IMPRESSIONS, "broken", b"\xc1\xff [bold]")
    letter = DeadLetter(topic=EXAMPLES, partition=0, offset=7, reason=NOT_FINITE, detail="row 3", payload=b"an example")
    with producer_of(kafka) as producer:
        send(producer, kafka, [*there.events, *ahead.events, broken])
        producer.send(kafka.topic(DEAD_LETTERS), encode(letter), partition=1)
    refused = len(ahead.events)
    run_until(
        make_join_service(wrong, tmp_path / "a", WallClock()),
        lambda service: (
            sum(member.work.joiner.counts.refused["future"] for member in service.members.values()) == refused
            and not any(member.work.uncommitted for member in service.members.values())
        ),
    )
    monkeypatch.setenv("COLUMNS", "300")
    config = str(write_config(right, tmp_path))
    listed = run(f"{config} --limit 1000")
    assert f"{refused + 2} dead letters" in listed
    assert listed.count(NOT_FINITE) == 1
    assert listed.count("future") == refused
    assert r"b'\xc1\xff [bold]'" in listed, "bytes are shown as they are"
    console = Console(file=io.StringIO())
    show(console, right, "future", 2)
    assert f"{refused} dead letters, the first 2 shown" in console.file.getvalue()  # type: ignore[attr-defined]
    said = run(f"{config} --again")
    assert f"sent {refused} again (future {refused})" in said
    assert (
        "passed over 1 (malformed 1); no fix mends them; --reason sends those of one reason, except letters that are cut"
        in said
    )
    assert "sent 0 again" in run(f"{config} --again"), "it keeps its place"
    run_until(make_join_service(right, tmp_path / "a", Tomorrow()), joined_through(now_ms() + 60 * MINUTE, 3))
    check_examples(read_examples(kafka, ExampleFormat(right.features, right.labels)), there.labels | ahead.labels)
    assert Counter(letter.reason for letter in read_dead_letters(kafka)) == {
        "future": refused,
        "malformed": 1,
        NOT_FINITE: 1,
    }


def letters(kafka: KafkaSettings, *refused: tuple[int, str, str, bytes]) -> None:
    """Dead letters as joiners write them: partition, topic, reason, payload."""
    with producer_of(kafka) as producer:
        for partition, topic, reason, payload in refused:
            letter = DeadLetter(topic=topic, partition=partition, offset=0, reason=reason, detail="", payload=payload)
            producer.send(kafka.topic(DEAD_LETTERS), encode(letter), partition=partition)


def forget(kafka: KafkaSettings) -> None:
    """What brokers do after `offsets.retention.minutes`."""
    group = kafka.topic("minutely-again")
    with AdminClient(kafka.client()) as admin:
        admin.delete_consumer_groups([group])[group].result()


def shown(pipeline: Pipeline) -> str:
    console = Console(file=io.StringIO(), width=300)
    show(console, pipeline, None, 20)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def sent_to(kafka: KafkaSettings, topic: str) -> list[tuple[int, bytes]]:
    """What is in an input: partition and value, in order."""
    return [(partition, value) for partition, records in read_topic(kafka, topic).items() for _, value in records]


def test_each_letter_is_sent_again_once(kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is not known how a transaction ended: the place that is committed with it says so."""
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    monkeypatch.setattr(again, "_LETTERS_AT_ONCE", 2)
    letters(
        kafka,
        *((0, ENGAGEMENTS, "unmatched", b"e%d" % number) for number in range(3)),
        *((number % 2, IMPRESSIONS, "future", b"r%d" % number) for number in range(5)),
        (0, IMPRESSIONS, "malformed", b"bytes"),
        (1, EXAMPLES, "feature", b"no input"),
        (2, IMPRESSIONS, "late", b"late"),
    )
    send, calls = Transactions.send, 0

    def unsure(transactions: Transactions, *arguments: Any) -> dict[str, int]:
        nonlocal calls
        calls += 1
        ends = send(transactions, *arguments)
        if calls % 2:
            raise BrokerError("no answer", "TIMED_OUT")
        return ends

    monkeypatch.setattr(Transactions, "send", unsure)
    found = send_again(pipeline, None)
    assert (found.sent, found.left) == ({"future": 5, "unmatched": 3}, {"malformed": 1, "late": 1})
    assert sent_to(kafka, IMPRESSIONS) == [(0, b"r0"), (0, b"r2"), (0, b"r4"), (1, b"r1"), (1, b"r3")]
    assert sent_to(kafka, ENGAGEMENTS) == [(0, b"e0"), (0, b"e1"), (0, b"e2")]
    assert send_again(pipeline, None).sent == {}

    letters(kafka, (1, IMPRESSIONS, "feature", b"new"))
    assert send_again(pipeline, None).sent == {"feature": 1}
    assert send_again(pipeline, "malformed").sent == {"malformed": 1}
    assert send_again(pipeline, "malformed").sent == {}
    assert send_again(pipeline, None).sent == {}
    assert sorted(sent_to(kafka, IMPRESSIONS))[-1] == (1, b"r3")
    assert len(sent_to(kafka, IMPRESSIONS)) == 7 and len(sent_to(kafka, ENGAGEMENTS)) == 3


def test_a_reason_that_was_sent_on_its_own_keeps_its_place(
    kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the others, which are behind it, are sent in several batches after that, and the command ends between two."""
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    monkeypatch.setattr(again, "_LETTERS_AT_ONCE", 2)
    letters(
        kafka,
        *((0, IMPRESSIONS, "future", b"f%d" % number) for number in range(3)),
        *((0, IMPRESSIONS, "schema", b"s%d" % number) for number in range(2)),
        (0, IMPRESSIONS, "future", b"f3"),
    )
    assert send_again(pipeline, "schema").sent == {"schema": 2}
    send, calls = Transactions.send, 0

    def ends(transactions: Transactions, *arguments: Any) -> dict[str, int]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return send(transactions, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Transactions, "send", ends)
        with pytest.raises(KeyboardInterrupt):
            send_again(pipeline, None)
    assert send_again(pipeline, None).sent == {"future": 2}
    assert send_again(pipeline, None).sent == {}
    assert [value for _, value in sent_to(kafka, IMPRESSIONS)] == [b"s0", b"s1", b"f0", b"f1", b"f2", b"f3"]


def test_what_may_have_been_sent_before_brokers_forgot_it_is_sent_only_if_someone_says_so(
    kafka: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    letters(kafka, *((number % 2, IMPRESSIONS, "future", b"r%d" % number) for number in range(3)))
    assert send_again(pipeline, None).sent == {"future": 3}, "no place is known, but brokers remember longer than this"
    monkeypatch.setattr(again, "_PLACE_KEPT_MS", 0)
    assert send_again(pipeline, None).sent == {}, "the place is known"

    forget(kafka)
    letters(kafka, (1, EXAMPLES, "feature", b"no input"), (0, ENGAGEMENTS, "late", b"late"))
    for _ in range(2):
        with pytest.raises(
            Problems, match=r"--again: 3 letters are older than .*; allowed: --since .* leaves them out"
        ):
            send_again(pipeline, None)
    assert len(sent_to(kafka, IMPRESSIONS)) == 3, "nothing is sent"
    assert send_again(pipeline, None, 1).sent == {}
    assert send_again(pipeline, None).sent == {}, "now the place is known"
    forget(kafka)
    assert "sent 3 again (future 3)" in run(f"{write_config(pipeline, tmp_path)} --again --since 1h")
    assert len(sent_to(kafka, IMPRESSIONS)) == 6


def test_a_reason_that_was_sent_on_its_own_says_nothing_of_the_others(
    kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brokers forgot that all were sent; then one reason was sent, and its place is known again."""
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    letters(kafka, (0, IMPRESSIONS, "future", b"r0"), (0, ENGAGEMENTS, "unmatched", b"e0"))
    assert send_again(pipeline, None).sent == {"future": 1, "unmatched": 1}
    forget(kafka)
    monkeypatch.setattr(again, "_PLACE_KEPT_MS", 0)
    letters(kafka, (0, IMPRESSIONS, "schema", b"s0"))
    assert send_again(pipeline, "schema", 3_600_000).sent == {"schema": 1}
    with pytest.raises(Problems, match="--again: 2 letters are older than"):
        send_again(pipeline, None)
    with pytest.raises(Problems, match="--again: 1 letters are older than"):
        send_again(pipeline, "future")
    letters(kafka, (0, IMPRESSIONS, "feature", b"f0"), (0, IMPRESSIONS, "schema", b"s1"))
    assert send_again(pipeline, "feature").sent == {"feature": 1}, "this one came after what is known"
    assert send_again(pipeline, "schema").sent == {"schema": 1}
    assert [value for _, value in sent_to(kafka, IMPRESSIONS)] == [b"r0", b"s0", b"f0", b"s1"]
    assert [value for _, value in sent_to(kafka, ENGAGEMENTS)] == [b"e0"]


def test_one_reason_between_all_sends_nothing_twice_and_skips_nothing(kafka: KafkaSettings) -> None:
    kafka = kafka.model_copy(update={"partitions": 1})
    pipeline, count = make_pipeline(kafka), 0
    ensure_topics(kafka)
    for asked in (None, "future", None, "late", "future", "unmatched", None, None):
        letters(
            kafka,
            *(
                (0, topic, reason, b"%d" % count)
                for reason in ("future", "late")
                for topic in (IMPRESSIONS, ENGAGEMENTS)
            ),
            (0, ENGAGEMENTS, "unmatched", b"%d" % count),
        )
        count += 1
        send_again(pipeline, asked)
    assert send_again(pipeline, None).sent == {}
    assert send_again(pipeline, "late").sent == {"late": 2 * 4}, "those since it was sent"
    sent = Counter(value for _, value in sent_to(kafka, IMPRESSIONS))
    assert sent == {b"%d" % number: 2 for number in range(count)}
    sent = Counter(value for _, value in sent_to(kafka, ENGAGEMENTS))
    assert sent == {b"%d" % number: 3 for number in range(count)}


def test_what_is_refused_again_is_one_new_letter(kafka: KafkaSettings, tmp_path: Path) -> None:
    """Also of a joiner that begins anew from the log; the counts say the same."""
    kafka = kafka.model_copy(update={"partitions": 1})
    pipeline = make_pipeline(kafka)
    pipeline = pipeline.model_copy(update={"join": pipeline.join.model_copy(update={"max_future": MINUTE})})
    ensure_topics(kafka)
    ahead = make_traffic(8, 30, 2, now_ms() + 30 * MINUTE, 100)
    with producer_of(kafka) as producer:
        send(producer, kafka, ahead.events)
    refused = len(ahead.events)
    for times, folder in ((1, "a"), (2, "b")):
        before = len(read_dead_letters(kafka))
        counts = Counter[str]()

        def joined(service: JoinService, new: int = times * refused - before, counts: Counter[str] = counts) -> bool:
            counts.clear()
            for member in service.members.values():
                counts.update(member.work.joiner.counts.refused)
            members = service.members.values()
            return counts["future"] >= new and len(members) == 1 and all(each.caught_up for each in members)

        run_until(make_join_service(pipeline, tmp_path / folder, WallClock()), joined)
        found = [(letter.topic, letter.partition, letter.offset) for letter in read_dead_letters(kafka)]
        assert len(found) == len(set(found)) == times * refused
        assert counts["future"] == refused
        assert send_again(pipeline, None).sent == {"future": refused}


def test_a_letter_that_is_cut_is_never_sent(kafka: KafkaSettings) -> None:
    kafka = kafka.model_copy(update={"partitions": 1})
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    letters(kafka, (0, IMPRESSIONS, "too_large", b"x" * (MAX_RECORD_BYTES + 2000)), (0, IMPRESSIONS, "too_large", b"y"))
    found = send_again(pipeline, "too_large")
    assert (found.sent, found.left) == ({"too_large": 1}, {"too_large": 1})
    assert sent_to(kafka, IMPRESSIONS) == [(0, b"y")]
    assert f"{MAX_RECORD_BYTES}, cut from {MAX_RECORD_BYTES + 2000}: xxx" in shown(pipeline)


@pytest.mark.parametrize("partition", [3, -1, 1 << 40])
def test_a_letter_of_no_partition_is_passed_over_and_the_others_are_sent(
    kafka: KafkaSettings, tmp_path: Path, partition: int
) -> None:
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    letters(kafka, (0, IMPRESSIONS, "future", b"r0"))
    astray = DeadLetter(topic=IMPRESSIONS, partition=partition, offset=0, reason="future", detail="", payload=b"astray")
    with producer_of(kafka) as producer:
        producer.send(kafka.topic(DEAD_LETTERS), encode(astray), partition=0)
    letters(kafka, (0, IMPRESSIONS, "future", b"r1"))
    said = run(f"{write_config(pipeline, tmp_path)} --again")
    assert "sent 2 again (future 2)" in said
    assert "passed over 1 (future 1); they name partitions that are not there" in said
    assert sent_to(kafka, IMPRESSIONS) == [(0, b"r0"), (0, b"r1")]
    assert send_again(pipeline, None) == (Counter(), Counter(), Counter())


def test_of_two_at_once_the_later_one_sends(kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    letters(kafka, (0, IMPRESSIONS, "future", b"r0"))
    send = Transactions.send

    def beside(transactions: Transactions, *arguments: Any) -> dict[str, int]:
        monkeypatch.setattr(Transactions, "send", send)
        assert send_again(pipeline, None).sent == {"future": 1}
        return send(transactions, *arguments)

    monkeypatch.setattr(Transactions, "send", beside)
    with pytest.raises(Problems, match="--again: the same command, started elsewhere, took over"):
        send_again(pipeline, None)
    assert sent_to(kafka, IMPRESSIONS) == [(0, b"r0")]


def test_a_place_that_is_not_one_is_named(kafka: KafkaSettings) -> None:
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    transactions = Transactions(kafka, "minutely-again", 1, [DEAD_LETTERS])
    transactions.open()
    transactions.send([], [0], '{"version": 9, "sent": {}}')
    with pytest.raises(
        Problems, match="minutely-again: version 9; allowed: 1; allowed: offsets that this command commits"
    ):
        send_again(pipeline, None)


def test_a_record_that_is_no_dead_letter_is_passed_over(kafka: KafkaSettings) -> None:
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    letter = DeadLetter(topic=IMPRESSIONS, partition=0, offset=3, reason="malformed", detail="", payload=b"\xc1")
    with producer_of(kafka) as producer:
        for value in (b"\xc1", b"\x81\xa1x" + b"\x91" * 2000 + b"\xc0", encode(letter)):
            producer.send(kafka.topic(DEAD_LETTERS), value, partition=0)
    assert list(dead_letters(pipeline, lambda: False)) == [letter]


def test_brokers_that_are_away_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, and while it reads: each letter comes once."""
    monkeypatch.delenv(BOOTSTRAP, raising=False)
    monkeypatch.setattr(history, "BLOCK_SECONDS", 1)
    try:
        cluster = Cluster(tmp_path / "cluster")
    except BrokerUnavailable as error:
        missing(str(error))
    pipeline = make_pipeline(KafkaSettings(bootstrap=cluster.bootstrap, partitions=2))
    config = str(write_config(pipeline, tmp_path))
    service = Service("dead-letters", ["dead-letters", config], tmp_path, tmp_path / "dead-letters.log", forks=True)
    try:
        with started(service):
            service.waits_for("retrying in up to 2 s")
            cluster.start()
            assert service.wait() == 0, service.output
            assert "0 dead letters" in service.said
            assert service.said.count("retrying in up to 2 s") == 1

        with producer_of(pipeline.kafka) as producer:
            for number in range(20):
                letter = DeadLetter(
                    topic=IMPRESSIONS, partition=0, offset=number, reason="malformed", detail="", payload=b"\xc1"
                )
                producer.send(DEAD_LETTERS, msgspec.msgpack.encode(letter), partition=number % 2)
        (node,) = cluster.nodes
        letters = dead_letters(pipeline, lambda: False)
        found = [next(letters).offset]
        node.kill()
        back = Timer(4, cluster.restart, [node])
        back.start()
        found += [letter.offset for letter in letters]
        back.join()
        assert sorted(found) == list(range(20))
    finally:
        cluster.stop()
