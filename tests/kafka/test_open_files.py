"""A joiner that needs more open files than its limit: the soft one is raised, and the hard one named."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from basis.open_files import ALLOWED, TOO_MANY
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import EXAMPLES
from tests.kafka.joining import now_ms
from tests.kafka.services import Program, Service, write_config
from tests.kafka.traffic import make_pipeline, make_traffic, producer_of, read_topic, send

PARTITIONS, FEW, MORE = 12, 100, 130


def soft_limit(*arguments: str) -> None:
    limited(arguments, FEW, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def hard_limit(*arguments: str) -> None:
    limited(arguments, FEW, FEW)


def hard_limit_of_clients(*arguments: str) -> None:
    """The states are open by then."""
    limited(arguments, MORE, MORE)


def limited(arguments: tuple[str, ...], soft: int, hard: int) -> None:
    from minutely.cli import main

    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    sys.argv = ["minutely", *arguments]
    main()


@contextmanager
def joining(kafka: KafkaSettings, folder: Path, program: Program) -> Iterator[Service]:
    config, state = write_config(make_pipeline(kafka), folder), folder / "state"
    joiner = Service(
        "join", ["join", str(config), "--state", str(state)], state, folder / "join.log", forks=True, program=program
    )
    joiner.start()
    try:
        yield joiner
    finally:
        joiner.kill()


def wait_for(joiner: Service, done: Callable[[], bool], *, ends: bool = False) -> None:
    until = time.monotonic() + 60
    while not done():
        assert (joiner.runs or ends) and time.monotonic() < until, joiner.output
        time.sleep(0.5)


def test_the_soft_limit_is_raised(kafka: KafkaSettings, tmp_path: Path) -> None:
    kafka = kafka.model_copy(update={"partitions": PARTITIONS})
    ensure_topics(kafka)
    with producer_of(kafka) as producer:
        send(producer, kafka, make_traffic(1, 300, 2, now_ms() - 60_000, 50).events)
    with joining(kafka, tmp_path, soft_limit) as joiner:
        wait_for(
            joiner, lambda: len([records for records in read_topic(kafka, EXAMPLES).values() if records]) == PARTITIONS
        )
        assert TOO_MANY not in joiner.output


@pytest.mark.parametrize(
    ("program", "said"),
    [(hard_limit, f"--state: {TOO_MANY}; {ALLOWED}"), (hard_limit_of_clients, f"Failed to create socket: {TOO_MANY}")],
)
def test_a_hard_limit_is_named(program: Program, said: str, kafka: KafkaSettings, tmp_path: Path) -> None:
    """By the state's store, or by the client, whose calls only time out."""
    kafka = kafka.model_copy(update={"partitions": PARTITIONS})
    ensure_topics(kafka)
    with joining(kafka, tmp_path, program) as joiner:
        wait_for(joiner, lambda: said in joiner.output, ends=program is hard_limit)
        assert ALLOWED in joiner.output
