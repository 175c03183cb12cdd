"""Batches as bytes: what other writers may send, and what nobody may."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest

from basis.arrow import BatchCodec, decode_stream

SCHEMA = pa.schema([("id", pa.int64()), ("values", pa.list_(pa.float32()))])
BATCH = pa.record_batch([pa.array([7] * 1000), pa.array([[0.5]] * 1000, SCHEMA.field("values").type)], schema=SCHEMA)


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
    assert pa.total_allocated_bytes() == before


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
