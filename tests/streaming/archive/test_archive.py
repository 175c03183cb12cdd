"""The archive: what lands in it, once; what comes back, in order; two writers, compaction, and a log that was trimmed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from basis.problems import GapError, Problems, UnreadableError
from streaming.archive import table as archives
from streaming.archive.table import Archive, Archived, Position, _with_place
from streaming.archive.worker import ArchiveWorker
from streaming.clock import EventClock
from streaming.embedded_log import EmbeddedLog
from streaming.features.columns import Ragged
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.join.timers import NEVER
from streaming.log import EXAMPLES, BrokerError, Record
from streaming.records.events import DeadLetter
from streaming.records.examples import ExampleColumns, ExampleFormat, ServedColumns
from streaming.records.labels import Label
from streaming.records.unreadable_records import IN_A_ROW

HOUR = 3_600_000
START = 474_000 * HOUR
FEATURES: dict[str, Feature] = {
    "user": SparseFeature(column="user", scope="request"),
    "tags": SparseFeature(column="tags", pool="mean"),
    "price": DenseFeature(kind="dense", column="price"),
    "embedding": VectorFeature(kind="vector", column="embedding", size=2),
}
LABELS = {"click": Label(action="click", window="1m")}
FORMAT = ExampleFormat(FEATURES, LABELS)


def examples(decided_at: list[int], first: int = 0) -> pa.RecordBatch:
    """Examples of these times (ms since the start), numbered from ``first``, whose features follow from their number."""
    count = len(decided_at)
    numbers = np.arange(first, first + count)
    lengths = numbers % 3
    tags = Ragged(np.concatenate(([0], np.cumsum(lengths))), np.repeat(numbers, lengths))
    times = np.array(decided_at, np.int64) + START
    columns = {
        "user": numbers,
        "tags": tags,
        "price": (numbers / 2).astype(np.float32),
        "embedding": np.stack((numbers, -numbers), 1).astype(np.float32),
    }
    labels = (numbers % 2).astype(np.float32)[:, None]
    served = ServedColumns(numbers.astype(np.int32), labels / 4, numbers + 7, numbers + 6)
    rest = ExampleColumns([f"e{n}" for n in numbers], labels, times - 5, times, times, 0.5, served=served)
    return FORMAT.build(columns, rest)


def fill(log: EmbeddedLog, partition: int, times: list[int], first: int = 0) -> None:
    """Records of two examples each and an empty one between them, as the joiner sends them."""
    payloads = []
    for at in range(0, len(times), 2):
        batch = examples(times[at : at + 2], first + at)
        payloads += [FORMAT.encode(batch, START + times[at]), FORMAT.encode(FORMAT.empty(), START + times[at] + 1)]
    log.append(EXAMPLES, partition, payloads)


def names(archive: Archive, since: int = 0, until: int = 1000 * HOUR) -> list[str]:
    batches = list(archive.batches(START + since, START + until))
    return [name for batch in batches for name in batch.column("example_id").to_pylist()]


def nobody(letters: Sequence[DeadLetter]) -> bool:
    raise AssertionError(letters)


def make(
    log: EmbeddedLog, folder: Path, partitions: int = 1, commit_every: int = 10
) -> tuple[ArchiveWorker, EventClock]:
    clock = EventClock(1_000)
    archive = Archive(str(folder), FORMAT)
    return ArchiveWorker(log, archive, FORMAT, clock, commit_every, range(partitions), nobody), clock


@pytest.fixture
def log(tmp_path: Path) -> EmbeddedLog:
    return EmbeddedLog(tmp_path / "log", durable=False)


def test_examples_come_back_as_they_went_in(log: EmbeddedLog, tmp_path: Path) -> None:
    batch = examples([10, 20, 30, HOUR + 1, 3 * HOUR])
    log.append(EXAMPLES, 0, [FORMAT.encode(batch, START + 3 * HOUR + 1)])
    worker, _ = make(log, tmp_path / "archive")
    worker.step()
    worker.commit()
    archive = Archive(str(tmp_path / "archive"), FORMAT)
    found = list(archive.batches(0, START + 9 * HOUR))
    assert [part.num_rows for part in found] == [5]
    assert pa.Table.from_batches(found).equals(pa.Table.from_batches([batch]))
    assert archive.position(0) == Position(1, START + 3 * HOUR + 1)
    assert archive.position(1) is None
    assert names(archive, since=20, until=HOUR + 1) == ["e1", "e2"], "from the first time on, up to before the second"
    assert names(archive, since=20, until=HOUR + 2) == ["e1", "e2", "e3"]
    assert names(archive, since=5 * HOUR) == names(archive, until=0) == []
    assert sorted(path.name for path in (tmp_path / "archive").glob("hour=*")) == [
        f"hour={np.datetime64(START + hour * HOUR, 'ms').astype('datetime64[h]')}" for hour in (0, 1, 3)
    ]


def test_examples_of_one_time_are_in_the_order_of_training_however_the_joiner_cut_them(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    parts = [([20, 20], 5), ([10, 20], 2), ([20], 1), ([20, 30], 8)]
    log.append(EXAMPLES, 0, [FORMAT.encode(examples(times, first), START) for times, first in parts])
    worker, _ = make(log, tmp_path / "archive")
    worker.step()
    worker.commit()
    archive = Archive(str(tmp_path / "archive"), FORMAT)
    assert names(archive) == ["e2", "e1", "e3", "e5", "e6", "e8", "e9"]


def test_a_commit_waits_for_its_time_and_one_restart_goes_on_after_it(log: EmbeddedLog, tmp_path: Path) -> None:
    worker, clock = make(log, tmp_path / "archive")
    fill(log, 0, [10, 20])
    worker.step()
    clock.move_to(1_009)
    worker.step()
    assert Archive(str(tmp_path / "archive"), FORMAT).position(0) is None
    clock.move_to(1_010)
    worker.step()
    assert Archive(str(tmp_path / "archive"), FORMAT).position(0) == Position(2, START + 11)
    fill(log, 0, [30, 40], first=2)
    worker.step()
    again, _ = make(log, tmp_path / "archive")  # the first one died with two examples in memory
    assert again.positions == {0: Position(2, START + 11)}
    again.step()
    again.commit()
    assert names(Archive(str(tmp_path / "archive"), FORMAT)) == ["e0", "e1", "e2", "e3"]


def test_what_cannot_be_read_is_told_before_the_archive_passes_it(log: EmbeddedLog, tmp_path: Path) -> None:
    archive, clock, told, answers = Archive(str(tmp_path / "archive"), FORMAT), EventClock(1_000), [], True

    def tell(letters: Sequence[DeadLetter]) -> bool:
        assert Archive(str(tmp_path / "archive"), FORMAT).position(1) is None
        told.extend(letters)
        return answers

    worker = ArchiveWorker(log, archive, FORMAT, clock, 0, [0, 1], tell)
    log.append(EXAMPLES, 0, [FORMAT.encode(examples([10]), START + 10)])
    log.append(EXAMPLES, 1, [b"\xc1", FORMAT.encode(examples([20], first=1), START + 20), b"not one of ours"])
    answers = False
    worker.step()
    worker.commit()
    assert archive.position(0) is archive.position(1) is None, "nothing passes what was not told"
    assert worker.positions == {0: Position(0, 0), 1: Position(0, 0)}
    told.clear()
    answers = True
    worker.step()
    found = [(letter.topic, letter.partition, letter.offset, letter.reason, letter.payload) for letter in told]
    assert found == [(EXAMPLES, 1, 0, "malformed", b"\xc1"), (EXAMPLES, 1, 2, "malformed", b"not one of ours")]
    assert all(letter.detail.startswith("not archived: ") for letter in told)
    archive = Archive(str(tmp_path / "archive"), FORMAT)
    assert (archive.position(0), archive.position(1)) == (Position(1, START + 10), Position(3, START + 20))
    assert names(archive) == ["e0", "e1"]


def test_no_commit_passes_letters_whose_sending_failed(log: EmbeddedLog, tmp_path: Path) -> None:
    told: list[DeadLetter] = []

    def tell(letters: Sequence[DeadLetter]) -> bool:
        if not told:
            told.append(letters[0])
            raise BrokerError("refused")
        told.extend(letters)
        return True

    log.append(EXAMPLES, 0, [b"no example", FORMAT.encode(examples([10]), START + 10)])
    worker = ArchiveWorker(log, Archive(str(tmp_path), FORMAT), FORMAT, EventClock(1_000), 0, [0], tell)
    with pytest.raises(BrokerError):
        worker.step()
    worker.commit()
    assert worker.commits == 0
    worker.step()
    worker.commit()
    assert worker.commits == 1 and told == [told[0], told[0]]


def test_an_archiver_of_another_config_archives_nothing(log: EmbeddedLog, tmp_path: Path) -> None:
    log.append(EXAMPLES, 0, [b"\xc1"] * (IN_A_ROW + 1))
    archive = Archive(str(tmp_path / "archive"), FORMAT)
    worker = ArchiveWorker(log, archive, FORMAT, EventClock(1), NEVER, [0], lambda letters: True)
    with pytest.raises(UnreadableError, match=f"examples/0, offset {IN_A_ROW}: .*config of the joiners"):
        while worker.step():
            pass
    assert archive.position(0) is None


def test_of_two_archivers_of_one_partition_one_writes(log: EmbeddedLog, tmp_path: Path) -> None:
    first, _ = make(log, tmp_path / "archive", partitions=2)
    second, _ = make(log, tmp_path / "archive", partitions=2)
    fill(log, 0, [10, 20])
    fill(log, 1, [11, 21], first=2)
    first.step()
    first.commit()
    second.step()
    second.commit()
    assert second.positions == first.positions == {0: Position(2, START + 11), 1: Position(2, START + 12)}
    fill(log, 1, [31, 41], first=4)
    second.step()
    second.commit()
    first.step()
    first.commit()
    assert names(Archive(str(tmp_path / "archive"), FORMAT)) == ["e0", "e2", "e1", "e3", "e4", "e5"]


def test_an_archiver_that_has_seen_the_other_s_commits_writes_nothing_twice(log: EmbeddedLog, tmp_path: Path) -> None:
    first, _ = make(log, tmp_path / "archive", partitions=2)
    second, _ = make(log, tmp_path / "archive", partitions=2)
    fill(log, 1, [11, 21], first=2)
    first.step()
    fill(log, 0, [10, 20])
    second._partitions.remove(1)  # it has only heard of partition 0 so far
    second.step()
    second.commit()
    first.commit()  # of partition 1 alone; with it comes what the second one committed
    first.step()
    first.commit()
    assert first.positions == {0: Position(2, START + 11), 1: Position(2, START + 12)}
    first.step()
    first.commit()
    assert names(Archive(str(tmp_path / "archive"), FORMAT)) == ["e0", "e2", "e1", "e3"]


class AwayLog:
    """A log whose brokers may be away when it is asked where it begins."""

    def __init__(self, log: EmbeddedLog) -> None:
        self._log = log
        self.away = False

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        return self._log.read(topic, partition, offset, limit)

    def begin(self, topic: str, partition: int) -> int:
        if self.away:
            raise ConnectionError("no broker")
        return self._log.begin(topic, partition)


def test_an_archiver_that_was_overtaken_while_brokers_are_away_starts_anew_when_they_are_back(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    away = AwayLog(log)
    late = ArchiveWorker(away, Archive(str(tmp_path / "archive"), FORMAT), FORMAT, EventClock(1), 10, [0], nobody)
    other, _ = make(log, tmp_path / "archive")
    fill(log, 0, [10, 20])
    late.step()
    other.step()
    other.commit()
    away.away = True
    with pytest.raises(ConnectionError):
        late.commit()
    with pytest.raises(ConnectionError):
        late.step()
    late.commit()
    away.away = False
    fill(log, 0, [30, 40], first=2)
    late.step()
    late.commit()
    assert (late.commits, late.examples) == (1, 2)
    assert names(Archive(str(tmp_path / "archive"), FORMAT)) == ["e0", "e1", "e2", "e3"]


def test_archivers_of_other_partitions_do_not_disturb_each_other(log: EmbeddedLog, tmp_path: Path) -> None:
    fill(log, 0, [10, 20])
    fill(log, 1, [11, 21], first=2)
    workers = [
        ArchiveWorker(log, Archive(str(tmp_path / "archive"), FORMAT), FORMAT, EventClock(1), 10, [partition], nobody)
        for partition in (0, 1)
    ]
    for worker in workers:
        worker.step()
    for worker in workers:
        worker.commit()
    assert names(Archive(str(tmp_path / "archive"), FORMAT)) == ["e0", "e2", "e1", "e3"]


def test_small_files_of_an_hour_that_is_over_become_one(log: EmbeddedLog, tmp_path: Path) -> None:
    worker, clock = make(log, tmp_path / "archive", commit_every=1)

    def files() -> dict[str, int]:
        paths = DeltaTable(str(tmp_path / "archive")).file_uris()
        hours = [path.split("hour=")[1][11:13] for path in paths]
        return {hour: hours.count(hour) for hour in sorted(set(hours))}

    for at in range(4):
        fill(log, 0, [10 * at, 10 * at + 1], first=2 * at)
        worker.step()
        clock.move_to(clock.now_ms() + 1)
        worker.step()
    assert list(files().values()) == [4]
    before = names(Archive(str(tmp_path / "archive"), FORMAT))
    open_before = Archive(str(tmp_path / "archive"), FORMAT)
    fill(log, 0, [HOUR + 1, HOUR + 2], first=8)
    worker.step()
    worker.commit()
    assert list(files().values()) == [1, 1]
    archive = Archive(str(tmp_path / "archive"), FORMAT)
    assert names(archive) == [*before, "e8", "e9"]
    assert names(open_before) == before, "who reads an older commit goes on reading it"
    assert archive.position(0) == worker.positions[0]
    DeltaTable(str(tmp_path / "archive")).create_checkpoint()
    assert Archive(str(tmp_path / "archive"), FORMAT).position(0) == worker.positions[0]


def test_a_large_hour_comes_in_parts(log: EmbeddedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = sorted(np.random.default_rng(1).integers(0, HOUR, 400).tolist())
    fill(log, 0, times)
    worker, _ = make(log, tmp_path / "archive")
    while worker.step():
        pass
    worker.commit()
    monkeypatch.setattr(archives, "_ROWS_AT_ONCE", 50)
    archive = Archive(str(tmp_path / "archive"), FORMAT)
    parts = list(archive.batches(0, START + HOUR))
    assert len(parts) == 8
    assert names(archive) == [f"e{number}" for number in range(400)]
    minutes = [set((part.column("decided_at").to_numpy() // 60_000).tolist()) for part in parts]
    assert sum(map(len, minutes)) == len(set().union(*minutes)), "no minute is parted, so training steps are not"


@settings(max_examples=15)
@given(st.data())
def test_any_way_of_stepping_committing_and_dying_archives_each_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("archive")
    log = EmbeddedLog(folder / "log", durable=False)
    partitions, count = data.draw(st.integers(1, 3)), 0
    worker, clock = make(log, folder / "archive", partitions)
    for _ in range(data.draw(st.integers(1, 12))):
        match data.draw(st.sampled_from(["fill", "fill", "step", "commit", "die", "wait"])):
            case "fill":
                times = sorted(data.draw(st.lists(st.integers(0, 3 * HOUR), min_size=1, max_size=6)))
                fill(log, data.draw(st.integers(0, partitions - 1)), times, count)
                count += len(times)
            case "step":
                worker.step()
            case "commit":
                worker.commit()
            case "wait":
                clock.move_to(clock.now_ms() + 10)
            case "die":
                worker, clock = make(log, folder / "archive", partitions)
    while worker.step():
        pass
    worker.commit()
    archive = Archive(str(folder / "archive"), FORMAT)
    assert sorted(names(archive)) == sorted(f"e{number}" for number in range(count))
    decided = [
        at for batch in archive.batches(0, START + 9 * HOUR) for at in batch.column("decided_at").to_numpy().tolist()
    ]
    assert decided == sorted(decided)
    log.close()


def test_a_log_that_was_trimmed_too_far_is_an_error(log: EmbeddedLog, tmp_path: Path) -> None:
    fill(log, 0, [10, 20, 30, 40])
    log.trim(EXAMPLES, 0, 2)
    worker, _ = make(log, tmp_path / "archive")
    assert worker.positions[0].offset == 2, "a new archive begins where the log does"
    worker.step()
    worker.commit()
    fill(log, 0, [50, 60, 70, 80], first=4)
    log.trim(EXAMPLES, 0, 6)
    with pytest.raises(GapError, match=r"examples/0: the log begins at offset 6, records from 4 on"):
        make(log, tmp_path / "archive")


def test_another_pipeline_s_table_is_refused(tmp_path: Path) -> None:
    Archive(str(tmp_path / "archive"), FORMAT)
    changed: dict[str, Feature] = {**FEATURES, "tags": SparseFeature(column="tags"), "new": SparseFeature(column="new")}
    with pytest.raises(
        Problems, match=r"made under schema \w{16}, this config has \w{16}: feature tags differs; allowed"
    ):
        Archive(str(tmp_path / "archive"), ExampleFormat(changed, LABELS))
    with pytest.raises(Problems, match="label new is new"):
        Archive(str(tmp_path / "archive"), ExampleFormat(FEATURES, {**LABELS, "new": Label(action="new", window="1m")}))
    DeltaTable.create(str(tmp_path / "other"), pa.schema([("decided_at", pa.string())]))
    with pytest.raises(Problems, match=r"label \w+ is new"):
        Archive(str(tmp_path / "other"), FORMAT)


def test_names_that_differ_only_in_case_are_refused(tmp_path: Path) -> None:
    """Delta takes them for one column: two of a config, or one of it and one that older rows have."""
    name = next(iter(FEATURES))
    place, both = str(tmp_path / "archive"), {**FEATURES, name.upper(): FEATURES[name]}
    with pytest.raises(Problems, match=f"column feature.{name.upper()}: taken for feature.{name}; allowed: a name"):
        Archive(place, ExampleFormat(both, LABELS))
    Archive(place, FORMAT)
    renamed = {key.upper() if key == name else key: feature for key, feature in FEATURES.items()}
    with pytest.raises(Problems, match=f"column feature.{name.upper()}: taken for feature.{name}; allowed: a name"):
        Archive(place, ExampleFormat(renamed, LABELS))


MORE: dict[str, Feature] = {
    "hour": SparseFeature(time="hour"),
    **FEATURES,
    "words": SparseFeature(column="words", pool="sum"),
    "face": VectorFeature(kind="vector", column="face", size=3),
}
GROWN = ExampleFormat(MORE, LABELS)


def grown(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same examples with what came to the config."""
    count = batch.num_rows
    added = {
        "feature.hour": pa.array([7] * count),
        "feature.words": pa.array([[1, 2]] * count, pa.list_(pa.int64())),
        "feature.face": pa.array([[1, 2, 3]] * count, pa.list_(pa.float32(), 3)),
    }
    columns = [added.get(name) or batch.column(name) for name in GROWN.schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=GROWN.schema)


