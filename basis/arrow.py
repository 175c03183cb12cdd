"""One Arrow record batch as bytes: an IPC stream of a known schema, as any Arrow reader takes it.

The schema's message is the same every time, so it is made once; through ``pyarrow.ipc.new_stream`` a small batch costs five
times as much.
"""

from __future__ import annotations

import struct

import pyarrow as pa

from basis.decoding import why

_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_OLD_COMPRESSION = b"ARROW:experimental_compression"
"""The key in a message's own metadata by which Arrow before 1.0 says that its body is compressed; it is still believed."""


class BatchCodec:
    """Batches of one schema to bytes and back."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._head: bytes = schema.serialize().to_pybytes()
        self.empty = _empty(schema)
        """A batch without rows."""

    def begins(self, data: bytes) -> bool:
        """Whether this program wrote ``data`` with this schema."""
        return data.startswith(self._head)

    def encode(self, batch: pa.RecordBatch) -> bytes:
        """The stream that holds one batch."""
        return b"".join((self._head, batch.serialize(), _END))

    def decode(self, data: bytes) -> pa.RecordBatch:
        """The batch of a stream, over its memory; ``ValueError`` where it holds none, one of another schema, or one whose offsets,
        texts or lengths are not sound: safe for bytes from anyone."""
        if not data.startswith(self._head):  # written by another Arrow
            return decode_stream(data, self.schema)
        try:
            message = pa.ipc.read_message(pa.py_buffer(data).slice(len(self._head)))
            _check_uncompressed(message)
            batch = pa.ipc.read_record_batch(message, self.schema)
            if not batch.num_rows:
                return self.empty
            batch.validate(full=True)
        except Exception as error:
            raise _unsound(error) from None
        return batch


def decode_stream(data: bytes, schema: pa.Schema | None = None) -> pa.RecordBatch:
    """The first batch of a stream that any Arrow wrote, as `BatchCodec.decode`. A batch of another schema than that wanted is not
    even looked at."""
    try:
        messages = pa.ipc.MessageReader.open_stream(data)
        messages.read_next_message()  # the schema
        _check_uncompressed(messages.read_next_message())
        with pa.ipc.open_stream(data) as reader:
            if schema is not None and not reader.schema.equals(schema):
                raise ValueError(f"columns {reader.schema.names}, expected {schema.names}")
            for field in reader.schema:
                if not _takes_bytes(field.type):
                    raise ValueError(
                        f"column {field.name}: {field.type}; allowed: types of which every value takes bytes"
                    )
            batch = reader.read_next_batch()
            if not batch.num_rows:
                return _empty(batch.schema)
            batch.validate(full=True)
    except Exception as error:
        raise _unsound(error) from None
    return batch


def _takes_bytes(kind: pa.DataType) -> bool:
    """Whether every value takes bytes of its own, which bound how many there are and what they become when they are converted."""
    types = pa.types
    if types.is_fixed_size_list(kind) and not kind.list_size:
        return False
    nested = types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_map, types.is_struct
    if any(is_kind(kind) for is_kind in nested):
        return bool(kind.num_fields) and all(_takes_bytes(kind.field(at).type) for at in range(kind.num_fields))
    texts = types.is_string, types.is_large_string, types.is_binary, types.is_large_binary
    if any(is_kind(kind) for is_kind in (*texts, types.is_primitive, types.is_decimal)):
        return True
    return bool(types.is_fixed_size_binary(kind) and kind.byte_width)


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    """Return what replaces any batch without rows: Arrow aborts where lists of one that begin anywhere are flattened."""
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _check_uncompressed(message: pa.Message) -> None:
    """``ValueError`` for what is no record batch with an uncompressed body: 4 MiB of a compressed one can be gigabytes.

    pyarrow does not tell. By Arrow's Message.fbs, a message's field 2 is its record batch, whose field 3 is there where it is
    compressed; as FlatBuffers lay tables out, each begins with how far before it the list of its fields is.
    """
    if message.type != "record batch":
        raise ValueError(f"a message of type {message.type}, expected a record batch")
    data = message.metadata.to_pybytes()

    def field(table: int, number: int) -> int | None:
        fields = table - int(struct.unpack_from("<i", data, table)[0])
        size, at = struct.unpack_from("<H", data, fields)[0], 4 + 2 * number
        offset = int(struct.unpack_from("<H", data, fields + at)[0]) if at < size else 0
        return table + offset if offset else None

    if _OLD_COMPRESSION in data:
        raise ValueError("a compressed body, as before Arrow 1.0; allowed: none")
    header = field(int(struct.unpack_from("<I", data)[0]), 2)
    if header is not None and field(header + int(struct.unpack_from("<I", data, header)[0]), 3) is not None:
        raise ValueError("a compressed body; allowed: none")


def _unsound(error: Exception) -> ValueError:
    """A want of memory is the data's fault as well: some length in it asks for too much."""
    return ValueError(f"no sound Arrow stream: {why(error)}")
