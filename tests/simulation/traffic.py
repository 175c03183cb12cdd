"""What users do in one run, when it arrives, and, by the words of the contract alone, which examples it must lead to."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
import xxhash

from streaming.features.kinds import Feature, Packed, SparseFeature, VectorFeature
from streaming.join.negatives import Negatives
from streaming.join.settings import JoinSettings
from streaming.log import ENGAGEMENTS, EXAMPLES, IMPRESSIONS
from streaming.records.events import FORMAT_VERSION, Engagement, Request, encode
from streaming.records.labels import Label
from streaming.records.schema import Schema
from tests.fuzz.mutate import JSON, MSGPACK, nested_json, noise

START = 1_700_000_000_000
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
PARTITIONS = 2
LATENESS, LONGEST_DELAY = 60_000, 40_000
FEATURES: dict[str, Feature] = {
    "user": SparseFeature(column="user", scope="request"),
    "seen": SparseFeature(column="seen", scope="request", pool="mean"),
    "example": SparseFeature(column="example"),
}
LABELS = {
    "click": Label(action="click", window="60s"),
    "like": Label(action="like", decided_by="skip", window="150s"),
}
CLICK_WINDOW, WINDOW = 60_000, 150_000
_NOBODY = "undefined"
"""What a broken product sends as everybody's request id."""
_NO_ITEM = "item1000"
WAITING_BYTES = 6000
"""Of the engagements that wait for one request: more than any product sends that is not broken."""


Emit: TypeAlias = Literal["decided", "window"]


class Arrival(NamedTuple):
    """One record on its way to the log. Of ``attempts`` to send it in a transaction only the last is committed; without any, it is
    sent as it is. What it claims is ``ahead`` (ms) of the time."""

    at: int
    topic: str
    partition: int
    value: bytes
    attempts: int
    ahead: int


class Expected(NamedTuple):
    """An example: its number is its key; times in ms. By `join.emit` it is due when it is decided, or when its window closes."""

    number: int
    partition: int
    user: int
    labels: tuple[float, float]
    decided_at: int
    closes_at: int


class Traffic(NamedTuple):
    """``arrivals`` in order, to be joined by ``settings``. ``names`` holds the ids of all examples by their numbers.

    ``expected`` must become examples, once, ``possible`` may, each revision once; ``possible_users`` are the users of the latter.
    Of the dead letters ``refused`` must be there, by partition and payload; ``refusable`` may be. ``unreadable`` are records of
    `examples`. ``sizes`` are those that the feature ``extra`` has in the two configs of this run, see `features`; the examples
    in ``extra`` were sent with it.
    """

    settings: JoinSettings
    negatives: Negatives
    arrivals: list[Arrival]
    names: dict[int, str]
    expected: dict[int, Expected]
    possible: set[int]
    possible_users: set[int]
    refused: list[tuple[int, bytes]]
    refusable: set[bytes]
    unreadable: set[bytes]
    sizes: tuple[int, int]
    extra: set[int]
    until: int

    @property
    def is_resized(self) -> bool:
        """Whether one config cannot take over what is pending under the other."""
        return 0 not in self.sizes


class Action(NamedTuple):
    """What a user did with an impression, and when (ms)."""

    name: str
    at: int


def features(size: int) -> dict[str, Feature]:
    """Those of a config: ``extra`` has so many numbers, each the example's plus 1; 0 where there is none."""
    found = dict(FEATURES)
    if size:
        found["extra"] = VectorFeature(kind="vector", column="extra", size=size)
    return found


