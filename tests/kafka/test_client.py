"""The edge to Kafka's client: one kind of error, which keeps nothing of the client alive."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError, KafkaException

from streaming.kafka.client import as_broker_error, bounded
from streaming.log import BrokerError

FENCED = KafkaError(KafkaError._FENCED, "a newer producer has the transactional id")


class Producer:
    """What a call holds while it fails, as an outlet does its producer."""

    def commit(self) -> None:
        raise KafkaException(FENCED)


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """A joiner's collector seldom runs: nothing may wait for it."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("in_a_thread", [False, True])
def test_an_error_of_the_client_is_told_and_holds_no_producer(in_a_thread: bool) -> None:
    held: list[weakref.ref[Producer]] = []

    @as_broker_error
    def send() -> None:
        producer = Producer()
        held.append(weakref.ref(producer))
        if in_a_thread:
            bounded(producer.commit, 5)
        producer.commit()

    with pytest.raises(BrokerError, match=r"^FENCED: a newer producer has the transactional id$") as caught:
        send()
    assert caught.value.name == "FENCED"
    assert caught.value.__context__ is None
    assert held[0]() is None, "though the error is still looked at"


def test_errors_that_are_told_are_freed_once_they_are_handled() -> None:
    @as_broker_error
    def fail() -> None:
        raise KafkaException(FENCED)

    def handle() -> weakref.ref[BrokerError]:
        try:
            fail()
        except BrokerError as error:
            return weakref.ref(error)
        raise AssertionError("not told")

    assert handle()() is None


def test_other_errors_pass_as_they_are() -> None:
    @as_broker_error
    def fail() -> None:
        raise ValueError("a mistake of ours")

    with pytest.raises(ValueError, match="of ours"):
        fail()
