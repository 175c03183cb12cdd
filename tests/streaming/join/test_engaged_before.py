"""An engagement that a config without its action read before its request: the label is unknown under the config after it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from streaming.features.kinds import DenseFeature, Feature
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from streaming.records.events import MAX_TIME_MS, decode_request
from streaming.records.labels import Label
from tests.streaming.join.changing import (
    BEFORE,
    END,
    ENDED,
    FEATURES,
    START,
    TAKEN_OVER,
    Pipeline,
    both_of,
    done,
    request,
)

Config = tuple[dict[str, Feature], dict[str, Label]]
WITHOUT_BUY = TAKEN_OVER["a label removed"]
ENGAGED = {IMPRESSIONS: False, ENGAGEMENTS: True}


def engaged_early(pipeline: Pipeline, first: Config) -> None:
    """Under a config without purchases, that of the second request comes before the request."""
    join = pipeline.start(first)
    pipeline.take(join, IMPRESSIONS, request(4, START - 50, FEATURES))
    join.step(ENDED, START, 0)
    if first is BEFORE:
        join = pipeline.start(WITHOUT_BUY)
    pipeline.take(join, ENGAGEMENTS, done(2, "buy", START + 100))
    join.step(ENGAGED, START + 200, 0)
    assert join.joiner.counts.unused == 1


@pytest.mark.parametrize("again", [False, True], ids=["", "started again"])
@pytest.mark.parametrize("lost", [False, True], ids=["kept", "lost"])
@pytest.mark.parametrize("first", [WITHOUT_BUY, BEFORE], ids=["added", "away"])
def test_what_was_engaged_before_it_came_is_a_dead_letter(
    first: Config, lost: bool, again: bool, tmp_path: Path
) -> None:
    """One that was served after all that was read is none, and no letter comes twice."""
    pipeline = Pipeline(tmp_path)
    engaged_early(pipeline, first)
    pipeline.stop()
    if lost:
        shutil.rmtree(pipeline.folder)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(2, START + 10, FEATURES), request(6, START + 101, FEATURES))
    pipeline.take(join, ENGAGEMENTS, done(6, "buy", START + 150))
    join.step(ENDED, START + 300, 0)
    if again:
        pipeline.stop()
        if lost:
            shutil.rmtree(pipeline.folder)
        join = pipeline.start(BEFORE)
    pipeline.take(join, ENGAGEMENTS, done(2, "like", START + 350))
    for at in (START + 400, END, END + 1000):
        join.step(ENDED, at, 0)
    pipeline.stop()
    examples = pipeline.examples(BEFORE)
    assert examples.keys() == both_of(6) and examples["r6/6.0"]["label.buy"] == 1
    letters = {(letter.topic, letter.offset): letter for letter in pipeline.dead_letters()}
    assert len(letters) == len(pipeline.dead_letters()) and {each.reason for each in letters.values()} == {"schema"}
    assert letters.keys() == {(IMPRESSIONS, 0), (IMPRESSIONS, 1), (ENGAGEMENTS, 2)}
    assert "engagements may have been read under" in letters[IMPRESSIONS, 1].detail
    assert "label buy is new" in letters[ENGAGEMENTS, 2].detail


def test_a_config_that_lacked_no_label_passed_nothing_over(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    join = pipeline.start(BEFORE)
    pipeline.take(join, ENGAGEMENTS, done(2, "buy", START + 100))
    join.step(ENGAGED, START + 200, 0)
    config = TAKEN_OVER["a number added"]
    join = pipeline.start(config)
    pipeline.take(join, IMPRESSIONS, request(2, START + 10, config[0]))
    for at in (START + 300, END, END + 1000):
        join.step(ENDED, at, 0)
    pipeline.stop()
    assert not pipeline.letters() and pipeline.examples(config)["r2/2.0"]["label.buy"] == 1


def test_what_became_a_dead_letter_so_is_one_however_often_it_is_sent_again(tmp_path: Path) -> None:
    """It carries the schema of the config that took it first, but what happened while that was away stays unknown."""
    pipeline = Pipeline(tmp_path)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(2, START, FEATURES))
    join.step(ENDED, START + 1, 0)
    join = pipeline.start(WITHOUT_BUY)
    pipeline.take(join, ENGAGEMENTS, done(2, "buy", START + 100))
    join.step(ENDED, START + 200, 0)
    join = pipeline.start(BEFORE)
    pipeline.take(join, ENGAGEMENTS, done(2, "like", START + 300))
    join.step(ENDED, START + 400, 0)
    letters = pipeline.dead_letters()
    assert pipeline.letters() == [("schema", "impressions"), ("schema", "engagements")]
    for letter in letters:
        pipeline.take(join, letter.topic, letter.payload)
    for at in (START + 500, END, END + 1000):
        join.step(ENDED, at, 0)
    pipeline.stop()
    assert not pipeline.names() and pipeline.letters() == 2 * pipeline.letters()[:2]


def test_what_was_read_before_a_loss_stays_known(tmp_path: Path) -> None:
    """The state is lost, and the engagement is no longer kept: what a recovery reads again is less than what was read."""
    pipeline = Pipeline(tmp_path)
    engaged_early(pipeline, WITHOUT_BUY)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(6, START - 500, FEATURES))
    join.step(ENGAGED, START + 200, 0)
    pipeline.stop()
    shutil.rmtree(pipeline.folder)
    brokers = pipeline.world.brokers
    kept_from = brokers.beginning
    brokers.beginning = lambda topic: 1 if topic == ENGAGEMENTS else kept_from(topic)  # type: ignore[method-assign]
    wider = ({**FEATURES, "age": DenseFeature(kind="dense", column="a")}, BEFORE[1])
    join = pipeline.start(wider)
    pipeline.take(join, IMPRESSIONS, request(2, START + 50, wider[0]))
    join.step(ENDED, END, 0)
    pipeline.stop()
    assert "r2" in {decode_request(each.payload, MAX_TIME_MS).request_id for each in pipeline.dead_letters()}
