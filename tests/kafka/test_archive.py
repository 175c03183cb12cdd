"""`minutely archive`: asked to end, it commits what it read; started again, it goes on; what the topic lost is an error."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path

from minutely.config import Pipeline
from stack.ports import free_ports
from streaming.archive.table import Archive, Position
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import EXAMPLES
from streaming.records.examples import ExampleFormat
from tests.kafka.services import archiver, started, write_config
from tests.kafka.traffic import check_archive, delete_before, examples_record, make_pipeline, producer_of

FIRST, LAST = 0, 2


def write(pipeline: Pipeline, partition: int, numbers: range) -> dict[str, float]:
    """Each example in a record of its own; their labels."""
    labels: dict[str, float] = {}
    with producer_of(pipeline.kafka) as producer:
        for number in numbers:
            record, of_record = examples_record(
                ExampleFormat(pipeline.features, pipeline.labels), range(number, number + 1)
            )
            producer.send(pipeline.kafka.topic(EXAMPLES), record, partition=partition)
            labels |= of_record
    return labels


def metrics(address: str) -> str:
    """What Prometheus is told; nothing before the service listens."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def test_what_was_read_is_committed_and_what_is_gone_is_an_error(kafka: KafkaSettings, tmp_path: Path) -> None:
    pipeline = make_pipeline(kafka, archive={"commit_every": "300ms"})
    example_format = ExampleFormat(pipeline.features, pipeline.labels)
    ensure_topics(kafka)
    service = archiver(write_config(pipeline, tmp_path), tmp_path)
    labels = write(pipeline, FIRST, range(40))
    with started(service):
        service.waits_for("commit 1: 40 examples")
        assert service.end() == 0, service.output
        labels |= write(pipeline, LAST, range(40, 60))
        service.start()
        service.waits_for("commit 1: 20 examples")
        assert "partition 0: resuming at offset 40" in service.said
        assert service.end() == 0, service.output
        check_archive(Archive(str(service.state), example_format), labels)

        write(pipeline, FIRST, range(60, 70))
        delete_before(kafka, EXAMPLES, FIRST, 45)
        service.start()
        assert service.wait() == 1
        said = " ".join(service.said.split())
        assert "error examples/0: the log begins at offset 45, records from 40 on are needed" in said, said
    archive = Archive(str(service.state), example_format)
    check_archive(archive, labels)
    position = archive.position(FIRST)
    assert isinstance(position, Position)
    assert position.offset == 40


def test_what_was_read_is_committed_at_the_end(kafka: KafkaSettings, tmp_path: Path) -> None:
    pipeline = make_pipeline(kafka, archive={"commit_every": "1h"})
    ensure_topics(kafka)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    service = archiver(write_config(pipeline, tmp_path), tmp_path, "--metrics", address)
    labels = write(pipeline, FIRST, range(40))
    with started(service):
        until = time.monotonic() + 60
        while "minutely_archive_lag{" not in (said := metrics(address)) or float(said.split(f'"{FIRST}"}} ')[1][:3]):
            assert time.monotonic() < until, said
            time.sleep(0.2)
        assert "minutely_archive_commits_total 0.0" in said
        assert service.end() == 0, service.output
    check_archive(Archive(str(service.state), ExampleFormat(pipeline.features, pipeline.labels)), labels)
