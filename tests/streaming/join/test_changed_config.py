"""A config that changes while requests are pending: they are taken over, or are dead letters; none vanishes, no joiner ends."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from streaming.features.ids import MISSING
from streaming.features.kinds import Feature
from streaming.join.state import STATE_VERSION, JoinState
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from streaming.records.events import (
    MAX_TIME_MS,
    decode_request,
)
from streaming.records.labels import Label
from streaming.records.schema import Schema
from tests.streaming.join.changing import (
    AGE,
    BEFORE,
    CUT,
    END,
    ENDED,
    FEATURES,
    LABELS,
    OPEN,
    REFUSED,
    START,
    TAKEN_OVER,
    WIDER,
    Pipeline,
    both_of,
    changed,
    done,
    request,
)

STATES, CUTS = ["whole or older", "lost"], ["never", "after recovery", "before a transaction", "after a transaction"]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("config", TAKEN_OVER.values(), ids=TAKEN_OVER)
def test_what_is_pending_is_taken_over(config: Any, state: str, cut: str, tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.fill(pipeline.start(BEFORE))
    join = changed(pipeline, config, state, cut)
    features, _ = config
    pipeline.finish(join, features)
    assert pipeline.letters(after=2) == []
    examples = pipeline.examples(config)
    assert examples.keys() == both_of(0, 1, 2, 3, 4, 5, 6, 8, 9)
    liked = {name for name, row in examples.items() if row["label.like"]}
    assert liked - {"r3/3.0"} == {"r1/1.0", "r2/2.0"}
    missing = {"age": 0.0, "tags": [], "place": MISSING}
    for name in features.keys() - FEATURES.keys():
        found = {row[f"feature.{name}"] == missing[name] for key, row in examples.items() if key < "r7"}
        assert found == {True}, name
        assert examples["r8/8.0"][f"feature.{name}"] != missing[name], "it was sent"
    for name in features.keys() & FEATURES.keys():
        assert examples["r5/5.1"][f"feature.{name}"] == examples["r9/9.1"][f"feature.{name}"], name


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("features", "labels", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_pending_and_cannot_be_taken_over_is_a_dead_letter(
    features: dict[str, Feature], labels: dict[str, Label], said: str, state: str, cut: str, tmp_path: Path
) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.fill(pipeline.start(BEFORE))
    join = changed(pipeline, (features, labels), state, cut)
    pipeline.finish(join, features)
    early = [8] * said.startswith("label")  # engagements of that time were read before it
    assert pipeline.names() == both_of(0, 8, 9) - both_of(*early)
    letters = pipeline.dead_letters()[2:]
    of_requests = [letter for letter in letters if letter.topic == IMPRESSIONS]
    assert {letter.reason for letter in letters} == {"schema"}
    times = Counter(decode_request(letter.payload, MAX_TIME_MS).request_id for letter in of_requests)
    assert times == Counter([*OPEN, *(f"r{number}" for number in early)])
    theirs, ours = (Schema.of(*config).fingerprint for config in (BEFORE, (features, labels)))
    for letter in letters:
        assert f" under schema {theirs}, this config has {ours}: {said}" in letter.detail
    for letter in of_requests:
        sent = pipeline.world.brokers.topics[IMPRESSIONS][letter.offset]
        assert sent is not None and decode_request(letter.payload, MAX_TIME_MS).request_id.encode() in sent
    engaged = [letter for letter in letters if letter.topic == ENGAGEMENTS]
    assert len(engaged) == 1 + pipeline.engaged
    assert all(letter.payload in pipeline.world.brokers.topics[ENGAGEMENTS] for letter in engaged)


def test_what_sampling_dropped_is_no_dead_letter_after_a_rebuild(tmp_path: Path) -> None:
    """Its window under the config of that time says that it was over."""
    pipeline = Pipeline(tmp_path, keep=1e-6)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(0, 5_000, FEATURES), request(2, START, FEATURES))
    join.step(ENDED, CUT, 0)
    assert not pipeline.names()
    longer = {**LABELS, "like": Label(action="like", window="1m")}
    join = changed(pipeline, (FEATURES, longer), "lost", "never")
    join.step(ENDED, 10 * END, 0)
    (letter,) = pipeline.dead_letters()
    assert decode_request(letter.payload, MAX_TIME_MS).request_id == "r2"
    pipeline.stop()


@pytest.mark.parametrize("config", REFUSED.values(), ids=REFUSED)
def test_dead_letters_are_joined_when_they_are_sent_again_under_the_config_before(config: Any, tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.fill(pipeline.start(BEFORE))
    join = pipeline.start(config[:2])
    pipeline.take(join, ENGAGEMENTS, done(2, "like", START + 900))
    join.step(ENDED, START + 2400, 0)
    letters = pipeline.dead_letters()[2:]
    assert len(letters) == len(OPEN) + 1
    join = pipeline.start(BEFORE)
    for topic in (IMPRESSIONS, ENGAGEMENTS):
        pipeline.take(join, topic, *[letter.payload for letter in letters if letter.topic == topic] * 2)
    join.step(ENDED, START + 2400, 0)
    join.step(ENDED, END, 0)
    examples = pipeline.examples(BEFORE)
    # JSON that was read again was packed without what differs; nothing ever comes of the eighth request.
    lost, reason = ({5}, "feature") if config[2].startswith("feature") else (set[int](), "")
    refused, liked = Counter({("unmatched", ENGAGEMENTS): 1}), {"r1/1.0", "r2/2.0"}
    if config[2] == "label like differs":  # a like may have been passed over meanwhile
        lost, reason, liked = set(range(1, 7)), "schema", set()
        refused["schema", ENGAGEMENTS] = 2
    refused[reason, IMPRESSIONS] = 2 * len(lost)
    assert Counter(pipeline.letters(after=2 + len(letters))) == +refused
    assert examples.keys() == both_of(*({0, 1, 2, 3, 4, 5, 6} - lost))
    assert {name for name, row in examples.items() if row["label.like"]} == liked
    pipeline.stop()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("config", REFUSED.values(), ids=REFUSED)
def test_dead_letters_stay_refused_when_they_are_sent_again_under_the_same_config(
    config: Any, state: str, tmp_path: Path
) -> None:
    """It cannot take them now either: what happened before it knew of a label was passed over, so they would be negatives."""
    pipeline = Pipeline(tmp_path)
    join = pipeline.start(BEFORE)
    pipeline.fill(join)
    join = pipeline.start(config[:2])
    join.step(ENDED, START + 2400, 0)
    letters = pipeline.dead_letters()[2:]
    assert len(letters) == len(OPEN)
    pipeline.take(join, IMPRESSIONS, *(letter.payload for letter in letters))
    join.step(ENDED, START + 2400, 0)
    again = pipeline.dead_letters()[2 + len(letters) :]
    assert [(letter.reason, letter.payload) for letter in again] == [("schema", letter.payload) for letter in letters]
    assert all(config[2] in letter.detail for letter in again)
    join = changed(pipeline, config[:2], state, "never")
    join.step(ENDED, END, 0)
    pipeline.stop()
    refused = {("schema", IMPRESSIONS): 2 * len(OPEN), ("unmatched", ENGAGEMENTS): 1}
    assert Counter(pipeline.letters(after=2)) == refused, "nothing ever comes of the eighth request"
    assert pipeline.names() == both_of(0)


@pytest.mark.parametrize(
    ("config", "reasons"), [(BEFORE, []), (REFUSED["a label added"][:2], ["schema"])], ids=["its own", "a label more"]
)
def test_a_replica_that_still_has_the_config_before_is_known_by_its_schema(
    config: Any, reasons: list[str], tmp_path: Path
) -> None:
    """What it serves is of the labels of that config, as what was pending is."""
    pipeline = Pipeline(tmp_path)
    pipeline.start(BEFORE).step(ENDED, START, 0)
    join = pipeline.start(config)
    schema = Schema.of(*BEFORE).fingerprint
    pipeline.take(join, IMPRESSIONS, request(2, START, {**FEATURES, "age": AGE}, schema=schema))
    join.step(ENDED, END, 0)
    pipeline.stop()
    assert [reason for reason, _ in pipeline.letters()] == reasons
    assert pipeline.names() == (set() if reasons else both_of(2))


def test_what_was_taken_before_its_schema_was_known_does_not_vanish_in_a_rebuild(tmp_path: Path) -> None:
    """Where the config was the other one meanwhile, the rebuild knows what the joiner that took it did not: no letter says so."""
    pipeline = Pipeline(tmp_path)
    added = REFUSED["a label added"][:2]
    join = pipeline.start(added)
    pipeline.take(join, IMPRESSIONS, request(2, START, FEATURES, schema=Schema.of(*BEFORE).fingerprint))
    join.step(ENDED, START + 100, 0)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(0, START - 2100, FEATURES))
    join.step(ENDED, START + 300, 0)
    assert pipeline.names() == both_of(0)
    join = changed(pipeline, added, "lost", "never")
    join.step(ENDED, END, 0)
    pipeline.stop()
    assert pipeline.letters() == [("schema", IMPRESSIONS)]
    assert pipeline.names() == both_of(0)


def test_nor_does_a_letter_say_so_of_what_was_decided_before_its_schema_was_known(tmp_path: Path) -> None:
    """Its window was over by the labels that it was taken under, so what is not in `examples` was dropped by sampling."""
    pipeline = Pipeline(tmp_path, keep=1e-6)
    added = REFUSED["a label added"][:2]
    join = pipeline.start(added)
    pipeline.take(join, IMPRESSIONS, request(2, START, FEATURES, schema=Schema.of(*BEFORE).fingerprint))
    join.step(ENDED, CUT, 0)
    join.step(ENDED, START + 2200, 0)
    join = pipeline.start(BEFORE)
    pipeline.take(join, ENGAGEMENTS, done(0, "like", START + 100))
    pipeline.take(join, IMPRESSIONS, request(0, START + 100, FEATURES))
    join.step(ENDED, START + 2900, 0)
    assert pipeline.names() == {"r0/0.0"}
    join = changed(pipeline, added, "lost", "never")
    join.step(ENDED, END, 0)
    pipeline.stop()
    assert pipeline.letters() == []


def test_there_and_back_again(tmp_path: Path) -> None:
    """A roll that is taken back, over one state: what came and went is dropped, and nothing else changes."""
    pipeline = Pipeline(tmp_path)
    pipeline.fill(pipeline.start(BEFORE))
    grown = TAKEN_OVER["a list added"]
    for config in (grown, BEFORE, grown, BEFORE):
        changed(pipeline, config, "whole or older", "never").step(ENDED, CUT, 0)
    pipeline.finish(pipeline.start(BEFORE), FEATURES)
    assert pipeline.letters(after=2) == []
    assert pipeline.names() == both_of(0, 1, 2, 3, 4, 5, 6, 8, 9)


def test_what_a_replica_of_before_served_is_read_again_before_the_feature_comes_back(tmp_path: Path) -> None:
    """It was taken under the config with the feature; a joiner that re-reads it without does not give it one."""
    grown = TAKEN_OVER["a number added"]
    pipeline = Pipeline(tmp_path)
    join = pipeline.start(grown, writes=False)
    pipeline.take(join, IMPRESSIONS, request(2, START, FEATURES, schema=Schema.of(*BEFORE).fingerprint))
    join.step(ENDED, START + 100, 0)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(4, START, FEATURES))
    join.step(ENDED, START + 200, 0)
    pipeline.finish(pipeline.start(grown), grown[0])
    assert pipeline.letters() == []
    examples = pipeline.examples(grown)
    assert examples.keys() == both_of(2, 4, 8, 9)
    assert [name for name, row in examples.items() if row["feature.age"] == 0.0] == sorted(both_of(2, 4))


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, ""),
        ({"without": "price"}, "feature: feature price is missing"),
        ({"without": "price", "schema": "theirs"}, ""),
        ({"without": "user", "schema": "theirs"}, ""),
        ({"embedding": 3, "schema": "theirs"}, "schema: made under schema theirs, this config has"),
        ({"embedding": 3}, "feature: feature embedding: 24 bytes"),
        ({"embedding": 3, "schema": "ours"}, "feature: feature embedding: 24 bytes"),
    ],
    ids=str,
)
def test_a_replica_with_another_config_may_lack_a_feature_and_a_product_may_not(
    changes: dict[str, Any], outcome: str, tmp_path: Path
) -> None:
    features: dict[str, Feature] = {name: each for name, each in FEATURES.items() if name != changes.get("without")}
    if "embedding" in changes:
        features["embedding"] = WIDER
    schema = {"theirs": "theirs", "ours": Schema.of(*BEFORE).fingerprint}.get(changes.get("schema", ""), "")
    pipeline = Pipeline(tmp_path)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(2, START, {**features, "age": AGE}, schema=schema))
    join.step(ENDED, END, 0)
    pipeline.stop()
    said = [f"{letter.reason}: {letter.detail}" for letter in pipeline.dead_letters()]
    assert pipeline.names() == (set() if outcome else both_of(2))
    assert len(said) == bool(outcome) and all(each.startswith(outcome) for each in said)


def test_a_state_of_another_version_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.fill(pipeline.start(BEFORE))
    pipeline.stop()
    state = JoinState(pipeline.folder, 1 << 20)
    assert state.head is not None and state.head.version == STATE_VERSION
    state_id = state.head.state_id
    state.head.version = STATE_VERSION + 1
    state.write(state.head)
    state.close()
    join = pipeline.start(BEFORE)
    assert (
        "another version of Minutely wrote this state, it has to be rebuilt from the log: version 5; allowed: 4"
        in caplog.text
    )
    assert join._head.state_id != state_id
    pipeline.finish(join, FEATURES)
    assert pipeline.names() == both_of(0, 1, 2, 3, 4, 5, 6, 8, 9)
