"""Manifests: what one published version consists of, and the names of its files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import msgspec
import xxhash

from basis.decoding import refusing
from basis.problems import BadFile
from paramserver.files import Files
from paramserver.learned import Learned
from paramserver.precision import Precision

FORMAT = 4
VERSIONS = 10**12
"""All are below: names have twelve digits."""

Name: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=200)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
Version: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=VERSIONS)]
Offset: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Millis: TypeAlias = Annotated[int, msgspec.Meta(gt=-(1 << 53), lt=1 << 53)]


class FileRef(msgspec.Struct, frozen=True, kw_only=True):
    """A published file, its length and the XXH3-64 of its bytes (hex)."""

    name: Name
    size: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
    xxh3: str

    @classmethod
    def of(cls, name: str, data: bytes) -> FileRef:
        """The reference to a file with these bytes."""
        return cls(name=name, size=len(data), xxh3=xxhash.xxh3_64_hexdigest(data))

    def read(self, files: Files) -> bytes:
        """The file's bytes; `BadFile` where they are not those that were published."""
        data = files.read(self.name)
        if len(data) != self.size or xxhash.xxh3_64_hexdigest(data) != self.xxh3:
            raise BadFile(
                f"{self.name}: {len(data)} bytes with another checksum than its manifest's ({self.size} bytes)"
            )
        return data


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """The two files of one shard, and how many rows they change, also by table, and how many ids they expire.

    No id of a table is in two shards of one version, tombstones included, so their order does not matter.
    """

    rows: FileRef
    state: FileRef
    changed: Count
    expired: Count
    by_table: dict[str, Count] = {}


class Dense(msgspec.Struct, frozen=True, kw_only=True):
    """The served dense weights (safetensors): the version that brought them, and their watermark (ms)."""

    version: Version
    watermark: Millis
    file: FileRef


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One version, a consistent cut: rows, weights and offsets of all that happened before ``watermark`` (event ms).

    ``parent`` is the version that its deltas change; a base has none (-1) and holds all rows. A version whose parent is 0, that
    is nothing, holds all rows as well and begins a lineage: the first one of all, one by which a retrained model takes over, and
    one that goes back. ``lineage`` is the version that began its own, ``retrained`` names the retrainings that began lineages so
    far, oldest first. ``trainer`` is the trainer's state (dense weights, optimizer, scale of dense features, newcomers).
    ``offsets`` are the next to read, by topic and partition. ``form`` describes what decides the form of rows and weights,
    ``fingerprint`` is the XXH3-64 (hex) of that. ``goes_back_to`` is the version whose content a rollback repeats, and
    ``trains_from`` the one that training goes on from where that is not this one; 0 for neither. ``learned`` says how old the
    epoch's examples were.

    ``checksums`` are by table those of all rows as replicas read them, see `paramserver.checksum`, whose embeddings have
    ``precision``; a table without one is not checked.

    The writer first says what may be deleted, so that of a rollback and a deletion, the second one knows of the first:
    what only versions before ``forgets`` name, and the trainer's states of versions that are not ``trainable``.
    """

    version: Version
    parent: Annotated[int, msgspec.Meta(ge=-1, lt=VERSIONS)]
    watermark: Millis
    published_at: Millis
    fingerprint: str
    shards: list[Shard]
    offsets: dict[str, Offset]
    dense: Dense | None = None
    trainer: FileRef | None = None
    form: FileRef | None = None
    lineage: Annotated[int, msgspec.Meta(ge=1, lt=VERSIONS)] = 1
    retrained: list[str] = []
    goes_back_to: Version = 0
    trains_from: Version = 0
    learned: Learned | None = None
    checksums: dict[str, str] = {}
    precision: Precision = "float32"
    forgets: Version = 0
    trainable: list[Version] = []
    format: int = FORMAT

    @property
    def is_base(self) -> bool:
        """Whether it is a base, folded from other versions."""
        return self.parent < 0

    @property
    def is_whole(self) -> bool:
        """Whether it holds all rows."""
        return self.parent <= 0

    @property
    def name(self) -> str:
        """The name of its file."""
        return manifest_name(self.version, base=self.is_base)

    def files(self) -> list[FileRef]:
        """Everything that it names."""
        found = [ref for shard in self.shards for ref in (shard.rows, shard.state)]
        more = (self.dense.file if self.dense else None, self.trainer, self.form)
        return found + [ref for ref in more if ref is not None]


class _Format(msgspec.Struct):
    format: int = FORMAT


_decoder = msgspec.json.Decoder(Manifest)
_format_decoder = msgspec.json.Decoder(_Format)
_FAR = 1_000_000
_LEAST_ROW_BYTES = 8
"""Of its id alone."""
_NAME = re.compile(r"^(manifest|base)-(\d{12})\.json$")


def manifest_name(version: int, *, base: bool) -> str:
    """The name of a version's manifest; a base stands beside the delta of the same version."""
    return f"{'base' if base else 'manifest'}-{version:012d}.json"


