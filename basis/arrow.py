"""One Arrow record batch as bytes: an IPC stream of a known schema, as any Arrow reader takes it.

The schema's message is the same every time, so it is made once; through ``pyarrow.ipc.new_stream`` a small batch costs five
times as much.
"""

from __future__ import annotations

import pyarrow as pa

_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class BatchCodec:
    """Batches of one schema to bytes and back."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._head: bytes = schema.serialize().to_pybytes()

    def begins(self, data: bytes) -> bool:
        """Whether this program wrote ``data`` with this schema."""
        return data.startswith(self._head)

    def encode(self, batch: pa.RecordBatch) -> bytes:
        """The stream that holds one batch."""
        return b"".join((self._head, batch.serialize(), _END))

    def decode(self, data: bytes) -> pa.RecordBatch:
        """The batch of a stream, over its memory; ``ValueError`` where it holds none, one of another schema, or one whose offsets,
        texts or lengths are not sound: safe for bytes from anyone."""
        try:
            if data.startswith(self._head):
                batch = pa.ipc.read_record_batch(pa.py_buffer(data).slice(len(self._head)), self.schema)
            else:
                with pa.ipc.open_stream(data) as reader:  # written by another Arrow
                    batch = reader.read_next_batch()
        except (pa.ArrowException, StopIteration, EOFError, OSError) as error:
            raise ValueError(f"not an Arrow stream: {error}") from None
        try:
            batch.validate(full=True)
        except pa.ArrowException as error:
            raise ValueError(f"not a sound Arrow batch: {error}") from None
        if not batch.schema.equals(self.schema):
            raise ValueError(f"columns {batch.schema.names}, expected {self.schema.names}")
        return batch
