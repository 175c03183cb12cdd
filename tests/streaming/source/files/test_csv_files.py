"""CSV files as others write them: line breaks in quotes, and errors whose reason is told whole."""

from __future__ import annotations

import csv
import gzip
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basis.problems import Problems
from streaming.source.rows.walk import read
from streaming.source.settings import File

FILE = File(file="log.csv")


def test_line_breaks_in_quotes_are_text_however_large_the_file(tmp_path: Path) -> None:
    """Arrow reads a file in blocks of 1 MB, which may end within quotes."""
    texts = ["word\n" * (at % 23) for at in range(40_000)]
    rows = "".join(f'{at},"{text}"\n' for at, text in enumerate(texts))
    (tmp_path / "log.csv").write_text(f"t,text\n{rows}")
    found = read(tmp_path, FILE, ["t", "text"])
    assert found.table.column("text").to_pylist() == texts
    assert not found.findings.rejects


def test_a_row_that_is_no_utf8_is_refused_alone(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"t,town\n" + b"1,Rome\n" * 250 + "2,Orléans\n".encode("latin-1") + b"3,Nice\n")
    found = read(tmp_path, FILE, ["t", "town"])
    assert found.table.column("town").to_pylist() == ["Rome"] * 250 + ["Nice"]
    ((_, place, _, reason, detail),) = found.findings.rejects
    assert (place, reason) == ("line 252", "malformed")
    assert detail == "not in UTF-8; encoding: names another, such as latin-1"


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8"])
@pytest.mark.parametrize("compressed", [False, True])
def test_other_encodings_are_read_as_they_are_named(tmp_path: Path, encoding: str, compressed: bool) -> None:
    text = 't,town\n1,"Orl\n\néans"\n2,Nîmes,x\n3,Rome\n'.encode(encoding)
    name = "log.csv.gz" if compressed else "log.csv"
    (tmp_path / name).write_bytes(gzip.compress(text) if compressed else text)
    found = read(tmp_path, File(file=name, encoding=encoding), ["t", "town"])
    assert found.table.column("town").to_pylist() == ["Orl\n\néans", "Rome"]
    assert [(reject.place, reject.detail) for reject in found.findings.rejects] == [("line 5", "3 columns, 2 expected")]
    assert found.place(1) == (str(tmp_path / name), "line 6")


@pytest.mark.parametrize("name", ["klingon", "base64"])
def test_an_encoding_that_is_none_is_a_mistake(name: str) -> None:
    with pytest.raises(ValueError, match=r"allowed: utf-8, latin-1"):
        File(file="log.csv", encoding=name)


