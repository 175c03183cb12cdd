"""Nothing is answered whose record no joiner takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from basis.problems import Problems
from minutely.config import Pipeline
from minutely.services.serve import make_replica_service
from serving.http import Service
from serving.ranking import least_impression_bytes
from streaming.clock import EventClock
from streaming.records.events import MAX_RECORD_BYTES, decode_request
from tests.serving.asgi import ask
from tests.serving.publishing import DAY, Publisher, make_pipeline

SIZE = 768
COUNT = 1_300
NOW = 1_700_000_000_000


def _pipeline(folder: Path, max_candidates: int) -> Pipeline:
    """One whose impressions have a vector of a side table: in their records, not in the bodies of requests."""
    rows = {"item": np.arange(COUNT), "picture": pa.array(list(np.random.rand(COUNT, SIZE).astype("f4")))}
    pq.write_table(pa.table(rows), folder / "items.parquet")
    return make_pipeline(
        source={"dir": str(folder), "sides": {"items": {"file": "items.parquet", "key": "item"}}},
        features={"picture": {"kind": "vector", "column": "picture", "side": "items", "size": SIZE}},
        serve={"log": True, "max_candidates": max_candidates, "latency_budget": "30s", "timeout": "60s"},
    )


def test_a_request_whose_record_no_joiner_takes_is_not_answered(tmp_path: Path) -> None:
    pipeline = _pipeline(tmp_path, COUNT)
    publisher = Publisher(pipeline, tmp_path / "deltas")
    publisher.publish(NOW)
    replica = make_replica_service(pipeline, publisher.files, EventClock(NOW), "replica")
    replica.puller.step()
    replica.scoring.start()
    service = Service(replica, lambda: None)
    features: dict[str, Any] = {"item": list(range(COUNT)), "tags": [[]] * COUNT, "price": [1] * COUNT}
    body: dict[str, Any] = {"features": {"user": 1}, "candidates": {"ids": list(range(COUNT)), "features": features}}
    body["request_id"] = "r" * 240
    try:
        status, answer = ask(service, "POST", "/v1/rank", body)
        assert status == 413, status
        assert f"allowed: {MAX_RECORD_BYTES}, so give limit, or fewer candidates than {COUNT}" in answer["error"]
        assert len(replica.outbox) == 0
        assert ask(service, "POST", "/v1/rank", {**body, "limit": 1200})[0] == 200
        body.pop("request_id")
        assert ask(service, "POST", "/v1/rank", body)[0] == 200
    finally:
        replica.scoring.stop()
    limited, whole = replica.outbox.take(1 << 30)
    assert len(decode_request(limited.value, time.time_ns()).impression_ids) == 1200
    least = COUNT * least_impression_bytes(pipeline.features, len(pipeline.labels))
    assert least < len(whole.value) < least + 4 * COUNT + 1000, "places have up to four digits"


def test_a_config_whose_largest_answers_no_joiner_takes_is_refused(tmp_path: Path) -> None:
    pipeline = _pipeline(tmp_path, 2_000)
    publisher = Publisher(pipeline, tmp_path / "deltas")
    with pytest.raises(
        Problems, match=f"serve.max_candidates: 2000; their record has 6.* allowed: {MAX_RECORD_BYTES} bytes, "
    ):
        make_replica_service(pipeline, publisher.files, EventClock(DAY), "replica")
    unlogged = pipeline.model_copy(update={"serve": pipeline.serve.model_copy(update={"log": False})})
    make_replica_service(unlogged, publisher.files, EventClock(DAY), "replica")
