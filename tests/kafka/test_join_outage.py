"""After an outage of the joiner: every window was over long ago by the clock, and yet no click is taken for none."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from minutely.services.join import make_join_service
from stack.kafka import BrokerUnavailable, running
from streaming.clock import WallClock
from streaming.join.commit import Committed
from streaming.join.service import JoinService
from streaming.kafka.client import reader_of
from streaming.kafka.outlet import KafkaOutlet
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, BrokerError
from streaming.records.events import Engagement, encode
from streaming.records.examples import ExampleFormat
from tests.commands import missing
from tests.kafka.joining import MINUTE, StoppedAt, joined_through, now_ms, run_until
from tests.kafka.services import write_config
from tests.kafka.traffic import (
    Event,
    check_examples,
    make_pipeline,
    make_traffic,
    producer_of,
    read_dead_letters,
    read_examples,
    send,
)

PADDING = 15_000
_TOPICS = (IMPRESSIONS, ENGAGEMENTS, EXAMPLES, DEAD_LETTERS)


@pytest.mark.parametrize("slow", [IMPRESSIONS, ENGAGEMENTS])
def test_a_backlog_on_both_topics_gives_no_false_negative(slow: str, kafka: KafkaSettings, tmp_path: Path) -> None:
    """One input holds far more than the other, so that the other is read to its end long before it."""
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    start = now_ms() - 20 * MINUTE
    before = make_traffic(1, 200, 3, start, 100)
    with producer_of(kafka) as producer:
        send(producer, kafka, before.events)

    def reached(service: object) -> bool:
        members = made.members.values()
        return sum(sum(member.work.offsets.values()) for member in members) >= len(before.events) // 2

    made = make_join_service(pipeline, tmp_path / "a", StoppedAt(start + 20_000))
    run_until(made, reached)  # the joiner stops with windows open, at that time
    missed = make_traffic(2, 2000, 3, start + 20_000, 100, first=200)
    padding: list[Event] = []
    if slow == ENGAGEMENTS:  # of an action that no label looks at, spread over the time of the traffic
        for number in range(PADDING):
            at = start + number * 220_000 // PADDING
            hover = Engagement(
                version=1, request_id=f"r{number % 2200}", impression_id="x", action="hover", happened_at=at
            )
            padding.append(Event(at, ENGAGEMENTS, hover.request_id, encode(hover)))
    events = sorted([*missed.events, *padding])
    labels = before.labels | missed.labels
    if slow == IMPRESSIONS:
        wide = make_traffic(3, PADDING // 2, 1, start, 220_000 / (PADDING // 2), first=10_000)
        events = sorted([*events, *wide.events])
        labels |= wide.labels
    with producer_of(kafka) as producer:
        send(producer, kafka, events)
    run_until(make_join_service(pipeline, tmp_path / "a", WallClock()), joined_through(start + 10 * MINUTE, 3), 120)
    check_examples(read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels)), labels)
    assert read_dead_letters(kafka) == []


def test_partitions_that_always_fail_keep_no_other_from_its_turn(
    kafka: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A try may take longer than the longest pause before the next."""
    healthy = 5
    kafka = kafka.model_copy(update={"partitions": healthy + 1})
    opened = KafkaOutlet.open

    def failing(outlet: KafkaOutlet) -> Committed | None:
        if outlet._partition == healthy:
            return opened(outlet)
        time.sleep(0.6)
        raise BrokerError("no answer", "TIMED_OUT")

    monkeypatch.setattr(KafkaOutlet, "open", failing)
    ensure_topics(kafka)
    service = make_join_service(make_pipeline(kafka), tmp_path, WallClock())
    run_until(service, lambda made: any(member.work.published > 0 for member in made.members.values()))


def test_a_partition_that_one_topic_lacks_keeps_no_other_waiting(
    kafka: KafkaSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As where somebody adds partitions to `impressions` alone: each call that asked for it took as long as a call may."""
    kafka = kafka.model_copy(update={"partitions": 2})
    ensure_topics(kafka)
    with AdminClient(kafka.client()) as admin:
        (grown,) = admin.create_partitions([NewPartitions(kafka.topic(IMPRESSIONS), 3)]).values()
        grown.result()
    grown_too = make_pipeline(kafka.model_copy(update={"partitions": 3}))
    service = make_join_service(grown_too, tmp_path, WallClock())
    rounds: list[int] = []

    def others_go_on(made: JoinService) -> bool:
        if len(made.members) < 3:
            return False
        rounds.append(now_ms())
        return min(made.members[at].work.published for at in (0, 1)) > rounds[0] + 5_000

    with caplog.at_level(logging.WARNING):
        run_until(service, others_go_on)
    assert max(after - before for before, after in pairwise(rounds)) < 10_000
    names = ", ".join(kafka.topic(f"{topic}/2") for topic in (DEAD_LETTERS, ENGAGEMENTS, EXAMPLES))
    assert f"partition 2: LEADER_NOT_AVAILABLE: no broker leads {names}; retrying" in caplog.text


def test_a_full_disk_ends_a_joiner_with_one_line_and_it_goes_on_once_there_is_room(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    """A limit on files stands in for it."""
    kafka = kafka.model_copy(update={"partitions": 1})
    pipeline, state = make_pipeline(kafka), tmp_path / "state"
    ensure_topics(kafka)
    start = now_ms() - 5_000
    traffic = make_traffic(5, 2000, 2, start, 1)
    with producer_of(kafka) as producer:
        send(producer, kafka, traffic.events)
    join = f"{Path(sys.executable).parent}/minutely join {write_config(pipeline, tmp_path)} --state {state}"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 64; exec {join}"], capture_output=True, text=True, timeout=120, check=False
    )
    lines = [line for line in done.stderr.splitlines() if " minutely.join INFO " not in line]
    assert done.returncode == 1
    (line,) = lines
    assert line.startswith(f"error {state}/0: --state: File too large; allowed: a folder that can be written")
    run_until(make_join_service(pipeline, state, WallClock()), joined_through(start + 15_000, 1))
    check_examples(read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels)), traffic.labels)


def test_a_broker_away_keeps_only_its_own_partitions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With one replica, nobody leads them until it is back; all others are joined as before."""
    partitions = 12
    try:
        with running(tmp_path / "cluster", nodes=3, extra={"min.insync.replicas": "1"}) as cluster:
            kafka = KafkaSettings(bootstrap=cluster.bootstrap, partitions=partitions)
            ensure_topics(kafka)
            with closing(reader_of(kafka)) as reader:
                topics = reader.list_topics(timeout=10).topics
            leaders = [{topics[name].partitions[at].leader for name in _TOPICS} for at in range(partitions)]
            victim = min(range(1, 4), key=lambda number: sum(number in each for each in leaders))
            others = [at for at, each in enumerate(leaders) if victim not in each]
            assert 0 < len(others) < partitions, leaders
            service = make_join_service(make_pipeline(kafka), tmp_path / "state", WallClock())
            away_at: list[int] = []

            def others_go_on(made: JoinService) -> bool:
                told = [made.members[at].work.published for at in others if at in made.members]
                if not away_at and len(made.members) == partitions and min(told) > 0:
                    cluster.nodes[victim - 1].kill()
                    away_at.append(now_ms())
                return bool(away_at) and len(told) == len(others) and min(told) > away_at[0]

            with caplog.at_level(logging.WARNING):
                run_until(service, others_go_on, 90)
            assert "no broker leads" in caplog.text
    except BrokerUnavailable as error:
        missing(str(error))
