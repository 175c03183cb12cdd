"""What is published, read back: which files make up a version, its rows, the version as of a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, wait
from datetime import UTC, datetime

from basis.problems import BadFile
from paramserver import manifest as manifests
from paramserver.delta import TableDelta, decode
from paramserver.files import Files
from paramserver.fold import fold
from paramserver.manifest import Manifest, OtherFormat, Shard
from paramserver.table import Table


def paths_to(files: Files, version: int) -> Iterator[list[Manifest]]:
    """The ways to a version, the shortest first: manifests of which the first one is whole, and whose files, applied in order,
    are the version's rows. After the last way, `BadFile` where its end is damaged or missing."""
    tail: list[Manifest] = []
    problem: BadFile | None = None
    while True:
        try:
            yield [manifests.read_manifest(files, version, base=True), *tail]
        except FileNotFoundError:
            pass
        except OtherFormat:
            raise
        except BadFile as error:
            problem = error
        try:
            manifest = manifests.read_manifest(files, version, base=False)
        except FileNotFoundError:
            name = manifests.manifest_name(version, base=False)
            raise problem or BadFile(f"{name}: not there{_needed_by(tail)}") from None
        tail.insert(0, manifest)
        if manifest.is_whole:
            yield tail
            return
        version = manifest.parent


def path_to(files: Files, version: int) -> list[Manifest]:
    """The shortest way to a version; `BadFile` where there is none."""
    return next(paths_to(files, version))


def _needed_by(tail: list[Manifest]) -> str:
    return f", though version {tail[0].version} changes it" if tail else ""


def newest(files: Files) -> Manifest:
    """The newest version that is published; `BadFile` where none is, or where it is damaged."""
    numbers = manifests.numbers(files)
    if not numbers:
        raise BadFile("nothing is published there")
    return manifests.read_manifest(files, numbers[-1], base=numbers[-1] not in manifests.versions(files, base=False))


def all_manifests(files: Files) -> Iterator[Manifest | BadFile]:
    """Every manifest by version, a base after the delta of the same version; what is damaged as the error that names it."""
    for version, base in manifests.named(files):
        try:
            yield manifests.read_manifest(files, version, base=base)
        except BadFile as error:
            yield error
        except FileNotFoundError:  # compacted meanwhile
            continue


def named_files(files: Files) -> set[str]:
    """The names of all manifests and of everything that they name; `BadFile` where one of them cannot be read."""
    found = set()
    for item in all_manifests(files):
        if isinstance(item, BadFile):
            raise item
        found |= {item.name, *(ref.name for ref in item.files())}
    return found


def damage_of(files: Files, manifest: Manifest) -> list[str]:
    """What is wrong with the files of a version, whose checksums are compared; a trainer's state that is gone is not, since only
    the newest are kept, nor is anything of a version that was compacted meanwhile."""
    found = []
    for ref in manifest.files():
        try:
            ref.read(files)
        except BadFile as error:
            found.append(str(error))
        except FileNotFoundError:
            if ref != manifest.trainer and manifest.version in manifests.versions(files, base=manifest.is_base):
                found.append(f"{ref.name}: not there, though {manifest.name} names it")
    return found


def as_of(files: Files, at: int) -> Manifest:
    """The model as of event time ``at`` (ms): of the versions whose watermark is not after it the one with the newest, and of
    several the last. `BadFile` where there is none, with what there is."""
    there = [item for item in all_manifests(files) if isinstance(item, Manifest)]
    fitting = [item for item in there if item.watermark <= at]
    if fitting:
        return max(fitting, key=lambda item: (item.watermark, item.version, item.is_base))
    if not there:
        raise BadFile("nothing is published there")
    first, last = min(item.watermark for item in there), max(item.watermark for item in there)
    raise BadFile(f"no version as of {_text(at)}: those there are of {_text(first)} to {_text(last)}")


def _text(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_shard(files: Files, shard: Shard) -> dict[str, TableDelta]:
    """Both files of a shard's version, checked."""
    return decode(shard.rows.name, shard.rows.read(files), shard.state.name, shard.state.read(files))


def read_version(files: Files, manifest: Manifest) -> dict[str, TableDelta]:
    """All rows of a version, in memory."""
    path = path_to(files, manifest.version)
    return fold([read_shard(files, shard) for item in path for shard in item.shards])


def restore(
    files: Files,
    path: Sequence[Manifest],
    tables: Mapping[str, Table],
    executor: Executor | None = None,
    taken: Callable[[Mapping[str, TableDelta]], None] = lambda deltas: None,
) -> None:
    """Put the rows of a version into empty tables, a shard at a time, while ``executor`` reads and checks the next one.
    ``taken`` is called with what each had.

    `BadFile` or ``FileNotFoundError`` where a file is damaged or gone; the tables then hold what came before it.
    """
    whole: Counter[str] = Counter()
    for shard in path[0].shards:
        whole.update(shard.by_table)
    for name, rows in whole.items():
        if name in tables:
            tables[name].reserve(rows)
    for shard, deltas in _read_ahead(files, [shard for manifest in path for shard in manifest.shards], executor):
        for name, delta in deltas.items():
            if name not in tables:
                raise BadFile(f"{shard.rows.name}: table {name}, which this trainer does not have")
            tables[name].restore(delta.rows)
        taken(deltas)


def _read_ahead(
    files: Files, shards: Sequence[Shard], executor: Executor | None
) -> Iterator[tuple[Shard, dict[str, TableDelta]]]:
    """Shards with what they hold, at most one of them more than asked for."""
    if executor is None:
        yield from ((shard, read_shard(files, shard)) for shard in shards)
        return
    read = [executor.submit(read_shard, files, shard) for shard in shards[:1]]
    try:
        for shard, following in zip(shards, [*shards[1:], None], strict=True):
            deltas = read.pop().result()
            if following is not None:
                read.append(executor.submit(read_shard, files, following))
            yield shard, deltas
    finally:
        wait(read)


def clear(tables: Mapping[str, Table]) -> None:
    """Take all rows out again."""
    for table in tables.values():
        table.erase(table.ids())
        table.seal()
