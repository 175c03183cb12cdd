"""Ids of examples."""

from __future__ import annotations

from itertools import product

import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st

from streaming.records.identity import example_id, ids_of, request_ids


def test_no_two_pairs_share_a_name() -> None:
    ids = ["a", "a/", "/a", "a/b", "b", "%", "%2F", "%252F", "a%2Fb", "é/"]
    names = {example_id(*pair): pair for pair in product(ids, ids)}
    assert len(names) == len(ids) ** 2
    assert all(name.partition("/")[2] == impression_id for name, (_, impression_id) in names.items())


def test_a_name_is_what_the_documentation_says() -> None:
    assert example_id("r1", "item7") == "r1/item7"
    assert example_id("50%/7", "a/b") == "50%25%2F7/a/b"


_IDS = st.text(max_size=8) | st.text(st.sampled_from("%/25F\n"), max_size=8)


@given(st.lists(st.tuples(_IDS, _IDS), max_size=10))
@example([("%2F", "a/b"), ("%252F", "\n/"), ("", ""), ("a\nb/%", "%2F")])
def test_a_name_gives_its_two_ids_back_one_by_one_and_as_a_column(pairs: list[tuple[str, str]]) -> None:
    names = [example_id(*pair) for pair in pairs]
    assert [ids_of(name) for name in names] == pairs
    assert request_ids(pa.array(names, pa.string())).to_pylist() == [request_id for request_id, _ in pairs]
