"""Ids in JSON are the same whichever way they become a column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streaming.features.columns import Ragged
from streaming.features.ids import MISSING, text_id
from streaming.features.kinds import DenseFeature, SparseFeature, VectorFeature
from streaming.records.events import BadRecord
from streaming.records.json_records import column_of_values

ITEM = SparseFeature(column="item")
TAGS = SparseFeature(column="tags", pool="mean")


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 3],
        [2**63 - 1, -(2**63)],
        [1, 2.0],
        [2.0, 1],
        [1, None],
        [None, None],
        [None],
        ["a", "b", "a"],
        ["1"],
        [True],
        [True, 5, "x"],
        [12, "x", None, 17.0],
        [2**53 + 1, 1.0],
        [],
    ],
    ids=str,
)
def test_an_id_does_not_depend_on_what_stands_beside_it(values: list[Any]) -> None:
    column = column_of_values("item", ITEM, values)
    assert isinstance(column, np.ndarray) and column.dtype == np.int64
    assert column.tolist() == [MISSING if value is None else text_id(str(value)) for value in values]
    tags = column_of_values("tags", TAGS, [values, [], values])
    assert isinstance(tags, Ragged)
    assert tags.values.tolist() == column.tolist() * 2
    assert tags.offsets.tolist() == [0, len(values), len(values), 2 * len(values)]


def test_a_missing_list_is_empty_and_a_missing_number_0() -> None:
    tags = column_of_values("tags", TAGS, [None, ["a"], [None]])
    assert isinstance(tags, Ragged)
    assert (tags.offsets.tolist(), tags.values.tolist()) == ([0, 0, 1, 2], [text_id("a"), MISSING])
    assert column_of_values("price", DenseFeature(kind="dense", column="price"), [None, 2, "3.5"]).tolist() == [
        0,
        2,
        3.5,
    ]  # type: ignore[union-attr]
    vectors = column_of_values("v", VectorFeature(kind="vector", column="v", size=2), [None, [1, None]])
    assert vectors.tolist() == [[0, 0], [1, 0]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "values",
    [
        [1, 2.5],
        [2.5, "a"],
        [1, [2]],
        [{}],
        [{}, 1],
        [b"a"],
        [b"a", 1],
        [2**63, 1],
        [10**40, "a"],
        [1e19, "a"],
        ["1", str(2**64)],
    ],
    ids=str,
)
def test_what_is_no_id_is_named(values: list[Any]) -> None:
    with pytest.raises(BadRecord, match="feature item"):
        column_of_values("item", ITEM, values)
