"""A transaction that never ends does not hold the joiner for ever."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from stack.kafka import BrokerUnavailable, running
from streaming.join.commit import Committed, UnknownPlaceError, encode_commit
from streaming.kafka import outlet as kafka_outlet
from streaming.kafka.outlet import KafkaOutlet, Transactions
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import ENGAGEMENTS, EXAMPLES, IMPRESSIONS, BrokerError
from streaming.loop.brokers import OutputRecord
from tests.commands import missing
from tests.kafka.traffic import read_topic
from tests.streaming.join.commits import a_commit


def commit_of(sequence: int) -> Committed:
    return a_commit(sequence=sequence, offsets={IMPRESSIONS: sequence, ENGAGEMENTS: 5})


def test_brokers_that_answer_no_more_are_given_up_and_what_became_of_it_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_outlet, "_REQUEST_MS", 2000)
    monkeypatch.setattr(kafka_outlet, "_TRANSACTION_MS", 5000)
    try:
        with running(tmp_path / "cluster") as cluster:
            kafka = KafkaSettings(bootstrap=cluster.bootstrap, partitions=1)
            ensure_topics(kafka)
            outlet = KafkaOutlet(kafka, 0)
            assert outlet.open() is None
            assert outlet.send([OutputRecord(EXAMPLES, b"1"), OutputRecord(EXAMPLES, b"2")], commit_of(1)) == {
                EXAMPLES: 2
            }
            monkeypatch.setattr(kafka_outlet, "BLOCK_SECONDS", 2)
            os.kill(cluster.nodes[0].pid, signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(BrokerError):
                outlet.send([OutputRecord(EXAMPLES, b"3")], commit_of(2))
            with pytest.raises(BrokerError):
                outlet.open()
            outlet.close()
            assert time.monotonic() - began < 15
            os.kill(cluster.nodes[0].pid, signal.SIGCONT)
            monkeypatch.undo()
            found = outlet.open()
            assert found in (commit_of(1), commit_of(2))
            values = [value for _, value in read_topic(kafka, EXAMPLES)[0]]
            assert values == [b"1", b"2", b"3"][: 1 + found.sequence]
            assert outlet.send([OutputRecord(EXAMPLES, b"4")], commit_of(3))[EXAMPLES] > 3
            assert [value for _, value in read_topic(kafka, EXAMPLES)[0]] == [*values, b"4"]
            assert outlet.open() == commit_of(3)
            outlet.close()
    except BrokerUnavailable as error:
        missing(str(error))


def test_who_was_fenced_is_told_so_and_leaves_nothing_behind(kafka: KafkaSettings) -> None:
    kafka = kafka.model_copy(update={"partitions": 1})
    ensure_topics(kafka)
    first, second = KafkaOutlet(kafka, 0), KafkaOutlet(kafka, 0)
    assert first.open() is None
    first.send([OutputRecord(EXAMPLES, b"1")], commit_of(1))
    assert second.open() == commit_of(1)
    with pytest.raises(BrokerError, match=r"(?i)fenced"):
        first.send([OutputRecord(EXAMPLES, b"2")], commit_of(2))
    second.send([OutputRecord(EXAMPLES, b"3")], commit_of(2))
    assert [value for _, value in read_topic(kafka, EXAMPLES)[0]] == [b"1", b"3"]
    for outlet in (first, second):
        outlet.close()


def test_an_error_names_the_topic_and_why_a_record_was_not_delivered(kafka: KafkaSettings) -> None:
    """The commit's own error only counts such records."""
    ensure_topics(kafka)
    transactions = Transactions(kafka, "group", 0, [EXAMPLES])
    with closing(transactions):
        transactions.open()
        with pytest.raises(BrokerError, match=rf"^INCONSISTENT: .*; {kafka.topic(EXAMPLES)}: UNKNOWN_PARTITION: "):
            transactions.send([OutputRecord(EXAMPLES, b"1"), OutputRecord(EXAMPLES, b"2", kafka.partitions)], [0], "")


def move(kafka: KafkaSettings, topic: str, offset: int, metadata: str = "") -> None:
    """As kafka-consumer-groups --reset-offsets does, which has no metadata."""
    at = TopicPartition(kafka.topic(topic), 0, offset, metadata)
    with AdminClient(kafka.client()) as admin:
        (done,) = admin.alter_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(kafka.topic("minutely-joined"), [at])]
        ).values()
        done.result()


def test_offsets_that_somebody_else_moved_are_told_by_their_place(kafka: KafkaSettings) -> None:
    kafka = kafka.model_copy(update={"partitions": 1})
    ensure_topics(kafka)
    outlet, commit = KafkaOutlet(kafka, 0), commit_of(3)
    with closing(outlet):
        assert outlet.open() is None
        outlet.send([OutputRecord(EXAMPLES, b"1")], commit)
        said = encode_commit(commit)
        for topic, joined in commit.offsets.items():
            move(kafka, topic, 1)
            with pytest.raises(UnknownPlaceError, match=rf"{topic}/0 is at offset 1, which is not a joiner's commit"):
                outlet.open()
            move(kafka, topic, 1, said)
            with pytest.raises(UnknownPlaceError, match=rf"{topic}/0 is at offset 1, .*: joiners committed {joined};"):
                outlet.open()
            move(kafka, topic, joined, said)
            assert outlet.open() == commit
        move(kafka, ENGAGEMENTS, 5, encode_commit(commit_of(2)))
        with pytest.raises(UnknownPlaceError, match="engagements/0 is at offset 5"):
            outlet.open()


def test_outlets_that_were_let_go_leave_no_threads(kafka: KafkaSettings) -> None:
    kafka = kafka.model_copy(update={"partitions": 1})
    ensure_topics(kafka)
    first, second = KafkaOutlet(kafka, 0), KafkaOutlet(kafka, 0)
    first.open()
    first.send([OutputRecord(EXAMPLES, b"1")], commit_of(1))
    second.open()
    with_two = _threads()
    for number in range(2, 7):
        with pytest.raises(BrokerError, match=r"(?i)fenced"):
            first.send([OutputRecord(EXAMPLES, b"0")], commit_of(number))
        first.open()
        first.send([OutputRecord(EXAMPLES, b"1")], commit_of(number))
        first, second = second, first
    first.close()
    second.close()
    until = time.monotonic() + 10
    while _threads() >= with_two:  # the client's own threads end a little later
        assert time.monotonic() < until, f"{_threads()} threads, {with_two} with two outlets"
        time.sleep(0.05)


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_more_than_the_client_keeps_at_once_goes_out(kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_outlet, "_SEND_BYTES", 1 << 20)
    kafka = kafka.model_copy(update={"partitions": 1})
    ensure_topics(kafka)
    outlet = KafkaOutlet(kafka, 0)
    outlet.open()
    outbox = [OutputRecord(EXAMPLES, bytes([number]) * 300_000) for number in range(20)]
    assert outlet.send(outbox, commit_of(1)) == {EXAMPLES: 20}
    outlet.close()
    assert [value for _, value in read_topic(kafka, EXAMPLES)[0]] == [item.value for item in outbox]
