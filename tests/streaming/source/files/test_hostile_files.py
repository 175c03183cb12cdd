"""Files that look like others, or like less than they are: no value is silently another, and no end is taken for the end."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from basis.problems import Problems
from streaming.features.ids import MISSING, as_ids
from streaming.source.load import load
from streaming.source.rows.walk import read
from streaming.source.settings import File, SourceSettings
from tests.streaming.source.own_logs import FORMATS, NOW, T, features, write


@pytest.mark.parametrize("kind", FORMATS)
def test_folders_above_the_logs_are_no_columns(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "a=5" / "logs"
    folder.mkdir(parents=True)
    write(folder / f"log.{kind}", [{"a": 1, "b": 2}])
    found = read(folder, File(file=f"log.{kind}"), ["a", "b"])
    assert [str(found.table.column(name)[0]) for name in ("a", "b")] == ["1", "2"]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_gives_a_column_that_its_files_lack(tmp_path: Path, kind: str) -> None:
    """Names as they may be: of a day whose exact times are in the files, or of what a reader takes for an option of its own."""
    for folder in ("a=5", "json=1"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / f"log.{kind}", [{"a": 1, "b": 2}])
    found = read(tmp_path, File(file=f"*/log.{kind}"), ["b", "a"]).table.to_pydict()
    assert {name: list(map(str, values)) for name, values in found.items()} == {"b": ["2", "2"], "a": ["1", "1"]}
    json = read(tmp_path, File(file=f"json=1/log.{kind}"), ["b", "json"]).table.to_pydict()
    assert (str(json["b"][0]), json["json"]) == ("2", ["1"])


@pytest.mark.parametrize("kind", FORMATS)
def test_names_that_differ_in_case_only(tmp_path: Path, kind: str) -> None:
    rows = [{"a": 1, "A": 2, "a_1": 3, "found": 4, "json": 5, "whole": 6, "select": 7, "q\"u'o.te": 8, "value": 9}]
    if kind == "parquet":
        (row,) = rows
        pq.write_table(pa.Table.from_arrays([pa.array([v]) for v in row.values()], list(row)), tmp_path / "log.parquet")
    else:
        write(tmp_path / f"log.{kind}", rows)
    for names in (list(rows[0]), ["A"], ["a"], ["value", "A", "a"]):
        found = read(tmp_path, File(file=f"log.{kind}"), names)
        assert [str(found.table.column(each)[0]) for each in names] == [str(rows[0][each]) for each in names]
        assert found.table.column_names == names


def test_a_header_with_blanks_and_the_same_name_again(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,a,a 1,,b\n1,2,3,4,5\n")
    found = read(tmp_path, File(file="log.csv"), ["b", "a 1", ""])
    assert found.table.to_pydict() == {"b": ["5"], "a 1": ["3"], "": ["4"]}
    with pytest.raises(Problems, match="column a: is given twice"):
        raise Problems(read(tmp_path, File(file="log.csv"), ["a"]).missing)


@pytest.mark.parametrize("text", ["\na,b\n1,2\n", ",\n1,2\n"])
def test_a_blank_first_line_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(Problems, match="line 1: blank; allowed: the names of the columns"):
        read(tmp_path, File(file="log.csv"), ["a"])


DAMAGES = [("gz", "cut"), ("zst", "cut"), ("gz", "flipped"), ("gz", "not compressed"), ("zst", "not compressed")]
"""Not a flipped byte in zstd, which Arrow writes without a checksum."""


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(("codec", "damage"), DAMAGES)
def test_a_damaged_compressed_file_is_refused_whole(tmp_path: Path, kind: str, codec: str, damage: str) -> None:
    """What is left of it reads like a whole file, so nobody would notice."""
    rows = [{"t": at, "item": f"item {at * 7919 % 1000}"} for at in range(20_000)]
    write(tmp_path / f"log.{kind}", rows)
    plain = (tmp_path / f"log.{kind}").read_bytes()
    path = tmp_path / f"log.{kind}.{codec}"
    if codec == "gz":
        path.write_bytes(gzip.compress(plain))
    else:
        with pa.CompressedOutputStream(str(path), "zstd") as out:
            out.write(plain)
    whole = path.read_bytes()
    file = File(file=path.name)
    assert read(tmp_path, file, ["t", "item"]).table.num_rows == len(rows)
    cut = whole[: len(whole) // 2]
    flipped = bytes(byte ^ 255 if at == len(whole) - 6 else byte for at, byte in enumerate(whole))
    path.write_bytes({"cut": cut, "flipped": flipped, "not compressed": plain}[damage])
    with pytest.raises(Problems, match="whole compressed file"):
        read(tmp_path, file, ["t", "item"])


def test_several_members_of_gzip_are_one_file_and_parquet_may_be_in_one(tmp_path: Path) -> None:
    lines = [json.dumps({"t": at}).encode() + b"\n" for at in range(4)]
    (tmp_path / "log.jsonl.gz").write_bytes(b"".join(map(gzip.compress, lines)))
    assert read(tmp_path, File(file="log.jsonl.gz"), ["t"]).table.column("t").to_pylist() == [0, 1, 2, 3]
    pq.write_table(pa.table({"t": [1, 2]}), tmp_path / "log.parquet")
    (tmp_path / "log.parquet.gz").write_bytes(gzip.compress((tmp_path / "log.parquet").read_bytes()))
    assert read(tmp_path, File(file="log.parquet.gz"), ["t"]).table.column("t").to_pylist() == [1, 2]


def test_a_large_file_with_line_breaks_in_quotes_has_the_rows_that_it_has(tmp_path: Path) -> None:
    """DuckDB's parallel reader may begin within quotes, where a line looks like a row."""
    text = '"a\n1706745600000,x\nb"'
    (tmp_path / "log.csv").write_text("t,text\n" + "".join(f"{at},{text}\n" for at in range(300_000)))
    found = read(tmp_path, File(file="log.csv"), ["t", "text"])
    assert not found.findings.rejects
    assert found.table.column("t").to_pylist() == [str(at) for at in range(300_000)]


