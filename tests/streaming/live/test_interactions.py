"""What joiners say of a log is what a replay of it counts, by one rule of acceptance; and records that are none are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming.join.core import Joiner
from streaming.join.settings import JoinSettings
from streaming.join.spec import JoinSpec, LiveOutput
from streaming.live.core import READ, LiveCore, Operations
from streaming.live.interactions import Interactions, owner_of
from streaming.live.spec import LiveSpec, counts_servings
from streaming.log import ENGAGEMENTS, IMPRESSIONS, Record
from streaming.records.events import BadRecord, encode
from streaming.source import live_columns
from streaming.source.to_records import RequestRecords
from tests.streaming.join.join_world import roomy_state
from tests.streaming.live.brute_force import Done, Shown
from tests.streaming.live.test_live import LABELS, features_of, live_of, load_live, logs
from tests.streaming.source.own_logs import NOW

Counted: TypeAlias = Counter[tuple[str, int, int, int, int, tuple[int, ...]]]
"""How often a definition counted a thing: its key, what it was, when, as of when, and the ids that it keeps of it."""


def counted_by_a_replay(
    folder: Path, log: list[Shown], done: list[Done]
) -> tuple[Counted, list[tuple[int, str, bytes]]]:
    """What a replay counts of a log, and the log's records in the order of time."""
    live = live_of()
    taken: list[Operations] = []

    class Recording(LiveCore):
        def take(self, operations: Operations) -> Any:
            taken.append(operations)
            return super().take(operations)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live_columns, "LiveCore", Recording)
        events = load_live(folder, live, log, done)
    found: Counted = Counter()
    uses = {
        name: {*([1] * counts_servings(each)), *(code(name, action) for action in actions(name))}
        for name, each in live.definitions()
    }
    for each in taken:
        for name, keys in each.keys.items():
            ids = each.ids[name] if name in each.ids else np.empty((len(keys), 0), np.int64)
            columns = (each.what, each.at, each.counted_at, keys, ids, each.has_key[name])
            for what, at, counted_at, key, of, has_key in zip(*(column.tolist() for column in columns), strict=True):
                if has_key and what != READ and what in uses[name]:
                    found[name, key, what, at, counted_at, tuple(of)] += 1
    records = RequestRecords(events, features_of(live))
    scores = np.zeros((events.impressions, len(LABELS)), np.float32)
    happened = [
        *zip(events.served_at.tolist(), records.requests(0, events.requests, scores, 0, 0), strict=True),
        *zip(
            events.engagements.happened_at.tolist(),
            records.engagements(0, len(events.engagements.happened_at)),
            strict=True,
        ),
    ]
    topics = [IMPRESSIONS] * events.requests + [ENGAGEMENTS] * len(events.engagements.happened_at)
    in_order = [(at, topic, record) for topic, (at, record) in zip(topics, happened, strict=True)]
    return found, sorted(in_order, key=lambda each: (each[0], each[1] == ENGAGEMENTS))


def actions(name: str) -> Sequence[str]:
    definition = dict(live_of().definitions())[name]
    return getattr(definition, "of", [])


def code(name: str, action: str) -> int:
    return 2 + list(LiveSpec.of(live_of(), LABELS).windows).index(action)


def said_by_a_joiner(
    records: Sequence[tuple[int, str, bytes]], partitions: int, drain_every: int
) -> tuple[Counted, int]:
    """What a joiner says of records in their order of arrival, and of how many servings in all."""
    live = live_of()
    spec = LiveSpec.of(live, LABELS)
    features = features_of(live)
    joins = JoinSpec(features, LABELS, JoinSettings(lateness="1d"), live=LiveOutput(spec, partitions))
    core = Joiner(joins, roomy_state(), partition=1)
    names = {identity: name for name, identity in spec.identities(features).items()}
    found: Counted = Counter()
    served = 0

    def drained() -> Iterator[tuple[int, bytes]]:
        yield from core.drain().interactions

    for offset, (_, topic, record) in enumerate(records):
        core.add(topic, Record(offset, record, NOW))
        if offset % drain_every == 0 or offset == len(records) - 1:
            for partition, value in drained():
                said = Interactions(value)
                served += said.totals.get(None, 0)
                for identity, each in said.happened:
                    assert (owner_of(each.keys, partitions) == partition).all()
                    rows = zip(*(column.tolist() for column in each), strict=True)
                    found.update((names[identity], *row, tuple(of)) for *row, of in rows)
    return found, served


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logs(), st.sampled_from([1, 3]), st.sampled_from([1, 4, 1000]), st.randoms(use_true_random=False))
def test_joiners_say_what_replays_count(
    tmp_path: Path, drawn: tuple[list[Shown], list[Done]], partitions: int, drain_every: int, random: Any
) -> None:
    log, done = drawn
    counted, records = counted_by_a_replay(tmp_path, log, done)
    said, served = said_by_a_joiner(records, partitions, drain_every)
    last_read = max(each.served_at for each in log)  # nobody asks what happened after that
    assert Counter({each: count for each, count in said.items() if each[3] <= last_read}) == counted
    assert served == len(log)
    shuffled = random.sample(records, len(records))
    in_any_order, _ = said_by_a_joiner(shuffled, partitions, drain_every)

    def without_time(found: Counted) -> Counter[tuple[Any, ...]]:
        """Of an action that came twice, another one may be the first to arrive."""
        return Counter((*each[:3], *each[4:]) for each in found.elements())

    assert without_time(in_any_order) == without_time(said)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"\xc1", "malformed"),
        (encode({"version": 2, "actions": 7}), "version"),
        (encode({"version": 1, "actions": ["click"], "totals": b"1234567"}), "malformed"),
        (encode({"version": 1, "actions": ["click"], "totals": bytes(24)}), "malformed"),
        (encode({"version": 1, "actions": [], "parts": [["a", bytes(8), b"\x00", bytes(8), bytes(8)]]}), "malformed"),
        (encode({"version": 1, "actions": [], "parts": [["a", bytes(8), b"\x02", bytes(8), bytes(8)]]}), "malformed"),
        (
            encode({"version": 1, "actions": [], "parts": [["a", bytes(8), b"\x01\x01", bytes(8), bytes(8)]]}),
            "malformed",
        ),
    ],
)
def test_a_record_that_is_none_is_refused(record: bytes, reason: str) -> None:
    with pytest.raises(BadRecord) as bad:
        Interactions(record)
    assert bad.value.reason == reason