def rows_of(archive: Archive) -> pa.Table:
    return pa.Table.from_batches(list(archive.batches(START, START + HOUR)))


def test_a_feature_that_came_is_one_more_column_whoever_writes(tmp_path: Path) -> None:
    place = str(tmp_path / "archive")
    before = Archive(place, FORMAT)
    assert before.append([Archived(0, 0, examples([10, 20]))], {0: Position(1, 1)})
    after = Archive(place, GROWN)
    assert after.append([Archived(0, 1, grown(examples([30, 40], 2)))], {0: Position(2, 2)})
    assert not before.append([Archived(0, 2, examples([50, 60], 4))], {0: Position(3, 3)}), "another one was here"
    assert before.append([Archived(0, 2, examples([50, 60], 4))], {0: Position(3, 3)})
    for archive in (before, Archive(place, FORMAT)):
        assert rows_of(archive).equals(pa.Table.from_batches([examples([10, 20, 30, 40, 50, 60])]))
    Archive(place, GROWN).compact(START + 2 * HOUR)
    found = rows_of(Archive(place, GROWN))
    assert found.drop_columns(["feature.hour", "feature.words", "feature.face"]).equals(rows_of(before))
    empty = GROWN.missing("feature.hour", 1).to_pylist()[0]
    assert found.column("feature.hour").to_pylist() == [empty, empty, 7, 7, empty, empty]
    assert found.column("feature.words").to_pylist() == [[], [], [1, 2], [1, 2], [], []]
    assert found.column("feature.face").to_pylist() == [[0, 0, 0]] * 2 + [[1, 2, 3]] * 2 + [[0, 0, 0]] * 2
    with pytest.raises(Problems, match="feature hour differs"):
        Archive(place, ExampleFormat({**MORE, "hour": SparseFeature(time="weekday")}, LABELS))


