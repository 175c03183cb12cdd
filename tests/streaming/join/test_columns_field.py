"""How much of its schema's features a request has: what it says, and what is made of it under another config."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from streaming.log import IMPRESSIONS
from streaming.records.schema import Schema
from tests.streaming.join.changing import BEFORE, END, ENDED, FEATURES, START, TAKEN_OVER, Pipeline, request

LACKING = {name: feature for name, feature in FEATURES.items() if name != "price"}


@pytest.mark.parametrize("lost", [False, True], ids=["state kept", "state lost"])
@pytest.mark.parametrize("is_told", [False, True], ids=["a product", "a replica"])
def test_only_who_says_the_schema_may_lack_some_of_it(is_told: bool, lost: bool, tmp_path: Path) -> None:
    """The same with and without the state: what was accepted must not be refused when it is read again."""
    pipeline = Pipeline(tmp_path)
    join = pipeline.start(BEFORE)
    schema = Schema.of(*BEFORE).fingerprint if is_told else ""
    pipeline.take(join, IMPRESSIONS, request(2, START, LACKING, schema=schema, columns="some"))
    join.step(ENDED, START + 150, 0)
    pipeline.stop()
    if lost:
        shutil.rmtree(pipeline.folder)
    join = pipeline.start(TAKEN_OVER["a number added"])
    for at in (START + 300, END, END + 1000):
        join.step(ENDED, at, 0)
    assert pipeline.letters() == ([] if is_told else [("feature", "impressions")])
    assert pipeline.names() == ({"r2/2.0", "r2/2.1"} if is_told else set())
    pipeline.stop()


@pytest.mark.parametrize("schema", ["?", " ", "\t", "0" * 16, "b", Schema.of(*BEFORE).fingerprint + " ?"])
def test_what_could_not_be_read_again_is_not_filled_in_where_its_schema_is_unknown(schema: str, tmp_path: Path) -> None:
    """It may have had the feature: a letter of a recovery, sent again under the config of before, was trained on with a 0."""
    pipeline = Pipeline(tmp_path)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(2, START, LACKING, schema=schema, columns="reread"))
    for at in (START + 400, END, END + 1000):
        join.step(ENDED, at, 0)
    assert pipeline.letters() == [("schema", "impressions")]
    assert "feature price could not be read again" in pipeline.dead_letters()[0].detail
    pipeline.stop()
