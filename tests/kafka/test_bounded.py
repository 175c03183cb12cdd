"""A transaction that never ends does not hold the joiner for ever."""

from __future__ import annotations

import threading

import pytest
from kafka.errors import KafkaTimeoutError, ProducerFencedError

from streaming.kafka import partition_io


def test_what_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_io, "_TRANSACTION_MS", 50)
    never = threading.Event()
    with pytest.raises(KafkaTimeoutError, match="did not end within 50 ms"):
        partition_io.bounded(never.wait)
    never.set()


def test_what_ends_with_an_error_says_which() -> None:
    def fenced() -> None:
        raise ProducerFencedError("another one")

    with pytest.raises(ProducerFencedError, match="another one"):
        partition_io.bounded(fenced)
    partition_io.bounded(list, "abc")
