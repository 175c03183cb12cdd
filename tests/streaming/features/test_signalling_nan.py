"""A signalling NaN, which msgpack and Parquet carry as it is, is missing like any NaN. Warnings are errors in tests."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from streaming.features.columns import Ragged
from streaming.features.given import raw_of_values
from streaming.features.ids import MISSING, as_ids
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.features.transforms import from_raw

SIGNALLING = np.array([0x7FF0000000000001], np.uint64).view(np.float64)


@pytest.mark.parametrize("count", [1, 9])
def test_it_has_the_id_of_a_missing_value(count: int) -> None:
    found, broken = as_ids(pa.array(np.repeat(SIGNALLING, count)))
    assert broken is None and found.tolist() == [MISSING] * count


@pytest.mark.parametrize(
    "feature",
    [
        SparseFeature(column="x"),
        SparseFeature(column="x", pool="first"),
        SparseFeature(column="x", pool="mean"),
        SparseFeature(column="x", bucket="log2"),
        DenseFeature(kind="dense", column="x"),
        DenseFeature(kind="dense", column="x", transform="log"),
        DenseFeature(kind="dense", column="x", transform="square"),
        DenseFeature(kind="dense", column="x", transform="inverse", floor=0.1),
        DenseFeature(kind="dense", column="x", transform="age"),
        VectorFeature(kind="vector", column="x", size=1),
    ],
    ids=repr,
)
def test_a_feature_of_it_is_that_of_any_nan(feature: Feature) -> None:
    def made(number: float) -> list[object]:
        is_list = isinstance(feature, VectorFeature) or (
            isinstance(feature, SparseFeature) and feature.pool is not None
        )
        column = from_raw(feature, raw_of_values(feature, [[number] if is_list else number] * 9), np.zeros(9, np.int64))
        return [column.offsets.tolist(), column.values.tolist()] if isinstance(column, Ragged) else column.tolist()

    assert made(float(SIGNALLING[0])) == made(float("nan"))
