"""Batches as bytes: what other writers may send, and what nobody may."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest

from basis.arrow import BatchCodec, decode_stream
from tests.basis.hostile_arrow import compressed_as_before_1_0, streams_of

SCHEMA = pa.schema([("id", pa.int64()), ("values", pa.list_(pa.float32()))])
BATCH = pa.record_batch([pa.array([7] * 1000), pa.array([[0.5]] * 1000, SCHEMA.field("values").type)], schema=SCHEMA)
_MARGIN_BYTES = 1 << 20


def stream(compression: str | None, metadata: dict[str, str] | None = None) -> bytes:
    """As other Arrow writers make it; with metadata, its schema is not spelled as ours."""
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, SCHEMA.with_metadata(metadata), options=options) as writer:
        writer.write_batch(BATCH.replace_schema_metadata(metadata))
    return sink.getvalue()


@pytest.mark.parametrize("metadata", [None, {"writer": "another"}])
def test_streams_of_other_writers_are_read(metadata: dict[str, str] | None) -> None:
    codec = BatchCodec(SCHEMA)
    data = stream(None, metadata)
    assert codec.decode(data).equals(BATCH)
    assert decode_stream(data).equals(BATCH)
    assert codec.decode(codec.encode(BATCH)).equals(BATCH)


@pytest.mark.parametrize("metadata", [None, {"writer": "another"}])
@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_compressed_body_is_refused_before_it_takes_memory(compression: str, metadata: dict[str, str] | None) -> None:
    data = stream(compression, metadata)
    assert len(data) < BATCH.nbytes / 3
    before = pa.total_allocated_bytes()
    for decode in (BatchCodec(SCHEMA).decode, decode_stream):
        with pytest.raises(ValueError, match="a compressed body"):
            decode(data)
    assert pa.total_allocated_bytes() < before + _MARGIN_BYTES


@pytest.mark.parametrize("name", streams_of("x"))
def test_a_stream_that_could_become_gigabytes_is_refused_as_it_lies_there(name: str) -> None:
    data = streams_of("x")[name]
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match=r"no sound Arrow stream: (column x: .*; allowed: types|a compressed body)"):
        decode_stream(data)
    assert pa.total_allocated_bytes() < before + _MARGIN_BYTES


def test_compression_of_before_arrow_1_0_is_refused_after_our_own_schema_too() -> None:
    data = compressed_as_before_1_0(BATCH)
    with pa.ipc.open_stream(data) as reader:
        assert reader.read_next_batch().equals(BATCH), "Arrow still reads it"
    messages = pa.ipc.MessageReader.open_stream(data)
    messages.read_next_message()
    codec = BatchCodec(SCHEMA)
    with pytest.raises(ValueError, match="compressed body, as before Arrow 1"):
        codec.decode(SCHEMA.serialize().to_pybytes() + messages.read_next_message().serialize().to_pybytes())


def test_columns_of_other_programs_may_have_any_type_of_which_values_take_bytes() -> None:
    kinds = [pa.bool_(), pa.timestamp("ms"), pa.decimal128(5), pa.list_(pa.large_string(), 2), pa.binary(3)]
    kinds += [pa.map_(pa.string(), pa.int8()), pa.struct([("a", pa.list_(pa.float16()))])]
    batch = pa.record_batch([pa.array([None], kind) for kind in kinds], [str(kind) for kind in kinds])
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    assert decode_stream(sink.getvalue()).equals(batch)


def test_a_batch_without_rows_has_lists_that_begin_somewhere() -> None:
    """Arrow finds them sound, and ends the process when they are flattened."""
    offsets, child = pa.py_buffer(np.array([2_490_368], np.int32)), pa.array([], pa.float32())
    lists = pa.Array.from_buffers(SCHEMA.field("values").type, 0, [None, offsets], children=[child])
    batch = pa.record_batch([pa.array([], pa.int64()), lists], schema=SCHEMA)
    batch.validate(full=True)
    codec = BatchCodec(SCHEMA)
    data = codec.encode(batch)
    assert b"\x00\x00\x26\x00" in data, "Arrow writes what it was given"
    assert codec.decode(data).column("values").flatten().equals(child)
