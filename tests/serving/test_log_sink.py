"""A replica goes on logging, and knows what became of each record, whatever becomes of its producer."""

from __future__ import annotations

import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from minutely.serve import KafkaSink
from serving.outbox import Outbox, Outgoing
from streaming.kafka import sending
from streaming.kafka.settings import BOOTSTRAP, KafkaSettings
from streaming.log import IMPRESSIONS
from tests.commands import missing
from tests.kafka.broker import BrokerUnavailable, running
from tests.kafka.traffic import read_topic

RECORD_BYTES = 300_000
WITHIN_SECONDS = 60


def push(sink: KafkaSink, numbers: range) -> None:
    """Records that can be told apart."""

    def made(number: int) -> Callable[[], bytes]:
        return lambda: number.to_bytes(4, "big") * (RECORD_BYTES // 4)

    sink.send([Outgoing(IMPRESSIONS, f"r{number}", made(number)) for number in numbers])


def settled(sink: KafkaSink, outbox: Outbox, count: int) -> None:
    """It is known of so many records what became of them."""
    until = time.monotonic() + WITHIN_SECONDS
    while outbox.sent[IMPRESSIONS] + outbox.dropped[IMPRESSIONS] < count:
        assert time.monotonic() < until, (outbox.sent, outbox.dropped)
        sink.send([])
        time.sleep(0.05)


@pytest.mark.parametrize("count", [2, 20])
def test_a_broker_that_lost_the_end_of_its_log_is_sent_to_again(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power was cut, or a disk restored: for the client's idempotent producer that is fatal. It says so when asked what became of
    records; in the middle of a batch that its memory does not hold, when given the next one."""
    monkeypatch.delenv(BOOTSTRAP, raising=False)
    monkeypatch.setattr(sending, "_SEND_BYTES", 1 << 20)
    try:
        with running(tmp_path / "cluster") as cluster:
            (node,) = cluster.nodes
            data, copy = tmp_path / "cluster" / "node-1" / "data", tmp_path / "copy"
            kafka = KafkaSettings(bootstrap=cluster.bootstrap, partitions=1)
            outbox = Outbox(1000)
            sink = KafkaSink(kafka, outbox)
            push(sink, range(5))
            settled(sink, outbox, 5)
            node.kill(signal.SIGTERM)
            shutil.copytree(data, copy)
            cluster.restart(node)
            push(sink, range(5, 10))
            settled(sink, outbox, 10)
            node.kill()
            shutil.rmtree(data)
            copy.rename(data)
            cluster.restart(node)
            end = 10 + count
            push(sink, range(10, end))
            settled(sink, outbox, end)
            push(sink, range(end, end + 5))
            settled(sink, outbox, end + 5)
            sink.close()
            assert outbox.sent[IMPRESSIONS] + outbox.dropped[IMPRESSIONS] == end + 5, "each counted once"
            there = Counter(int.from_bytes(value[:4], "big") for _, value in read_topic(kafka, IMPRESSIONS)[0])
    except BrokerUnavailable as error:
        missing(str(error))
    assert 0 < outbox.dropped[IMPRESSIONS] <= (1 << 20) // RECORD_BYTES + 1, "what the lost producer held"
    lost = range(5, 10)
    assert len(there) == outbox.sent[IMPRESSIONS] - len(lost)
    assert set(there.values()) == {1}
    assert set(range(end, end + 5)) <= set(there)