def make_traffic(rng: random.Random) -> Traffic:
    requests = rng.randint(15, 45)
    every = rng.choice([5_000, 15_000, 30_000])
    users = rng.choice([2, 6, 12])
    emit: Emit = rng.choice(["decided", "decided", "window"])
    late: Literal["dead_letter", "correct"] = rng.choice(["dead_letter", "dead_letter", "correct"])
    settings = JoinSettings(emit=emit, late=late, lateness=f"{LATENESS}ms", max_rows=16)
    negatives = Negatives(rng.choice([1.0, 1.0, 0.5]), seed=1)
    twins = rng.choice([0, 0, 0.2])
    huge = rng.choice([0, 0, 0.03])
    transactions = rng.choice([0, 0, 0.1])
    fast = rng.choice([0, 0, 0, 0.1])
    sizes = rng.choice([(0, 0), (0, 0), (0, 0), (0, 1), (0, 1), (0, 1), (1, 2)])
    resized = 0 not in sizes
    arrivals: list[Arrival] = []
    names: dict[int, str] = {}
    expected: dict[int, Expected] = {}
    possible: set[int] = set()
    possible_users: set[int] = set()
    refused: list[tuple[int, bytes]] = []
    refusable: set[bytes] = set()
    unreadable: set[bytes] = set()
    extra: set[int] = set()
    at, until, number, partition = START, START, 0, 0

    def arrive(arrives: int, topic: str, partition: int, value: bytes, ahead: int = 0) -> None:
        attempts = rng.randint(1, 3) if rng.random() < transactions else 0
        arrivals.append(Arrival(arrives, topic, partition, value, attempts, ahead))

    def send(topic: str, partition: int, happened_at: int, value: bytes, *, late: bool = False, ahead: int = 0) -> None:
        arrives = happened_at + int(rng.random() ** 2 * LONGEST_DELAY)
        if late:
            refusable.add(value)
            arrives = happened_at + LATENESS + rng.randrange(2 * (WINDOW + LATENESS))
        arrive(arrives, topic, partition, value, ahead)
        while rng.random() < 0.08:  # a repeat, at once or much later
            again = arrives + rng.choice([0, 1000, LONGEST_DELAY, 5 * MINUTE, 30 * MINUTE])
            if again > happened_at + LONGEST_DELAY:
                refusable.add(value)
            arrive(again, topic, partition, value, ahead)

    for name in range(requests):
        if name == 0 or rng.random() >= twins:  # else it is served in the same millisecond as the one before it
            at += int(rng.expovariate(1 / every)) + (rng.random() < 0.03) * 10 * MINUTE
            partition = name % PARTITIONS
        user = rng.randrange(users)
        is_huge = rng.random() < huge
        numbers = list(range(number, number + (rng.randint(100, 200) if is_huge else rng.randint(1, 3))))
        number += len(numbers)
        is_late = rng.random() < 0.02
        # Who serves some of them has a clock that is fast: all that is said of them is ahead of when it is sent.
        ahead = rng.randint(1, 40) * MINUTE if rng.random() < fast and not is_late else 0
        served_at = at + ahead
        until = max(until, served_at)
        request_id = f"r/{name}%"
        names |= {
            one: example_id(request_id, impression) for one, impression in zip(numbers, _shown(numbers), strict=True)
        }
        # Replicas have either config, and say so; products send a feature before any config has it.
        size = sizes[2 * name // requests] if resized else rng.choice(sizes)
        schema = rng.choice(["", Schema.of(features(size), LABELS).fingerprint])
        if not schema and not resized:
            size = max(sizes)
        if size:
            extra.update(numbers)
        seen = 500 if is_huge else rng.randrange(3)
        request = request_record(request_id, served_at, numbers, user, size, seen=seen, schema=schema)
        send(IMPRESSIONS, partition, at, request, late=is_late, ahead=ahead)
        for one, impression in zip(numbers, _shown(numbers), strict=True):
            actions, late_action = [], False
            while rng.random() < (0.05 if is_huge else 0.45):
                action = Action(rng.choice(["click", "like", "skip", "unused"]), served_at + rng.randint(0, WINDOW))
                value = engagement_record(request_id, impression, action)
                too_late = rng.random() < 0.03
                send(ENGAGEMENTS, partition, action.at - ahead, value, late=too_late, ahead=ahead)
                if is_late or not counts(action, served_at):
                    refusable.add(value)
                late_action |= too_late
                actions.append(action)
            if is_late or late_action:
                possible.add(one)
                possible_users.add(user)
            else:
                labels, decided_at = decide(served_at, actions)
                if not any(labels) and not is_kept(names[one], negatives):
                    continue
                expected[one] = Expected(one, partition, user, labels, decided_at, served_at + WINDOW)
        if rng.random() < 0.03 and not is_late and not resized:  # another request with the id, while that is known
            again = at + LONGEST_DELAY + rng.randrange(WINDOW // 2)
            value = request_record(request_id, again + ahead, [10**6 + number], user, max(sizes))
            arrive(again, IMPRESSIONS, partition, value, ahead)
            refused.append((partition, value))
        if rng.random() < 0.15:
            topic, value = _bad(rng, name, request_id, at)
            where = rng.randrange(PARTITIONS)
            arrive(at + rng.randrange(LONGEST_DELAY), topic, where, value)
            if topic == EXAMPLES:
                unreadable.add(value)
            else:
                refused.append((where, value))
    if rng.random() < 0.3:
        burst = rng.random() < 0.3  # more than may wait
        begun, lasts = (rng.randint(START, at), MINUTE) if burst else (START, at - START)
        for _ in range(250 if burst else rng.randint(5, 40)):
            action = Action(rng.choice(["click", "like", "skip"]), begun + rng.randint(0, lasts))
            value = engagement_record(_NOBODY, f"item{rng.randrange(3)}", action)
            send(ENGAGEMENTS, 0, action.at, value)
            refused.append((0, value))
    refusable |= {value for _, value in refused}
    if resized:  # whatever is pending at a change, or has the other size, is refused, and what is said of it
        expected, possible, possible_users = {}, set(names), set(range(users))
        refusable |= {one.value for one in arrivals}
        # A rebuild cannot tell whether a request was open or new when it was refused, nor then whether an engagement had counted
        # by then or was still waiting for it: it takes it for the former, even one of no impression.
        refused = [(where, value) for where, value in refused if _NO_ITEM.encode() not in value]
    arrivals.sort(key=lambda arrival: arrival.at)
    return Traffic(
        settings,
        negatives,
        arrivals,
        names,
        expected,
        possible,
        possible_users,
        refused,
        refusable,
        unreadable,
        sizes,
        extra,
        until,
    )


def example_id(request_id: str, impression_id: str) -> str:
    """As the contract writes it: the first slash parts the two."""
    return f"{request_id.replace('%', '%25').replace('/', '%2F')}/{impression_id}"


def is_kept(name: str, negatives: Negatives) -> bool:
    """Whether sampling keeps an example that is negative."""
    return xxhash.xxh3_64(name.encode(), negatives.seed).intdigest() / 2**64 < negatives.keep


def counts(action: Action, served_at: int) -> bool:
    """Whether an action came within its window."""
    return 0 <= action.at - served_at <= (CLICK_WINDOW if action.name == "click" else WINDOW)


def decide(served_at: int, actions: list[Action]) -> tuple[tuple[float, float], int]:
    """Both labels and when the last was decided."""
    clicks = [action.at for action in actions if action.name == "click" and action.at <= served_at + CLICK_WINDOW]
    likes: dict[str, list[int]] = defaultdict(list)
    for action in actions:
        likes[action.name].append(action.at)
    first = min(likes["like"] + likes["skip"], default=served_at + WINDOW)
    liked = bool(likes["like"]) and min(likes["like"]) == first
    return (float(bool(clicks)), float(liked)), max(min(clicks, default=served_at + CLICK_WINDOW), first)


def _shown(numbers: list[int]) -> list[str]:
    """The ids of a request's impressions: every request shows the same items."""
    return [f"item{place}" for place in range(len(numbers))]


def request_record(
    name: str, at: int, numbers: list[int], user: int, size: int = 0, *, seen: int = 0, schema: str = ""
) -> bytes:
    own: dict[str, Packed] = {"example": np.array(numbers, "<i8").tobytes()}
    if size:
        own["extra"] = np.repeat(np.array(numbers, "<f4") + 1, size).tobytes()
    return encode(
        Request(
            version=FORMAT_VERSION,
            request_id=name,
            served_at=at,
            impression_ids=_shown(numbers),
            shared={
                "user": np.int64(user).tobytes(),
                "seen": (np.int32(seen).tobytes(), np.arange(seen, dtype="<i8").tobytes()),
            },
            features=own,
            schema=schema,
        )
    )


def engagement_record(request: str, impression: str, action: Action) -> bytes:
    return encode(
        Engagement(
            version=FORMAT_VERSION,
            request_id=request,
            impression_id=impression,
            action=action.name,
            happened_at=action.at,
        )
    )


def _bad(rng: random.Random, name: int, request_id: str, at: int) -> tuple[str, bytes]:
    """A record that must be refused: broken, harmful, from the far future, or about what was never served."""
    unmatched = Action("click", at)
    match rng.randrange(9):
        case 0:
            return rng.choice([IMPRESSIONS, ENGAGEMENTS]), noise(rng)
        case 1:
            return IMPRESSIONS, request_record(f"f{name}", at + 30 * DAY, [10**6 + name], 1)
        case 2:
            return ENGAGEMENTS, engagement_record(f"f{name}", "item0", Action("like", at + 30 * DAY))
        case 3:
            return ENGAGEMENTS, engagement_record(f"u{name}", "item0", unmatched)
        case 4:
            return ENGAGEMENTS, engagement_record(request_id, _NO_ITEM, unmatched)
        case 5:
            parts = {
                "features": '{"example":' + nested_json(5000) + "}",
                "sparse_version": str(2**64),
                "version": rng.choice(JSON),
                "impression_ids": rng.choice(JSON),
            }
            good = {"version": 1, "request_id": "p", "served_at": at, "impression_ids": ["a"]}
            field = rng.choice(list(parts))
            part = msgspec.Raw(parts[field].encode("utf-8", "surrogateescape"))
            return IMPRESSIONS, msgspec.json.encode({**good, field: part})
        case 6:
            whole = request_record("p", at, [10**6], 1)
            return IMPRESSIONS, _with_a_part(rng, whole, ["sparse_version", "impression_ids", "served_at"])
        case 7:
            return ENGAGEMENTS, _with_a_part(
                rng, engagement_record("p", "a", unmatched), ["impression_id", "happened_at"]
            )
        case _:
            # nobody has examples of version 0, and noise is none
            whole = encode({"version": 0, "watermark": at, "batch": b""})
            return EXAMPLES, rng.choice([b"\xc1" + noise(rng), _with_a_part(rng, whole, ["watermark", "batch"])])


def _with_a_part(rng: random.Random, good: bytes, fields: list[str]) -> bytes:
    """A record with a part that decoders cannot take; also one that they would skip, if it were less deep."""
    parts = {field: rng.choice(MSGPACK) for field in ("version", *fields)}
    parts["sparse_version"] = b"\xcf" + b"\xff" * 8
    field = rng.choice(["x", "version", *fields])
    part = b"\x91" * 5000 + b"\xc0" if field == "x" else parts[field]
    return encode({**msgspec.msgpack.decode(good), field: msgspec.Raw(part)})