def test_a_row_that_is_too_long_to_read_is_refused_alone(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text('t,text\n1,"' + "word\n" * 500_000 + '"\n2,x\n3\n')
    found = read(tmp_path, FILE, ["t", "text"])
    assert found.table.column("t").to_pylist() == ["2"]
    assert [reject.place for reject in found.findings.rejects] == ["line 2", "line 500004"]
    assert "2000000 bytes" in found.findings.rejects[0].detail
    assert found.place(0)[1] == "line 500003"


def test_a_quote_without_its_end_costs_what_it_holds_and_says_where_it_begins(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text('t,text\n1,x\n2,"open\n3,y\n4,z\n')
    found = read(tmp_path, FILE, ["t", "text"])
    assert found.table.column("t").to_pylist() == ["1"]
    assert [(reject.place, reject.detail) for reject in found.findings.rejects] == [
        ("line 3", "a quote without its end")
    ]
    assert found.place(0)[1] == "line 2"


def test_an_odd_quote_within_a_row_is_text(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text('t,text\n1,a 3.5" disk\n2,"x"\n3,y\n')
    found = read(tmp_path, FILE, ["t", "text"])
    assert found.table.column("text").to_pylist() == ['a 3.5" disk', "x", "y"]
    assert not found.findings.rejects
    assert [found.place(at)[1] for at in range(3)] == ["line 2", "line 3", "line 4"]


@pytest.mark.parametrize("text", ["t,text\n1,x\r\n2,y\r\n3\n", "t,text\r\n1,x\n2,y\n3\r\n", "t,text\r1,x\r2,y\r3"])
def test_line_ends_of_every_system_even_in_one_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.csv").write_bytes(text.encode())
    found = read(tmp_path, FILE, ["t", "text"])
    assert found.table.to_pydict() == {"t": ["1", "2"], "text": ["x", "y"]}
    assert [(reject.place, reject.detail) for reject in found.findings.rejects] == [("line 4", "1 columns, 2 expected")]
    assert found.place(1)[1] == "line 3"


def test_a_file_without_a_header_has_the_columns_that_are_named(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("1,x\n\n2,y,z\n3,\n")
    found = read(tmp_path, File(file="log.csv", columns=["t", "text"]), ["t", "text"])
    assert found.table.to_pydict() == {"t": ["1", "3"], "text": ["x", None]}
    assert [reject.place for reject in found.findings.rejects] == ["line 3"]
    assert found.place(1)[1] == "line 4"


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_row_knows_its_line(data: st.DataObject) -> None:
    """Whatever is in quotes, and whatever is broken beside it."""
    texts = st.text("ab,\n\"'é ", max_size=4)
    kinds = data.draw(st.lists(st.sampled_from(["good", "good", "narrow", "wide", "blank", "not utf-8"]), max_size=12))
    out, line = [b"t,text,u\n"], 2
    good, broken = [], []
    for number, kind in enumerate(kinds):
        text = data.draw(texts)
        quoted = '"' + text.replace('"', '""') + '"'
        others = {"narrow": f"{number},{quoted}", "wide": f"{number},{quoted},1,2", "blank": ""}
        out.append(
            b"%d,\xff,1\n" % number if kind == "not utf-8" else f"{others.get(kind, f'{number},{quoted},1')}\n".encode()
        )
        if kind == "good":
            good.append((str(number), text, f"line {line}"))
        elif kind != "blank":
            broken.append(f"line {line}")
        line += 1 + (text.count("\n") if kind in ("good", "narrow", "wide") else 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "log.csv").write_bytes(b"".join(out))
        if not good:
            with pytest.raises(Problems):
                read(folder, FILE, ["t", "text"])
            return
        found = read(folder, FILE, ["t", "text"])
        columns = found.table.to_pydict()
        places = [found.place(at)[1] for at in range(found.table.num_rows)]
        assert list(zip(columns["t"], columns["text"], places, strict=True)) == good
        assert [reject.place for reject in found.findings.rejects] == broken


def test_a_stray_quote_hides_no_open_one(tmp_path: Path) -> None:
    rows = [f'{at},5" screen' if at == 10 else f'{at},"open' if at == 500 else f"{at},x" for at in range(1000)]
    (tmp_path / "log.csv").write_text("t,text\n" + "\n".join(rows) + "\n")
    found = read(tmp_path, FILE, ["t", "text"])
    assert found.table.column("t").to_pylist() == [str(at) for at in range(500)]
    ((_, place, _, _, detail),) = found.findings.rejects
    assert (place, detail) == ("line 502", "a quote without its end")


def test_a_last_row_with_a_stray_quote_is_used_once(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text('t,text\n1,a\n2,5" screen\n')
    found = read(tmp_path, FILE, ["t", "text"])
    assert found.table.to_pydict() == {"t": ["1", "2"], "text": ["a", '5" screen']}
    assert not found.findings.rejects


def test_quotes_after_which_rows_would_vanish_are_told(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text('t,text\n1,"" "",\n2,"" """,\n3,x\n4,y\n')
    with pytest.raises(Problems, match=r"rows: . of 5 are read; allowed: quotes around whole values"):
        read(tmp_path, FILE, ["t", "text"])


@given(
    st.lists(st.lists(st.sampled_from(["a", '5"', 'a"b"', '"a"', '"a""b"', '"a\n\nb"', '"a,b"', '"a"b']), max_size=3)),
    st.sampled_from(["", '9,"open', '9,"open\n8,x\n\n', '9,"a""', '9,"a"', '9,5"', '9,"']),
)
@settings(max_examples=80, deadline=None)
def test_rows_are_those_that_python_finds(fields: list[list[str]], last: str) -> None:
    """Each is read or refused with its line, whatever stray quotes stand before one without its end."""
    text = (
        "t,text\n1,\n" + "".join(f"{at},{','.join(each)}\n" if each else "\n" for at, each in enumerate(fields)) + last
    )
    reader = csv.reader(io.StringIO(text, newline=""))
    rows, begin = {}, 1
    for row in reader:
        if row:
            rows[f"line {begin}"] = [row[0], row[1] or None, *row[2:]]
        begin = reader.line_num + 1
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "log.csv").write_text(text)
        found = read(Path(name), FILE, ["t", "text"])
        columns = found.table.to_pydict()
        good = {found.place(at)[1]: [columns["t"][at], columns["text"][at]] for at in range(found.table.num_rows)}
        refused = [reject.place for reject in found.findings.rejects]
    assert sorted([*good, *refused]) == sorted(set(rows) - {"line 1"})
    assert all(rows[line] == row for line, row in good.items())
