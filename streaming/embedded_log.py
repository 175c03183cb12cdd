"""The log of a replay: `EmbeddedLog` keeps topics and partitions in RocksDB."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rocksdict import Options, Rdict, WriteBatch, WriteOptions

from streaming.clock import Clock, WallClock
from streaming.log import Record, check_no_gap

_WALL_CLOCK = WallClock()
_STAMP_BYTES = 8


class EmbeddedLog:
    """A log in a folder, for one process. Offsets start at 0 and grow by one per record; ``clock`` stamps each record.

    ``durable`` syncs every append to disk. Otherwise there is no write-ahead log: a replay can be run again.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from streaming.embedded_log import EmbeddedLog
    >>> with TemporaryDirectory() as folder:
    ...     log = EmbeddedLog(Path(folder), durable=True)
    ...     log.append("impressions", 0, [b"first", b"second"])
    ...     [record.value for record in log.read("impressions", 0, offset=1, limit=10)], log.end("impressions", 0)
    ...     log.close()
    ([b'second'], 2)
    """

    def __init__(self, folder: Path, *, durable: bool, clock: Clock = _WALL_CLOCK) -> None:
        self._clock = clock
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        self._db = Rdict(str(folder), options)
        self._write = WriteOptions()
        if durable:
            self._write.sync = True
        else:
            self._write.disable_wal = True  # type: ignore[method-assign, assignment]  # a property, whatever its stub says
        self._ends: dict[tuple[str, int], int] = {}

    def append(self, topic: str, partition: int, values: Sequence[bytes]) -> None:
        """Append records to the partition, all or none."""
        if values:
            self._put(WriteBatch(raw_mode=True), partition, {topic: values})

    def transact(self, partition: int, records: Mapping[str, Sequence[bytes]], commit: str) -> None:
        """Append records to one partition of several topics, and store ``commit``, the writer's position: all of it or nothing."""
        batch = WriteBatch(raw_mode=True)
        batch.put(_commit_key(partition), commit.encode())
        self._put(batch, partition, records)

    def committed(self, partition: int) -> str | None:
        """Return the ``commit`` of the partition's last transaction; None if there was none."""
        commit: Any = self._db.get(_commit_key(partition))
        return None if commit is None else str(commit, "utf-8")

    def _put(self, batch: WriteBatch, partition: int, records: Mapping[str, Sequence[bytes]]) -> None:
        appended_at = struct.pack(">Q", self._clock.now_ms())
        ends = {}
        for topic, values in records.items():
            end = self.end(topic, partition)
            for offset, value in enumerate(values, end):
                batch.put(_key(topic, partition, offset), appended_at + value)
            ends[topic, partition] = end + len(values)
        self._db.write(batch, self._write)
        self._ends |= ends

    def end(self, topic: str, partition: int) -> int:
        """Return the offset that the partition's next record will get."""
        known = self._ends.get((topic, partition))
        if known is None:
            last = self._db.iter()
            last.seek_for_prev(_key(topic, partition, 2**63))
            last.status()  # raises if a block is damaged, which otherwise looks like an end
            prefix = _key(topic, partition, 0)[:-8]
            found = last.valid() and last.key().startswith(prefix)
            known = struct.unpack(">Q", last.key()[-8:])[0] + 1 if found else 0
            self._ends[topic, partition] = known
        return known

    def begin(self, topic: str, partition: int) -> int:
        """Return the first offset that is kept; of a partition without records, the offset of the next one."""
        first = self._db.iter()
        first.seek(_key(topic, partition, 0))
        first.status()
        found = first.valid() and first.key().startswith(_key(topic, partition, 0)[:-8])
        return struct.unpack(">Q", first.key()[-8:])[0] if found else 0

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        """Return up to ``limit`` records from ``offset`` on, in order; none at the end. `GapError` if that offset was trimmed."""
        end = self.end(topic, partition)
        if offset >= end:
            return []
        offsets = range(offset, min(end, offset + limit))
        values: Any = self._db.get([_key(topic, partition, at) for at in offsets])
        if values[0] is None:
            check_no_gap(self, topic, partition, offset)
        return [
            Record(at, value[_STAMP_BYTES:], int.from_bytes(value[:_STAMP_BYTES], "big"))
            for at, value in zip(offsets, values, strict=True)
        ]

    def trim(self, topic: str, partition: int, offset: int) -> None:
        """Delete the records before ``offset``. The last record is kept: it marks the end."""
        last = self.end(topic, partition) - 1
        if last < 0:
            return
        self._db.delete_range(_key(topic, partition, 0), _key(topic, partition, min(offset, last)))

    def close(self) -> None:
        """Flush and close the folder."""
        self._db.close()


def _key(topic: str, partition: int, offset: int) -> bytes:
    return topic.encode() + struct.pack(">xIQ", partition, offset)


def _commit_key(partition: int) -> bytes:
    return b"\0commit" + struct.pack(">I", partition)
