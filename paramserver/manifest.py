"""Manifests: what one published version consists of, and the names of its files."""

from __future__ import annotations

import re

import msgspec
import xxhash

from basis.problems import BadFile
from paramserver.files import Files
from paramserver.learned import Learned

FORMAT = 2


class FileRef(msgspec.Struct, frozen=True, kw_only=True):
    """A published file, its length and the XXH3-64 of its bytes (hex)."""

    name: str
    size: int
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
    """The two files of one shard, and how many rows they change and how many ids they expire."""

    rows: FileRef
    state: FileRef
    changed: int
    expired: int


class Dense(msgspec.Struct, frozen=True, kw_only=True):
    """The served dense weights (safetensors): the version that brought them, and their watermark (ms)."""

    version: int
    watermark: int
    file: FileRef


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One version, a consistent cut: rows, weights and offsets of all that happened before ``watermark`` (event ms).

    ``parent`` is the version that its deltas change; a base has none (-1) and holds all rows. A version whose parent is 0, that
    is nothing, holds all rows as well and begins a lineage: the first one of all, and one by which a retrained model takes over.
    ``lineage`` is the version that began its own. ``trainer`` is the trainer's state (dense weights, optimizer, random state).
    ``offsets`` are the next to read, by topic and partition. ``learned`` says how old the epoch's examples were.
    """

    version: int
    parent: int
    watermark: int
    published_at: int
    fingerprint: str
    shards: list[Shard]
    offsets: dict[str, int]
    dense: Dense | None = None
    trainer: FileRef | None = None
    lineage: int = 1
    learned: Learned | None = None
    format: int = FORMAT

    @property
    def is_base(self) -> bool:
        """Whether it stands alone, without a parent."""
        return self.parent < 0


_decoder = msgspec.json.Decoder(Manifest)
_NAME = re.compile(r"^(manifest|base)-(\d{12})\.json$")


def manifest_name(version: int, *, base: bool) -> str:
    """The name of a version's manifest; a base stands beside the delta of the same version."""
    return f"{'base' if base else 'manifest'}-{version:012d}.json"


class TakenOverError(RuntimeError):
    """Another writer has published the version that this one was to publish: it goes on from there, this one must end."""


def write_manifest(files: Files, manifest: Manifest) -> None:
    """Publish: after this the version is there, whole. A line of JSON, and a line with its XXH3-64 (hex).

    `TakenOverError` where another writer has published this version before; bases are folded by one writer and replace.
    """
    name = manifest_name(manifest.version, base=manifest.is_base)
    data = msgspec.json.encode(manifest)
    data += b"\n" + xxhash.xxh3_64_hexdigest(data).encode() + b"\n"
    if manifest.is_base:
        files.write(name, data)
        return
    try:
        files.create(name, data)
    except FileExistsError:
        if files.read(name) != data:  # else a retry of what had succeeded
            raise TakenOverError(f"{name}: published by another writer, which has taken over") from None


def read_manifest(files: Files, version: int, *, base: bool) -> Manifest:
    """One version's manifest; ``FileNotFoundError`` where it is not, `BadFile` where it is broken or too new."""
    name = manifest_name(version, base=base)
    data, _, checksum = files.read(name).partition(b"\n")
    if checksum != xxhash.xxh3_64_hexdigest(data).encode() + b"\n":
        raise BadFile(f"{name}: not whole, or changed since it was published")
    try:
        manifest = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise BadFile(f"{name}: {error}") from None
    if manifest.format != FORMAT:
        raise BadFile(f"{name}: format {manifest.format}, this program reads {FORMAT}")
    if manifest.version != version or manifest.is_base != base:
        raise BadFile(f"{name}: holds {manifest_name(manifest.version, base=manifest.is_base)}")
    return manifest


def versions(files: Files, *, base: bool) -> list[int]:
    """The versions whose manifest is there, ascending."""
    kind = "base" if base else "manifest"
    found = (_NAME.match(name) for name in files.names())
    return sorted(int(match[2]) for match in found if match and match[1] == kind)
