"""A replica goes on logging, and knows what became of each record, whatever becomes of its producer."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from minutely.services.kafka_sink import KafkaSink
from serving.outbox import Outbox, Outgoing
from serving.service import send_step
from stack.kafka import BrokerUnavailable, running
from stack.ports import free_ports
from streaming.kafka import sending
from streaming.kafka.settings import BOOTSTRAP, KafkaSettings
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from tests.commands import missing
from tests.kafka.traffic import read_topic

RECORD_BYTES = 300_000
WITHIN_SECONDS = 60


class Log:
    """A replica's log on topics of its own. Records can be told apart; ``count`` are sent once the broker has lost some."""

    def __init__(self, bootstrap: str, count: int) -> None:
        self.count = count
        self.kafka = KafkaSettings(bootstrap=bootstrap, partitions=1, prefix=f"{count}-")
        self.outbox = Outbox(64 << 20)
        self.sink = KafkaSink(self.kafka, self.outbox)
        self.pushed = 0

    def push(self, count: int) -> None:
        """Send, and wait until it is known what became of each."""
        numbers = range(self.pushed, self.pushed + count)
        assert self.outbox.offer_all([Outgoing(IMPRESSIONS, f"r{number}", record(number)) for number in numbers])
        self.sink.send(self.outbox.take(64 << 20))
        self.pushed = numbers.stop
        until = time.monotonic() + WITHIN_SECONDS
        sent, dropped = self.outbox.sent, self.outbox.dropped
        while sent[IMPRESSIONS] + dropped[IMPRESSIONS] < self.pushed:
            assert time.monotonic() < until, (sent, dropped)
            self.sink.send([])
            time.sleep(0.05)

    def check(self) -> None:
        """Each counted once, and there once where it was sent and not lost by the broker."""
        self.sink.close()
        sent, dropped = self.outbox.sent[IMPRESSIONS], self.outbox.dropped[IMPRESSIONS]
        assert sent + dropped == self.pushed == 15 + self.count
        assert self.outbox.open == self.outbox.size_bytes == 0
        assert 0 < dropped <= (1 << 20) // RECORD_BYTES + 1, "what the lost producer held"
        there = Counter(int.from_bytes(value[:4], "big") for _, value in read_topic(self.kafka, IMPRESSIONS)[0])
        lost = range(5, 10)
        assert len(there) == sent - len(lost)
        assert set(there.values()) == {1}
        assert set(range(self.pushed - 5, self.pushed)) <= set(there)


def record(number: int) -> bytes:
    return number.to_bytes(4, "big") * (RECORD_BYTES // 4)


def test_a_broker_that_lost_the_end_of_its_log_is_sent_to_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power was cut, or a disk restored: for the client's idempotent producer that is fatal. It says so when asked what became of
    records (those of the first sink); in the middle of a batch that its memory does not hold, when given the next one."""
    monkeypatch.delenv(BOOTSTRAP, raising=False)
    monkeypatch.setattr(sending, "_SEND_BYTES", 1 << 20)
    try:
        with running(tmp_path / "cluster") as cluster:
            (node,) = cluster.nodes
            data, copy = tmp_path / "cluster" / "node-1" / "data", tmp_path / "copy"
            logs = [Log(cluster.bootstrap, count) for count in (2, 20)]
            for log in logs:
                log.push(5)
            node.kill(signal.SIGTERM)
            shutil.copytree(data, copy)
            cluster.restart(node)
            for log in logs:
                log.push(5)
            node.kill()
            shutil.rmtree(data)
            copy.rename(data)
            cluster.restart(node)
            for log in logs:
                log.push(log.count)
                log.push(5)
                log.check()
    except BrokerUnavailable as error:
        missing(str(error))


def test_what_waits_for_the_first_connection_is_counted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender has taken it out of the buffer, and no producer has it yet."""
    monkeypatch.delenv(BOOTSTRAP, raising=False)
    clicked = Outgoing(ENGAGEMENTS, "r", bytes(1000))
    outbox = Outbox(2 * clicked.size_bytes)
    sink = KafkaSink(KafkaSettings(bootstrap=f"127.0.0.1:{free_ports(1)[0]}"), outbox)
    assert outbox.offer_all([clicked])
    sender = threading.Thread(target=send_step, args=(outbox, sink))
    sender.start()
    until = time.monotonic() + 10
    while len(outbox) and time.monotonic() < until:
        time.sleep(0.01)
    assert (len(outbox), outbox.open, outbox.size_bytes) == (0, 1, clicked.size_bytes)
    assert outbox.offer_all([clicked]) and not outbox.offer_all([clicked]), "what was taken has its place"
    sink.stop()
    sender.join()
    assert (outbox.dropped[ENGAGEMENTS], outbox.open, outbox.size_bytes) == (1, 1, clicked.size_bytes)
    sink.close()
