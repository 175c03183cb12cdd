"""A config that changes while requests are pending: they are taken over, or are dead letters; none vanishes, no joiner ends."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from streaming.features.ids import MISSING
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.join.negatives import Negatives
from streaming.join.partition import JoinPartition
from streaming.join.state import STATE_VERSION, JoinState
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, Record
from streaming.records.events import (
    FORMAT_VERSION,
    MAX_TIME_MS,
    DeadLetter,
    Engagement,
    Request,
    decode_letter,
    decode_request,
    encode,
)
from streaming.records.examples import ExampleFormat, published_in
from streaming.records.labels import Label
from streaming.records.schema import Schema
from tests.streaming.join.join_lives import Crash, World

FEATURES: dict[str, Feature] = {
    "item": SparseFeature(column="i"),
    "user": SparseFeature(column="u", scope="request"),
    "price": DenseFeature(kind="dense", column="p"),
    "embedding": VectorFeature(kind="vector", column="e", size=2),
}
LABELS = {"like": Label(action="like", window="1s"), "buy": Label(action="buy", window="2s")}
BEFORE = FEATURES, LABELS
AGE = DenseFeature(kind="dense", column="a")
TAGS = SparseFeature(column="t", pool="sum")
WIDER = VectorFeature(kind="vector", column="e", size=3)
LOGARITHM = DenseFeature(kind="dense", column="p", transform="log")
TAKEN_OVER: dict[str, tuple[dict[str, Feature], dict[str, Label]]] = {
    "nothing": BEFORE,
    "a number added": ({**FEATURES, "age": AGE}, LABELS),
    "a list added": ({"tags": TAGS, **FEATURES}, LABELS),
    "one of requests added": ({**FEATURES, "place": SparseFeature(column="w", scope="request")}, LABELS),
    "a number removed": ({name: each for name, each in FEATURES.items() if name != "price"}, LABELS),
    "a label removed": (FEATURES, {"like": LABELS["like"]}),
}
REFUSED: dict[str, tuple[dict[str, Feature], dict[str, Label], str]] = {
    "another size": ({**FEATURES, "embedding": WIDER}, LABELS, "feature embedding differs"),
    "another transform": ({**FEATURES, "price": LOGARITHM}, LABELS, "feature price differs"),
    "another window": (FEATURES, {**LABELS, "like": Label(action="like", window="1500ms")}, "label like differs"),
    "a label added": (FEATURES, {**LABELS, "tap": Label(action="tap", window="1s")}, "label tap is new"),
}
START, CUT, END = 10_000, 11_800, 30_000
ENDED = {IMPRESSIONS: True, ENGAGEMENTS: True}
OPEN = [f"r{number}" for number in range(1, 7)]
PACKED: dict[str, Any] = {
    "item": np.arange(2).tobytes(),
    "price": np.ones(2, "<f4").tobytes(),
    "embedding": np.ones(4, "<f4").tobytes(),
    "tags": (np.ones(2, "<i4").tobytes(), np.arange(2).tobytes()),
    "age": np.ones(2, "<f4").tobytes(),
    "user": np.int64(7).tobytes(),
    "place": np.int64(8).tobytes(),
}
WRITTEN = {"item": [0, 1], "price": [1, 1], "embedding": [[1, 1], [1, 1]], "user": 7}


def request(number: int, served_at: int, features: Mapping[str, Feature], **changes: Any) -> bytes:
    """Of two impressions; every other one is JSON where all of it has a place there."""
    both: dict[str, dict[str, Any]] = {"shared": {}, "features": {}}
    values = WRITTEN if number % 2 and features.keys() <= WRITTEN.keys() else PACKED
    for name, feature in features.items():
        packed = values[name]
        if name == "embedding" and isinstance(feature, VectorFeature) and values is PACKED:
            packed = np.ones(2 * feature.size, "<f4").tobytes()
        elif name == "embedding" and isinstance(feature, VectorFeature):
            packed = [[1] * feature.size] * 2
        both["shared" if feature.scope == "request" else "features"][name] = packed
    ids = [f"{number}.0", f"{number}.1"]
    made = {"version": FORMAT_VERSION, "request_id": f"r{number}", "served_at": served_at, "impression_ids": ids}
    if values is WRITTEN:
        return msgspec.json.encode({**made, **both, **changes})
    return encode(Request(**made, **both, **changes))


def done(number: int, action: str, at: int) -> bytes:
    return encode(
        Engagement(
            version=FORMAT_VERSION,
            request_id=f"r{number}",
            impression_id=f"{number}.0",
            action=action,
            happened_at=at,
        )
    )


class Pipeline:
    """One partition that lives under one config, then under another."""

    def __init__(self, folder: Path, keep: float = 1.0) -> None:
        self.world = World(random.Random(1), folder, LABELS, negatives=Negatives(keep), requests_at_once=100)
        self.folder = self.world.folders[0]
        self.state: JoinState | None = None
        self.engaged = False
        """Whether what happened to the second request is there."""

    def start(self, config: tuple[dict[str, Feature], dict[str, Label]], *, writes: bool = True) -> JoinPartition:
        self.stop()
        features, labels = config
        self.world.spec = self.world.spec._replace(features=features, labels=labels)
        self.state = JoinState(self.folder, 1 << 20)
        join = self.world.join(self.state, self.world.brokers, 0 if writes else 1 << 40)
        list(join.recover())
        return join

    def stop(self) -> None:
        if self.state is not None:
            self.state.close()

    def take(self, join: JoinPartition, topic: str, *values: bytes) -> None:
        """What joiners did not take, and this."""
        records = self.world.brokers.topics[topic]
        records += values
        at = join.offsets[topic]
        join.take(topic, [Record(offset, value or b"") for offset, value in enumerate(records[at:], at)])

    def fill(self, join: JoinPartition) -> None:
        """One request that is done, and open ones of which the last two come after the state was last written."""
        self.take(
            join, IMPRESSIONS, request(0, 5_000, FEATURES), *(request(n, START + n, FEATURES) for n in range(1, 5))
        )
        lacking = {name: each for name, each in FEATURES.items() if name != "item"}
        self.take(join, IMPRESSIONS, request(7, START, lacking), request(17, START, lacking))
        self.take(join, ENGAGEMENTS, done(1, "like", START + 500), done(8, "buy", CUT))
        join.step(ENDED, CUT, 0)
        join = self.start(BEFORE, writes=False)
        self.take(join, IMPRESSIONS, *(request(n, START + n, FEATURES) for n in range(5, 7)))
        join.step(ENDED, CUT, 0)
        assert Counter(self.letters()) == {("feature", "impressions"): 2}

    def finish(self, join: JoinPartition, features: Mapping[str, Feature]) -> None:
        self.take(join, ENGAGEMENTS, *[done(2, "like", START + 900)] * (not self.engaged))
        self.take(join, IMPRESSIONS, request(8, CUT - 100, features), request(9, CUT - 100, features))
        for as_of_ms in (CUT + 100, END, END + 1000):
            join.step(ENDED, as_of_ms, 0)
        self.stop()

    def letters(self, after: int = 0) -> list[tuple[str, str]]:
        return [(letter.reason, letter.topic) for letter in self.dead_letters()[after:]]

    def dead_letters(self) -> list[DeadLetter]:
        return [decode_letter(value) for value in self.world.brokers.topics[DEAD_LETTERS] if value is not None]

    def examples(self, config: tuple[dict[str, Feature], dict[str, Label]]) -> dict[str, dict[str, Any]]:
        """As a reader of ``config`` reads them; by request and impression, each once."""
        found: dict[str, dict[str, Any]] = {}
        form = ExampleFormat(*config)
        for value in self.world.brokers.topics[EXAMPLES]:
            if value is not None and published_in(value).examples:
                for row in form.decode(value)[0].to_pylist():
                    assert row["example_id"] not in found, "twice"
                    found[row["example_id"]] = row
        return found

    def names(self) -> set[str]:
        """The examples' names, each once, whatever they were made under."""
        found: list[str] = []
        for value in self.world.brokers.topics[EXAMPLES]:
            if value is not None:
                found += [name for name, _, _ in published_in(value).examples]
        assert len(found) == len(set(found)), "twice"
        return set(found)


