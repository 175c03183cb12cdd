"""Columns: what is packed, sliced, taken or sent as Arrow comes back as it was."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.features.columns import (
    Column,
    Packed,
    Ragged,
    Repeated,
    arrow_type,
    check_packed,
    from_arrow,
    pack,
    repeated,
    slice_columns,
    to_arrow,
    unpack,
)
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature

ONE = SparseFeature(column="x")
LIST = SparseFeature(column="x", pool="mean")
FIRST = SparseFeature(column="x", pool="first")
NUMBER = DenseFeature(kind="dense", column="x")
VECTOR = VectorFeature(kind="vector", column="x", size=3)

ids = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
Plain = list[Any]


def column_of(feature: Feature, values: Plain) -> Column:
    """A column out of plain Python values, one an impression."""
    if isinstance(feature, SparseFeature) and feature.is_list:
        offsets = np.cumsum([0, *map(len, values)]).astype(np.int64)
        return Ragged(offsets, np.array([item for value in values for item in value], np.int64))
    if isinstance(feature, SparseFeature):
        return np.array(values, np.int64)
    if isinstance(feature, VectorFeature):
        return np.array(values, np.float32).reshape(-1, feature.size)
    return np.array(values, np.float32)


def plain(column: Column) -> Plain:
    if isinstance(column, Ragged):
        assert column.offsets[0] == 0
        assert column.offsets[-1] == len(column.values)
        return [
            column.values[start:stop].tolist() for start, stop in zip(column.offsets, column.offsets[1:], strict=False)
        ]
    return column.tolist()


@st.composite
def columns(draw: st.DrawFn, max_size: int = 8) -> tuple[Feature, Plain]:
    feature: Feature = draw(st.sampled_from([ONE, LIST, FIRST, NUMBER, VECTOR]))
    value = {
        ONE.kind: st.lists(ids, max_size=4) if feature is LIST else ids,
        NUMBER.kind: floats,
        VECTOR.kind: st.lists(floats, min_size=3, max_size=3),
    }[feature.kind]
    return feature, draw(st.lists(value, max_size=max_size))


spans = st.tuples(st.integers(0, 8), st.integers(0, 8)).map(sorted)


@given(columns(), spans)
def test_what_is_packed_comes_back(given_column: tuple[Feature, Plain], span: list[int]) -> None:
    feature, values = given_column
    start, stop = (min(at, len(values)) for at in span)
    packed = pack(column_of(feature, values), start, stop)
    assert check_packed("x", feature, packed, stop - start) is None
    back = unpack(feature, [packed])
    assert plain(back) == values[start:stop]
    expected = column_of(feature, values)
    if isinstance(back, Ragged) and isinstance(expected, Ragged):
        assert (back.offsets.dtype, back.values.dtype) == (np.int64, np.int64)
    elif not isinstance(back, Ragged) and not isinstance(expected, Ragged):
        assert back.dtype == expected.dtype
        assert back.shape[1:] == expected.shape[1:]


@given(columns(), st.lists(st.integers(0, 8), max_size=4))
def test_parts_are_laid_end_to_end(given_column: tuple[Feature, Plain], cuts: list[int]) -> None:
    feature, values = given_column
    column = column_of(feature, values)
    bounds = sorted({0, len(values), *(min(at, len(values)) for at in cuts)})
    parts = [pack(column, start, stop) for start, stop in pairwise(bounds)]
    assert plain(unpack(feature, parts)) == values


@given(columns(), spans)
def test_arrow_and_back(given_column: tuple[Feature, Plain], span: list[int]) -> None:
    feature, values = given_column
    array = to_arrow(column_of(feature, values), feature)
    assert array.type.equals(arrow_type(feature))
    array.validate(full=True)
    assert array.to_pylist() == values
    start, stop = (min(at, len(values)) for at in span)
    assert plain(from_arrow(array.slice(start, stop - start), feature)) == values[start:stop]
    other = pa.array(values, arrow_type(feature))  # laid out by another writer
    assert plain(from_arrow(other, feature)) == values


@given(st.lists(st.lists(ids, max_size=4), max_size=8), spans, st.randoms(use_true_random=False))
def test_lists_are_sliced_and_taken(values: list[list[int]], span: list[int], rng: Any) -> None:
    column = column_of(LIST, values)
    assert isinstance(column, Ragged)
    start, stop = (min(at, len(values)) for at in span)
    part = column.rows(start, stop)
    assert plain(part) == values[start:stop]
    index = [rng.randrange(len(part.offsets) - 1) for _ in range(6)] if stop > start else []
    assert plain(part.take(np.array(index, np.int64))) == [values[start + at] for at in index]
    assert {name: plain(item) for name, item in slice_columns({"x": column}, start, stop).items()} == {
        "x": values[start:stop]
    }


@given(columns(), st.integers(0, 9))
def test_another_number_of_impressions_is_noticed(given_column: tuple[Feature, Plain], impressions: int) -> None:
    feature, values = given_column
    problem = check_packed("x", feature, pack(column_of(feature, values), 0, len(values)), impressions)
    assert (problem is None) == (impressions == len(values))
    assert problem is None or problem.startswith("feature x: ")


@given(
    st.sampled_from([ONE, LIST, FIRST, NUMBER, VECTOR]),
    st.one_of(st.binary(max_size=40), st.tuples(st.binary(max_size=12), st.binary(max_size=40))),
    st.integers(0, 4),
)
def test_bytes_that_pass_the_check_can_be_unpacked(feature: Feature, packed: Packed, impressions: int) -> None:
    if check_packed("x", feature, packed, impressions) is None:
        back = unpack(feature, [packed])
        assert len(plain(back)) == impressions
        if not isinstance(back, Ragged) and back.dtype == np.float32:
            assert np.isfinite(back).all()


@pytest.mark.parametrize("lengths", [[2**31 - 1, 2**31 - 1, 4], [-1, 2], [2**30] * 4])
def test_lengths_that_only_add_up_by_accident_are_refused(lengths: list[int]) -> None:
    packed = np.array(lengths, "<i4").tobytes(), b"\0" * 8
    assert check_packed("x", LIST, packed, len(lengths)) is not None


def test_what_a_request_has_once_is_as_if_each_impression_had_it() -> None:
    lists, counts = [[1, 2], [], [3]], [2, 3, 1]
    tiled = [each for each, count in zip(lists, counts, strict=True) for _ in range(count)]
    column = Repeated(_ragged(lists), np.array(counts))
    for start in range(7):
        for stop in range(start, 7):
            part = column.rows(start, stop)
            assert part.counts.sum() == stop - start
            assert _lists(part.take(np.arange(stop - start))) == tiled[start:stop]
    assert _lists(column.take(np.array([5, 0, 4]))) == [[3], [1, 2], []]
    assert _lists(_ragged(lists).take(np.array([-1, 2, -1, 0]))) == [[], [3], [], [1, 2]]
    once = repeated(np.array([7]), 1000)
    assert isinstance(once, np.ndarray) and once.tolist() == [7] * 1000 and once.strides == (0,)


def _ragged(lists: list[list[int]]) -> Ragged:
    return Ragged(np.cumsum([0, *map(len, lists)]), np.array([each for one in lists for each in one], np.int64))


def _lists(column: Ragged) -> list[list[int]]:
    return [column.values[start:stop].tolist() for start, stop in pairwise(column.offsets.tolist())]
