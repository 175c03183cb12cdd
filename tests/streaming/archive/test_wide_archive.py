"""An archive of many features, of whose columns Delta's files have statistics for the first 32 only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from streaming.archive.table import Archive, Archived, Position
from streaming.features.kinds import DenseFeature, Feature
from streaming.records.examples import ExampleColumns, ExampleFormat
from streaming.records.labels import Label

HOUR = 3_600_000
START = 474_000 * HOUR
LABELS = {"click": Label(action="click", window="1m")}


def format_of(features: int) -> ExampleFormat:
    kinds: dict[str, Feature] = {f"f{at}": DenseFeature(kind="dense", column=f"f{at}") for at in range(features)}
    return ExampleFormat(kinds, LABELS)


def examples(example_format: ExampleFormat, features: int, hour: int) -> pa.RecordBatch:
    times = np.array([START + hour * HOUR] * 2)
    rest = ExampleColumns([f"r{hour}/a", f"r{hour}/b"], np.zeros((2, 1), np.float32), times, times, times)
    return example_format.build({f"f{at}": np.zeros(2, np.float32) for at in range(features)}, rest)


@pytest.mark.parametrize("features", [2, 20, 40])
def test_positions_of_an_archive_of_many_features(features: int, tmp_path: Path) -> None:
    wide = format_of(features)
    archive = Archive(str(tmp_path), wide)
    assert archive.positions() == {}
    expected = {}
    for hour, partition in enumerate([3, 1, 5, 2]):
        expected[partition] = Position(hour + 1, START + hour)
        archive.append([Archived(partition, hour, examples(wide, features, hour))], {partition: expected[partition]})
        assert archive.positions() == Archive(str(tmp_path), wide).positions() == expected
    archive.compact(START + 9 * HOUR)
    assert archive.positions() == expected
    names = [name for batch in archive.batches(0, START + 9 * HOUR) for name in batch.column("example_id").to_pylist()]
    assert names == [f"r{hour}/{name}" for hour in range(4) for name in "ab"]


def test_positions_of_an_archive_that_became_wide(tmp_path: Path) -> None:
    for hour, features in enumerate([2, 40]):
        archive = Archive(str(tmp_path), format_of(features))
        batch = examples(format_of(features), features, hour)
        archive.append([Archived(3 * hour, hour, batch)], {3 * hour: Position(hour + 1, START)})
    assert archive.positions() == {0: Position(1, START), 3: Position(2, START)}
