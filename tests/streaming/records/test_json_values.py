"""Values in records are those that were scored: what docs/kafka.md says of them is what the config makes of raw ones."""

from __future__ import annotations

from math import log1p, sqrt
from typing import Any

import numpy as np
import pytest

from streaming.features.columns import Ragged
from streaming.features.given import raw_of_values
from streaming.features.ids import cross, text_id
from streaming.features.kinds import DenseFeature, Feature, SparseFeature
from streaming.features.transforms import derived, from_raw
from streaming.records.json_records import column_of_values

SERVED_AT = np.array([1_700_000_000_000])  # a Tuesday, 22:13:20
AGE = DenseFeature(kind="dense", column="c", transform="age", unit="ms")


def dense(transform: str) -> DenseFeature:
    return DenseFeature.model_validate({"kind": "dense", "column": "c", "transform": transform})


def listed(pool: str) -> SparseFeature:
    return SparseFeature.model_validate({"column": "c", "split": " ", "pool": pool})


@pytest.mark.parametrize(
    ("feature", "raw", "scored"),
    [
        (dense("log"), 1000, log1p(1000)),
        (dense("log"), -1, 0),
        (dense("sqrt"), 1000, sqrt(1000)),
        (dense("square"), 1000, 1000**2),
        (AGE, 1_699_999_990_000, 10),
        (AGE, 1_700_000_010_000, 0),
        (SparseFeature(column="c", bucket="log2"), 1000, 9),
        (listed("mean"), "i2 i1", ["i2", "i1"]),
        (listed("first"), "i2 i1", "i2"),
    ],
)
def test_a_value_that_was_scored_is_taken_as_it_is(feature: Feature, raw: Any, scored: Any) -> None:
    made, taken = from_raw(feature, raw_of_values(feature, [raw]), SERVED_AT), column_of_values("c", feature, [scored])
    if isinstance(made, Ragged):
        assert isinstance(taken, Ragged)
        made, taken = made.values, taken.values
    np.testing.assert_array_equal(made, taken)


def test_values_that_are_made_of_others() -> None:
    both = {"one": np.array([text_id("a")]), "other": np.array([text_id("b")])}
    for feature, scored in (
        (SparseFeature(time="hour"), 22),
        (SparseFeature(time="weekday"), 1),
        (SparseFeature(request="size"), 7),
        (SparseFeature(request="size", bucket="log2"), 3),
        (DenseFeature(kind="dense", request="size", transform="inverse", floor=1.0), 1 / np.float32(7)),
        (SparseFeature(cross=("one", "other")), int(cross(both["one"], both["other"])[0])),
    ):
        made = derived(feature, both, SERVED_AT, np.array([7]))
        np.testing.assert_array_equal(made, column_of_values("c", feature, [scored]))