def both_of(*numbers: int) -> set[str]:
    return {f"r{number}/{number}.{place}" for number in numbers for place in (0, 1)}


def changed(pipeline: Pipeline, config: Any, state: str, cut: str) -> JoinPartition:
    """Life under another config begins, from a state that is whole, older, or lost, and is cut off once."""
    pipeline.stop()
    if state == "lost":
        shutil.rmtree(pipeline.folder)
    join = pipeline.start(config)
    if cut == "after recovery":
        join = pipeline.start(config)
    elif cut != "never":
        pipeline.world.brokers.crash = cut.split()[0]
        pipeline.take(join, ENGAGEMENTS, done(2, "like", START + 900), done(3, "like", START + 100))
        pipeline.engaged = True
        with pytest.raises(Crash):
            join.step(ENDED, CUT + 50, 0)
        pipeline.world.brokers.crash = ""
        join = pipeline.start(config)
    return join


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
    assert pipeline.names() == both_of(0, 8, 9)
    letters = pipeline.dead_letters()[2:]
    of_requests = [letter for letter in letters if letter.topic == IMPRESSIONS]
    assert {letter.reason for letter in letters} == {"schema"}
    times = Counter(decode_request(letter.payload, MAX_TIME_MS).request_id for letter in of_requests)
    assert times == Counter(OPEN)
    theirs, ours = (Schema.of(*config).fingerprint for config in (BEFORE, (features, labels)))
    for letter in letters:
        assert f"made under schema {theirs}, this config has {ours}: {said}" in letter.detail
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
    lost = {5} if config[2].startswith("feature") else set[int]()
    refused = Counter({("feature", IMPRESSIONS): 2 * len(lost), ("unmatched", ENGAGEMENTS): 1})
    assert Counter(pipeline.letters(after=2 + len(letters))) == refused
    assert examples.keys() == both_of(*({0, 1, 2, 3, 4, 5, 6} - lost))
    assert {name for name, row in examples.items() if row["label.like"]} == {"r1/1.0", "r2/2.0"}
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


