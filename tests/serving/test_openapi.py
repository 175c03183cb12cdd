"""The OpenAPI document is true: requests made from it, right and wrong ones, get answers that it describes, and no 5xx but 503."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
import schemathesis
from hypothesis import given
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


def _ask(counts: Counter[int], case: schemathesis.Case) -> None:
    if "name" in case.path_parameters and sum(counts.values()) % 4:
        case.path_parameters["name"] = "test"
    answer = case.call_and_validate(checks=CHECKS, headers={"Authorization": f"Bearer {TOKEN}"})
    counts[answer.status_code] += 1


def test_every_operation(replica: ReplicaService) -> None:
    pull_step(replica.puller)
    replica.scoring.start()
    document = schemathesis.openapi.from_asgi("/openapi.json", Service(replica, lambda: None).app)
    statuses: dict[str, Counter[int]] = {}
    for found in document.get_all_operations():
        operation = found.ok()
        name = operation.definition.raw["operationId"]
        counts = statuses.setdefault(name, Counter())
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                _ask(counts, case)  # noqa: B023 - it runs at once

            ask()
    replica.scoring.stop()
    assert len(statuses) == 12
    assert statuses["rank"][200] and statuses["rank"][422], statuses["rank"]
    assert statuses["infer"][422] and statuses["infer"][404], statuses["infer"]
    assert all(counts[200] + counts[202] for name, counts in statuses.items() if name != "infer"), statuses
