"""The OpenAPI document is true: requests made from it, right and wrong ones, get answers that it describes, and no 5xx but 503."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
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

from minutely.services.serve import make_replica_service
from serving.answers import JSON, MSGPACK
from serving.http import Service
from serving.service import ReplicaService, pull_step
from streaming.clock import WallClock
from tests.serving.asgi import ask
from tests.serving.publishing import Publisher, make_pipeline

EXAMPLES = int(os.environ.get("MINUTELY_EXAMPLES", "8"))
TOKEN = "admin-0123456789abcdef"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture
def replica(tmp_path: Path) -> ReplicaService:
    (tmp_path / "token").write_text(TOKEN)
    publisher = Publisher(
        make_pipeline(
            serve={"log": True, "log_buffer_bytes": 1 << 30, "tokens": {"admin": {"file": str(tmp_path / "token")}}}
        ),
        tmp_path,
    )
    publisher.next(time.time_ns() // 1_000_000)
    return make_replica_service(publisher.pipeline, publisher.files, WallClock(), "replica")


@schemathesis.serializer(MSGPACK)
def _packed(_context: Any, value: Any) -> bytes:
    return msgspec.msgpack.encode(_fit(value))


def _fit(value: Any) -> Any:
    """A value with floats for the integers that msgpack does not have."""
    match value:
        case dict():
            return {name: _fit(each) for name, each in value.items()}
        case list():
            return [_fit(each) for each in value]
        case int() if not -(2**63) <= value < 2**64:
            return float(value) if abs(value) < 2**1000 else math.inf
        case _:
            return value


@schemathesis.deserializer(MSGPACK)
def _unpacked(_context: Any, response: Any) -> Any:
    return msgspec.msgpack.decode(response.content)


def _even(body: dict[str, Any]) -> None:
    """Columns as long as there are ids, and ids that differ: what a schema cannot say."""
    ids, columns = body["candidates"]["ids"], body["candidates"]["features"]
    ids = list({str(each): each for each in ids}.values())
    count = min(map(len, (ids, *columns.values())))
    body["candidates"] = {"ids": ids[:count], "features": {name: each[:count] for name, each in columns.items()}}


def _ask(counts: Counter[int], kinds: Counter[str], case: schemathesis.Case, *, even: bool) -> None:
    if even and "candidates" in case.body:
        assert isinstance(case.body, dict)
        _even(case.body)
    if "name" in case.path_parameters and sum(counts.values()) % 4:
        case.path_parameters["name"] = "test"
    if case.operation.definition.raw["operationId"] == "shadow" and even:
        assert isinstance(case.body, dict)
        case.body["version"] = 1  # the one that is there
    accept = (JSON, MSGPACK)[sum(counts.values()) % 2]
    answer = case.call_and_validate(checks=CHECKS, headers={"Authorization": f"Bearer {TOKEN}", "Accept": accept})
    counts[answer.status_code] += 1
    kinds[f"{case.media_type} in, {answer.headers['content-type'][0]} out"] += 1


def test_every_operation(replica: ReplicaService) -> None:
    pull_step(replica.puller)
    replica.scoring.start()
    document = schemathesis.openapi.from_asgi("/openapi.json", Service(replica, lambda: None))
    statuses: dict[str, Counter[int]] = {}
    kinds: Counter[str] = Counter()
    for found in document.get_all_operations():
        operation = found.ok()
        name = operation.definition.raw["operationId"]
        counts = statuses.setdefault(name, Counter())
        wrong = [GenerationMode.NEGATIVE] if "requestBody" in operation.definition.raw else []
        for mode in (GenerationMode.POSITIVE, *wrong):

            @settings(max_examples=EXAMPLES, phases=[Phase.generate])
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                _ask(counts, kinds, case, even=name in ("rank", "shadow") and mode == GenerationMode.POSITIVE)  # noqa: B023 - it runs at once

            ask()
    replica.scoring.stop()
    replica.shadowing.end(10)
    assert len(statuses) == 14
    assert statuses["rank"][200] and statuses["rank"][422], statuses["rank"]
    assert statuses["infer"][422] and statuses["infer"][404], statuses["infer"]
    assert all(kinds[f"{asked} in, {answered} out"] for asked in (JSON, MSGPACK) for answered in (JSON, MSGPACK)), kinds
    assert all(counts[200] + counts[202] for name, counts in statuses.items() if name != "infer"), statuses


def test_what_no_schema_says(replica: ReplicaService) -> None:
    """Templates as paths, and ids of any size, in any form of the answer."""
    pull_step(replica.puller)
    replica.scoring.start()
    service = Service(replica, lambda: None)
    columns = {"item": [1], "tags": [[]], "price": [1], "picture": [[0, 0, 0]]}
    for msgpack in (False, True):
        for method, path in (
            ("GET", "/v2/models/{name}"),
            ("GET", "/v2/models/{name}/ready"),
            ("POST", "/v2/models/{name}/infer"),
        ):
            assert ask(service, method, path, {}, msgpack=msgpack) == (404, {"error": "no such model; allowed: test"})
        assert ask(service, "GET", "/v1/nothing")[0] == 404
        assert ask(service, "GET", "/v1/rank") == (405, {"error": "GET /v1/rank; allowed: POST"})
        for number in (2**63, 2**64, 2**70, -(2**63) - 1, 10**400):
            body = {"features": {"user": 1}, "candidates": {"ids": [number], "features": columns}}
            status, answer = ask(service, "POST", "/v1/rank", raw=json.dumps(body).encode(), accept_msgpack=msgpack)
            assert status == 422 and "candidates.ids[0]" in answer["error"], answer
        for number in (2**63 - 1, -(2**63)):
            body["candidates"] = {"ids": [number], "features": columns}
            status, answer = ask(service, "POST", "/v1/rank", body, msgpack=msgpack)
            assert (status, answer["ids"]) == (200, [number])
    replica.scoring.stop()
