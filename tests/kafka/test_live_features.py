"""A replica's live features from real brokers: only what was committed counts, and no end and no outage loses any."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from minutely.services.kafka_features import KafkaFeatures
from stack.kafka import BrokerUnavailable, running
from stack.ports import free_ports
from streaming.features.columns import Column, Ragged
from streaming.kafka.settings import KafkaSettings
from streaming.log import FEATURES
from tests.commands import missing
from tests.kafka.services import started
from tests.serving.publishing import Publisher, draw, make_pipeline, rank_body
from tests.serving.server import Server
from tests.serving.test_live import FEATURES as NAMES
from tests.serving.test_live import LIVE, World, a_log
from tests.streaming.live.brute_force import events_of
from tests.streaming.live.publishing import Records

WITHIN_SECONDS = 60


def make_topic(kafka: KafkaSettings) -> None:
    """As the service that keeps live features has it."""
    config = {"cleanup.policy": "compact", "message.timestamp.type": "LogAppendTime"}
    admin = AdminClient(kafka.client())
    until = time.monotonic() + WITHIN_SECONDS
    while True:
        topic = NewTopic(kafka.topic(FEATURES), kafka.partitions, 1, config=config)
        try:
            admin.create_topics([topic])[topic.topic].result()
            return
        except KafkaException:  # one of that name is being deleted
            assert time.monotonic() < until
            time.sleep(0.2)


def writer_of(kafka: KafkaSettings) -> Producer:
    found = Producer(kafka.client() | {"transactional.id": f"{kafka.prefix}keeper"})
    found.init_transactions(30)
    return found


def write(writer: Producer, kafka: KafkaSettings, records: Records) -> None:
    """Send records in a transaction that is left open."""
    writer.begin_transaction()
    for partition, key, value in records:
        writer.produce(kafka.topic(FEATURES), value, key, partition)
    assert writer.flush(30) == 0


def step_until(features: KafkaFeatures, done: Callable[[], bool]) -> None:
    until = time.monotonic() + WITHIN_SECONDS
    while not done():
        assert time.monotonic() < until
        time.sleep(features.step())


def read_by(world: World) -> dict[str, Column]:
    """What requests of all users and items read."""
    users, items = (each.reshape(-1) for each in np.meshgrid(np.arange(4), np.arange(8)))
    found = world.live.values({"user": users, "item": items}, world.clock.now_ms())
    assert found is not None
    return found


def same(found: dict[str, Column], wanted: dict[str, Column]) -> bool:
    return all(
        np.array_equal(one, other)
        for name in NAMES
        for one, other in zip(arrays_of(found[name]), arrays_of(wanted[name]), strict=True)
    )


def arrays_of(column: Column) -> tuple[Any, ...]:
    return tuple(column) if isinstance(column, Ragged) else (column,)


def folded(folder: Path, records: Records) -> dict[str, Column]:
    """What requests read of these records."""
    world = World(folder)
    world.fold(records)
    world.live.caught_up()
    return read_by(world)


def pieces_of(world: World) -> list[Records]:
    """Three transactions of what happened."""
    events = events_of(*a_log(1), world.pipeline.live_spec().windows)
    third = len(events) // 3
    return [world.publishing.take(events[at : at + third]) for at in (0, third, 2 * third)]


def test_only_what_was_committed_counts(kafka: KafkaSettings, tmp_path: Path) -> None:
    world = World(tmp_path / "a")
    first, second, third = pieces_of(world)
    make_topic(kafka)
    writer = writer_of(kafka)
    write(writer, kafka, first)
    writer.commit_transaction(30)
    write(writer, kafka, third)
    writer.abort_transaction(30)
    write(writer, kafka, second)  # open
    with closing(KafkaFeatures(kafka, world.live)) as features:
        step_until(features, lambda: world.live.is_there)
        assert world.live.read == len(first)
        assert same(read_by(world), folded(tmp_path / "first", first))
        for _ in range(5):
            features.step()
        assert world.live.read == len(first), "what is open is not there yet"
        writer.commit_transaction(30)
        step_until(features, lambda: world.live.read == len(first) + len(second))
        assert same(read_by(world), folded(tmp_path / "both", [*first, *second]))
        step_until(features, lambda: world.live.lag == 0)
        age = world.live.age_seconds()
        assert age is not None and age == 0, "by this replica's clock, which is behind that of the broker"
    assert not world.live.skipped


def test_a_replica_that_is_started_again_catches_up_before_it_is_ready(kafka: KafkaSettings, tmp_path: Path) -> None:
    world = World(tmp_path / "a")
    pieces = pieces_of(world)
    make_topic(kafka)
    writer = writer_of(kafka)
    for records in pieces:
        write(writer, kafka, records)
        writer.commit_transaction(30)
    both = []
    for name in ("once", "again"):
        each = World(tmp_path / name)
        assert not each.replica.ready()[0]
        with closing(KafkaFeatures(kafka, each.live)) as features:
            step_until(features, lambda live=each.live: live.is_there)  # type: ignore[misc]
            assert each.replica.ready()[0]
            assert each.live.read == sum(map(len, pieces)), "all that there was, before it said so"
        both.append(read_by(each))
    assert same(*both)
    assert same(both[0], folded(tmp_path / "folded", [record for records in pieces for record in records]))


def test_a_topic_that_was_made_anew_is_read_from_its_beginning(kafka: KafkaSettings, tmp_path: Path) -> None:
    world = World(tmp_path / "a")
    first, second, third = pieces_of(world)
    make_topic(kafka)
    writer = writer_of(kafka)
    for records in (first, second):
        write(writer, kafka, records)
        writer.commit_transaction(30)
    with closing(KafkaFeatures(kafka, world.live)) as features:
        step_until(features, lambda: world.live.is_there)
        before = read_by(world)
        admin = AdminClient(kafka.client())
        admin.delete_topics([kafka.topic(FEATURES)])[kafka.topic(FEATURES)].result()
        make_topic(kafka)
        other = writer_of(kafka)
        write(other, kafka, third[:20])
        other.commit_transaction(30)
        wanted = folded(tmp_path / "third", third[:20])
        step_until(features, lambda: not same(read_by(world), before))
        assert same(read_by(world), wanted), "what was before is read until all that is new is there"


def test_without_brokers_a_replica_ranks_and_says_what_is_missing(tmp_path: Path) -> None:
    nobody = {"bootstrap": f"127.0.0.1:{free_ports(1)[0]}"}
    pipeline = make_pipeline(features=NAMES, live=LIVE, kafka=nobody, serve={"log": False})
    Publisher(pipeline, tmp_path / "deltas").publish(time.time_ns() // 1_000_000)
    server = Server(pipeline, tmp_path / "deltas", tmp_path / "server")
    with started(server.process):
        server.process.waits_for("serves version 1")
        server.wait(status=503)
        status, answer = server.ask("POST", "/v1/rank", rank_body(draw(np.random.default_rng(1), 3), [1, 2, 3]))
        assert (status, answer["missing"]) == (200, list(NAMES))
        server.process.waits_for("live features: ")
        ready = server.ask("GET", "/v2/health/ready")
        assert ready[0] == 503 and "live features" in ready[1]["state"]
        begun = time.monotonic()
        assert server.process.end() == 0
        assert time.monotonic() - begun < 15


def test_an_outage_later_keeps_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    try:
        with running(tmp_path / "cluster") as cluster, caplog.at_level(logging.WARNING):
            kafka = KafkaSettings(bootstrap=cluster.bootstrap, partitions=3)
            world = World(tmp_path / "a")
            first, second, _ = pieces_of(world)
            make_topic(kafka)
            writer = writer_of(kafka)
            write(writer, kafka, first)
            writer.commit_transaction(30)
            world.replica.scoring.start()
            with closing(KafkaFeatures(kafka, world.live)) as features:
                step_until(features, lambda: world.live.is_there)
                for node in cluster.nodes:
                    node.kill()
                step_until(features, lambda: world.live.problem is not None)
                shown = a_log(1)[0][1:3]
                assert "missing" not in world.rank(shown), "what was known is used for a while"
                world.clock.move_to(world.clock.now_ms() + 60_001)
                assert world.rank(shown)["missing"] == list(NAMES)
                assert world.replica.ready()[0]
                for node in cluster.nodes:
                    cluster.restart(node)
                step_until(features, lambda: world.live.problem is None)
                assert "missing" not in world.rank(shown)
                write(writer, kafka, second)
                writer.commit_transaction(30)
                step_until(features, lambda: world.live.read == len(first) + len(second))
                assert same(read_by(world), _folded_at(world, tmp_path / "both", [*first, *second]))
            world.replica.scoring.stop()
    except BrokerUnavailable as error:
        missing(str(error))
    assert [record.message for record in caplog.records if "live features: back" in record.message]


def _folded_at(world: World, folder: Path, records: Records) -> dict[str, Column]:
    other = World(folder)
    other.clock.move_to(world.clock.now_ms())
    other.fold(records)
    other.live.caught_up()
    return read_by(other)
