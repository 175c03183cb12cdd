"""A partition whose joiner lives under one config after another, and what must have become of every record in the end."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from streaming.features.kinds import DenseFeature
from streaming.join.negatives import Negatives
from streaming.join.partition import JoinPartition
from streaming.join.settings import JoinSettings
from streaming.join.spec import JoinSpec
from streaming.join.state import JoinState
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, IMPRESSIONS
from streaming.records.events import (
    FORMAT_VERSION,
    MAX_TIME_MS,
    MIN_TIME_MS,
    Request,
    decode_engagement,
    decode_letter,
    decode_request,
    encode,
)
from streaming.records.labels import Label
from tests.streaming.join.join_lives import FEATURES, LABELS, World, clicked, published, records_of

ENDED = {IMPRESSIONS: True, ENGAGEMENTS: True}
START, CHANGE, END = 10_000, 11_500, 90_000
LATE_BY = 300
"""How much later records arrive than they happen, at most."""


class Config(NamedTuple):
    """What changes between two starts. A purchase may come 8 s after the serving, a click 1 s."""

    emit: str = "decided"
    lateness: int = LATE_BY
    earliest_ms: int = MIN_TIME_MS
    buys: bool = False
    ages: bool = False

    def of(self, spec: JoinSpec) -> JoinSpec:
        return spec._replace(
            features={**FEATURES, "age": DenseFeature(kind="dense", column="a")} if self.ages else FEATURES,
            labels={**LABELS, "buy": Label(action="buy", window="8s")} if self.buys else LABELS,
            settings=JoinSettings(emit=self.emit, lateness=f"{self.lateness}ms"),  # type: ignore[arg-type]
            earliest_ms=self.earliest_ms,
        )


class Lives:
    """One partition whose joiner lives under one config after another; some 30 s of traffic arrive while it does."""

    def __init__(self, folder: Path, keep: float, requests_at_once: int = 3) -> None:
        self.world = World(random.Random(1), folder, negatives=Negatives(keep), requests_at_once=requests_at_once)
        self.folder = self.world.folders[0]
        self.state: JoinState | None = None
        self.now = START
        self.arrivals = sorted(self.traffic())

    def traffic(self) -> list[tuple[int, str, bytes]]:
        found = []
        for number in range(300):
            served_at = START + 100 * number
            sent = encode(
                Request(
                    version=FORMAT_VERSION,
                    request_id=f"r{number}",
                    served_at=served_at,
                    impression_ids=["a", "b"],
                    features={"key": np.arange(2).tobytes(), "age": np.ones(2, "<f4").tobytes()},
                )
            )
            found.append((served_at + 53 * number % LATE_BY, IMPRESSIONS, sent))
            if number % 9 == 0:  # and again
                found.append((served_at + LATE_BY + 71 * number % 2000, IMPRESSIONS, sent))
            if number % 2:
                at = served_at + 37 * number % 900
                found.append((at + 31 * number % LATE_BY, ENGAGEMENTS, encode(clicked(f"r{number}", "a", at))))
            if number % 5 == 0:
                found.append((served_at, ENGAGEMENTS, encode(clicked(f"nobody's {number}", "a", served_at))))
        return found

    def start(self, config: Config, *, lost: bool = False, write_every_ms: int = 0) -> JoinPartition:
        self.stop()
        if lost:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.world.spec = config.of(self.world.spec)
        self.state = JoinState(self.folder, 1 << 20)
        self.join = self.world.join(self.state, self.world.brokers, write_every_ms)
        list(self.join.recover())
        return self.join

    def stop(self) -> None:
        if self.state is not None:
            self.state.close()
            self.state = None

    def run(self, until: int, step_ms: int = 250) -> None:
        topics = self.world.brokers.topics
        while self.now < until:
            self.now += step_ms
            while self.arrivals and self.arrivals[0][0] <= self.now:
                _, topic, value = self.arrivals.pop(0)
                topics[topic].append(value)
            if not self.join.busy:
                for topic in ENDED:
                    self.join.take(
                        topic, records_of(topics[topic][self.join.offsets[topic] :], self.join.offsets[topic])
                    )
            self.join.step({topic: self.join.offsets[topic] == len(topics[topic]) for topic in ENDED}, self.now, 0)

    def finish(self) -> None:
        self.run(END // 2)
        while self.join.pending:
            assert self.now < 10 * END, "no end in sight"
            self.run(self.now + 2000, 2000)
        self.stop()
        self.check()

    def check(self) -> None:
        """Every impression of every request is an example with its label, once, or a dead letter, or a negative left out; what
        waited in vain is a dead letter."""
        brokers, negatives = self.world.brokers, self.world.spec.negatives
        letters = [decode_letter(value) for value in brokers.topics[DEAD_LETTERS] if value is not None]
        refused = {(letter.topic, letter.offset) for letter in letters}
        assert len(refused) == len(letters), "a letter twice"
        dead = {
            decode_request(letter.payload, MAX_TIME_MS).request_id for letter in letters if letter.topic == IMPRESSIONS
        }
        examples = published(brokers)
        done = [decode_engagement(value or b"", MAX_TIME_MS) for value in brokers.topics[ENGAGEMENTS]]
        counted = {
            f"{each.request_id}/{each.impression_id}"
            for offset, each in enumerate(done)
            if (ENGAGEMENTS, offset) not in refused
        }
        assert not any(name.startswith("nobody's") for name in counted)
        for value in brokers.topics[IMPRESSIONS]:
            request = decode_request(value or b"", MAX_TIME_MS)
            for name in (f"{request.request_id}/{each}" for each in request.impression_ids):
                if name in examples:
                    (example,) = examples[name]
                    assert example.label == (name in counted or (name.split("/")[0] in dead and example.label)), name
                elif request.request_id not in dead:
                    assert name not in counted and not negatives.keeps(name), f"{name} vanished"
