"""Ids of examples."""

from __future__ import annotations

from itertools import product

from streaming.records.identity import example_id


def test_no_two_pairs_share_a_name() -> None:
    ids = ["a", "a/", "/a", "a/b", "b", "%", "%2F", "%252F", "a%2Fb", "é/"]
    names = {example_id(*pair): pair for pair in product(ids, ids)}
    assert len(names) == len(ids) ** 2
    assert all(name.partition("/")[2] == impression_id for name, (_, impression_id) in names.items())


def test_a_name_is_what_the_documentation_says() -> None:
    assert example_id("r1", "item7") == "r1/item7"
    assert example_id("50%/7", "a/b") == "50%25%2F7/a/b"
