"""Examples: what the joiner writes is what the trainer reads, whoever wrote the Arrow stream, and damage is refused."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.features.columns import Ragged, missing_column
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.records.events import BadRecord, encode
from streaming.records.examples import EXAMPLES_VERSION, ExampleColumns, ExampleFormat, ServedColumns, published_in
from streaming.records.labels import Label
from streaming.records.training_order import cut_per_step

FEATURES: dict[str, Feature] = {
    "user": SparseFeature(column="u", scope="request"),
    "tags": SparseFeature(column="t", pool="sum"),
    "price": DenseFeature(kind="dense", column="p"),
    "vector": VectorFeature(kind="vector", column="v", size=2),
}
LABELS = {"like": Label(action="like", window="1m"), "time": Label(action="play", window="1m", loss="squared")}


def make(count: int, decided_at: list[int] | None = None) -> tuple[ExampleFormat, pa.RecordBatch]:
    example_format = ExampleFormat(FEATURES, LABELS)
    at = np.arange(count)
    lengths = at % 3
    batch = example_format.build(
        {
            "user": at * 10,
            "tags": Ragged(np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), np.repeat(at, lengths)),
            "price": (at / 2).astype(np.float32),
            "vector": np.stack((at, -at), 1).astype(np.float32),
        },
        ExampleColumns(
            [f"i{number}" for number in range(count)],
            np.stack((at % 2, at * 1.5), 1).astype(np.float32),
            at + 1000,
            at + 2000,
            np.array(decided_at, np.int64) if decided_at is not None else at + 3000,
            served=ServedColumns(at.astype(np.int32), np.stack((at / 8, at * 2), 1).astype(np.float32), at + 5, at + 4),
        ),
    )
    return example_format, batch


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_batch_comes_back(count: int) -> None:
    example_format, batch = make(count)
    back, watermark = example_format.decode(example_format.encode(batch, 1234))
    assert watermark == 1234
    assert back.equals(batch)
    back.validate(full=True)
    assert back.schema.names[:5] == ["example_id", "feature.user", "feature.tags", "feature.price", "feature.vector"]
    assert back.column("weight").to_pylist() == back.column("sampling_rate").to_pylist() == [1.0] * count
    assert example_format.label_values(back).tolist() == [[at % 2, at * 1.5] for at in range(count)]
    served = example_format.served(back)
    assert served.scores.tolist() == [[at / 8, at * 2] for at in range(count)]
    assert served.positions.tolist() == list(range(count))
    assert (served.sparse_versions - 5).tolist() == (served.dense_versions - 4).tolist() == list(range(count))
    columns = example_format.columns(back)
    assert list(columns) == list(FEATURES)
    assert columns["user"].tolist() == [at * 10 for at in range(count)]  # type: ignore[union-attr]
    assert columns["vector"].tolist() == [[at, -at] for at in range(count)]  # type: ignore[union-attr]


def test_a_slice_of_a_batch_has_its_own_rows() -> None:
    example_format, batch = make(9)
    part = batch.slice(4, 3)
    columns = example_format.columns(part)
    tags = columns["tags"]
    assert isinstance(tags, Ragged)
    assert (tags.offsets.tolist(), tags.values.tolist()) == ([0, 1, 3, 3], [4, 5, 5])
    assert columns["vector"].tolist() == [[4, -4], [5, -5], [6, -6]]  # type: ignore[union-attr]
    assert columns["price"].tolist() == [2, 2.5, 3]  # type: ignore[union-attr]
    assert example_format.label_values(part).tolist() == [[0, 6], [1, 7.5], [0, 9]]
    back, _ = example_format.decode(example_format.encode(part, 0))
    assert back.equals(part)


def test_an_empty_batch_carries_the_watermark() -> None:
    example_format, _ = make(0)
    batch, watermark = example_format.decode(example_format.encode(example_format.empty(), 77))
    assert (batch.num_rows, watermark) == (0, 77)
    assert example_format.label_values(batch).shape == (0, 2)
    assert list(example_format.columns(batch)) == list(FEATURES)


def record(batch: bytes, **changes: Any) -> bytes:
    return encode({"version": EXAMPLES_VERSION, "watermark": 5, "batch": batch, **changes})


def stream(batch: pa.RecordBatch, **options: Any) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, batch.schema, **options) as writer:
        writer.write_batch(batch)
    return out.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"options": pa.ipc.IpcWriteOptions(use_legacy_format=True, metadata_version=pa.ipc.MetadataVersion.V4)},
    ],
)
def test_streams_of_other_writers_are_read(options: dict[str, Any]) -> None:
    example_format, batch = make(5)
    back, watermark = example_format.decode(record(stream(batch, **options)))
    assert back.equals(batch)
    assert watermark == 5


def test_other_readers_read_what_is_written() -> None:
    example_format, batch = make(5)
    payload = msgspec.msgpack.decode(example_format.encode(batch, 5))["batch"]
    with pa.ipc.open_stream(payload) as reader:
        assert reader.read_all().to_batches() == [batch]


def refused(payload: bytes) -> str:
    example_format, _ = make(0)
    with pytest.raises(BadRecord) as caught:
        example_format.decode(payload)
    assert str(caught.value)
    return caught.value.reason


def test_records_of_another_kind_are_refused() -> None:
    example_format, batch = make(3)
    good = msgspec.msgpack.decode(example_format.encode(batch, 5))["batch"]
    assert refused(b"") == "malformed"
    assert refused(b"\xc1") == "malformed"
    assert refused(encode({"version": EXAMPLES_VERSION})) == "malformed"
    assert refused(record(good, version=0)) == refused(record(good, version=EXAMPLES_VERSION + 1)) == "version"
    assert refused(record(b"")) == "malformed"
    assert refused(record(b"no Arrow at all")) == "malformed"


def test_batches_of_another_pipeline_are_refused() -> None:
    _, batch = make(3)
    schema = batch.schema.set(0, batch.schema.field(0).with_name("id"))
    renamed = pa.RecordBatch.from_arrays(batch.columns, schema=schema)
    assert refused(record(stream(renamed))) == "malformed"
    wider = batch.set_column(4, "feature.vector", pa.array([[1.0] * 3] * 3, pa.list_(pa.float32(), 3)))
    assert refused(record(stream(wider))) == "schema"
    assert refused(record(stream(batch.drop_columns(["label.like"])))) == "schema"
    twice = batch.append_column(batch.schema.field("feature.user"), batch.column("feature.user"))
    assert refused(record(stream(twice))) == "malformed"
    no_batch = io.BytesIO()
    pa.ipc.new_stream(no_batch, batch.schema).close()
    assert refused(record(no_batch.getvalue())) == "malformed"


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_that_came_is_missing_and_one_that_went_is_dropped(name: str) -> None:
    more, batch = make(3)
    fewer = ExampleFormat({each: feature for each, feature in FEATURES.items() if each != name}, LABELS)
    narrow = batch.drop_columns([f"feature.{name}"])

    dropped, watermark = fewer.decode(more.encode(batch, 5))
    assert watermark == 5 and dropped.equals(narrow)
    filled, watermark = more.decode(fewer.encode(narrow, 5))
    assert watermark == 5 and filled.drop_columns([f"feature.{name}"]).equals(narrow) and filled.schema == batch.schema
    column = more.columns(filled)[name]
    assert repr(column) == repr(missing_column(FEATURES[name], 3))
    again, _ = more.decode(more.encode(filled, 5))
    assert again.equals(filled)
    empty, watermark = more.decode(fewer.encode(fewer.empty(), 5))
    assert (empty.num_rows, watermark) == (0, 5)


def test_a_label_that_went_is_dropped() -> None:
    more, batch = make(3)
    fewer = ExampleFormat(FEATURES, {"time": LABELS["time"]})
    back, _ = fewer.decode(more.encode(batch, 5))
    assert back.equals(batch.drop_columns(["label.like", "score.like"]))


@pytest.mark.parametrize(
    ("features", "labels", "said"),
    [
        ({"price": DenseFeature(kind="dense", column="p", transform="log")}, {}, "feature price differs"),
        ({"vector": VectorFeature(kind="vector", column="v", size=3)}, {}, "feature vector differs"),
        ({"tags": SparseFeature(column="t")}, {}, "feature tags differs"),
        ({}, {"like": Label(action="like", window="2m")}, "label like differs"),
        ({}, {"buy": Label(action="buy", window="1m")}, "label buy is new"),
    ],
)
def test_examples_of_another_meaning_are_refused_with_both_fingerprints(
    features: dict[str, Feature], labels: dict[str, Label], said: str
) -> None:
    """Types alone would not tell a logarithm from a number."""
    theirs, batch = make(3)
    ours = ExampleFormat({**FEATURES, **features}, {**LABELS, **labels})
    with pytest.raises(BadRecord, match=f"{said}$") as caught:
        ours.decode(theirs.encode(batch, 5))
    assert caught.value.reason == "schema"
    assert all(each.made_under.fingerprint in str(caught.value) for each in (theirs, ours))


def test_a_recovery_learns_what_examples_were_made_under() -> None:
    example_format, batch = make(3)
    assert published_in(example_format.encode(batch, 5)).made_under == example_format.made_under
    bare = pa.schema([field.remove_metadata() for field in batch.schema])
    assert published_in(record(stream(batch.cast(bare)))).made_under is None
    assert refused(record(stream(batch.cast(bare)))) == "schema"


def test_a_value_that_is_missing_is_refused() -> None:
    """A null would come up in the trainer, too late to say which record it was in."""
    _, batch = make(3)
    for name, values in {
        "example_id": pa.array(["a", None, "b"]),
        "feature.user": pa.array([1, None, 2]),
        "feature.tags": pa.array([[1], None, [2]], pa.list_(pa.int64())),
        "label.like": pa.array([1, None, 0], pa.float32()),
        "decided_at": pa.array([1, None, 2]),
    }.items():
        spoiled = batch.set_column(batch.schema.names.index(name), batch.schema.field(name), values)
        assert refused(record(stream(spoiled))) == "malformed", name


@pytest.mark.parametrize(("name", "value"), [("revision", 254), ("revision", -1), ("served_at", -1)])
def test_what_no_joiner_can_have_counted_is_refused_and_ends_no_recovery(name: str, value: int) -> None:
    _, batch = make(1)
    place = batch.schema.names.index(name)
    spoiled = record(stream(batch.set_column(place, name, pa.array([value], batch.schema.field(place).type))))
    assert refused(spoiled) == "malformed"
    assert not published_in(spoiled).examples
    assert len(published_in(record(stream(batch))).examples) == 1


@pytest.mark.parametrize("foreign", [False, True])
def test_a_stream_cut_off_anywhere_is_refused_or_whole(foreign: bool) -> None:
    example_format, batch = make(5)
    whole = stream(batch) if foreign else msgspec.msgpack.decode(example_format.encode(batch, 5))["batch"]
    for at in range(len(whole)):
        try:
            back, _ = example_format.decode(record(whole[:at]))
        except BadRecord:
            continue
        assert at >= len(whole) - 8, "all but the mark of its end is needed"
        assert back.equals(batch)


@given(st.integers(1, 20), st.integers(1, 7), st.lists(st.integers(0, 300), max_size=20))
def test_steps_are_cut_at_times_and_at_sizes(step_ms: int, max_rows: int, decided_at: list[int]) -> None:
    decided_at.sort()
    _, batch = make(len(decided_at), decided_at)
    parts = list(cut_per_step(batch, step_ms, max_rows))
    assert [name for part in parts for name in part.column("example_id").to_pylist()] == [
        f"i{at}" for at in range(len(decided_at))
    ]
    steps = [{at // step_ms for at in part.column("decided_at").to_pylist()} for part in parts]
    assert all(len(step) == 1 for step in steps), "one step holds one stretch of time"
    assert all(0 < part.num_rows <= max_rows for part in parts)
    for before, after, part in zip(steps, steps[1:], parts, strict=False):
        assert before != after or part.num_rows == max_rows, "a step is only cut short by time"