def test_a_table_without_a_feature_of_ours_can_be_read(tmp_path: Path) -> None:
    """As `retrain` does before the archiver has the new config."""
    place = str(tmp_path / "archive")
    assert Archive(place, FORMAT).append([Archived(0, 0, examples([10, 20]))], {0: Position(1, 1)})
    found = rows_of(Archive(place, GROWN))
    assert found.column("feature.face").to_pylist() == [[0, 0, 0]] * 2
    assert found.select(FORMAT.schema.names).equals(pa.Table.from_batches([examples([10, 20])]))


def test_rows_without_a_label_of_ours_are_left_out(tmp_path: Path) -> None:
    place = str(tmp_path / "archive")
    more = ExampleFormat(FEATURES, {**LABELS, "buy": Label(action="buy", window="1m")})
    with_both = examples([10, 20])
    columns = [with_both.column(name.replace(".buy", ".click")) for name in more.schema.names]
    archived = Archived(0, 0, pa.RecordBatch.from_arrays(columns, schema=more.schema))
    assert Archive(place, more).append([archived], {0: Position(1, 1)})
    assert Archive(place, FORMAT).append([Archived(0, 1, examples([30, 40], 2))], {0: Position(2, 2)})
    assert names(Archive(place, FORMAT)) == ["e0", "e1", "e2", "e3"]
    assert names(Archive(place, more)) == ["e0", "e1"]


