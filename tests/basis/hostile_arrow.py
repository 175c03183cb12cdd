"""Arrow streams of a few hundred bytes that could become gigabytes."""

from __future__ import annotations

import io
import struct

import pyarrow as pa

ROWS = (1 << 31) - 1
"""As many as a stream can say that it has at no bytes."""
_SAME = b"x" * 1_000_000


def streams_of(name: str) -> dict[str, bytes]:
    """Streams whose column ``name`` is small only as it lies there, by what they do."""
    empty, view = pa.array([], pa.float32()), struct.pack("<i4sii", len(_SAME), _SAME[:4], 0, 0)
    views = [None, pa.py_buffer(view * 10_000), pa.py_buffer(_SAME)]
    return {
        "null": _stream(name, pa.nulls(ROWS)),
        "list of null": _stream(
            name,
            pa.Array.from_buffers(
                pa.list_(pa.null()), 1, [None, pa.py_buffer(struct.pack("<ii", 0, ROWS))], children=[pa.nulls(ROWS)]
            ),
        ),
        "struct of null": _stream(name, pa.StructArray.from_arrays([pa.nulls(ROWS)], ["a"])),
        "empty struct": _stream(name, pa.Array.from_buffers(pa.struct([]), ROWS, [None])),
        "no width": _stream(name, pa.Array.from_buffers(pa.binary(0), ROWS, [None, pa.py_buffer(b"")])),
        "lists of none": _stream(name, pa.Array.from_buffers(pa.list_(empty.type, 0), ROWS, [None], children=[empty])),
        "one run": _stream(name, pa.RunEndEncodedArray.from_arrays(pa.array([ROWS], pa.int32()), pa.array([7]))),
        "one text seen often": _stream(name, pa.Array.from_buffers(pa.string_view(), 10_000, views)),
        "compressed": _stream(name, pa.array([_SAME.decode()]), pa.ipc.IpcWriteOptions(compression="zstd")),
        "compressed as before Arrow 1.0": compressed_as_before_1_0(
            pa.record_batch([pa.array([_SAME.decode()])], [name])
        ),
    }


def _stream(name: str, column: pa.Array, options: pa.ipc.IpcWriteOptions | None = None) -> bytes:
    sink = io.BytesIO()
    batch = pa.record_batch([column], [name])
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def compressed_as_before_1_0(batch: pa.RecordBatch) -> bytes:
    """Custom metadata names the codec; the field in which today's messages have it is not there."""
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V4, compression="zstd")
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch, custom_metadata={"ARROW:experimental_compression": "zstd"})
    data = bytearray(sink.getvalue())
    begin = 8 + struct.unpack_from("<I", data, 4)[0] + 8  # after the schema, and the head of the next message
    message = begin + struct.unpack_from("<I", data, begin)[0]
    header = _place(data, message, 2)
    record_batch = header + struct.unpack_from("<I", data, header)[0]
    fields = record_batch - struct.unpack_from("<i", data, record_batch)[0]
    struct.pack_into("<H", data, fields + 4 + 2 * 3, 0)
    return bytes(data)


def _place(data: bytes, table: int, number: int) -> int:
    fields = table - struct.unpack_from("<i", data, table)[0]
    return table + int(struct.unpack_from("<H", data, fields + 4 + 2 * number)[0])