class TakenOverError(RuntimeError):
    """Another writer has published the version that this one was to publish: it continues from there, this one must stop."""


class OtherFormat(BadFile):
    """A manifest that another version of the program wrote. Nothing is wrong with it, so recovery does not go back past it."""


def encode_checked(value: object) -> bytes:
    """A line of JSON, and a line with its XXH3-64 (hex)."""
    data = msgspec.json.encode(value)
    return data + b"\n" + xxhash.xxh3_64_hexdigest(data).encode() + b"\n"


def checked_line(name: str, data: bytes) -> bytes:
    """The JSON of `encode_checked`; `BadFile` where it is not what was written."""
    line, _, checksum = data.partition(b"\n")
    if checksum != xxhash.xxh3_64_hexdigest(line).encode() + b"\n":
        raise BadFile(
            f"{name}: not whole, changed since it was published, or signed (set MINUTELY_DELTAS_KEY to its key)"
        )
    return line


def write_manifest(files: Files, manifest: Manifest) -> None:
    """Publish: after this the version is there, whole.

    `TakenOverError` where another writer has published this version before; bases are folded by one writer and replace.
    """
    name, data = manifest.name, encode_checked(manifest)
    if manifest.is_base:
        files.write(name, data)
        return
    try:
        files.create(name, data)
    except FileExistsError:
        try:
            there = files.read(name)
        except FileNotFoundError:  # what S3 says of two writes at once, of which neither may have been done
            raise OSError(f"{name}: the store refused it because of another write at the same time") from None
        if there != data:  # else a retry of what had succeeded
            raise TakenOverError(f"{name}: published by another writer, which has taken over") from None


def read_manifest(files: Files, version: int, *, base: bool) -> Manifest:
    """One version's manifest; ``FileNotFoundError`` where it is not, `BadFile` where it is broken, `OtherFormat`."""
    name = manifest_name(version, base=base)
    data = checked_line(name, files.read(name))
    with refusing(lambda why: BadFile(f"{name}: {why}"), BadFile):
        if (written := _format_decoder.decode(data).format) != FORMAT:
            raise OtherFormat(
                f"{name}: format {written}, this program reads {FORMAT}; allowed: the program that wrote it, or a new place"
            )
        manifest = _decoder.decode(data)
        _check(manifest, name, version)
    if manifest.version != version or manifest.is_base != base:
        raise BadFile(f"{name}: holds {manifest.name}")
    return manifest


def _check(manifest: Manifest, name: str, version: int) -> None:
    if manifest.parent >= version > 0:
        raise BadFile(f"{name}: changes version {manifest.parent}, which is not before it")
    for what in ("lineage", "goes_back_to", "trains_from", "forgets"):
        if getattr(manifest, what) > version:
            raise BadFile(f"{name}: {what}: {getattr(manifest, what)}; allowed: at most {version}, its own")
    for shard in manifest.shards:
        rows = sum(shard.by_table.values())
        if rows * _LEAST_ROW_BYTES > shard.rows.size:  # before anybody makes room for them
            raise BadFile(f"{name}: {rows} rows in {shard.rows.name}, which has {shard.rows.size} bytes")


def versions(files: Files, *, base: bool) -> list[int]:
    """The versions whose manifest is there, ascending, without `strays`."""
    found = named(files)
    end = _end(files, found)
    return [version for version, is_base in found if is_base == base and version < end]


def numbers(files: Files) -> list[int]:
    """The versions that are there, as delta, base or both; ascending, without `strays`."""
    return sorted({*versions(files, base=False), *versions(files, base=True)})


def named(files: Files) -> list[tuple[int, bool]]:
    """The versions that names of manifests say, and whether they are bases; ascending, a base after the delta of its version."""
    found = (_NAME.match(name) for name in files.names())
    return sorted((int(match[2]), match[1] == "base") for match in found if match)


def strays(files: Files) -> list[tuple[int, bool]]:
    """Those of `named` that are of no version.

    Versions follow each other, so where a million numbers are left out, and nothing above them can be read, no version was
    damaged: something else has such a name. It is never taken for the newest version.
    """
    found = named(files)
    end = _end(files, found)
    return [item for item in found if item[0] >= end]


def _end(files: Files, found: Sequence[tuple[int, bool]]) -> int:
    """From which number on names are of no version. Only a gap costs a look at what is above it."""
    end = VERSIONS
    gaps = [at for at in range(1, len(found)) if found[at][0] - found[at - 1][0] > _FAR]
    for at in reversed(gaps):
        if any(_is_readable(files, *item) for item in found[at:] if item[0] < end):
            break
        end = found[at][0]
    return end


def _is_readable(files: Files, version: int, base: bool) -> bool:
    try:
        read_manifest(files, version, base=base)
    except (OtherFormat, FileNotFoundError):  # what was deleted meanwhile was one
        return True
    except BadFile:
        return False
    return True
