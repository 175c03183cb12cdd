"""The loop is closed: what a replica serves is logged, joined with what users do, trained on, and served again; and it knows how
old it is, whoever stands still."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from stack.ports import free_ports
from streaming.features.columns import check_packed, unpack
from streaming.kafka.settings import KafkaSettings
from streaming.log import IMPRESSIONS
from streaming.records.events import MAX_RECORD_BYTES, MAX_TIME_MS, decode_request
from tests.kafka.conftest import bootstrap, kafka  # noqa: F401 - fixtures
from tests.kafka.services import joiner, said, started, trainer
from tests.kafka.traffic import read_topic
from tests.serving.publishing import draw, make_pipeline, rank_body
from tests.serving.server import Server

FRESH_WITHIN_SECONDS = 4
COUNT = 20


def _records(settings: KafkaSettings) -> list[bytes]:
    return [value for records in read_topic(settings, IMPRESSIONS).values() for _, value in records]


def test_what_users_do_is_served(kafka: KafkaSettings, tmp_path: Path) -> None:  # noqa: F811
    pipeline = make_pipeline(
        kafka=kafka.model_dump(mode="json"),
        labels={
            name: {"action": action, "decided_by": "seen", "window": "3s"}
            for name, action in (("click", "click"), ("spent", "buy"))
        },
        sync={"sparse_every": "1s"},
        train={"step_every": "1s", "dense_learning_rate": 0.01},
        serve={"log": True, "fresh_within": f"{FRESH_WITHIN_SECONDS}s"},
    )
    server = Server(pipeline, tmp_path / "deltas", tmp_path / "server")
    config = tmp_path / "server" / "pipeline.yaml"
    scraped = f"127.0.0.1:{free_ports(1)[0]}"
    join, train = joiner(config, tmp_path, "join"), trainer(config, tmp_path, "--metrics", scraped)
    services = (join, train, server.process)
    random = np.random.default_rng(1)
    answers: dict[str, Any] = {}
    probe = rank_body(draw(np.random.default_rng(7), 2), ["loved", "other"])
    probe["candidates"]["features"] |= {
        "item": [1001, 1002],
        "tags": [[], []],
        "price": [5, 5],
        "picture": [[0, 0, 0]] * 2,
    }

    def serve_and_click(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            columns = draw(random, COUNT)
            columns["item"] = random.permutation(np.arange(1001, 1001 + COUNT))
            ids = [f"i{item}" for item in columns["item"]]
            status, answer = server.ask("POST", "/v1/rank", rank_body(columns, ids))
            assert status == 200, (answer, said(services, ""))
            answers[answer["request_id"]] = answer
            engagements = [
                {
                    "request_id": answer["request_id"],
                    "impression_id": name,
                    "action": "click" if item == "i1001" else "seen",
                }
                for item, name in zip(answer["ids"], answer["impression_ids"], strict=True)
            ]
            assert server.ask("POST", "/v1/engagements", {"engagements": engagements}) == (202, {"accepted": COUNT})
            time.sleep(0.02)

    def status_until(what: str, *wanted: str, seconds: float = 40) -> dict[str, Any]:
        until = time.monotonic() + seconds
        while True:
            found: dict[str, Any] = server.ask("GET", "/v1/status")[1]
            if found["state"] in wanted:
                return found
            assert time.monotonic() < until, said(services, f"{what}: {found}")
            time.sleep(0.1)

    (tmp_path / "deltas").mkdir()  # a replica that starts first makes none
    with started(*services):
        server.wait()  # the trainer publishes a first version of nothing
        serve_and_click(6)
        fresh = status_until("clicks", "fresh")
        until = time.monotonic() + 30
        while (scores := server.ask("POST", "/v1/rank", probe)[1])["ids"] != ["loved", "other"] or not _apart(scores):
            assert time.monotonic() < until, said(services, f"{scores}")
            serve_and_click(0.5)
        fresh = status_until("clicks", "fresh")
        assert fresh["newest_behaviour_seconds"] < 10 and fresh["sparse_version"] > 2
        assert fresh["decided_to_servable_seconds"]["p50"] < 5, fresh
        assert set(fresh["stage_p50_seconds"]) == {"join", "train", "publish", "apply"}
        metrics = server.ask("GET", "/metrics")[1]
        assert 'minutely_log_sent_total{topic="impressions"}' in metrics

        with urllib.request.urlopen(f"http://{scraped}/metrics", timeout=10) as said_by_trainer:
            quality = dict(line.split(" ") for line in said_by_trainer.read().decode().splitlines() if line[0] != "#")
        assert 0.6 < float(quality['minutely_train_auc{label="click"}']) <= 1, "the one that is clicked is known by now"
        assert float(quality['minutely_train_calibration{label="click"}']) > 0
        assert 'minutely_train_auc{label="spent"}' not in quality, "nobody buys"

        idle = status_until("nobody asks any more", "idle")
        assert idle["freshness_seconds"] < FRESH_WITHIN_SECONDS < idle["newest_behaviour_seconds"]
        train.end()
        stale = status_until("the trainer ended", "stale")
        assert stale["freshness_seconds"] > FRESH_WITHIN_SECONDS
        assert server.ask("GET", "/v2/health/ready") == (200, {"ready": True, "state": "stale"})
        assert server.ask("POST", "/v1/rank", probe)[0] == 200
        train.start()
        status_until("the trainer is back", "idle", "fresh")
        assert server.process.end() == 0

    logged = [decode_request(record, MAX_TIME_MS) for record in _records(pipeline.kafka)]
    assert {request.request_id for request in logged} >= answers.keys(), "what was served was logged"
    for request in logged:
        answer = answers.get(request.request_id)
        if answer is None:
            continue  # the probe
        assert request.impression_ids == answer["impression_ids"]
        assert request.sparse_version == answer["sparse_version"]
        scores = np.frombuffer(request.scores, "<f4").reshape(COUNT, 2)
        assert np.allclose(scores[:, 0], answer["scores"]["click"], atol=1e-7)
        for name, feature in pipeline.features.items():
            shared = feature.scope == "request"
            packed = (request.shared if shared else request.features)[name]
            assert check_packed(name, feature, packed, 1 if shared else COUNT) is None
        items = unpack(pipeline.features["item"], [request.features["item"]])
        assert [f"i{item}" for item in np.asarray(items)] == answer["ids"], "features in the order that was answered"


def _apart(answer: dict[str, Any]) -> bool:
    loved, other = answer["scores"]["click"]
    return bool(loved > other + 0.05)


def test_brokers_that_are_away_do_not_keep_answers(tmp_path: Path) -> None:
    """The buffer fills, what does not fit is dropped and counted, engagements are refused, and ranking goes on."""
    from tests.serving.publishing import Publisher

    nobody = {"bootstrap": f"127.0.0.1:{free_ports(1)[0]}"}
    pipeline = make_pipeline(kafka=nobody, serve={"log": True, "log_buffer_bytes": MAX_RECORD_BYTES})
    publisher = Publisher(pipeline, tmp_path / "deltas")
    publisher.next(time.time_ns() // 1_000_000)
    server = Server(pipeline, tmp_path / "deltas", tmp_path / "server")
    with started(server.process):
        server.wait()
        body = rank_body(draw(np.random.default_rng(1), 2000), list(range(2000)))  # records of about 200 KB
        slowest = 0.0
        for _ in range(50):
            begun = time.monotonic()
            assert server.ask("POST", "/v1/rank", body)[0] == 200
            slowest = max(slowest, time.monotonic() - begun)
        assert slowest < 2
        engagement = {"request_id": "r", "impression_id": "i", "action": "click"}
        assert server.ask("POST", "/v1/engagements", {"engagements": [engagement] * 1000})[0] == 503
        said = server.ask("GET", "/metrics")[1]
        line = next(line for line in said.splitlines() if 'dropped_total{topic="impressions"' in line)
        assert float(line.split()[-1]) >= 15
        waiting = next(line for line in said.splitlines() if line.startswith("minutely_log_waiting_bytes "))
        assert 0 < float(waiting.split()[-1]) <= MAX_RECORD_BYTES
        assert server.process.end() == 0
        assert "records were not logged" in server.process.output
        assert server.process.output.count("what does not fit is dropped") == 1, "said once"
