"""The values of a weight, and of the transform ``inverse``: the same from files, records and requests, or refused by all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from serving.inputs import BadRequest, allowed_of, raw_column
from streaming.features.columns import missing_column
from streaming.features.kinds import DenseFeature, FeatureSet, WeightFeature
from streaming.features.transforms import from_raw
from streaming.records.events import BadRecord
from streaming.records.json_records import column_of_values
from streaming.records.labels import Label
from streaming.records.schema import Schema
from streaming.source.load import load
from tests.streaming.source.own_logs import FORMATS, NOW, ROWS, T, line, load_rows, rejects_of, source, write

PLAIN = DenseFeature(kind="dense", column="price")
WEIGHT = WeightFeature(kind="dense", column="price")
INVERSE = {"kind": "dense", "column": "price", "transform": "inverse", "floor": 0.25}
ALLOWED = "allowed: weights of 0 or more that are finite in 32 bits"
NONE = np.zeros(0, np.int64)


def of_file(folder: Path, kind: str, feature: DenseFeature, *values: Any) -> list[float]:
    rows = [{**ROWS[0], "t": T + at, "price": value} for at, value in enumerate(values)]
    column = load_rows(folder, kind, rows, {"w": feature}).features["w"]
    return np.asarray(column).tolist()


def of_request(feature: DenseFeature, *values: Any) -> list[float]:
    return np.asarray(from_raw(feature, raw_column("w", feature, list(values), len(values)), NONE)).tolist()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_missing_weight_is_one(tmp_path: Path, kind: str) -> None:
    assert of_file(tmp_path, kind, WEIGHT, 0.0, None, 2.5) == [0, 1, 2.5]
    assert of_file(tmp_path, kind, PLAIN, 0.0, None, 2.5) == [0, 0, 2.5]


def test_so_it_is_in_requests_and_records_and_where_it_came_later() -> None:
    for weight in (WEIGHT, WEIGHT.model_copy(update={"transform": "log"})):
        assert of_request(weight, None, 0.0) == [1, 0]
        assert np.asarray(column_of_values("w", weight, [None, 2])).tolist() == [1, 2], "records hold what was scored"
        assert np.asarray(missing_column(weight, 2)).tolist() == [1, 1]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("value", [-0.5, -1e300, 1e39])
def test_a_file_s_weight_that_is_none_is_told_with_its_line(tmp_path: Path, kind: str, value: float) -> None:
    write(tmp_path / f"log.{kind}", [{**ROWS[0], "price": 1.0}, {**ROWS[1], "price": value}])
    events = load(tmp_path, source(kind), {"w": WEIGHT}, NOW)
    ((place, shown, reason),) = rejects_of(events)
    assert (place, reason) == (f"{line(kind, 1)}, column price", "malformed")
    assert float(shown.strip("'")) == value
    assert events.rejects[0].detail == ALLOWED
    assert np.asarray(events.features["w"]).tolist() == [1, 1], "its row is used without it"


@pytest.mark.parametrize("value", [-0.5, -1e300, "-1", -math.inf])
def test_requests_and_records_refuse_it_too(value: Any) -> None:
    with pytest.raises(BadRequest, match=r"w: .*allowed: "):
        raw_column("w", WEIGHT, [1, value], 2)
    with pytest.raises(BadRecord, match="feature w: "):
        column_of_values("w", WEIGHT, [1, value])
    if not isinstance(value, str):
        with pytest.raises(BadRequest, match=ALLOWED):
            raw_column("w", WEIGHT, np.array([1, max(value, -1)], "<f4").tobytes(), 2)
    assert allowed_of(WEIGHT) == "a number of 0 or more"


def test_inverse_has_a_floor(tmp_path: Path) -> None:
    of_config: FeatureSet = TypeAdapter(FeatureSet).validate_python({"w": INVERSE})
    (feature,) = of_config.values()
    assert isinstance(feature, DenseFeature)
    wanted = [4, 4, 2, 0.5, 4, 0]
    values = (0.25, 0.01, 0.5, 2, -1, None)
    assert of_file(tmp_path, "jsonl", feature, *values) == of_request(feature, *values) == wanted
    weight = WeightFeature.model_validate(INVERSE)
    assert of_request(weight, 0.5, 0, None) == [2, 4, 1], "what has no propensity has no correction"
    with pytest.raises(BadRequest, match=ALLOWED):
        raw_column("w", weight, [0.5, -0.1], 2)


@pytest.mark.parametrize("wrong", [{"transform": "inverse"}, {"floor": 0.1}, {"transform": "log", "floor": 0.1}])
def test_a_floor_goes_with_inverse(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"floor, such as 0.01, goes with transform: inverse, which needs it"):
        DenseFeature(kind="dense", column="p", **wrong)


def test_the_schema_knows_the_floor_and_not_what_the_feature_is_for() -> None:
    labels = {"like": Label(action="like", window="1m")}
    hashes = [
        Schema.of({"w": feature}, labels).features["w"]
        for feature in (
            PLAIN,
            WEIGHT,
            DenseFeature.model_validate(INVERSE),
            DenseFeature.model_validate({**INVERSE, "floor": 1}),
        )
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
