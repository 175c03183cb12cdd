"""A partition that lives under one config, then under another."""

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

from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.join.negatives import Negatives
from streaming.join.partition import JoinPartition
from streaming.join.state import JoinState
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS
from streaming.records.events import (
    FORMAT_VERSION,
    DeadLetter,
    Engagement,
    Request,
    decode_letter,
    encode,
)
from streaming.records.examples import ExampleFormat, published_in
from streaming.records.labels import Label
from tests.streaming.join.join_lives import Crash, World, records_of

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
        join.take(topic, records_of(records[at:], at))

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
        self.take(join, IMPRESSIONS, request(8, CUT - 100, features), request(9, CUT + 50, features))
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
