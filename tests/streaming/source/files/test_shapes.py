"""Own logs of every shape: patterns, folders, partitions, compressed parts, parts of other types."""

from __future__ import annotations

import gzip
import json
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from basis.problems import Problems
from streaming.features.ids import MISSING, as_ids
from streaming.records.events import decode_request
from streaming.records.json_records import pack_request
from streaming.source.files.contents import Contents
from streaming.source.files.find import FoundFile
from streaming.source.files.open import open_found
from streaming.source.rows import walk
from streaming.source.rows.rejects import Findings
from streaming.source.rows.walk import Walk, read
from streaming.source.settings import File
from tests.streaming.source.own_logs import FORMATS, NOW, T, features, ids, lists, load, rejects_of, source, write


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path, kind: str) -> None:
    for day, rows in (("2024-02-01", [3]), ("2024-01-31", [1, 2])):
        folder = tmp_path / f"log/day={day}"
        folder.mkdir(parents=True)
        write(folder / f"part-0.{kind}", [{"t": at, "item": f"i{at}"} for at in rows])
    (tmp_path / "log/_SUCCESS").write_bytes(b"")
    (tmp_path / "log/day=2024-02-01/.part-0.crc").write_bytes(b"crc")
    for file in ("log", f"log/day=*/part-*.{kind}", f"log/**/*.{kind}"):
        found = read(tmp_path, File(file=file), ["t", "item", "day"])
        assert [str(at) for at in found.table.column("t").to_pylist()] == ["1", "2", "3"]
        assert found.table.column("day").to_pylist() == ["2024-01-31", "2024-01-31", "2024-02-01"]
        line = "line 2" if kind == "csv" else "line 1"
        assert found.place(2) == (str(tmp_path / f"log/day=2024-02-01/part-0.{kind}"), line)


def test_a_partition_without_a_value_is_missing_and_others_are_unquoted(tmp_path: Path) -> None:
    for name in ("town=__HIVE_DEFAULT_PARTITION__", "town=S%C3%A3o Paulo%2F1"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a.jsonl", [{"t": 1}])
    found = read(tmp_path, File(file="*/a.jsonl"), ["t", "town"])
    assert sorted(found.table.column("town").to_pylist(), key=str) == [None, "São Paulo/1"]


def test_compressed_files(tmp_path: Path) -> None:
    row = {"t": 1, "item": "é"}
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress("t,item\n1,é\n".encode()))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode() + b"\n{\n"))
    with pa.CompressedOutputStream(str(tmp_path / "c.jsonl.zst"), "zstd") as out:
        out.write(b"\n" + json.dumps(row).encode() + b"\n3\n")
    pq.write_table(pa.table({"t": [1], "item": ["é"]}), tmp_path / "d.snappy.parquet", compression="snappy")
    for name in ("a.csv.gz", "b.jsonl.gz", "c.jsonl.zst", "d.snappy.parquet"):
        found = read(tmp_path, File(file=name), ["t", "item"])
        assert (found.table.column("item").to_pylist(), str(found.table.column("t")[0])) == (["é"], "1"), name
        assert [reject.place for reject in found.findings.rejects] == {"b": ["line 2"], "c": ["line 3"]}.get(
            name[0], []
        )
    found = read(tmp_path, File(file="[a-d].*"), ["t", "item"])
    assert found.table.column("item").to_pylist() == ["é"] * 4
    assert found.table.column("t").to_pylist() == ["1"] * 4, "where parts differ in type, texts"


