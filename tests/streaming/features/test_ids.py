"""Ids: an integer is itself however it is written down, a text has the same id everywhere."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from streaming.features.ids import MISSING, as_ids, cross, inexact, text_id

int64s = st.integers(-(2**63), 2**63 - 1)


def ids_of(values: pa.Array) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    found, broken = as_ids(values)
    assert broken is None
    return found


def broken_in(values: pa.Array) -> list[bool]:
    found, broken = as_ids(values)
    told: list[bool] = [False] * len(values) if broken is None else broken.to_pylist()
    assert all(found[at] == MISSING for at, is_broken in enumerate(told) if is_broken)
    return told


def hashed(text: str) -> int:
    return int(np.uint64(xxhash.xxh3_64_intdigest(text.encode())).astype(np.int64))


@given(st.one_of(int64s, st.sampled_from([0, -1, 2**63 - 1, -(2**63)])))
def test_an_integer_as_text_is_the_integer(number: int) -> None:
    assert text_id(str(number)) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 5",
        "5 ",
        "05",
        "+5",
        "-0",
        "--1",
        "-",
        "1_000",
        "5.00",
        "5.",
        "5.5",
        "1e3",
        "1e+400",
        "12e34",
        "7e159630",
        "1.0e5",
        "17.000000",
        "1344800117571260416.0\n",
        "12345678901234567,1",
        "inf",
        "nan",
        "truth",
        "٣",
        "²",
        "9" * 30,
        "-é",
    ],
)
def test_other_texts_are_hashed(text: str) -> None:
    assert text_id(text) == hashed(text)


LONG_FLOATS = ["1e+16", "-1e+300", "9007199254740994.0"]
LONG_FLOATS += ["1.34480011757126E+18", "1,34480011757126E+18", "1.3448E18", "1E+18", "-1.3448e18"]
LONG_FLOATS += [
    "1344800117571260416.0",
    "1344800117571260416.00",
    "-1344800117571260416.000000",
    "1344800117571260416.",
]


@pytest.mark.parametrize("text", LONG_FLOATS)
def test_a_whole_float_beyond_what_it_holds_is_told_however_it_is_written(text: str) -> None:
    """Different ids are written alike so: as features they would share a row, as keys requests would be one."""
    found = inexact(pa.array(["a", text, None, "7", "17.0", "1.5"]))
    assert found is not None
    assert found.fill_null(False).to_pylist() == [False, True, False, False, False, False]


@pytest.mark.parametrize("text", [str(2**63), str(-(2**63) - 1), "9" * 24, *LONG_FLOATS])
def test_a_text_that_spells_a_larger_number_has_no_id(text: str) -> None:
    with pytest.raises(ValueError, match="allowed: integers of 64 bits"):
        text_id(text)
    assert broken_in(pa.array(["a", text, None, text, "7"])) == [False, True, False, True, False]


@given(st.text(max_size=30))
def test_every_other_text_has_an_id_of_64_bits(text: str) -> None:
    try:
        assert -(2**63) <= text_id(text) < 2**63
    except ValueError:
        assert abs(float(text.replace(",", "."))) > 2**53


def test_the_ids_of_texts_do_not_change() -> None:
    """Later versions must find the same rows: these are the values of XXH3-64 with seed 0."""
    assert text_id("") == MISSING == 0x2D06800538D394C2
    assert text_id("abc") == 0x78AF5F94892F3950


@pytest.mark.parametrize(
    "kind",
    [
        pa.int8(),
        pa.int16(),
        pa.int32(),
        pa.int64(),
        pa.uint8(),
        pa.uint32(),
        pa.float32(),
        pa.float64(),
        pa.string(),
    ],
)
def test_the_same_ids_from_every_type(kind: pa.DataType) -> None:
    values = pa.array(["1", "2", None, "100"] if pa.types.is_string(kind) else [1, 2, None, 100], kind)
    for array in (values, pa.concat_arrays([values, values]).slice(4)):
        found = ids_of(array)
        assert found.dtype == np.int64
        assert found.tolist() == [1, 2, MISSING, 100]


@given(st.lists(st.one_of(st.none(), st.text(max_size=8), int64s.map(str)), max_size=10))
def test_texts_one_by_one_and_as_a_column(texts: list[str | None]) -> None:
    expected = [MISSING if text is None else text_id(text) for text in texts]
    assert ids_of(pa.array(texts, pa.string())).tolist() == expected


def test_truth_values_are_one_and_zero() -> None:
    assert ids_of(pa.array([True, False, None])).tolist() == [1, 0, MISSING]
    assert ids_of(pa.array(["true", "False", "TRUE", None])).tolist() == [1, 0, 1, MISSING]


@pytest.mark.parametrize("number", [2**63, 2**63 + 5, 2**64 - 1])
def test_integers_beyond_64_bits_with_sign_are_refused(number: int) -> None:
    """2^64 - 1 must not share the row of -1."""
    found, broken = as_ids(pa.array([number, 7, None], pa.uint64()))
    assert broken is not None
    assert (found.tolist(), broken.to_pylist()) == ([MISSING, 7, MISSING], [True, False, False])


@pytest.mark.parametrize("number", [17.0, -3.0, 0.0, 2.0**52, 2.0**53, -(2.0**53)])
def test_whole_floats_are_as_their_texts_and_as_integers(number: float) -> None:
    whole = ids_of(pa.array([str(int(number))])).tolist()
    assert ids_of(pa.array([number])).tolist() == ids_of(pa.array([str(number)])).tolist() == whole
    assert ids_of(pa.array([Decimal(int(number)), None])).tolist() == [*whole, MISSING]


@pytest.mark.parametrize("number", [1.5, 2.0**53 + 2, 1e16, -(2.0**63), 1e19, -1e300, float("inf"), -float("inf")])
def test_other_floats_are_refused(number: float) -> None:
    assert broken_in(pa.array([1.0, number, None, float("nan")])) == [False, True, False, False]


def test_nothing_but_nulls_is_missing() -> None:
    assert ids_of(pa.array([None, None])).tolist() == [MISSING, MISSING]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([[1], [2]]),
        pa.array([{"a": 1}]),
        pa.array([b"bytes"]),
        pa.array([1], pa.timestamp("s")),
    ],
)
def test_what_is_no_id_is_a_type_error(values: pa.Array) -> None:
    with pytest.raises(TypeError):
        ids_of(values)


def test_a_number_that_is_none_is_missing() -> None:
    """Many programs write integers with gaps as floats, with NaN for a gap."""
    assert ids_of(pa.array([1.0, float("nan"), None])).tolist() == [1, MISSING, MISSING]


@given(st.lists(st.tuples(int64s, int64s), min_size=2, max_size=20, unique=True))
def test_pairs_do_not_meet(pairs: list[tuple[int, int]]) -> None:
    left, right = (np.array(side, np.int64) for side in zip(*pairs, strict=True))
    found = cross(left, right)
    assert found.dtype == np.int64
    assert len(set(found.tolist())) == len(pairs)
    assert cross(left[:1], right[:1])[0] == found[0], "a pair's id does not depend on its batch"


def test_small_pairs_do_not_meet_either() -> None:
    left, right = (side.ravel() for side in np.meshgrid(np.arange(300), np.arange(300)))
    assert len(np.unique(cross(left, right))) == 90_000