def test_a_state_of_before_is_read_and_one_of_a_later_program_is_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
    assert "state has version 3; allowed: up to 2" in caplog.text
    assert join._head.state_id != state_id
    pipeline.finish(join, FEATURES)
    assert pipeline.names() == both_of(0, 1, 2, 3, 4, 5, 6, 8, 9)


@pytest.mark.parametrize("config", [BEFORE, TAKEN_OVER["a number added"], TAKEN_OVER["a number removed"]])
def test_a_state_of_version_1_goes_on_with_what_its_columns_are(config: Any, tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.fill(pipeline.start(BEFORE))
    pipeline.stop()
    state = JoinState(pipeline.folder, 1 << 20)
    head: Any = msgspec.msgpack.decode(state._db.get(b"head"))
    batch = state._db.batch()
    batch.put(b"head", encode(head[:9]))
    cursor = state._db.iter()
    cursor.seek(b"p")
    while cursor.valid() and (key := bytes(cursor.key()))[:1] in (b"p", b"r"):
        value = msgspec.msgpack.decode(state._db.get(key))
        before = value[:7] if key[:1] == b"p" else {name: each for name, each in value.items() if name != "schema"}
        batch.put(key, encode(before))
        cursor.next()
    state._db.write(batch)
    del cursor
    state.close()
    join = pipeline.start(config)
    pipeline.finish(join, config[0])
    assert pipeline.letters(after=2) == []
    assert pipeline.names() == both_of(0, 1, 2, 3, 4, 5, 6, 8, 9)