@pytest.mark.parametrize("name", ["a[1].csv", "a*.csv", "a?.csv", "a'b.csv", 'a"b.csv', "a;b c.csv"])
def test_names_that_look_like_patterns_or_queries(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("t,it'em\n1,x\n")
    (tmp_path / "a1.csv").write_text("t,it'em\n2,y\n")
    found = read(tmp_path, File(file=name), ["t", "it'em"])
    assert found.table.column("it'em").to_pylist() == ["x"]


def test_nothing_there_is_said_with_the_pattern(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for file in ("day=*/part.csv", "empty"):
        with pytest.raises(Problems, match="no data file there"):
            read(tmp_path, File(file=file), ["t"])


def test_an_empty_part_is_passed_over_unless_all_are_empty(tmp_path: Path) -> None:
    """Writers leave them behind."""
    (tmp_path / "a.csv").write_bytes(b"")
    (tmp_path / "b.csv").write_text("t,item\n1,x\n")
    (tmp_path / "c.csv").write_text("t,item\n")
    assert read(tmp_path, File(file="*.csv"), ["t", "item"]).table.num_rows == 1
    (tmp_path / "b.csv").write_bytes(b"")
    (tmp_path / "c.csv").write_bytes(b"")
    with pytest.raises(Problems) as caught:
        read(tmp_path, File(file="*.csv"), ["t", "item"])
    assert [(Path(each.file).name, each.value) for each in caught.value.problems] == [
        ("a.csv", "0 bytes"),
        ("b.csv", "0 bytes"),
        ("c.csv", "0 bytes"),
    ]


def test_an_empty_part_of_compressed_lines_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "b.jsonl").write_text('{"t": 1}\n')
    assert read(tmp_path, File(file="*.jsonl*"), ["t"]).table.column("t").to_pylist() == [1]


@pytest.mark.parametrize("first", ["whole", "without"])
def test_what_a_part_lacks_is_missing_in_its_rows_and_what_all_lack_is_a_mistake(tmp_path: Path, first: str) -> None:
    """Spark's JSON leaves out what is null; columns come later."""
    parts = {"whole": '{"t": 1, "item": "x"}\n', "without": '{"t": 2}\n'}
    order = [first, *parts.keys() - {first}]
    for number, name in enumerate(order):
        (tmp_path / f"{number}.jsonl").write_text(parts[name])
    file, columns = File(file="*.jsonl"), ["t", "item", "price"]
    items = {"whole": "x", "without": None}
    found = read(tmp_path, file, columns)
    assert found.table.column("item").to_pylist() == [items[name] for name in order]
    assert {(each.place, each.value) for each in found.missing} == {("column price", "missing")}
    walked: list[str | None] = []
    some = Walk(tmp_path, file, columns[:2], Findings(whole=False), 1 << 28)
    some.take(lambda rows: walked.extend(rows.column("item").to_pylist()))
    assert walked == [items[name] for name in order]
    with pytest.raises(Problems, match="column price: missing"):
        Walk(tmp_path, file, columns, Findings(whole=False), 1 << 28).take(lambda rows: None)


@pytest.mark.parametrize(("column", "most"), [("item", 10), ("last", 19), ("typo", 19)])
def test_other_files_are_looked_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, most: int
) -> None:
    for number in range(10):
        (tmp_path / f"{number}.csv").write_text("t,item,last\n1,x,y\n" if number == 9 else "t,item\n1,x\n")
    opened: list[str] = []

    def noted(found: FoundFile, *args: Any, **options: Any) -> AbstractContextManager[Contents]:
        opened.append(found.name)
        return open_found(found, *args, **options)

    monkeypatch.setattr(walk, "open_found", noted)
    found = Walk(tmp_path, File(file="*.csv"), ["t", column], Findings(whole=False), 1 << 28)
    if column == "typo":
        with pytest.raises(Problems) as caught:
            found.take(lambda rows: None)
        assert [(Path(each.file).name, each.place) for each in caught.value.problems] == [("0.csv", "column typo")]
    else:
        found.take(lambda rows: None)
    assert len(opened) == most


def test_values_mean_the_same_where_parts_have_other_types(tmp_path: Path) -> None:
    parts = [
        pa.array([17, None], pa.int64()),
        pa.array([17.0, float("nan")]),
        pa.array(["17", None]),
        pa.array([Decimal(17), None]),
        pa.array([None, None]),
    ]
    for number, values in enumerate(parts):
        pq.write_table(pa.table({"id": values}), tmp_path / f"part-{number}.parquet")
    ids, broken = as_ids(read(tmp_path, File(file="part-*.parquet"), ["id"]).column("id"))
    assert broken is None
    missing = as_ids(pa.array([None]))[0].tolist()
    assert ids.reshape(5, 2).tolist() == [[17, *missing]] * 4 + [[*missing, *missing]]


