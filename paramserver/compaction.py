"""Compaction: one base out of a base and the deltas after it. Files in, files out, so it may run beside the writer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import xxhash
from msgspec.structs import replace

from basis.problems import BadFile
from paramserver import manifest as manifests
from paramserver.delta import Delta, encode_rows, encode_state
from paramserver.files import Files
from paramserver.fold import combine, combine_bounded, rebase
from paramserver.history import read_shard
from paramserver.manifest import FileRef, Manifest, Shard
from paramserver.precision import Precision

_DELTAS_AT_ONCE_BYTES = 256 << 20
_PART_BYTES = 32 << 20


class Fold(NamedTuple):
    """A base to be made. ``path`` leads to its version, see `history.path_to`, whose manifest it repeats, so its rows have that
    version's precision; ``recent`` has deltas in memory."""

    files: Files
    path: Sequence[Manifest]
    recent: Mapping[str, Delta]

    def run(self) -> Manifest:
        """Write the base, manifest last.

        Holds the rows that changed since the last base, and a part of the base; raises what its files do, and `BadFile`.
        """
        newest = self.path[-1]
        shards = newest.shards if len(self.path) == 1 else self.write(f"base-{newest.version:012d}")
        base = replace(newest, parent=-1, shards=shards)
        manifests.write_manifest(self.files, base)
        return base

    def write(self, stem: str) -> list[Shard]:
        """Write the version's rows as parts of a base."""
        first, *later = self.path
        changes = combine_bounded(map(self._read, later), _DELTAS_AT_ONCE_BYTES)
        return write_parts(self.files, stem, self._parts(first), changes, self.path[-1].precision)

    def _parts(self, whole: Manifest) -> Iterator[Delta]:
        if whole.name in self.recent:
            yield self.recent[whole.name]
        else:
            yield from (self._read_shard(shard) for shard in whole.shards)

    def _read(self, manifest: Manifest) -> Delta:
        recent = self.recent.get(manifest.name)
        if recent is not None:
            return recent
        shards = [self._read_shard(shard) for shard in manifest.shards]
        return shards[0] if len(shards) == 1 else combine(shards)

    def _read_shard(self, shard: Shard) -> Delta:
        try:
            return read_shard(self.files, shard)
        except FileNotFoundError:  # no disk that is full, which another try might find otherwise
            raise BadFile(f"{shard.rows.name} or {shard.state.name}: not there, though a manifest names it") from None


def write_parts(files: Files, stem: str, whole: Iterable[Delta], changes: Delta, precision: Precision) -> list[Shard]:
    """Write all rows of a version, those of ``whole`` and ``changes`` after them, as shards that a reader can hold."""
    parts = rebase(whole, changes, _PART_BYTES)
    return [write_shard(files, f"{stem}.{at}", part, precision) for at, part in enumerate(parts)]


def write_shard(files: Files, stem: str, delta: Delta, precision: Precision) -> Shard:
    """Write both files of a shard; `NotFiniteError`, and neither is written, where a weight is no number."""
    rows, state = encode_rows(delta, precision), encode_state(delta, precision)
    return Shard(
        rows=write_file(files, stem, "rows.arrow", rows),
        state=write_file(files, stem, "state.arrow", state),
        changed=sum(len(table.rows.ids) for table in delta.values()),
        expired=sum(len(table.rows.expired) for table in delta.values()),
        by_table={name: len(table.rows.ids) for name, table in delta.items()},
    )


def write_file(files: Files, stem: str, kind: str, data: bytes) -> FileRef:
    """Write a file, to be named in a manifest.

    Its checksum is part of its name, so of two writers that are about to publish one version neither writes over the other's.
    """
    digest = xxhash.xxh3_64_hexdigest(data)
    name = f"{stem}.{digest}.{kind}"
    files.write(name, data)
    return FileRef(name=name, size=len(data), xxh3=digest)
