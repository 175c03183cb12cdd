"""The OpenAPI document is true: requests made from it, right and wrong ones, get answers that it describes, and no 5xx but 503."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from minutely.serve import make_replica_service
from serving.http import Service
from serving.service import ReplicaService, pull_step
from streaming.clock import WallClock
from tests.serving.publishing import Publisher, make_pipeline

EXAMPLES = int(os.environ.get("MINUTELY_EXAMPLES", "8"))
TOKEN = "admin-0123456789abcdef"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture
def replica(tmp_path: Path) -> ReplicaService:
    (tmp_path / "token").write_text(TOKEN)
    publisher = Publisher(
        make_pipeline(
            serve={"log": True, "log_buffer": 1_000_000, "tokens": {"admin": {"file": str(tmp_path / "token")}}}
        ),
        tmp_path,
    )
    publisher.next(time.time_ns() // 1_000_000)
    return make_replica_service(publisher.pipeline, publisher.files, WallClock(), "replica")


def _even(body: dict[str, Any]) -> None:
    """Columns as long as there are ids, and ids that differ: what a schema cannot say."""
    ids, columns = body["candidates"]["ids"], body["candidates"]["features"]
    ids = list({str(each): each for each in ids}.values())
    count = min(map(len, (ids, *columns.values())))
    body["candidates"] = {"ids": ids[:count], "features": {name: each[:count] for name, each in columns.items()}}


def _ask(counts: Counter[int], case: schemathesis.Case, *, even: bool) -> None:
    if even and "candidates" in case.body:
        assert isinstance(case.body, dict)
        _even(case.body)
    if "name" in case.path_parameters and sum(counts.values()) % 4:
        case.path_parameters["name"] = "test"
    if case.operation.definition.raw["operationId"] == "shadow" and even:
        assert isinstance(case.body, dict)
        case.body["version"] = 1  # the one that is there
    answer = case.call_and_validate(checks=CHECKS, headers={"Authorization": f"Bearer {TOKEN}"})
    counts[answer.status_code] += 1


def test_every_operation(replica: ReplicaService) -> None:
    pull_step(replica.puller)
    replica.scoring.start()
    document = schemathesis.openapi.from_asgi("/openapi.json", Service(replica, lambda: None))
    statuses: dict[str, Counter[int]] = {}
    for found in document.get_all_operations():
        operation = found.ok()
        name = operation.definition.raw["operationId"]
        counts = statuses.setdefault(name, Counter())
        wrong = [GenerationMode.NEGATIVE] if "requestBody" in operation.definition.raw else []
        for mode in (GenerationMode.POSITIVE, *wrong):

            @settings(max_examples=EXAMPLES, phases=[Phase.generate])
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                _ask(counts, case, even=name in ("rank", "shadow") and mode == GenerationMode.POSITIVE)  # noqa: B023 - it runs at once

            ask()
    replica.scoring.stop()
    replica.shadowing.end(10)
    assert len(statuses) == 14
    assert statuses["rank"][200] and statuses["rank"][422], statuses["rank"]
    assert statuses["infer"][422] and statuses["infer"][404], statuses["infer"]
    assert all(counts[200] + counts[202] for name, counts in statuses.items() if name != "infer"), statuses
