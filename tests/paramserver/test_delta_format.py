"""What docs/delta-format.md says is what is published: by a reader that has nothing of Minutely; and in every precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from basis.problems import BadFile, NotFiniteError
from paramserver import compaction
from paramserver import manifest as manifests
from paramserver.compaction import write_shard
from paramserver.delta import TableDelta, decode, decode_rows, encode_rows, encode_state
from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import LocalFiles
from paramserver.fold import take
from paramserver.follower import Follower
from paramserver.history import read_shard, read_version
from paramserver.manifest import FileRef, Manifest
from paramserver.precision import Precision, rounded
from paramserver.table import Rows, Table
from tests.commands import ROOT
from tests.paramserver import delta_reader
from tests.paramserver.published import COLUMNS, DIMS, Writer, make_rows, replica_tables, state_of

PRECISIONS: list[Precision] = ["float32", "float16", "int8"]


def test_the_reader_is_small_and_has_nothing_of_minutely() -> None:
    text = (ROOT / "tests/paramserver/delta_reader.py").read_text()
    assert len(text.splitlines()) <= 80
    for part in ("paramserver", "basis", "trainer", "streaming", "minutely"):
        assert f"import {part}" not in text and f"from {part}" not in text


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_reader_reads_every_version_from_deltas_and_bases(tmp_path: Path, precision: Precision) -> None:
    files = LocalFiles(tmp_path, durable=False)
    writer = Writer(files, 4, seed=2)
    writer.log = DeltaLog(files, "form", 4, precision=precision)
    wanted = {}
    for _ in range(11):
        version = writer.publish().version
        wanted[version] = {name: table.export() for name, table in writer.tables.items()}
    assert manifests.versions(files, base=True) == [4, 8]
    for version in range(5, 12):
        rows, defaults = delta_reader.read(tmp_path, version, exact=False)
        for name, table in wanted[version].items():
            assert sorted(rows[name]) == table.ids.tolist()
            found = np.array([rows[name][key][0] for key in table.ids.tolist()], np.float32).reshape(-1, DIMS[name])
            assert found.tobytes() == rounded(table.embeddings, precision).tobytes()
            assert defaults[name] == table.default_embedding.tolist()
            item = delta_reader.path_to(tmp_path, version)[-1]
            assert (item["checksums"][name], item["precision"]) == (checksum_of(rows[name]), precision)
        check_exact(tmp_path, wanted[version], version)
        if version in (8, 11):
            check_versions(tmp_path, files, manifests.read_manifest(files, version, base=version == 8))


def check_exact(folder: Path, wanted: Mapping[str, Rows], version: int) -> None:
    """The reader has all that recovery needs, to the bit."""
    rows, defaults = delta_reader.read(folder, version)
    for name, table in wanted.items():
        assert sorted(rows[name]) == table.ids.tolist()
        found = [rows[name][key] for key in table.ids.tolist()]
        assert [row[0] for row in found] == table.embeddings.tolist()
        assert [row[1] for row in found] == table.state.tolist()
        assert [row[2][0] for row in found] == table.last_seen_seconds.tolist()
        assert [row[2][1] for row in found] == table.counts.tolist()
        assert defaults[name] == [*table.default_embedding.tolist(), *table.default_state.tolist()]


def checksum_of(rows: Mapping[int, list[delta_reader.Row]]) -> str:
    """As docs/delta-format.md has it, of a table as the reader gives it."""
    most = (1 << 64) - 1

    def mix(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & most
        z = (z ^ z >> 27) * 0x94D049BB133111EB & most
        return z ^ z >> 31

    total = 0
    for key, (embedding, *_) in rows.items():
        data = np.array(embedding, "<f4").tobytes()
        words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]
        for constant, shift in ((0x9E3779B97F4A7C15, 0), (0xD1B54A32D192ED03, 64)):
            half = mix(key + constant & most)
            for word in words:
                half = mix(half ^ word) + constant & most
            total += half << shift
    return f"{total & (1 << 128) - 1:032x}"


def check_versions(folder: Path, files: LocalFiles, manifest: Manifest) -> None:
    rows, _ = delta_reader.read(folder, manifest.version)
    for name, part in read_version(files, manifest).items():
        assert [rows[name][key][2][2] for key in part.rows.ids.tolist()] == part.versions.tolist()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_replicas_read_what_is_rounded_once_and_recovery_what_is_exact(tmp_path: Path, precision: Precision) -> None:
    files = LocalFiles(tmp_path, durable=False)
    writer = Writer(files, 3, seed=5)
    writer.log = DeltaLog(files, "form", 3, precision=precision)
    tables, wide = replica_tables(precision), replica_tables("float32")
    followers = [Follower(files, tables), Follower(files, wide)]
    for _ in range(8):
        manifest = writer.publish()
        for follower in followers:
            follower.pull()
        late = replica_tables(precision)
        Follower(files, late).pull()
        for name, table in writer.tables.items():
            rows = table.export()
            for copy in (tables, wide, late):
                found = copy[name].export()
                assert found.ids.tobytes() == rows.ids.tobytes()
                assert found.embeddings.tobytes() == rounded(rows.embeddings, precision).tobytes()
            exact = read_version(files, manifest)[name].rows
            assert all(getattr(exact, column).tobytes() == getattr(rows, column).tobytes() for column in COLUMNS)


@pytest.mark.parametrize(("precision", "most"), [("float32", 1.1), ("float16", 0.55), ("int8", 0.32)])
def test_the_replicas_file_is_small(precision: Precision, most: float) -> None:
    rows = make_rows(list(range(100_000)), [], dim=64)
    rows.embeddings[:] /= 1e7
    delta = {"item": TableDelta(rows, np.zeros(100_000, np.int64))}
    plain = rows.ids.nbytes + rows.embeddings.nbytes
    assert len(encode_rows(delta, precision)) <= most * (plain if precision == "float32" else len(encode_rows(delta)))


@pytest.mark.parametrize("dim", [1, 7, 16])
def test_rounding_is_the_table_s(dim: int) -> None:
    rng = np.random.default_rng(dim)
    values = (rng.normal(size=(3000, dim)) * 10.0 ** rng.integers(-6, 4, (3000, 1))).astype(np.float32)
    values[:3] = [[0.0] * dim, [-1.0] * dim, [60_000.0] * dim]
    for precision in ("float16", "int8"):
        table = Table(dim, row_format=precision)  # type: ignore[arg-type]
        table.upsert(np.arange(3000), values)
        assert table.export().embeddings.tobytes() == rounded(values, precision).tobytes()  # type: ignore[arg-type]
        again = Table(dim, row_format=precision)  # type: ignore[arg-type]
        again.upsert(np.arange(3000), rounded(values, precision))  # type: ignore[arg-type]
        assert again.export().embeddings.tobytes() == table.export().embeddings.tobytes()


def with_value(value: float, column: str) -> dict[str, TableDelta]:
    rows = make_rows([5, 6], [], dim=2)
    values = getattr(rows, column)
    values.reshape(-1)[-1] = value
    return {"other": TableDelta(make_rows([1], [], dim=3), np.array([1])), "item": TableDelta(rows, np.array([1, 1]))}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_no_number_is_named_and_not_published(tmp_path: Path, value: float, precision: Precision) -> None:
    for column, named in [("embeddings", "id 6: "), ("default_embedding", "default row")]:
        with pytest.raises(NotFiniteError, match=f"table item: {named}"):
            encode_rows(with_value(value, column), precision)
    for column, named in [("state", "id 6: state"), ("default_state", "default row's state")]:
        with pytest.raises(NotFiniteError, match=f"table item: {named}"):
            encode_state(with_value(value, column), precision)
    with pytest.raises(NotFiniteError, match="id 6: embedding holds inf"):
        encode_rows(with_value(70_000, "embeddings"), "float16")
    files = LocalFiles(tmp_path, durable=False)
    log = DeltaLog(files, "form", 4)
    epoch = {name: part.rows for name, part in with_value(value, "state").items()}
    with pytest.raises(NotFiniteError):
        log.publish(epoch, Cut(0, 0, {}))
    assert files.names() == []


@pytest.mark.parametrize(("column", "precision"), [("embeddings", "float32"), ("default_embedding", "float16")])
def test_a_reader_names_the_table_of_what_is_no_number(column: str, precision: Precision) -> None:
    data = encode_rows(with_value(1234.5, column), precision)
    written, harmful = (np.array(value, np.float32).tobytes() for value in (1234.5, np.nan))
    assert data.count(written) == 1
    with pytest.raises(BadFile, match="table item: a value that is no finite number"):
        decode_rows("rows", data.replace(written, harmful))


# Several shards.


def sharded(files: LocalFiles, manifest: Manifest, shards: int) -> Manifest:
    """The same version as a writer of several shards would publish it: ids by their remainder."""
    delta = {name: part for shard in manifest.shards for name, part in read_shard(files, shard).items()}
    parts = []
    for number in range(shards):
        mine: Mapping[str, TableDelta] = {name: _of_shard(part, number, shards) for name, part in delta.items()}
        parts.append(write_shard(files, f"{manifest.version:012d}.shard{number}", mine, "float32"))
    other = replace(manifest, shards=parts)
    files.delete(other.name)
    manifests.write_manifest(files, other)
    return other


def _of_shard(part: TableDelta, number: int, shards: int) -> TableDelta:
    mine = take(part, part.rows.ids % shards == number)
    expired = part.rows.expired[part.rows.expired % shards == number]
    rows = {name: getattr(mine.rows, name) for name in Rows.__dataclass_fields__}
    return TableDelta(Rows(**{**rows, "expired": expired}), mine.versions)


def test_readers_followers_and_folding_take_any_number_of_shards(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path, durable=False)
    writer = Writer(files, 1000, seed=6)
    tables = replica_tables()
    follower = Follower(files, tables)
    for shards in (3, 2, 3, 1, 4, 3):
        sharded(files, writer.publish(), shards)
        follower.pull()
        assert state_of(tables) == writer.history[follower.version]
    manifest = DeltaLog.resume(files, "form", 1000).newest
    assert manifest is not None
    for _ in range(2):
        for name, part in read_version(files, manifest).items():
            assert part.rows.ids.tobytes() == writer.tables[name].export().ids.tobytes()
        wanted = {name: table.export() for name, table in writer.tables.items()}
        check_exact(tmp_path, wanted, manifest.version)
        check_versions(tmp_path, files, manifest)
        DeltaLog.resume(files, "form", 1000).fold()
    late = replica_tables()
    Follower(files, late).pull()
    assert state_of(late) == state_of(writer.tables)


def test_a_large_base_is_in_parts_and_is_folded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "_PART_BYTES", 150)
    monkeypatch.setattr(compaction, "_DELTAS_AT_ONCE_BYTES", 300)
    files = LocalFiles(tmp_path, durable=False)
    writer = Writer(files, 5, seed=7)
    for _ in range(21):
        writer.publish()
        late = replica_tables()
        Follower(files, late).pull()
        assert state_of(late) == state_of(writer.tables)
    base = manifests.read_manifest(files, 20, base=True)
    assert len(base.shards) > 1
    for name, part in read_version(files, base).items():
        assert set(COLUMNS) <= set(Rows.__dataclass_fields__)
        assert part.rows.ids.tobytes() == np.sort(part.rows.ids).tobytes(), name


def test_stored_refs_tell_what_is_in_them() -> None:
    delta = {"item": TableDelta(make_rows([1, 2], [3], dim=2), np.array([1, 1]))}
    for precision in PRECISIONS:
        data, state = encode_rows(delta, precision), encode_state(delta, precision)
        assert decode_rows("rows", data)["item"].expired.tolist() == [3]
        back = decode("rows", data, "state", state)["item"].rows
        assert back.embeddings.tobytes() == delta["item"].rows.embeddings.tobytes()
        assert FileRef.of("x", data).size == len(data)
