"""Traffic whose live features a brute-force count knows, and a check of what is kept of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from minutely.config import Pipeline
from streaming.features.ids import cross
from streaming.kafka.history import KafkaHistory
from streaming.kafka.settings import KafkaSettings
from streaming.live.core import FIRST_ACTION, SERVED, Happened, LiveCore
from streaming.live.published import Kept
from streaming.log import ENGAGEMENTS, FEATURES, LostRange
from streaming.records.events import MAX_TIME_MS, decode_engagement, decode_request
from tests.kafka.joining import MINUTE, now_ms
from tests.kafka.traffic import Traffic, make_pipeline, make_traffic

LIVE = {
    "rates": {
        "item": {"key": ["item"], "of": ["click"], "half_life": ["30m", "1d"]},
        "both": {"key": ["user", "item"], "of": ["click"], "half_life": ["1d"]},
    },
    "age": {"user": {"key": ["user"], "of": ["click"]}},
    "seen": {"both": {"key": ["user", "item"]}},
}
FEATURES_OF = {
    "user": {"column": "user", "scope": "request"},
    "key": {"column": "key"},
    "item": {"column": "item"},
}


def pipeline_of(kafka: KafkaSettings, **changes: Any) -> Pipeline:
    return make_pipeline(kafka, features=FEATURES_OF, live=LIVE, **changes)


def items(keys: npt.NDArray[np.int64]) -> dict[str, bytes]:
    return {"item": (keys * 7919 % 50).astype("<i8").tobytes()}


def traffic_of(requests: int, first: int = 0) -> Traffic:
    """The first from 10 minutes ago, others from the last seconds: joiners are past what was before."""
    start, every = (now_ms() - 4000, 5) if first else (now_ms() - 10 * MINUTE, 50)

    return make_traffic(1 + first, requests, 5, start, every, 2000, first=first, also=items)


def counted(pipeline: Pipeline, *traffics: Traffic) -> tuple[LiveCore, dict[str, npt.NDArray[np.int64]]]:
    """A core that counted what each record of the traffic means, and the keys of each definition."""
    spec = pipeline.live_spec()
    core = LiveCore(spec.settings, list(spec.windows))
    served: dict[tuple[str, str], tuple[int, int, int]] = {}
    rows: list[tuple[int, int, int, int, int]] = []
    for event in (each for traffic in traffics for each in traffic.events):
        if event.topic != ENGAGEMENTS:
            request = decode_request(event.value, MAX_TIME_MS)
            user = int.from_bytes(request.shared["user"], "little")
            items = np.frombuffer(request.features["item"], "<i8").tolist()
            for impression, item in zip(request.impression_ids, items, strict=True):
                if (request.request_id, impression) not in served:
                    served[request.request_id, impression] = user, item, request.served_at
                    rows.append((user, item, SERVED, request.served_at, request.served_at))
    clicks: set[tuple[str, str]] = set()
    for event in (each for traffic in traffics for each in traffic.events):
        if event.topic == ENGAGEMENTS:
            done = decode_engagement(event.value, MAX_TIME_MS)
            name = done.request_id, done.impression_id
            if name not in clicks:
                clicks.add(name)
                user, item, at = served[name]
                rows.append((user, item, FIRST_ACTION, done.happened_at, at))
    user_ids, item_ids, what, at, counted_at = np.array(rows, np.int64).T.copy()
    both = cross(user_ids, item_ids)
    found = {}
    for name, keys in (("rates.item", item_ids), ("rates.both", both), ("age.user", user_ids), ("seen.both", both)):
        uses = what == SERVED if name == "seen.both" else what > 0
        nothing = np.empty((int(uses.sum()), 0), np.int64)
        core.note(name, Happened(keys[uses], what.astype(np.int32)[uses], at[uses], counted_at[uses], nothing))
        found[name] = np.unique(keys)
    core.totals = np.array([(what == SERVED).sum(), (what == FIRST_ACTION).sum()])
    return core, found


def kept_of(pipeline: Pipeline) -> Kept:
    """What is committed of `features`."""
    kept = Kept(pipeline.live_spec(), pipeline.features)
    for partition in range(pipeline.kafka.partitions):
        history = KafkaHistory(pipeline.kafka, partition)
        for records in history.read(FEATURES, history.beginning(FEATURES), history.end(FEATURES)):
            assert not isinstance(records, LostRange)
            kept.fold(partition, [record.value for record in records])
    return kept


def check(pipeline: Pipeline, *traffics: Traffic) -> None:
    """Whether every count of every key is what the traffic says."""
    kept, (wanted, keys) = kept_of(pipeline), counted(pipeline, *traffics)
    assert not kept.skipped
    assert kept.core.totals.tolist() == wanted.totals.tolist()
    for name, of in keys.items():
        assert kept.core.kept()[name].keys == len(of), name
        ours, theirs = (each.packed(name, of) for each in (kept.core, wanted))
        times = 1 + (3 if name == "age.user" else 0)
        assert (ours[:, :times] == theirs[:, :times]).all(), name
        counts = [each[:, times:].copy().view(np.float64) for each in (ours, theirs)]
        np.testing.assert_allclose(*counts, rtol=1e-9, err_msg=name)
