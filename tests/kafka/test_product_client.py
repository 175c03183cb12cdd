"""The products' client on a real broker, beside the services' own."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from minutely.client import BrokerError, Client, Lost, NoRoom
from minutely.services.join import make_join_service
from stack.kafka import BrokerUnavailable, Cluster
from streaming.clock import WallClock
from streaming.kafka.settings import BOOTSTRAP, KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from streaming.records.events import MAX_TIME_MS, Engagement, Request, decode_engagement, decode_request
from streaming.records.examples import ExampleFormat
from tests.commands import ROOT, missing
from tests.kafka.joining import MINUTE, joined_through, now_ms, run_until
from tests.kafka.test_sending import MURMUR2
from tests.kafka.traffic import (
    alter,
    check_examples,
    make_pipeline,
    make_traffic,
    producer_of,
    read_dead_letters,
    read_examples,
    read_messages,
)


def client_of(kafka: KafkaSettings) -> Client:
    """A client of which every record is to arrive."""
    return Client(bootstrap=kafka.bootstrap, prefix=kafka.prefix, on_lost=lambda lost: pytest.fail(str(lost)))


def serve(client: Client, request: Request) -> None:
    """Send what a record of made-up traffic says."""
    client.served(
        request_id=request.request_id,
        served_at=request.served_at,
        impressions=request.impression_ids,
        shared={name: np.frombuffer(packed, "<i8").tolist()[0] for name, packed in request.shared.items()},
        features={name: np.frombuffer(packed, "<i8").tolist() for name, packed in request.features.items()},
    )


def engage(client: Client, done: Engagement) -> None:
    client.engaged(done.request_id, done.impression_id, done.action, value=done.value, happened_at=done.happened_at)


def places(kafka: KafkaSettings, topic: str) -> dict[str, int]:
    """The partition of every request's records."""
    every = read_messages(kafka, topic).items()
    return {(message.key() or b"").decode(): partition for partition, messages in every for message in messages}


def test_records_of_both_clients_are_joined(kafka: KafkaSettings, tmp_path: Path) -> None:
    """Requests of one library with engagements of the other, and the other way round, in any order."""
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    start = now_ms() - 10 * MINUTE
    traffic = make_traffic(8, 400, 3, start, 100)
    with client_of(kafka) as client, producer_of(kafka) as producer:
        for event in traffic.events:
            by_product = (event.topic == IMPRESSIONS) == (int(event.request_id[1:]) % 2 == 0)
            if not by_product:
                producer.send(kafka.topic(event.topic), event.value, key=event.request_id.encode())
            elif event.topic == IMPRESSIONS:
                serve(client, decode_request(event.value, MAX_TIME_MS))
            else:
                engage(client, decode_engagement(event.value, MAX_TIME_MS))
        assert client.flush(20) == 0
    served, done = places(kafka, IMPRESSIONS), places(kafka, ENGAGEMENTS)
    assert len(served) == 400 and len(set(served.values())) == 3
    assert done.items() <= served.items()
    assert {int(name[1:]) % 2 for name in done} == {0, 1}
    run_until(make_join_service(pipeline, tmp_path, WallClock()), joined_through(start + MINUTE, 3))
    emitted = read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels))
    check_examples(emitted, traffic.labels)
    assert read_dead_letters(kafka) == []
    keys = {
        name: key
        for batch in emitted.batches
        for name, key in zip(batch["example_id"].to_pylist(), batch["feature.key"].to_pylist(), strict=True)
    }
    assert all(keys[f"r{at // 3}/r{at // 3}.{at % 3}"] == at for at in range(1200)), "the values of JSON and msgpack"