@pytest.mark.parametrize("end", ["", "\n"])
def test_blank_lines_of_one_column_are_missing_values_with_lines_of_their_own(tmp_path: Path, end: str) -> None:
    (tmp_path / "log.csv").write_text(f"t\n1\n\n2{end}")
    found = read(tmp_path, File(file="log.csv"), ["t"])
    assert found.table.column("t").to_pylist() == ["1", None, "2"]
    assert [found.place(at)[1] for at in range(3)] == ["line 2", "line 3", "line 4"]


@pytest.mark.parametrize("pattern", ["**x.csv", "/somewhere/*.csv", "/somewhere/else.csv"])
def test_patterns_that_are_none_are_mistakes(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(Problems, match="allowed: "):
        read(tmp_path, File(file=pattern), ["t"])


def test_files_beside_the_folder_of_the_logs_are_found(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "more").mkdir()
    write(tmp_path / "more" / "log.csv", [{"t": 1}])
    for file in ("../more/*.csv", "../more/log.csv", str(tmp_path / "more" / "log.csv")):
        assert read(tmp_path / "logs", File(file=file), ["t"]).table.num_rows == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1]), pa.array([[1]])),
        (pa.array([1]), pa.array([{"a": 1}])),
        (pa.array(["a"]), pa.array([b"\xff"])),
    ],
)
def test_parts_whose_columns_cannot_be_one_are_told(tmp_path: Path, one: pa.Array, other: pa.Array) -> None:
    for number, values in enumerate((one, other)):
        pq.write_table(pa.table({"t": values}), tmp_path / f"part-{number}.parquet")
    with pytest.raises(Problems, match=r"column t: .* and .*; allowed: one type in all files"):
        read(tmp_path, File(file="part-*.parquet"), ["t"])


def test_numbers_of_several_types_have_one_id(tmp_path: Path) -> None:
    """Arrow writes 12345678901.0 as 1.2345678901e+10."""
    large = 12_345_678_901
    parts = [
        pa.array([large, 17, None]),
        pa.array([float(large), 17.0, float("nan")]),
        pa.array([Decimal(large), Decimal(17), None], pa.decimal128(14, 2)),
        pa.array([Decimal(large), Decimal(17), None], pa.decimal128(15, 3)),
    ]
    for number, values in enumerate(parts):
        lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), values)
        pq.write_table(pa.table({"id": values, "ids": lists}), tmp_path / f"part-{number}.parquet")
    found = read(tmp_path, File(file="part-*.parquet"), ["id", "ids"])
    for ids, broken in (as_ids(found.column("id")), as_ids(found.column("ids").flatten())):
        assert broken is None
        assert ids.reshape(4, 3).tolist() == [[large, 17, MISSING]] * 4


SINGLE = [{"t": T + at, "item": "a", "v": [1, 2], "c": 0} for at in range(20)]


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"item": {"id": 1}}, "column item: an object; allowed: a single value, as in most rows"),
        ({"item": ["a"]}, "column item: a list; allowed: a single value, as in most rows"),
        ({"c": {}}, "column c: an object; allowed: a single value, as in most rows"),
        ({"t": [T]}, "column t: a list; allowed: a single value, as in most rows"),
        ({"v": 5}, "column v: a single value; allowed: a list, as in most rows"),
        ({"v": {"x": 1}}, "column v: an object; allowed: a list, as in most rows"),
        ({"v": [[1], 2]}, "column v: a list or an object within a list; allowed: a list, as in most rows"),
        ({"v": [1]}, "not a list of 2 numbers"),
        ({"v": [1, "x"]}, "not a list of 2 numbers"),
    ],
    ids=str,
)
def test_a_json_value_of_another_shape_costs_only_its_row(tmp_path: Path, odd: dict[str, Any], said: str) -> None:
    rows: list[Any] = [*SINGLE[:6], SINGLE[6] | odd, *SINGLE[7:], {**SINGLE[0], "item": None, "v": None}]
    (tmp_path / "log.jsonl").write_text("\n" + "".join(json.dumps(row) + "\n" for row in [*rows, [1]]))
    settings = SourceSettings.model_validate(
        {
            "dir": ".",
            "impressions": {"file": "log.jsonl", "time": {"column": "t"}},
            "actions": {"click": {"when": "c"}},
        }
    )
    wanted = features(item={"column": "item"}, v={"kind": "vector", "column": "v", "size": 2})
    events = load(tmp_path, settings, wanted, NOW)
    is_of_values = said.startswith("not")
    assert events.impressions == 20 + is_of_values
    found = {reject.detail: reject.place for reject in events.rejects}
    assert found == {
        said: "line 8, column v" if is_of_values else "line 8",
        "Expected `object`, got `array`": "line 23",
    }


def test_a_column_of_no_usable_shape_is_wrong_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl", [{"a": {"id": 1}}, {"a": {"id": 2}}, {"a": 3}])
    with pytest.raises(Problems, match="column a: an object; allowed: numbers, texts, or lists of them"):
        read(tmp_path, File(file="log.jsonl"), ["a"])
