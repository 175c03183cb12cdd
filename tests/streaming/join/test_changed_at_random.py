"""Random labels, windows, sizes and emit change again and again, over states that are whole, older or lost: every request becomes
its examples once or a dead letter once, and every engagement that waits in vain a dead letter once."""

from __future__ import annotations

import random
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from streaming.features.kinds import VectorFeature
from streaming.join.negatives import Negatives
from streaming.join.settings import JoinSettings
from streaming.join.spec import JoinSpec
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS
from streaming.records.events import (
    FORMAT_VERSION,
    MAX_TIME_MS,
    DeadLetter,
    Engagement,
    decode_engagement,
    decode_letter,
    encode,
)
from streaming.records.examples import published_in
from streaming.records.labels import Label
from streaming.records.reasons import MENDABLE
from tests.streaming.join.config_lives import LATE_BY, START, Lives
from tests.streaming.join.join_lives import FEATURES, records_of
from tests.streaming.join.state_reader import read_examples

UNTIL = 42_000
SEEDS = range(80, 128)
"""Of these, 101 and 120 read a purchase before its request under a config without purchases."""


class Config(NamedTuple):
    """``buy`` is the window of a second label, or empty; ``size`` that of a vector, which is left out if it is 0."""

    emit: str
    lateness: int
    late: str
    click: str
    buy: str
    size: int

    @classmethod
    def draw(cls, rng: random.Random) -> Config:
        return cls(
            rng.choice(["decided", "window"]),
            rng.choice([LATE_BY, 2 * LATE_BY, 3000]),
            rng.choice(["dead_letter", "correct"]),
            rng.choice(["1s", "1s", "1500ms"]),
            rng.choice(["", "3s", "4s"]),
            rng.choice([2, 2, 3, 0]),
        )

    def of(self, spec: JoinSpec) -> JoinSpec:
        features = {**FEATURES, "vec": VectorFeature(kind="vector", column="v", size=self.size or 2)}
        labels = {
            "click": Label(action="click", window=self.click),
            "buy": Label(action="buy", window=self.buy or "1s"),
        }
        return spec._replace(
            features=features if self.size else FEATURES,
            labels=labels if self.buy else {"click": labels["click"]},
            settings=JoinSettings(emit=self.emit, lateness=f"{self.lateness}ms", late=self.late),  # type: ignore[arg-type]
        )


