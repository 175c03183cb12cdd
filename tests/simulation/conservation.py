"""Nothing vanishes: what was sent is in an example, dropped by sampling, of no use, or among the dead letters.

By the records in the brokers' topics and the words of the contract alone; so it also holds of what came late, of which nobody can
say beforehand what becomes of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from streaming.log import ENGAGEMENTS, IMPRESSIONS, Record
from streaming.records.events import DeadLetter, Engagement, Request
from tests.simulation.brokers import Brokers
from tests.simulation.traffic import LATENESS, WINDOW, Action, Traffic, counts, decide, is_kept

_Event = TypeVar("_Event", Request, Engagement)


class _Sent(NamedTuple):
    """An engagement in its topic. One that is not ``in_time`` may wait for a request that was forgotten, and which a recovery takes
    again."""

    action: Action
    refused: bool
    in_time: bool


def check_conservation(
    brokers: Brokers, traffic: Traffic, letters: Sequence[Sequence[DeadLetter]], labels: Mapping[int, tuple[float, ...]]
) -> None:
    """``letters`` by partition; ``labels`` are those of each example's last revision, by its number."""
    for partition, refused in enumerate(letters):
        places = {(letter.topic, letter.offset) for letter in refused}
        # These have their dead letter, and engagements that counted before it need none.
        outdated = {_request_id(one) for one in refused if (one.topic, one.reason) == (IMPRESSIONS, "schema")}
        requests = list(_records(brokers, IMPRESSIONS, partition, Request))
        taken = {one.request_id: one for record, one in requests if (IMPRESSIONS, record.offset) not in places}
        for request_id in outdated - taken.keys():
            numbers = {number for _, one in requests if one.request_id == request_id for number in _numbers(one)}
            assert numbers - labels.keys(), f"{request_id} was not open any more when it became a dead letter"
        sent: dict[tuple[str, str], list[_Sent]] = defaultdict(list)
        for record, done in _records(brokers, ENGAGEMENTS, partition, Engagement):
            if done.action == "unused" or done.request_id in outdated:
                continue
            request = taken.get(done.request_id)
            action = Action(done.action, done.happened_at)
            opened = done.happened_at if request is None else request.served_at
            in_time = record.appended_at <= opened + WINDOW + LATENESS
            one = _Sent(action, (ENGAGEMENTS, record.offset) in places, in_time)
            if request is not None and done.impression_id in request.impression_ids and counts(action, opened):
                sent[done.request_id, done.impression_id].append(one)
            else:
                assert one.refused or not one.in_time, f"vanished: {done}"
        for request_id in taken.keys() - outdated:
            request = taken[request_id]
            for number, impression_id in zip(_numbers(request), request.impression_ids, strict=True):
                _check_example(traffic, number, request.served_at, sent[request_id, impression_id], labels)


def _check_example(
    traffic: Traffic, number: int, served_at: int, sent: Sequence[_Sent], labels: Mapping[int, tuple[float, ...]]
) -> None:
    """Its label is that of what came before the first engagement that was refused; and without one, sampling dropped it."""
    first = next((at for at, one in enumerate(sent) if one.refused), len(sent))
    sure = next((at for at, one in enumerate(sent[:first]) if not one.in_time), first)
    allowed = {decide(served_at, [one.action for one in sent[:at]])[0] for at in range(sure, first + 1)}
    if number in labels:
        assert labels[number] in allowed, f"example {number} is {labels[number]}, by what was not refused {allowed}"
    else:
        dropped = not is_kept(traffic.names[number], traffic.negatives) and (0.0, 0.0) in allowed
        assert dropped, f"example {number} vanished: {allowed}"


def _records(brokers: Brokers, topic: str, partition: int, kind: type[_Event]) -> Iterator[tuple[Record, _Event]]:
    """The records that can be read at all, and what is in them."""
    log = brokers.topics[topic, partition]
    decoder = msgspec.msgpack.Decoder(kind)
    for record in log.committed(0, len(log.entries)):
        try:
            yield record, decoder.decode(record.value)
        except Exception:  # whatever it is, joiners cannot read it either
            continue


def _numbers(request: Request) -> list[int]:
    packed = request.features["example"]
    assert isinstance(packed, bytes)  # one id each
    numbers: list[int] = np.frombuffer(packed, "<i8").tolist()
    return numbers


def _request_id(letter: DeadLetter) -> str:
    request: dict[str, str] = msgspec.msgpack.decode(letter.payload)
    return request["request_id"]
