"""Examples: Arrow record batches of impressions with their labels, and their records in the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from basis.arrow import BatchCodec, decode_stream
from basis.decoding import refusing, why
from streaming.features.columns import Column, Columns, arrow_type, from_arrow, missing_column, to_arrow
from streaming.features.kinds import FLOAT32_MAX, Feature
from streaming.log import EXAMPLES
from streaming.records.events import MIN_TIME_MS, BadRecord, bad_record, encode
from streaming.records.labels import Label
from streaming.records.schema import Schema, mismatch

_log = logging.getLogger(__name__)
_LATEST_MS = ((1 << 32) - 1) * 1000
"""Rows keep seconds in 32 bits."""
_MAX_REVISION = 253
"""Joiners count in one byte how often an example is emitted, and one value of it means dropped."""
_FINITE = (-FLOAT32_MAX, FLOAT32_MAX)
_ALLOWED = {
    **dict.fromkeys(("served_at", "happened_at", "decided_at"), (MIN_TIME_MS, _LATEST_MS)),
    "weight": (0, FLOAT32_MAX),
    "sampling_rate": (0, 1),
    "revision": (0, _MAX_REVISION),
}
_REVISION = {"example_id": pa.string(), "served_at": pa.int64(), "revision": pa.int32()}

EXAMPLES_VERSION = 3
_SCHEMA = b"minutely.schema"
"""The key in Arrow metadata: of a batch, for the fingerprint of its `Schema`; of a feature's or label's field, for its hash."""
_FEATURE, _LABEL = "feature.", "label."


class ServedColumns(NamedTuple):
    """How n impressions were served: ``positions`` int32 [n] in the order shown, from 0, -1 if unknown; ``scores`` float32
    [n, labels], NaN if a label was not scored; and the versions that scored them, int64 [n], 0 if there was none.
    """

    positions: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    sparse_versions: npt.NDArray[np.int64]
    dense_versions: npt.NDArray[np.int64]

    @classmethod
    def unknown(cls, count: int, labels: int) -> ServedColumns:
        """Return the columns of impressions without information about their serving."""
        none, scores = np.zeros(count, np.int64), np.full((count, labels), np.nan, np.float32)
        return cls(np.full(count, -1, np.int32), scores, none, none)


class ExampleColumns(NamedTuple):
    """The columns of n examples besides features; times in ms of event time.

    ``labels`` is float32 [n, labels]; ``happened_at`` is the newest event in the example, ``decided_at`` the moment at
    which its last label was decided. ``sampling_rate`` is the share of negatives that the joiner kept; positive examples have it
    too, since losses are corrected by it. ``revisions`` is int32 [n]: how many examples with the same id came before; by default,
    zeros. ``served`` is None if it is unknown.
    """

    example_ids: Sequence[str] | pa.StringArray
    labels: npt.NDArray[np.float32]
    served_at: npt.NDArray[np.int64]
    happened_at: npt.NDArray[np.int64]
    decided_at: npt.NDArray[np.int64]
    sampling_rate: float = 1.0
    revisions: npt.NDArray[np.int32] | None = None
    served: ServedColumns | None = None


class ExamplesRecord(msgspec.Struct, kw_only=True):
    """A record of `examples`: an Arrow IPC stream of one batch, and the joiner's watermark (ms)."""

    version: int
    watermark: Annotated[int, msgspec.Meta(ge=-_LATEST_MS, le=_LATEST_MS)]
    batch: bytes


_decoder = msgspec.msgpack.Decoder(ExamplesRecord)


