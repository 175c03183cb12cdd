"""The log: topics of partitions of records, each with an offset. Here the embedded one, in RocksDB."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rocksdict import Options, Rdict, WriteBatch, WriteOptions

from basis.problems import GapError

IMPRESSIONS, ENGAGEMENTS, EXAMPLES, DEAD_LETTERS = "impressions", "engagements", "examples", "dead-letters"


class Record(NamedTuple):
    """One record of a partition."""

    offset: int
    value: bytes


class BrokerError(Exception):
    """Brokers are away or refuse, or it is not known how a call ended. The message begins with the client's name for it."""


class NoLeaderError(BrokerError):
    """No broker leads these ``partitions`` now."""

    def __init__(self, what: str, partitions: Iterable[int]) -> None:
        super().__init__(what)
        self.partitions = frozenset(partitions)


class LogReader(Protocol):
    """What a component needs of a log that it only reads."""

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        """Up to ``limit`` records from ``offset`` on, in order; none at the end."""

    def begin(self, topic: str, partition: int) -> int:
        """The offset from which on the partition is whole: of its first record, or where it has none of the next."""


class Log(LogReader, Protocol):
    """What a component needs of a log."""

    def append(self, topic: str, partition: int, values: Sequence[bytes]) -> None:
        """Add records at the partition's end, all or none."""

    def end(self, topic: str, partition: int) -> int:
        """The offset that the next record of the partition gets."""

    def trim(self, topic: str, partition: int, offset: int) -> None:
        """Records before ``offset`` are no longer needed."""


def check_no_gap(log: LogReader, topic: str, partition: int, offset: int) -> None:
    """`GapError` where records from ``offset`` on are no longer in the log."""
    begin = log.begin(topic, partition)
    if begin > offset:
        raise GapError(
            f"{topic}/{partition}: the log begins at offset {begin}, records from {offset} on are needed; "
            "start over without what was read before, and let the log keep its records for longer"
        )


class EmbeddedLog:
    """A log in a folder, for one process. Offsets start at 0 and grow by one a record.

    ``durable`` syncs every append to the disk; a replay, which can be run again, does without the write-ahead log.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from streaming.log import EmbeddedLog
    >>> with TemporaryDirectory() as folder:
    ...     log = EmbeddedLog(Path(folder), durable=True)
    ...     log.append("impressions", 0, [b"first", b"second"])
    ...     [record.value for record in log.read("impressions", 0, offset=1, limit=10)], log.end("impressions", 0)
    ...     log.close()
    ([b'second'], 2)
    """

    def __init__(self, folder: Path, *, durable: bool) -> None:
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
        """Add records at the partition's end, all or none."""
        if not values:
            return
        end = self.end(topic, partition)
        batch = WriteBatch(raw_mode=True)
        for offset, value in enumerate(values, end):
            batch.put(_key(topic, partition, offset), value)
        self._db.write(batch, self._write)
        self._ends[topic, partition] = end + len(values)

    def end(self, topic: str, partition: int) -> int:
        """The offset that the next record of the partition gets."""
        known = self._ends.get((topic, partition))
        if known is None:
            last = self._db.iter()
            last.seek_for_prev(_key(topic, partition, 2**63))
            last.status()  # a damaged block looks like an end
            prefix = _key(topic, partition, 0)[:-8]
            found = last.valid() and last.key().startswith(prefix)
            known = struct.unpack(">Q", last.key()[-8:])[0] + 1 if found else 0
            self._ends[topic, partition] = known
        return known

    def begin(self, topic: str, partition: int) -> int:
        """The offset from which on the partition is whole: of its first record, or where it has none of the next."""
        first = self._db.iter()
        first.seek(_key(topic, partition, 0))
        first.status()
        found = first.valid() and first.key().startswith(_key(topic, partition, 0)[:-8])
        return struct.unpack(">Q", first.key()[-8:])[0] if found else 0

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        """Up to ``limit`` records from ``offset`` on, in order; none at the end. What is trimmed is passed over."""
        end = self.end(topic, partition)
        if offset >= end:
            return []
        if _key(topic, partition, offset) not in self._db:
            cursor = self._db.iter()  # only here: making one takes as long as reading ten records
            cursor.seek(_key(topic, partition, offset))
            offset = struct.unpack(">Q", cursor.key()[-8:])[0]
        offsets = range(offset, min(end, offset + limit))
        values: Any = self._db[[_key(topic, partition, at) for at in offsets]]
        return [Record(at, value) for at, value in zip(offsets, values, strict=True)]

    def trim(self, topic: str, partition: int, offset: int) -> None:
        """Records before ``offset`` are no longer needed; the last one stays, since it tells the end."""
        last = self.end(topic, partition) - 1
        if last < 0:
            return
        self._db.delete_range(_key(topic, partition, 0), _key(topic, partition, min(offset, last)))

    def close(self) -> None:
        """Flush and close the folder."""
        self._db.close()


def _key(topic: str, partition: int, offset: int) -> bytes:
    return topic.encode() + struct.pack(">xIQ", partition, offset)
