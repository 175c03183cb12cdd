"""Side tables whose key has several columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.features.ids import MISSING, text_id
from streaming.source.rows.side_tables import SideTable
from streaming.source.rows.walk import read
from streaming.source.settings import File
from tests.streaming.source.own_logs import FORMATS, Row, T, features, ids, load_rows, problems_of, source, write

PRICES: list[Row] = [
    {"market": "de", "item": 17, "price": 1.0, "brand": "a"},
    {"market": "fr", "item": 17, "price": 2.0, "brand": "b"},
    {"market": "de", "item": 18, "price": 3.0, "brand": None},
    {"market": None, "item": 18, "price": 4.0, "brand": "nobody's"},
]
WANTED = features(
    price={"kind": "dense", "column": "price", "side": "prices"}, brand={"column": "brand", "side": "prices"}
)


def shown(*pairs: tuple[Any, Any]) -> list[Row]:
    return [
        {"t": T + at, "user": 1, "click": 0, "rating": None, "wait": None, "market": market, "item": item}
        for at, (market, item) in enumerate(pairs)
    ]


def sides(kind: str, **changes: Any) -> Row:
    return {"prices": {"file": f"prices.{kind}", "key": ["market", "item"], **changes}}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_row_is_found_by_all_columns_of_its_key(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"prices.{kind}", PRICES)
    rows = shown(("fr", 17), ("de", 17), ("de", 18), ("fr", 18), ("de", None), (None, 18), ("de", 19))
    events = load_rows(tmp_path, kind, rows, WANTED, sides=sides(kind))
    assert np.asarray(events.features["price"]).tolist() == [2, 1, 3, 0, 0, 0, 0]
    assert np.asarray(events.features["brand"]).tolist() == ids("b", "a", None, None, None, None, None)
    assert events.matched == {"prices": pytest.approx(3 / 7)}


@pytest.mark.parametrize("written", [17, 17.0, "17", "17.0"])
def test_each_column_is_compared_by_id_and_may_have_another_name(tmp_path: Path, written: Any) -> None:
    write(tmp_path / "prices.jsonl", PRICES)
    rows = [{"sku": row.pop("item"), "land": row.pop("market"), **row} for row in shown(("fr", written))]
    events = load_rows(tmp_path, "jsonl", rows, WANTED, sides=sides("jsonl", on=["land", "sku"]))
    assert np.asarray(events.features["price"]).tolist() == [2]


def test_a_list_of_one_column_is_that_column() -> None:
    alone, listed = (source("csv", sides={"s": {"file": "s.csv", "key": key}}) for key in ("id", ["id"]))
    assert alone == listed


def test_as_many_columns_on_both_sides() -> None:
    for on in ("market", ["market", "item", "day"]):
        with pytest.raises(ValueError, match="allowed: 2, one for each of key"):
            source("csv", sides=sides("csv", on=on))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_pair_that_stands_there_twice(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"prices.{kind}", [*PRICES, PRICES[1], PRICES[3]])
    write(tmp_path / f"log.{kind}", shown(("de", 17)))
    ((file, place, value, allowed),) = problems_of(tmp_path, source(kind, sides=sides(kind)), WANTED)
    assert (Path(file).name, place) == (f"prices.{kind}", "column market+item")
    assert value in ("'fr', 17", "'fr', '17'")
    assert "one row per key" in allowed, "a key with a part missing is none"


def test_keys_of_which_none_is_there(tmp_path: Path) -> None:
    write(tmp_path / "prices.csv", PRICES)
    write(tmp_path / "log.csv", shown(("es", 17), ("de", 99)))
    ((_, place, value, allowed),) = problems_of(tmp_path, source("csv", sides=sides("csv")), WANTED)
    assert (place, value) == ("column market+item", "'es', '17'")
    assert "none is a key of" in allowed


def test_a_column_of_the_key_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path / "prices.csv", [{"market": "de", "price": 1.0, "brand": "a"}])
    write(tmp_path / "log.csv", shown(("de", 17)))
    found = problems_of(tmp_path, source("csv", sides=sides("csv")), WANTED)
    assert [(Path(file).name, place, value) for file, place, value, _ in found] == [
        ("prices.csv", "column item", "missing")
    ]


texts = st.text(st.sampled_from("a/\\,|0"), min_size=1, max_size=3)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=20)


@given(pairs, pairs)
@settings(max_examples=100, deadline=None)
def test_no_two_pairs_share_a_row(
    tmp_path_factory: pytest.TempPathFactory, there: list[tuple[str, str]], asked: list[tuple[str, str]]
) -> None:
    """Texts that would be equal when joined, such as ("a/", "a") and ("a", "/a")."""
    there = list(dict.fromkeys(there))
    folder = tmp_path_factory.mktemp("pairs")
    write(folder / "pairs.jsonl", [{"a": a, "b": b, "price": at} for at, (a, b) in enumerate(there)])
    rows = read(folder, File(file="pairs.jsonl"), ["a", "b", "price"])
    table = SideTable(rows, ["a", "b"], {})
    asked = [*asked, *there]
    found = table.find([np.array([text_id(pair[at]) for pair in asked]) for at in (0, 1)])
    assert found.tolist() == [there.index(pair) if pair in there else -1 for pair in asked]


def test_parts_of_a_key_whose_sums_and_mixtures_are_equal(tmp_path: Path) -> None:
    """Ids of zeros, and of bytes that end in zeros, are keys as any other."""
    numbers = [0, 1, -1, 256, 1 << 56, -(1 << 63), (1 << 63) - 1]
    there = [(a, b) for a in numbers for b in numbers]
    write(tmp_path / "pairs.parquet", [{"a": a, "b": b} for a, b in there])
    table = SideTable(read(tmp_path, File(file="pairs.parquet"), ["a", "b"]), ["a", "b"], {})
    a, b = (np.array([pair[at] for pair in there]) for at in (0, 1))
    assert table.find([a, b]).tolist() == list(range(len(there)))
    assert table.find([np.array([1]), b]).tolist() == [there.index((1, each)) for each in b.tolist()], "one for all"
    assert table.find([np.array([MISSING]), b]).tolist() == [-1] * len(there)