def test_rows_without_what_every_example_has_are_named(tmp_path: Path) -> None:
    """Another program wrote them; a `KeyError` said nothing of the place."""
    place = str(tmp_path / "archive")
    archive = Archive(place, FORMAT)
    assert archive.append([Archived(0, 0, examples([0, 1]))], {0: Position(1, 0)})
    table = pa.Table.from_batches([_with_place(Archived(0, 1, examples([2], first=2)))])
    at = table.column_names.index("position")
    table = table.set_column(at, table.schema.field(at), pa.nulls(1, table.schema.field(at).type))
    write_deltalake(DeltaTable(place), table, mode="append")
    with pytest.raises(Problems, match="column position: rows without a value"):
        list(Archive(place, FORMAT).batches(START, START + HOUR))


def test_an_empty_archive_has_nothing(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path / "archive"), FORMAT)
    assert archive.position(0) is None
    assert names(archive) == []
    archive.compact(START)
    archive.vacuum()


def test_a_commit_without_examples_moves_the_position(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path / "archive"), FORMAT)
    assert archive.append([Archived(0, 7, FORMAT.empty())], {0: Position(8, 99)})
    again = Archive(str(tmp_path / "archive"), FORMAT)
    assert again.position(0) == Position(8, 99)
    assert DeltaTable(str(tmp_path / "archive")).file_uris() == []