class ExampleFormat:
    """The Arrow schema of one pipeline's examples, and their bytes.

    Columns: ``example_id`` (see `identity`), ``feature.<name>``, ``label.<name>``, ``served_at``, ``happened_at``, ``decided_at``,
    ``weight``, ``sampling_rate``, ``revision``, and how it was served: ``position``, ``score.<label>``, ``sparse_version``,
    ``dense_version``. What each was made under goes with them, so that a config to which features came, or went, takes the examples
    of another one.

    >>> import numpy as np
    >>> from streaming.features.kinds import SparseFeature
    >>> from streaming.records.examples import ExampleColumns, ExampleFormat
    >>> from streaming.records.labels import Label
    >>> examples = ExampleFormat({"item": SparseFeature(column="item")}, {"click": Label(action="click", window="1m")})
    >>> times = np.array([1000, 2000])
    >>> columns = ExampleColumns(["a", "b"], np.array([[1.0], [0.0]], np.float32), times, times, times + 60_000)
    >>> batch, watermark = examples.decode(examples.encode(examples.build({"item": np.array([7, 8])}, columns), 61_000))
    >>> watermark, batch.column("example_id").to_pylist(), examples.label_values(batch).tolist()
    (61000, ['a', 'b'], [[1.0], [0.0]])
    """

    def __init__(self, features: Mapping[str, Feature], labels: Mapping[str, Label]) -> None:
        self.features = dict(features)
        self.labels = list(labels)
        self.made_under = made_under = Schema.of(features, labels)
        self.served_schema = pa.schema(
            [
                ("position", pa.int32()),
                *((f"score.{name}", pa.float32()) for name in self.labels),
                ("sparse_version", pa.int64()),
                ("dense_version", pa.int64()),
            ]
        )
        self.schema = pa.schema(
            [
                ("example_id", pa.string()),
                *(
                    pa.field(f"feature.{name}", arrow_type(feature), metadata={_SCHEMA: made_under.features[name]})
                    for name, feature in self.features.items()
                ),
                *(
                    pa.field(f"label.{name}", pa.float32(), metadata={_SCHEMA: made_under.labels[name]})
                    for name in self.labels
                ),
                ("served_at", pa.int64()),
                ("happened_at", pa.int64()),
                ("decided_at", pa.int64()),
                ("weight", pa.float32()),
                ("sampling_rate", pa.float32()),
                ("revision", pa.int32()),
                *self.served_schema,
            ],
            metadata={_SCHEMA: made_under.fingerprint},
        )
        self.may_lack = frozenset(_FEATURE + name for name in features)
        """Columns that examples of another config may lack."""
        self._codec = BatchCodec(self.schema)
        self._checks = _Check.of(self.schema)

    def build(self, columns: Columns, rest: ExampleColumns) -> pa.RecordBatch:
        """Return a batch of examples of weight 1."""
        count = len(rest.example_ids)
        labels = np.ascontiguousarray(rest.labels.T)
        arrays = [
            pa.array(rest.example_ids, pa.string()),
            *(to_arrow(columns[name], feature) for name, feature in self.features.items()),
            *(pa.array(values) for values in labels),
            pa.array(rest.served_at),
            pa.array(rest.happened_at),
            pa.array(rest.decided_at),
            pa.array(np.ones(count, np.float32)),
            pa.array(np.full(count, rest.sampling_rate, np.float32)),
            pa.array(np.zeros(count, np.int32) if rest.revisions is None else rest.revisions),
            *self._served_arrays(rest.served or ServedColumns.unknown(count, len(self.labels))),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _served_arrays(self, served: ServedColumns) -> list[pa.Array]:
        scores = np.ascontiguousarray(served.scores.T)
        return [
            pa.array(served.positions),
            *(pa.array(values) for values in scores),
            pa.array(served.sparse_versions),
            pa.array(served.dense_versions),
        ]

    def empty(self) -> pa.RecordBatch:
        """Return a batch without examples, whose record only carries a watermark."""
        return self._codec.empty

    def encode(self, batch: pa.RecordBatch, watermark: int) -> bytes:
        """Return the record of a batch."""
        return encode(ExamplesRecord(version=EXAMPLES_VERSION, watermark=watermark, batch=self._codec.encode(batch)))

    def decode(self, payload: bytes) -> tuple[pa.RecordBatch, int]:
        """Return a record's batch and watermark; `BadRecord` if it is not one of this pipeline.

        In a record of another config, features that only we have are missing, and those that only it has are dropped.
        """
        with refusing(lambda said: bad_record(payload, said, EXAMPLES_VERSION), BadRecord):
            record = _decoder.decode(payload)
            if record.version != EXAMPLES_VERSION:
                raise BadRecord("version", f"record version {record.version}; allowed: {EXAMPLES_VERSION}")
            if self._codec.begins(record.batch):
                batch = self._codec.decode(record.batch)
            else:
                batch = self._upgraded(decode_stream(record.batch))
            if batch.num_rows:
                columns = batch.columns
                for check in self._checks:
                    check(columns)
            return batch, record.watermark

    def _upgraded(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Convert a batch of another config, or of another Arrow version, to ours."""
        problem = self.mismatch(batch.schema)
        if problem is not None:
            raise BadRecord("schema", problem)
        return pa.RecordBatch.from_arrays([self._column(batch, field) for field in self.schema], schema=self.schema)

    def mismatch(self, schema: pa.Schema) -> str | None:
        """Return why examples of this Arrow schema cannot be converted, with both fingerprints; None if they can."""
        return mismatch(schema_of(schema), self.made_under)

    def _column(self, batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
        found = batch.schema.get_all_field_indices(field.name)
        if not found and field.name in self.may_lack:
            return self.missing(field.name, batch.num_rows)
        if len(found) != 1 or batch.schema.field(found[0]).type != field.type:
            types = ", ".join(str(batch.schema.field(at).type) for at in found) or "none"
            raise BadRecord("malformed", f"column {field.name}: {types}; allowed: one of {field.type}")
        return batch.column(found[0])

    def missing(self, name: str, count: int) -> pa.Array:
        """Return a column that examples `may_lack`, with missing values for ``count`` examples."""
        feature = self.features[name.removeprefix(_FEATURE)]
        return to_arrow(missing_column(feature, count), feature)

    def columns(self, batch: pa.RecordBatch) -> dict[str, Column]:
        """Return the features of a batch, as views if their layout allows."""
        return {name: from_arrow(batch.column(f"feature.{name}"), item) for name, item in self.features.items()}

    def label_values(self, batch: pa.RecordBatch) -> npt.NDArray[np.float32]:
        """Return the labels of a batch, float32 [n, labels]."""
        return self._by_label(batch, "label")

    def served(self, batch: pa.RecordBatch) -> ServedColumns:
        """Return how the impressions of a batch were served."""
        return ServedColumns(
            batch.column("position").to_numpy(),
            self._by_label(batch, "score"),
            batch.column("sparse_version").to_numpy(),
            batch.column("dense_version").to_numpy(),
        )

    def _by_label(self, batch: pa.RecordBatch, kind: str) -> npt.NDArray[np.float32]:
        values = np.empty((batch.num_rows, len(self.labels)), np.float32)
        for at, name in enumerate(self.labels):  # for few rows, `np.stack` takes four times as long
            values[:, at] = batch.column(f"{kind}.{name}").to_numpy()
        return values


def schema_of(batch_schema: pa.Schema) -> Schema:
    """Return the schema in a batch's metadata. Hashes that are not there, since no joiner wrote it, are empty: unlike any."""

    def hashes(prefix: str) -> dict[str, str]:
        return {
            field.name.removeprefix(prefix): ((field.metadata or {}).get(_SCHEMA) or b"").decode()
            for field in batch_schema
            if field.name.startswith(prefix)
        }

    return Schema.made_of(hashes(_FEATURE), hashes(_LABEL))


class _Check(NamedTuple):
    """Refuses the values of columns that would harm more than their own example: times, which table rows and the archive's
    partitions use, and features, which the model learns. A bad label shows in its example's loss.

    The columns at ``places`` have the same type and bounds, so they are looked at as one.
    """

    names: list[str]
    places: list[int]
    is_list: bool
    allowed: tuple[float, float] | None

    @classmethod
    def of(cls, schema: pa.Schema) -> list[_Check]:
        """Return the checks of all columns."""
        checks: dict[tuple[str, bool, tuple[float, float] | None], _Check] = {}
        for place, field in enumerate(schema):
            is_list = pa.types.is_nested(field.type)
            is_float = pa.types.is_floating(field.type.value_type if is_list else field.type)
            of_feature = field.name.startswith(_FEATURE) and is_float
            allowed = _FINITE if of_feature else _ALLOWED.get(field.name)
            key = str(field.type) if allowed else "", is_list, allowed
            check = checks.setdefault(key, cls([], [], is_list, allowed))
            check.names.append(field.name)
            check.places.append(place)
        return list(checks.values())

    def __call__(self, columns: Sequence[pa.Array]) -> None:
        """Raise `BadRecord` if a value is missing or not allowed."""
        flat = []
        for name, place in zip(self.names, self.places, strict=True):
            column = columns[place]
            flat.append(column.flatten() if self.is_list else column)
            if column.null_count or flat[-1].null_count:
                raise BadRecord("malformed", f"column {name}: a value is missing")
        if self.allowed is None:
            return
        parts, (low, high) = [each.to_numpy() for each in flat], self.allowed
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if len(values) and not (values.min() >= low and values.max() <= high):
            if len(parts) > 1:  # which of them
                for name, place in zip(self.names, self.places, strict=True):
                    _Check([name], [place], self.is_list, self.allowed)(columns)
            found = f"{values.min()} to {values.max()}"
            raise BadRecord("malformed", f"column {self.names[0]}: {found}; allowed: {low} to {high}")


class Published(NamedTuple):
    """The examples of a record: the ``example_id`` of each, when it was served (ms), and its revision. ``made_under`` is None if
    no joiner wrote it."""

    examples: list[tuple[str, int, int]]
    made_under: Schema | None = None


def published_in(payload: bytes) -> Published:
    """Return the examples of a record, of any pipeline.

    An unreadable record, which no joiner wrote, has none. Trainers and archivers make a dead letter of it.
    """
    try:
        record = _decoder.decode(payload)
        batch = decode_stream(record.batch)
        columns = [batch.column(name).cast(kind) for name, kind in _REVISION.items()]
        rows = list(zip(*(column.to_pylist() for column in columns), strict=True))
        for name, served_at, revision in rows:
            if name is None or not MIN_TIME_MS <= served_at <= _LATEST_MS or not 0 <= revision <= _MAX_REVISION:
                raise ValueError(f"example {name}, served at {served_at} ms, revision {revision}")
        made_under = schema_of(batch.schema)
        is_told = (batch.schema.metadata or {}).get(_SCHEMA) == made_under.fingerprint.encode()
        return Published(rows, made_under if is_told else None)
    except Exception as error:
        _log.warning("%s: skipped a record that is not an examples record: %s", EXAMPLES, why(error))
        return Published([])