def test_types_that_writers_leave_in_parquet(tmp_path: Path) -> None:
    at = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    columns = {
        "t": pa.array([at, at], pa.timestamp("us", "Europe/Berlin")),
        "user": pa.array(["u", "u"]).dictionary_encode(),
        "item": pa.array([Decimal("12"), None], pa.decimal128(20, 0)),
        "tags": pa.array([[1, 2], [3, 4]], pa.list_(pa.uint64(), 2)),
        "price": pa.array([Decimal("1.50"), None], pa.decimal128(10, 2)),
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet", use_deprecated_int96_timestamps=True)
    wanted = features(
        user={"column": "user"},
        item={"column": "item"},
        tags={"column": "tags", "pool": "mean"},
        price={"kind": "dense", "column": "price"},
    )
    events = load(tmp_path, source("parquet", actions={"seen": {}}), wanted, NOW)
    assert events.served_at.tolist() == [int(at.timestamp() * 1000)]
    assert np.asarray(events.features["item"]).tolist()[0] == 12
    assert lists(events.features["tags"]) == [[1, 2], [3, 4]]
    assert np.asarray(events.features["price"]).tolist() == [1.5, 0]


def test_texts_and_lists_of_parquet_come_in_one_type_each(tmp_path: Path) -> None:
    """What reads columns knows no others: not dictionaries, nor large ones, nor views, nor lists of one size."""
    texts, number_lists = ["a", None, "b"], [[1, 2], None, [3, 4]]
    columns = {
        "dictionary": pa.array(texts).dictionary_encode(),
        "large": pa.array(texts, pa.large_string()),
        "view": pa.array(texts, pa.string_view()),
        "large list": pa.array([texts, None, []], pa.large_list(pa.large_string())),
        "list of dictionary": pa.array([texts, None, []], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        "list of one size": pa.array(number_lists, pa.list_(pa.int32(), 2)),
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    found = read(tmp_path, File(file="log.parquet"), list(columns)).table
    kinds = [pa.string()] * 3 + [pa.list_(pa.string())] * 2 + [pa.list_(pa.int32())]
    for (name, values), kind in zip(columns.items(), kinds, strict=True):
        assert found.column(name).type == kind, name
        assert found.column(name).to_pylist() == values.to_pylist(), name


@pytest.mark.parametrize("kind", FORMATS)
def test_an_id_beyond_64_bits_is_told_and_missing(tmp_path: Path, kind: str) -> None:
    """It has no id, so it must not get that of another."""
    if kind == "parquet":
        table = pa.table({"t": [T, T], "user": [1, 1], "item": pa.array([2**63 + 5, 7], pa.uint64())})
        pq.write_table(table, tmp_path / "log.parquet")
    else:
        rows = [{"t": T, "user": 1, "item": 2**63 + 5}, {"t": T, "user": 1, "item": 7}]
        write(tmp_path / f"log.{kind}", rows)
    events = load(tmp_path, source(kind, actions={"seen": {}}), features(), NOW)
    ((place, value, reason),) = rejects_of(events)
    assert (place, reason) == (f"line {2 if kind == 'csv' else 1}, column item", "malformed")
    assert str(2**63 + 5) in value
    assert np.asarray(events.features["item"]).tolist() == [MISSING, 7]


def test_of_a_key_twice_the_last_counts_as_in_records(tmp_path: Path) -> None:
    lines = [
        f'{{"t": {T}, "user": 1, "item": "first", "no": "x", "item": "se\\"cond"}}',
        f'{{"t": {T}, "user": 1, "item": "one", "Item": "another"}}',
        "[1]",
        f'{{"item": [1], "t": {T}, "user": 1, "item": null, "item": "third"}}',
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    events = load(tmp_path, source("jsonl", actions={"seen": {}}), features(), NOW)
    assert np.asarray(events.features["item"]).tolist() == ids('se"cond', "one", "third")
    assert [place for place, _, _ in rejects_of(events)] == ["line 3"]
    request = {"version": 1, "request_id": "r", "served_at": T, "impression_ids": ["a"]}
    record = json.dumps(request)[:-1] + ', "features": {"item": ["first"], "item": ["second"]}}'
    packed = decode_request(pack_request(record.encode(), features()), NOW)
    assert np.frombuffer(packed.features["item"], "<i8").tolist() == ids("second")
