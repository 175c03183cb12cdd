"""A real broker for the tests of this folder: one node for each test process, kept until it ends."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from stack.kafka import BrokerUnavailable, running
from streaming.kafka.settings import BOOTSTRAP, KafkaSettings
from tests.commands import missing


@pytest.fixture(scope="session")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where brokers take connections: ``$KAFKA_BOOTSTRAP``, or a node of our own."""
    given = os.environ.get(BOOTSTRAP)
    if given:
        yield given
        return
    try:
        with running(tmp_path_factory.mktemp("kafka") / "cluster") as cluster:
            yield cluster.bootstrap
    except BrokerUnavailable as error:
        missing(str(error))


@pytest.fixture
def kafka(bootstrap: str) -> KafkaSettings:
    """Settings with topics and groups of the test's own."""
    return KafkaSettings(bootstrap=bootstrap, prefix=f"t{uuid.uuid4().hex[:8]}.", partitions=3)
