"""Records in `examples` that nobody can read: joiners, trainer and archiver go on, and each is a dead letter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from minutely.services.archive import ArchiveService
from minutely.services.join import make_join_service
from minutely.services.metrics import Status
from minutely.services.train import TrainService
from paramserver.files import LocalFiles
from streaming.archive.table import Archive
from streaming.clock import WallClock
from streaming.kafka.log import KafkaLog
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import EXAMPLES
from streaming.records.examples import ExampleFormat
from tests.kafka.joining import MINUTE, Tomorrow, joined_through, now_ms, run_until
from tests.kafka.traffic import (
    check_archive,
    make_pipeline,
    make_traffic,
    producer_of,
    read_dead_letters,
    read_topic,
    send,
)

POISON = [b"\xc1", b"\x81\xa1x" + b"\x91" * 2000 + b"\xc0", b""]


def until_read(status: Status, examples: int) -> Callable[[], bool]:
    """For a minute at most."""
    until = now_ms() + MINUTE
    return lambda: now_ms() > until or (status.examples >= examples and not any(status.lag.values()))


def test_poison_in_examples_ends_nobody(kafka: KafkaSettings, tmp_path: Path) -> None:
    pipeline = make_pipeline(kafka, archive={"commit_every": "100ms"})
    ensure_topics(kafka)
    first = make_traffic(1, 40, 2, now_ms() - 40 * MINUTE, 100)
    then = make_traffic(2, 40, 2, now_ms() + 5 * MINUTE, 100, first=40)
    with producer_of(kafka) as producer:
        send(producer, kafka, first.events)
    run_until(make_join_service(pipeline, tmp_path / "a", WallClock()), joined_through(now_ms() - 30 * MINUTE, 3))
    with producer_of(kafka) as producer:
        for partition in range(3):
            for record in POISON:
                producer.send(kafka.topic(EXAMPLES), record, partition=partition)
        send(producer, kafka, then.events)
    # Another joiner, without state: it reads back what is in `examples`.
    run_until(make_join_service(pipeline, tmp_path / "b", Tomorrow()), joined_through(now_ms() + 60 * MINUTE, 3))
    labels, examples = first.labels | then.labels, ExampleFormat(pipeline.features, pipeline.labels)
    records = [value for part in read_topic(kafka, EXAMPLES).values() for _, value in part if value not in POISON]
    names = [name for value in records for name in examples.decode(value)[0].column("example_id").to_pylist()]
    assert sorted(names) == sorted(labels), "each once, nothing is joined again"

    status = Status()
    log = KafkaLog(kafka, EXAMPLES)
    files = LocalFiles(tmp_path / "deltas", durable=False)
    stop = until_read(status, len(labels))
    with closing(TrainService(pipeline, log, files, WallClock(), status, stop, resume=False)) as trainer:
        assert trainer.run()
        counts = trainer.online.trainer.tables["key"].export().counts
        assert (len(counts), set(counts.tolist())) == (len(labels), {1})
    assert status.dead_letters["malformed"] == 3 * len(POISON)

    status = Status()
    place = str(tmp_path / "archive")
    log = KafkaLog(kafka, EXAMPLES)
    ArchiveService(pipeline, place, log, WallClock(), status, until_read(status, len(labels))).run()
    assert status.dead_letters["malformed"] == 3 * len(POISON)
    check_archive(Archive(place, examples), labels)
    letters = read_dead_letters(kafka)
    assert sorted(letter.payload for letter in letters) == sorted(POISON * 6)
    assert {letter.detail.split(":")[0] for letter in letters} == {"not trained on", "not archived"}
