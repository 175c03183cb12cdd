"""What users do in one run, when it arrives, and, by the words of the contract alone, which examples it must lead to."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Literal, NamedTuple

import numpy as np
import xxhash

from streaming.features.kinds import Feature, SparseFeature
from streaming.join.core import JoinSettings
from streaming.join.negatives import Negatives
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from streaming.records.events import SCHEMA_VERSION, Engagement, Request, encode
from streaming.records.labels import Label

START = 1_700_000_000_000
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
PARTITIONS = 2
LATENESS, LONGEST_DELAY = 60_000, 40_000
FEATURES: dict[str, Feature] = {
    "user": SparseFeature(column="user", scope="request"),
    "example": SparseFeature(column="example"),
}
LABELS = {
    "click": Label(action="click", window="60s"),
    "like": Label(action="like", decided_by="skip", window="150s"),
}
WINDOW = 150_000


class Arrival(NamedTuple):
    """One record on its way to the log."""

    at: int
    topic: str
    partition: int
    value: bytes


class Expected(NamedTuple):
    """An example: its number is its id and its key; times in ms."""

    number: int
    partition: int
    user: int
    labels: tuple[float, float]
    decided_at: int


class Traffic(NamedTuple):
    """``arrivals`` in order, to be joined by ``settings``.

    ``expected`` must become examples, once, ``possible`` may, each revision once; ``possible_users`` are the users of the latter.
    Of the dead letters ``refused`` must be there, by partition and payload; ``refusable`` may be.
    """

    settings: JoinSettings
    negatives: Negatives
    arrivals: list[Arrival]
    expected: dict[int, Expected]
    possible: set[int]
    possible_users: set[int]
    refused: list[tuple[int, bytes]]
    refusable: set[bytes]
    until: int


class _Action(NamedTuple):
    name: str
    at: int


def make_traffic(rng: random.Random) -> Traffic:
    requests = rng.randint(15, 45)
    every = rng.choice([5_000, 15_000, 30_000])
    users = rng.choice([2, 6, 12])
    emit: Literal["decided", "window"] = rng.choice(["decided", "decided", "window"])
    late: Literal["dead_letter", "correct"] = rng.choice(["dead_letter", "dead_letter", "correct"])
    settings = JoinSettings(emit=emit, late=late, lateness=f"{LATENESS}ms", max_rows=16, memory_bytes=1 << 20)
    negatives = Negatives(rng.choice([1.0, 1.0, 0.5]), seed=1)
    arrivals: list[Arrival] = []
    expected: dict[int, Expected] = {}
    possible: set[int] = set()
    possible_users: set[int] = set()
    refused: list[tuple[int, bytes]] = []
    refusable: set[bytes] = set()
    at, number = START, 0

    def send(topic: str, partition: int, happened_at: int, value: bytes, *, late: bool = False) -> None:
        arrives = happened_at + int(rng.random() ** 2 * LONGEST_DELAY)
        if late:
            refusable.add(value)
            arrives = happened_at + LATENESS + rng.randrange(2 * (WINDOW + LATENESS))
        arrivals.append(Arrival(arrives, topic, partition, value))
        while rng.random() < 0.08:  # a repeat, at once or much later
            again = arrives + rng.choice([0, 1000, LONGEST_DELAY, 5 * MINUTE, 30 * MINUTE])
            if again > happened_at + LONGEST_DELAY:
                refusable.add(value)
            arrivals.append(Arrival(again, topic, partition, value))

    for name in range(requests):
        at += int(rng.expovariate(1 / every)) + (rng.random() < 0.03) * 10 * MINUTE
        partition, user = name % PARTITIONS, rng.randrange(users)
        numbers = list(range(number, number + rng.randint(1, 3)))
        number += len(numbers)
        is_late = rng.random() < 0.02
        request = _request(f"r{name}", at, numbers, user)
        send(IMPRESSIONS, partition, at, request, late=is_late)
        for one in numbers:
            actions, late_action = [], False
            while rng.random() < 0.45:
                action = _Action(rng.choice(["click", "like", "skip", "unused"]), at + rng.randint(0, WINDOW))
                value = _engagement(f"r{name}", one, action)
                too_late = rng.random() < 0.03
                send(ENGAGEMENTS, partition, action.at, value, late=too_late)
                if is_late or action.at - at > (60_000 if action.name == "click" else WINDOW):
                    refusable.add(value)
                late_action |= too_late
                actions.append(action)
            if is_late or late_action:
                possible.add(one)
                possible_users.add(user)
            else:
                labels, decided_at = _decide(at, actions)
                if emit == "window":
                    decided_at = at + WINDOW
                if not any(labels) and not _is_kept(one, negatives):
                    continue
                expected[one] = Expected(one, partition, user, labels, decided_at)
        if rng.random() < 0.15:
            partition = rng.randrange(PARTITIONS)
            topic, value, surely = _bad(rng, name, at)
            arrivals.append(Arrival(at + rng.randrange(LONGEST_DELAY), topic, partition, value))
            if surely:
                refused.append((partition, value))
            refusable.add(value)
    arrivals.sort(key=lambda arrival: arrival.at)
    return Traffic(settings, negatives, arrivals, expected, possible, possible_users, refused, refusable, at)


def _request(name: str, at: int, numbers: list[int], user: int) -> bytes:
    return encode(
        Request(
            version=SCHEMA_VERSION,
            request_id=name,
            served_at=at,
            impression_ids=[str(one) for one in numbers],
            shared={"user": np.int64(user).tobytes()},
            features={"example": np.array(numbers, "<i8").tobytes()},
        )
    )


def _engagement(request: str, number: int, action: _Action) -> bytes:
    return encode(
        Engagement(
            version=SCHEMA_VERSION,
            request_id=request,
            impression_id=str(number),
            action=action.name,
            happened_at=action.at,
        )
    )


def _bad(rng: random.Random, name: int, at: int) -> tuple[str, bytes, bool]:
    """A record that must be refused: broken, from the far future, or about what was never served."""
    unmatched = _Action("click", at)
    match rng.randrange(5):
        case 0:
            return rng.choice([IMPRESSIONS, ENGAGEMENTS]), b"\xc1 not a record " + bytes([name]), True
        case 1:
            return IMPRESSIONS, _request(f"f{name}", at + 30 * DAY, [10**6 + name], 1), True
        case 2:
            return ENGAGEMENTS, _engagement(f"f{name}", 1, _Action("like", at + 30 * DAY)), True
        case 3:
            return ENGAGEMENTS, _engagement(f"u{name}", 1, unmatched), True
        case _:
            return ENGAGEMENTS, _engagement(f"r{name}", 10**6, unmatched), True


def _is_kept(number: int, negatives: Negatives) -> bool:
    return xxhash.xxh3_64(str(number).encode(), negatives.seed).intdigest() / 2**64 < negatives.keep


def _decide(served_at: int, actions: list[_Action]) -> tuple[tuple[float, float], int]:
    """Both labels and when the last was decided."""
    clicks = [action.at for action in actions if action.name == "click" and action.at <= served_at + 60_000]
    likes: dict[str, list[int]] = defaultdict(list)
    for action in actions:
        likes[action.name].append(action.at)
    first = min(likes["like"] + likes["skip"], default=served_at + WINDOW)
    liked = bool(likes["like"]) and min(likes["like"]) == first
    return (float(bool(clicks)), float(liked)), max(min(clicks, default=served_at + 60_000), first)