def test_a_request_goes_where_every_client_sends_it(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    with client_of(kafka) as client:
        for key in MURMUR2:
            client.engaged(key.decode(), "i", "click")
            client.served(request_id=key.decode(), impressions=["i"], features={})
    wanted = {key.decode(): (value & 0x7FFFFFFF) % kafka.partitions for key, value in MURMUR2.items()}
    assert places(kafka, IMPRESSIONS) == places(kafka, ENGAGEMENTS) == wanted


def test_what_brokers_refuse_is_told(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    lost: list[Lost] = []
    alter(kafka, kafka.topic(IMPRESSIONS), "max.message.bytes", "1000")
    large = np.random.default_rng(1).random((2, 500)).tolist()
    with Client(bootstrap=kafka.bootstrap, prefix=kafka.prefix, on_lost=lost.append) as client:
        client.served(request_id="large", impressions=["a", "b"], features={"x": large})
        client.served(request_id="small", impressions=["a"], features={})
    (told,) = lost
    assert (told.topic, told.request_id) == (kafka.topic(IMPRESSIONS), "large")
    assert b'"request_id":"large"' in told.value
    assert "MessageSizeTooLarge" in str(told.error) or "RecordTooLarge" in str(told.error)
    assert set(places(kafka, IMPRESSIONS)) == {"small"}


def test_topics_that_are_not_there_are_an_error(kafka: KafkaSettings) -> None:
    client = Client(bootstrap=kafka.bootstrap, prefix="nobody-made.", on_lost=print, wait_seconds=1)
    began = time.monotonic()
    with pytest.raises(BrokerError, match=r"asked 127\.0\.0\.1.* for topic nobody-made\.impressions"):
        client.engaged("r", "i", "click")
    assert time.monotonic() - began < 5
    assert client.close() == 0


def test_brokers_that_go_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records wait in bounded memory, calls wait in bounded time, and what is given up is told, once."""
    monkeypatch.delenv(BOOTSTRAP, raising=False)
    try:
        cluster = Cluster(tmp_path / "cluster")
    except BrokerUnavailable as error:
        missing(str(error))
    kafka = KafkaSettings(bootstrap=cluster.bootstrap, partitions=1)
    lost: list[Lost] = []
    taken: list[str] = []

    def send_until_full(client: Client, name: str) -> None:
        with pytest.raises(NoRoom, match=r"\d+ bytes wait for brokers; allowed: 100000"):
            for number in range(1000):
                client.engaged(f"{name}{number}", "i" * 200, "click")
                taken.append(f"{name}{number}")

    try:
        cluster.start()
        ensure_topics(kafka)
        (node,) = cluster.nodes
        client = Client(
            bootstrap=kafka.bootstrap, on_lost=lost.append, memory_bytes=100_000, wait_seconds=1, delivery_seconds=20
        )
        client.engaged("before", "i", "click")
        assert client.flush(20) == 0
        node.kill()
        began = time.monotonic()
        send_until_full(client, "a")
        assert 1 <= time.monotonic() - began < 10
        assert 200 < len(taken) < 500
        assert client.flush(0.5) == len(taken)
        cluster.restart(node)
        assert client.flush(60) == 0
        assert lost == []
        assert set(places(kafka, ENGAGEMENTS)) == {"before", *taken}, "all that waited"

        node.kill()
        taken.clear()
        send_until_full(client, "b")
        until = time.monotonic() + 60
        while len(lost) < len(taken) and time.monotonic() < until:
            time.sleep(0.2)
        assert [told.request_id for told in lost] == taken, "given up after 20 s"
        lost.clear()
        taken.clear()
        send_until_full(client, "c")
        began = time.monotonic()
        assert client.close(1) == len(taken)
        assert time.monotonic() - began < 5
        assert sorted(told.request_id for told in lost) == sorted(taken)
        with pytest.raises(ValueError, match="the client is closed"):
            client.engaged("after", "i", "click")
    finally:
        cluster.stop()


def test_the_example_of_the_page(kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/client.md: what it sends is there. Without a broker, it runs in tests/test_docs.py."""
    ensure_topics(kafka)
    monkeypatch.setenv(BOOTSTRAP, kafka.bootstrap)
    code = (ROOT / "docs/client.md").read_text().split("```python\n")[1].split("```")[0]
    assert code.count("shop.") == 1
    exec(code.replace("shop.", kafka.prefix), {})
    assert set(places(kafka, IMPRESSIONS)) == set(places(kafka, ENGAGEMENTS)) == {"r1"}
