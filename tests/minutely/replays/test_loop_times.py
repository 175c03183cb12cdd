"""A version's time is never before what it contains, whatever the cadences and the gaps of a log."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minutely.replays.loop import EmbeddedLoop
from paramserver.delta_log import Cut
from paramserver.manifest import Manifest
from streaming.clock import EventClock
from streaming.embedded_log import EmbeddedLog
from streaming.join.embedded import embedded_service
from streaming.source.load import load
from tests.minutely.replays.test_loop import HOUR, MINUTE, START, make_pipeline
from tests.paramserver.published import MemoryFiles
from tests.streaming.join.join_world import roomy_state

SECOND, DAY = 1000, 24 * HOUR


class Timed(NamedTuple):
    """A log by the time between its requests, and the cadences it is replayed with, all in ms."""

    gaps: list[int]
    sparse: int | None = MINUTE
    beside: int | None = HOUR
    dense: int = DAY
    window: int = MINUTE
    lateness: int = 0
    warmup: float = 0.0


class Version(NamedTuple):
    """A version, and the newest decision (ms) of the examples in it."""

    manifest: Manifest
    newest: int


def durations(*units: int) -> st.SearchStrategy[int]:
    return st.builds(lambda count, unit: count * unit, st.integers(1, 59), st.sampled_from(units))


timed = st.builds(
    Timed,
    gaps=st.lists(durations(1, SECOND, MINUTE, HOUR, DAY), min_size=2, max_size=25),
    sparse=st.none() | durations(MINUTE, HOUR),
    beside=st.none() | durations(MINUTE, HOUR),
    dense=durations(SECOND, MINUTE, HOUR),
    window=durations(SECOND, MINUTE, HOUR),
    lateness=st.just(0) | durations(SECOND, MINUTE),
    warmup=st.sampled_from([0.0, 0.5]),
)


class Replayed(NamedTuple):
    versions: list[Version]
    examples: int
    latencies: list[int]


def replayed(case: Timed, folder: Path) -> Replayed:
    torch.set_num_threads(1)  # as replays do: steps are too small to share
    count = len(case.gaps)
    rng = np.random.default_rng(count)
    columns = {
        "t": START + np.cumsum(case.gaps),
        "user": rng.integers(0, 5, count),
        "item": [f"item {number % 7}" for number in range(count)],
        "words": [[number % 3] for number in range(count)],
        "price": rng.random(count),
        "liked": rng.random(count) < 0.5,
        "played_ms": rng.integers(0, 2 * case.window, count),
    }
    pa.parquet.write_table(pa.table(columns), folder / "log.parquet")
    changes: dict[str, Any] = {
        "labels": {"like": {"action": "like", "decided_by": "play", "window": f"{case.window}ms"}},
        "join": {"lateness": f"{case.lateness}ms"},
        "sync": {"dense_every": f"{case.dense}ms"},
    }
    pipeline = make_pipeline(folder, **changes)
    events = load(folder, pipeline.source, pipeline.features, int(columns["t"][-1]) + DAY)
    cadences = {"served": case.sparse, "beside": case.beside}
    versions: list[Version] = []
    newest = 0
    clock = EventClock()
    with closing(EmbeddedLog(folder / "log", durable=False, clock=clock)) as log:
        joining = embedded_service(log, pipeline.join_spec(), roomy_state, clock)
        loop = EmbeddedLoop(pipeline, events, log, joining, clock, MemoryFiles(), cadences, case.warmup)
        train, publish = loop.trainer.train, loop.deltas.publish

        def trained(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
            nonlocal newest
            newest = max(newest, *batch.column("decided_at").to_pylist())
            return train(batch)

        def published(epoch: Any, cut: Cut) -> Manifest:
            manifest = publish(epoch, cut)
            versions.append(Version(manifest, newest))
            return manifest

        loop.trainer.train = trained  # type: ignore[method-assign]
        loop.deltas.publish = published  # type: ignore[method-assign]
        while loop.tick():
            pass
        loop.finish()
        del (
            loop.trainer.train,
            loop.deltas.publish,
        )  # who waits for the collector keeps the address space of a loop's tables
    latencies = [part for served in loop.replicas for part in served.latencies]
    return Replayed(versions, loop.trainer.examples, np.concatenate([*latencies, np.empty(0, np.int64)]).tolist())


@given(timed)
@example(Timed([MINUTE] * 5 + [3 * DAY] + [MINUTE] * 12, dense=HOUR))
@example(Timed([20 * SECOND] * 20, dense=50 * SECOND))
@settings(max_examples=30, deadline=None)
def test_no_version_is_older_than_what_is_in_it(case: Timed) -> None:
    with TemporaryDirectory() as folder:
        ran = replayed(case, Path(folder))
    at = 0
    for manifest, newest in ran.versions:
        assert manifest.published_at >= newest, f"version {manifest.version} holds what was not decided yet"
        assert manifest.watermark >= newest, f"version {manifest.version} is not the model as of its watermark"
        assert manifest.published_at >= max(at, manifest.watermark)
        at = manifest.published_at
    assert ran.examples == len(case.gaps)
    assert min(ran.latencies, default=0) >= 0
