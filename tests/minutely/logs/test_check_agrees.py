"""`check` and `replay` count alike, whatever is broken in a log. ``CHECKED_LOGS=2000`` draws as many."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from basis.problems import Problems
from minutely.config import Pipeline, load_pipeline
from minutely.logs.log_mistakes import mistakes, refused
from minutely.replays.loop import open_loop
from minutely.replays.results import summarize
from paramserver.files import LocalFiles
from streaming.source.load import load
from streaming.source.logged_events import LoggedEvents

T = 1_767_225_600_000
NOW = T + 10 * 86_400_000
CONFIG = """
name: t
source:
  dir: {folder}
  latest: 2026-01-10
  impressions: {{file: imp.jsonl, time: {{column: time}}, request: [request], impression: [item]}}
  actions:
    view: {{when: seen, delay: {{column: wait}}}}
  engagements: {{file: ev.jsonl, time: {{column: time}}, request: [request], impression: [item], action: action, value: value}}
features:
  user: {{column: user}}
  item: {{column: item}}
  price: {{kind: dense, column: price}}
labels:
  click: {{action: click, window: 1m}}
  view: {{action: view, window: 1m}}
model: {{kind: deepfm, dim: 4, hidden: [4]}}
"""
times = st.integers(0, 300_000).map(lambda ms: T + ms)
broken_times = st.sampled_from([None, 0, -1, T // 1000, T * 1000, 10**30, "2026-01-01T00:00:00", "noon"])
requests = st.sampled_from(["r1", "r2", "r3", "", None, 7, 7.0, "7", "x" * 300])
items = st.sampled_from([1, 2, 3.0, "a", None])
numbers = st.sampled_from([0, 1, 2.5, -3, 1e39, "1.5", "many", None])


def one_in(times_: int, broken: st.SearchStrategy[Any], good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(1, times_).flatmap(lambda at: broken if at == 1 else good)


impressions = st.fixed_dictionaries(
    {
        "time": one_in(8, broken_times, times),
        "request": requests,
        "item": items,
        "user": st.sampled_from([1, "u", None, 2**63]),
        "price": numbers,
        "seen": st.sampled_from([0, 1, True, "yes", None]),
        "wait": st.sampled_from([0, 500, 90_000, -5, None, "soon", 10**15]),
    }
)
engagements = st.fixed_dictionaries(
    {
        "time": one_in(8, broken_times, times),
        "request": requests,
        "item": items,
        "action": st.sampled_from(["click", "view", "other", None]),
        "value": numbers,
    }
)


WHOLE = {"time": T, "request": "whole", "item": 1, "user": 1, "price": 1, "seen": 1, "wait": 500}
WHOLE_CLICK = {"time": T + 1000, "request": "whole", "item": 1, "action": "click", "value": 1}


def counted_by_check(pipeline: Pipeline, events: LoggedEvents) -> Counter[str]:
    """What `check` says a replay refuses: rows, and engagements without an impression or before it."""
    found = Counter(reject.reason for reject in events.rejects)
    found.update({reason: int(dead.sum()) for reason, dead in refused(pipeline, events).items()})
    return +found


@given(st.lists(impressions, min_size=1, max_size=12), st.lists(engagements, max_size=12))
@settings(
    max_examples=int(os.environ.get("CHECKED_LOGS", "40")),
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink one takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_check_counts_what_a_replay_counts(shown: list[dict[str, Any]], done: list[dict[str, Any]]) -> None:
    shown, done = [*shown, WHOLE], [*done, WHOLE_CLICK]  # else most logs are refused whole, and nothing is compared
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, rows in (("imp", shown), ("ev", done)):
            (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "config.yaml").write_text(CONFIG.format(folder=folder))
        pipeline = load_pipeline(folder / "config.yaml")
        try:
            events = load(pipeline.data_folder(), pipeline.source, pipeline.features, NOW)
        except Problems:
            return  # a replay loads by the same function, and refuses the log as a whole too
        mistakes(pipeline, events)
        files = LocalFiles(folder / "deltas", durable=False)
        with open_loop(pipeline, events, folder, files, {"60s": 60_000}, 0.0) as loop:
            while loop.tick():
                pass
            loop.finish()
            summary = summarize(loop, 0.0, 1.0, interrupted=False)
    counted, expected = Counter(summary["dead_letters_by_reason"]), counted_by_check(pipeline, events)
    # What comes after a window changes nothing. `check` shows it as cut; a joiner may know its request no more by then. What
    # comes long before its request is refused by both: a joiner that waited in vain for the request calls it unmatched.
    delays = events.delays()
    after, before = int((delays > 60_000).sum()), int((delays < -60_000).sum())
    unknown = counted.pop("late", 0) + counted.pop("unmatched", 0) - expected.pop("unmatched", 0)
    early = expected.pop("before_served", 0) - counted.pop("before_served", 0)
    assert 0 <= early <= before
    assert 0 <= unknown - early <= after
    assert counted == expected
    assert summary["impressions"] == summary["examples"] == events.impressions
    keys = {"time", "request", "item", "request+item"}
    told = [reject for reject in events.rejects if "imp.jsonl" in reject.file]
    refused = {reject.place.split(",")[0] for reject in told if reject.place.split("column ")[-1] in keys}
    assert len(refused) == len(shown) - events.impressions
