"""Topics: made where they are missing; every difference from the config said at once, with what to run."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from basis.problems import Problems
from stack.kafka import BrokerUnavailable, running
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import DEAD_LETTERS, EXAMPLES, IMPRESSIONS
from tests.commands import missing
from tests.kafka.traffic import alter


def problems(kafka: KafkaSettings) -> list[str]:
    with pytest.raises(Problems) as caught:
        ensure_topics(kafka)
    return str(caught.value).splitlines()


def test_they_are_made_once_and_then_only_checked(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    ensure_topics(kafka)


def test_brokers_hear_of_them_one_after_the_other(tmp_path: Path) -> None:
    try:
        with running(tmp_path / "cluster", nodes=3) as cluster:
            for number in range(30):  # about one in twelve asks a broker that has not heard yet
                ensure_topics(KafkaSettings(bootstrap=cluster.bootstrap, prefix=f"t{number}.", replication=3))
    except BrokerUnavailable as error:
        missing(str(error))


def test_every_mismatch_names_topic_value_and_remedy(kafka: KafkaSettings) -> None:
    name = kafka.topic(IMPRESSIONS)
    with AdminClient(kafka.client()) as admin:
        config = {"retention.ms": "3600000", "cleanup.policy": "compact"}
        admin.create_topics([NewTopic(name, 2, 1, config=config)], operation_timeout=20)[name].result()
    found = problems(kafka)
    # The three that were missing are as they should be; of this one, everything is said at once.
    assert all(f"topic {name}" in line for line in found if "topic " in line), found
    text = " ".join(found)
    assert "2 partitions" in text and "Set kafka.partitions to 2, or use another kafka.prefix" in text
    assert "retention.ms=3600000; allowed: 604800000 or more. Run: kafka-configs --alter" in text
    assert "or, if the labels' windows allow it, set kafka.retention to 1h" in text
    assert f"kafka-configs --alter --topic {name} --add-config cleanup.policy=delete" in text
    assert "max.message.bytes=" in text and "message.timestamp.type=CreateTime" in text


def test_a_longer_retention_is_said_once_and_only_a_shorter_one_refused(
    kafka: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "minutely.kafka")
    name = kafka.topic(EXAMPLES)
    ensure_topics(kafka)
    assert caplog.messages == []
    kept = [("for 30d", str(30 * 86_400_000)), ("forever", "-1"), ("", str(7 * 86_400_000 - 1))]
    for told, value in kept:
        alter(kafka, name, "retention.ms", value)
        caplog.clear()
        if told:
            ensure_topics(kafka)
            ensure_topics(kafka)
            assert caplog.messages == [f"brokers keep records longer than kafka.retention (7d): {name} {told}"]
    (refused,) = problems(kafka)
    assert f"topic {name}: retention.ms=604799999; allowed: 604800000 or more" in refused


def test_outputs_are_kept_as_long_as_inputs_and_nothing_by_size(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    examples, impressions = kafka.topic(EXAMPLES), kafka.topic(IMPRESSIONS)
    alter(kafka, impressions, "retention.ms", str(30 * 86_400_000))
    found = problems(kafka)
    assert len(found) == 2 and kafka.topic(DEAD_LETTERS) in found[1]
    assert (
        f"topic {examples}: retention.ms=604800000; allowed: 2592000000, as {impressions}, or more. Run: " in found[0]
    )
    for name in (EXAMPLES, DEAD_LETTERS):
        alter(kafka, kafka.topic(name), "retention.ms", "-1")
    ensure_topics(kafka)
    alter(kafka, examples, "retention.bytes", "1000000")
    (refused,) = problems(kafka)
    assert f"topic {examples}: retention.bytes=1000000; allowed: -1. Run: kafka-configs --alter" in refused


def test_more_replicas_than_there_are(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    found = " ".join(problems(kafka.model_copy(update={"replication": 3})))
    assert "1 replicas" in found and "lower kafka.replication" in found


def test_what_a_single_replica_has_does_not_count_as_written(tmp_path: Path) -> None:
    try:
        with running(tmp_path / "cluster", nodes=3, extra={"min.insync.replicas": "1"}) as cluster:
            kafka = KafkaSettings(bootstrap=cluster.bootstrap, replication=3, partitions=1)
            ensure_topics(kafka)
            alter(kafka, EXAMPLES, "min.insync.replicas", "3")
            ensure_topics(kafka)
            alter(kafka, EXAMPLES, "min.insync.replicas", "1")
            (refused,) = problems(kafka)
            assert f"topic {EXAMPLES}: min.insync.replicas=1; allowed: 2 or more. Run: kafka-configs --alter" in refused
            ensure_topics(kafka.model_copy(update={"replication": 2}))
    except BrokerUnavailable as error:
        missing(str(error))


def test_a_limit_that_was_changed_later(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    for value in ("99999999", "1000000"):  # more than needed is as good
        ensure_topics(kafka)
        alter(kafka, kafka.topic(EXAMPLES), "max.message.bytes", value)
    assert f"max.message.bytes={8 << 20}" in " ".join(problems(kafka))
