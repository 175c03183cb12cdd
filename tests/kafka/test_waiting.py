"""What is said of failures: each kind once, and when it goes on."""

from __future__ import annotations

import logging

import pytest
from confluent_kafka import KafkaError, KafkaException

from streaming.join.partition import ForgottenError
from streaming.kafka.waiting import Patience


def test_what_only_people_can_end_is_said_though_brokers_were_away_before(caplog: pytest.LogCaptureFixture) -> None:
    patience = Patience(logging.getLogger("test"), "partition 3")
    away = [KafkaException(KafkaError(code)) for code in (KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN)]
    refused = KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    for error in [*away, ForgottenError("no offsets"), *away, ForgottenError("no offsets"), refused, refused]:
        patience.failed(error)
    said = [record.message for record in caplog.records]
    assert len(said) == 3
    assert said[0].startswith("partition 3: waiting, since TIMED_OUT")
    assert said[1] == "partition 3: waiting, since ForgottenError: no offsets"
    assert said[2].startswith("partition 3: waiting, since TOPIC_AUTHORIZATION_FAILED")
    patience.worked()
    patience.failed(away[0])
    assert len(caplog.records) == 5
