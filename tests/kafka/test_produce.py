"""What `minutely produce` sends: logged events as if they happened now."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minutely.config import Pipeline
from minutely.services.join import make_join_service
from minutely.services.produce import of_run, produce
from stack.kafka import BrokerUnavailable, Cluster
from streaming.kafka.settings import BOOTSTRAP, KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from streaming.records.events import MAX_TIME_MS, decode_engagement, decode_request
from streaming.records.examples import ExampleFormat
from streaming.source.load import load
from streaming.source.to_records import RequestRecords
from tests.commands import missing
from tests.kafka.joining import MINUTE, Tomorrow, joined_through, now_ms, run_until
from tests.kafka.services import Service, started, write_config
from tests.kafka.traffic import read_dead_letters, read_examples, read_messages

LOGGED_AT = 1_500_000_000_000
GAP_MS, REQUESTS, DELAY_MS = 2000, 60, 700


def pipeline_of(kafka: KafkaSettings, folder: Path) -> Pipeline:
    """Two impressions a request, every third clicked; features of the time as it was logged."""
    lines = ["time,request,item,clicked"]
    for number in range(REQUESTS):
        for place in range(2):
            clicked = int((2 * number + place) % 3 == 0)
            lines.append(f"{LOGGED_AT + number * GAP_MS},r{number},i{place},{clicked}")
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    return Pipeline.model_validate(
        {
            "name": "logged",
            "source": {
                "dir": str(folder),
                "impressions": {
                    "file": "log.csv",
                    "time": {"column": "time"},
                    "request": ["request"],
                    "impression": ["item"],
                },
                "actions": {"click": {"when": "clicked", "delay": f"{DELAY_MS}ms"}},
            },
            "features": {"item": {"column": "item"}, "hour": {"time": "hour", "scope": "request"}},
            "labels": {"click": {"action": "click", "window": "10s"}},
            "kafka": kafka.model_dump(mode="json"),
        }
    )


def sent(kafka: KafkaSettings, topic: str) -> list[tuple[int, str, Any]]:
    """Everything in a topic: partition, key and record, in the order of each partition."""
    decode = decode_request if topic == IMPRESSIONS else decode_engagement
    return [
        (partition, (message.key() or b"").decode(), decode(message.value() or b"", MAX_TIME_MS))
        for partition, messages in read_messages(kafka, topic).items()
        for message in messages
    ]


def logged(request_id: str) -> str:
    """The id that the log has: that of a run of `minutely produce` is before it."""
    return request_id.split("-", 2)[2]


@pytest.mark.parametrize(("speed", "rate", "gap_ms"), [(60.0, None, GAP_MS / 60), (None, 40.0, 25.0)])
def test_logged_events_as_if_they_happened_now(
    speed: float | None, rate: float | None, gap_ms: float, kafka: KafkaSettings, tmp_path: Path
) -> None:
    pipeline = pipeline_of(kafka, tmp_path)
    begun = now_ms()
    produce(pipeline, speed, rate)
    ended = now_ms()
    requests, engagements = sent(kafka, IMPRESSIONS), sent(kafka, ENGAGEMENTS)
    assert len(requests) == REQUESTS
    assert len(engagements) == 2 * REQUESTS // 3
    served = {request.request_id: request for _, _, request in requests}
    partition_of = {key: partition for partition, key, _ in requests}
    assert all(key == request.request_id for _, key, request in requests)
    assert all(key == done.request_id and partition == partition_of[key] for partition, key, done in engagements)
    # Stamped now, in the order of the log, with its gaps divided; sent when its time had come, and not before.
    by_log = {logged(name): request.served_at for name, request in served.items()}
    first = by_log["r0"]
    assert begun <= first
    stamps = [by_log[f"r{number}"] for number in range(REQUESTS)]
    assert np.abs(np.array(stamps) - first - np.arange(REQUESTS) * gap_ms).max() <= 1
    assert stamps[-1] + DELAY_MS <= ended + 1
    for partition in range(kafka.partitions):
        for records, time in ((requests, "served_at"), (engagements, "happened_at")):
            times = [getattr(record, time) for at, _, record in records if at == partition]
            assert times == sorted(times)
    # An engagement keeps its delay, a feature its original time.
    assert all(done.happened_at - served[done.request_id].served_at == DELAY_MS for _, _, done in engagements)
    hours = {np.frombuffer(request.shared["hour"], "<i8")[0] for _, _, request in requests}
    assert hours == {LOGGED_AT // 3_600_000 % 24}
    # The log holds no scores, so none are made up.
    assert all(not request.scores and not request.sparse_version for _, _, request in requests)


def test_what_is_sent_a_second_time_are_other_requests(kafka: KafkaSettings, tmp_path: Path) -> None:
    """So that it is trained on again, and every engagement finds its own."""
    pipeline = pipeline_of(kafka, tmp_path)
    for _ in range(2):
        produce(pipeline, None, 1000.0)
    requests, engagements = sent(kafka, IMPRESSIONS), sent(kafka, ENGAGEMENTS)
    assert len({request.request_id for _, _, request in requests}) == len(requests) == 2 * REQUESTS
    assert {done.request_id for _, _, done in engagements} <= {request.request_id for _, _, request in requests}
    service = make_join_service(pipeline, tmp_path / "state", Tomorrow())
    run_until(service, joined_through(now_ms() + MINUTE, kafka.partitions))
    emitted = read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels))
    assert set(emitted.times.values()) == {1}
    assert (len(emitted.labels), sum(emitted.labels.values())) == (4 * REQUESTS, 4 * REQUESTS // 3)
    assert read_dead_letters(kafka) == []


def test_the_longest_id_of_a_log_has_room_for_a_run(tmp_path: Path) -> None:
    pipeline = pipeline_of(KafkaSettings(bootstrap="nowhere:9092"), tmp_path)
    (tmp_path / "log.csv").write_text(f"time,request,item,clicked\n{LOGGED_AT},{'r' * 240},i,1\n")
    impressions = pipeline.source.impressions.model_copy(update={"impression": None})
    source = pipeline.source.model_copy(update={"impressions": impressions})
    events = of_run(load(tmp_path, source, pipeline.features, now_ms()), "674a1b2c-9f3e")
    maker = RequestRecords(events, pipeline.features)
    (request,), (done,) = maker.requests(0, 1, np.zeros((1, 0), np.float32), 0, 0), maker.engagements(0, 1)
    ids = decode_request(request, MAX_TIME_MS).request_id, decode_engagement(done, MAX_TIME_MS).request_id
    assert ids == ("674a1b2c-9f3e-" + "r" * 240,) * 2


def begun(service: Service, kafka: KafkaSettings, before: int) -> None:
    """It has sent more requests than there were before."""
    while len(sent(kafka, IMPRESSIONS)) == before:
        assert service.runs, service.output


def test_brokers_that_are_away_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request comes once; and asked to end meanwhile, it ends."""
    monkeypatch.delenv(BOOTSTRAP, raising=False)
    try:
        cluster = Cluster(tmp_path / "cluster")
    except BrokerUnavailable as error:
        missing(str(error))
    kafka = KafkaSettings(bootstrap=cluster.bootstrap, partitions=1)
    config = str(write_config(pipeline_of(kafka, tmp_path), tmp_path))
    arguments = ["produce", config, "--data", str(tmp_path), "--rate"]
    service = Service("produce", [*arguments, "10/s"], tmp_path, tmp_path / "produce.log", forks=True)
    try:
        cluster.start()
        ensure_topics(kafka)
        (node,) = cluster.nodes
        with started(service):
            begun(service, kafka, 0)
            node.kill()
            service.waits_for("brokers: TIMED_OUT")
            cluster.restart(node)
            service.waits_for("brokers: back after")
            assert service.wait() == 0, service.output
            assert f"sent {REQUESTS} requests" in service.said
            assert service.said.split("brokers: back after")[0].count("brokers: TIMED_OUT") == 1
            ids = [logged(request.request_id) for _, _, request in sent(kafka, IMPRESSIONS)]
            assert sorted(ids) == sorted(f"r{number}" for number in range(REQUESTS))

            service.start()
            begun(service, kafka, REQUESTS)
            node.kill()
            service.waits_for("brokers: TIMED_OUT")
            assert service.end(signal.SIGINT) == 0, service.output
            assert "records were not acknowledged" in service.said.splitlines()[-2], service.said
    finally:
        cluster.stop()


def test_a_request_that_no_record_has_room_for_is_left_out(
    kafka: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("minutely.services.produce.MAX_RECORD_BYTES", 4000)
    pipeline = pipeline_of(kafka, tmp_path)
    log = tmp_path / "log.csv"
    large = [f"{LOGGED_AT + 1},large,i{number},{int(number < 3)}" for number in range(400)]
    log.write_text("\n".join([*log.read_text().splitlines(), *large]) + "\n")
    with caplog.at_level("WARNING"):
        produce(pipeline, None, 200.0)
    assert "large has" in caplog.text and "allowed: 4000" in caplog.text
    assert "1 requests were too large to be sent; 3 engagements of them were left out" in caplog.text
    assert len(sent(kafka, IMPRESSIONS)) == REQUESTS
    assert "large" not in {logged(done.request_id) for _, _, done in sent(kafka, ENGAGEMENTS)}
