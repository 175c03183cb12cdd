"""Ids in JSON are the same whichever way they become a column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streaming.events import BadRecord
from streaming.features import SparseFeature
from streaming.ids import ids_of
from streaming.json_records import column_of_values

ITEM = SparseFeature(column="item")


@pytest.mark.parametrize(
    "values",
    [[1, 2, 3], [2**63 - 1, -(2**63)], [1, 2.0], [2.0, 1], [1, None], ["a", "b", "a"], ["1"], [True], []],
    ids=str,
)
def test_ids_of_any_kind(values: list[Any]) -> None:
    column = column_of_values("item", ITEM, values)
    assert isinstance(column, np.ndarray) and column.dtype == np.int64
    assert column.tolist() == ids_of(pa.array(values, None if values else pa.int64())).tolist()


@pytest.mark.parametrize("values", [[2**64], [2**63, 1], [1, 2.5], [1, "a"], [1, [2]], [{}]], ids=str)
def test_what_is_no_id_is_named(values: list[Any]) -> None:
    with pytest.raises(BadRecord, match="feature item"):
        column_of_values("item", ITEM, values)