class Changing(Lives):
    """Half of the requests are JSON, some come twice, and engagements of some requests come without them."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self._keep = rng.choice([1.0, 0.5])
        super().__init__(folder, self._keep, rng.choice([1, 3, 100]))
        self._again_from = 0

    def traffic(self) -> list[tuple[int, str, bytes]]:
        found = []
        for number in range(150):
            served_at = START + 200 * number
            sent = _request(number, served_at)
            found.append((served_at + 53 * number % LATE_BY, IMPRESSIONS, sent))
            if number % 9 == 0:
                found.append((served_at + LATE_BY + 71 * number % 2000, IMPRESSIONS, sent))
            for action, unless, span in (("click", 2, 900), ("buy", 3, 3000)):
                at = served_at + 37 * number % span
                done = _engagement(f"r{number}", action, at)
                arrives = at + 31 * number % LATE_BY
                found += [(arrives, ENGAGEMENTS, done)] * bool(number % unless)
                found += [(arrives + 500, ENGAGEMENTS, done)] * (number % 7 == 0)
            if number % 5 == 0:
                found.append((served_at, ENGAGEMENTS, _engagement(f"nobody's {number}", "click", served_at)))
        return found

    def send_again(self) -> None:
        """Send the dead letters that `--again` would send, each once."""
        topics = self.world.brokers.topics
        letters, self._again_from = self._letters()[self._again_from :], len(topics[DEAD_LETTERS])
        for topic in (IMPRESSIONS, ENGAGEMENTS):
            topics[topic] += [each.payload for each in letters if each.topic == topic and each.reason in MENDABLE]

    def read_ahead(self, ms: int) -> None:
        """Engagements are read and committed before the requests beside them."""
        if self.join.busy:
            return
        ahead = [each for each in self.arrivals if each[0] <= self.now + ms and each[1] == ENGAGEMENTS]
        self.arrivals = [each for each in self.arrivals if each not in ahead]
        topic, at = self.world.brokers.topics[ENGAGEMENTS], self.join.offsets[ENGAGEMENTS]
        topic += [value for *_, value in ahead]
        self.join.take(ENGAGEMENTS, records_of(topic[at:], at))
        self.join.step({IMPRESSIONS: False, ENGAGEMENTS: True}, self.now, 0)

    def check(self) -> None:
        letters, examples = self._letters(), defaultdict[str, list[int]](list)
        for value in self.world.brokers.topics[EXAMPLES]:
            if value is not None:
                for name, _, revision in published_in(value).examples:
                    examples[name].append(revision)
        for name, revisions in examples.items():
            assert revisions == list(range(len(revisions))), f"{name} was emitted as {revisions}"
        # A request that its joiner refuses again in a rebuild may have a letter `schema` of each config.
        places = Counter((each.topic, each.offset) for each in letters if each.reason != "schema")
        assert not [place for place, times in places.items() if times > 1]
        refused = {_request_id(each.payload) for each in letters if each.topic == IMPRESSIONS}
        for value in self.world.brokers.topics[IMPRESSIONS]:
            request_id = _request_id(value or b"")
            for name in (f"{request_id}/a", f"{request_id}/b"):
                is_dropped = self._keep < 1 and not Negatives(self._keep).keeps(name)
                assert name in examples or request_id in refused or is_dropped, f"{name} vanished"
        self._check_labels(letters)
        for offset, value in enumerate(self.world.brokers.topics[ENGAGEMENTS]):
            waited = decode_engagement(value or b"", MAX_TIME_MS).request_id.startswith("nobody's")
            assert not waited or places[ENGAGEMENTS, offset], f"an engagement that waited, {offset}, vanished"

    def _check_labels(self, letters: list[DeadLetter]) -> None:
        """A label of an example's last revision is 1 if that was done, or what was done has a letter."""
        done, refused = set[tuple[str, str]](), {each.offset for each in letters if each.topic == ENGAGEMENTS}
        lettered = set[tuple[str, str]]()
        for offset, value in enumerate(self.world.brokers.topics[ENGAGEMENTS]):
            each = decode_engagement(value or b"", MAX_TIME_MS)
            place = f"{each.request_id}/{each.impression_id}", f"label.{each.action}"
            done.add(place)
            if offset in refused:
                lettered.add(place)
        labels: dict[tuple[str, str], float] = {}
        for value in self.world.brokers.topics[EXAMPLES]:
            for row in [] if value is None else read_examples(value)[1]:
                labels |= {(row["example_id"], name): row[name] for name in row if name.startswith("label.")}
        wrong = {place for place, label in labels.items() if bool(label) != (place in done) and place not in lettered}
        assert not wrong, f"trained as another label than what was done: {sorted(wrong)}"

    def _letters(self) -> list[DeadLetter]:
        return [decode_letter(value) for value in self.world.brokers.topics[DEAD_LETTERS] if value is not None]


def _request(number: int, served_at: int) -> bytes:
    both = {"version": FORMAT_VERSION, "request_id": f"r{number}", "served_at": served_at, "impression_ids": ["a", "b"]}
    if number % 2:
        return msgspec.json.encode({**both, "features": {"key": [0, 1], "vec": [[1, 1]] * 2}})
    packed = {"key": np.arange(2).tobytes(), "vec": np.ones(4, "<f4").tobytes()}
    return msgspec.msgpack.encode({**both, "features": packed})


def _engagement(request_id: str, action: str, at: int) -> bytes:
    return encode(
        Engagement(version=FORMAT_VERSION, request_id=request_id, impression_id="a", action=action, happened_at=at)
    )


def _request_id(payload: bytes) -> str:
    read = msgspec.json.decode if payload.startswith(b"{") else msgspec.msgpack.decode
    found: str = read(payload)["request_id"]
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_vanishes_and_nothing_comes_twice(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    lives = Changing(tmp_path / "lives", rng)
    configs, older, sends_again = [Config.draw(rng) for _ in range(3)], tmp_path / "older", rng.random() < 0.5
    while lives.now < UNTIL:
        match rng.choice(["older", "keep", "lose", "lose", "nothing"]):
            case "older" if older.exists():
                shutil.rmtree(lives.folder, ignore_errors=True)
                shutil.copytree(older, lives.folder)
            case "keep" if lives.folder.exists():
                shutil.rmtree(older, ignore_errors=True)
                shutil.copytree(lives.folder, older)
            case "lose":
                shutil.rmtree(lives.folder, ignore_errors=True)
        if rng.random() < 0.3:  # recovered, and gone before its first commit
            lives.start(rng.choice(configs))
            lives.stop()
        lives.start(rng.choice(configs), write_every_ms=rng.choice([0, 1 << 40]))
        lives.run(lives.now + rng.randrange(1, 4000), 250)
        if sends_again and rng.random() < 0.3 and lives.now < UNTIL - 4000:
            lives.send_again()
        if rng.random() < 0.5:
            lives.read_ahead(1000)
        lives.stop()
    lives.start(rng.choice(configs))
    lives.finish()
