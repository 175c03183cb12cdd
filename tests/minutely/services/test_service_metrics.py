"""The metrics of a service say what its status says, and how long ago it last committed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prometheus_client import generate_latest
from prometheus_client.registry import CollectorRegistry

from minutely.services.metrics import Status, StatusMetrics
from paramserver.table import Table
from streaming.clock import EventClock
from streaming.records.examples import ServedColumns
from streaming.records.labels import Label
from tests.clocks import SetClock
from trainer.metrics import class_metrics, value_metrics
from trainer.prequential import Prequential

DAY = 86_400_000


def test_what_prometheus_is_told() -> None:
    clock, status, registry = EventClock(10_000), Status(), CollectorRegistry()
    registry.register(StatusMetrics("train", "versions", status, clock))
    before = generate_latest(registry).decode()
    assert "minutely_train_examples_total 0.0" in before
    assert "idle_seconds" not in before, "nobody knows"
    status.lag, status.watermarks = {0: 7, 1: 0}, {0: 9_500, 1: 8_000}
    status.examples, status.commits, status.committed_at = 12, 3, 9_000
    status.dead_letters.update(["not_finite", "version", "not_finite"])
    status.lost_letters, status.lost = 2, {0: 5, 1: 0}
    clock.move_to(11_500)
    said = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    assert said == [
        'minutely_train_lag{partition="0"} 7.0',
        'minutely_train_lag{partition="1"} 0.0',
        'minutely_train_watermark_seconds{partition="0"} 9.5',
        'minutely_train_watermark_seconds{partition="1"} 8.0',
        'minutely_train_lost_total{partition="0"} 5.0',
        'minutely_train_lost_total{partition="1"} 0.0',
        "minutely_train_examples_total 12.0",
        'minutely_train_dead_letters_total{reason="malformed"} 0.0',
        'minutely_train_dead_letters_total{reason="not_finite"} 2.0',
        'minutely_train_dead_letters_total{reason="schema"} 0.0',
        'minutely_train_dead_letters_total{reason="version"} 1.0',
        "minutely_train_dead_letters_lost_total 2.0",
        "minutely_train_versions_total 3.0",
        "minutely_train_refused_total 0.0",
        "minutely_train_idle_seconds 2.5",
    ]


def test_a_clock_that_is_set_back_does_not_hide_that_nothing_is_committed() -> None:
    clock, status, registry = SetClock(10_000, DAY), Status(), CollectorRegistry()
    registry.register(StatusMetrics("train", "versions", status, clock))
    status.committed_at = clock.elapsed_ms()
    clock.elapsed, clock.ahead = clock.elapsed + 600_000, DAY - 3_600_000
    assert "minutely_train_idle_seconds 600.0" in generate_latest(registry).decode()


def test_how_many_rows_came_and_went() -> None:
    status, registry = Status(), CollectorRegistry()
    registry.register(StatusMetrics("train", "versions", status, EventClock(0)))
    assert "rows" not in generate_latest(registry).decode(), "an archiver has none"
    status.tables = {"item": Table(2, max_rows=10, expire_after_seconds=5), "user": Table(2)}
    status.tables["item"].lookup_or_insert(np.arange(14), now_ms=1_000)
    status.tables["item"].lookup_or_insert(np.arange(10, 12), now_ms=9_000)
    status.tables["item"].expire(9_000, budget=1_000)
    said = [line for line in generate_latest(registry).decode().splitlines() if "_rows_" in line and line[0] != "#"]
    assert said == [
        'minutely_train_rows_live{table="item"} 2.0',
        'minutely_train_rows_live{table="user"} 0.0',
        'minutely_train_rows_admitted_total{table="item"} 14.0',
        'minutely_train_rows_admitted_total{table="user"} 0.0',
        'minutely_train_rows_expired_total{table="item"} 8.0',
        'minutely_train_rows_expired_total{table="user"} 0.0',
        'minutely_train_rows_evicted_total{table="item"} 4.0',
        'minutely_train_rows_evicted_total{table="user"} 0.0',
    ]


def test_how_well_a_trainer_predicts_its_newest_examples() -> None:
    """Over a window that slides, by label; values have an error instead of AUC. Before the first example there is nothing."""
    labels = {
        "click": Label.model_validate({"action": "click", "window": "1m"}),
        "spent": Label.model_validate({"action": "buy", "window": "1m", "loss": "squared"}),
    }
    status, registry, random = Status(), CollectorRegistry(), np.random.default_rng(1)
    status.prequential = Prequential(labels, examples=100)
    registry.register(StatusMetrics("train", "versions", status, EventClock(0)))
    assert 'label="' not in generate_latest(registry).decode()
    outputs, targets = random.normal(size=(40, 10, 2)), random.integers(0, 2, (40, 10, 2))
    for step in range(40):
        logits, truth = (torch.tensor(each[step], dtype=torch.float32) for each in (outputs, targets))
        status.prequential.add(logits, truth, None)
    said = dict(line.split(" ") for line in generate_latest(registry).decode().splitlines() if line[0] != "#")
    newest = (each[-10:].reshape(-1, 2) for each in (outputs, targets))
    scores, truth = newest
    wanted = class_metrics(1 / (1 + np.exp(-scores[:, 0])), truth[:, 0])
    for name in ("auc", "log_loss", "calibration"):
        assert float(said[f'minutely_train_{name}{{label="click"}}']) == pytest.approx(wanted[name], rel=1e-5)
    errors = value_metrics(scores[:, 1], truth[:, 1])
    for name in ("rmse", "calibration"):
        assert float(said[f'minutely_train_{name}{{label="spent"}}']) == pytest.approx(errors[name], rel=1e-5)
    assert 'minutely_train_auc{label="spent"}' not in said
    assert 'minutely_train_served_auc{label="click"}' not in said


def test_how_well_replicas_predicted_what_they_served() -> None:
    labels = {"click": Label.model_validate({"action": "click", "window": "1m"})}
    status, registry, random = Status(), CollectorRegistry(), np.random.default_rng(1)
    status.prequential = Prequential(labels)
    registry.register(StatusMetrics("train", "versions", status, EventClock(0)))
    scores = random.uniform(0.1, 0.9, (2500, 1)).astype(np.float32)
    truth = (random.random((2500, 1)) < scores).astype(np.float32)
    versions = np.repeat([41, 42], [1500, 1000])
    served = ServedColumns(np.zeros(2500, np.int32), scores, versions, versions)
    status.prequential.add_served(served, np.zeros(2500, np.int32), torch.tensor(truth), None)
    said = dict(line.split(" ") for line in generate_latest(registry).decode().splitlines() if line[0] != "#")
    for name in ("auc", "log_loss", "calibration"):
        wanted = class_metrics(scores[:, 0], truth[:, 0])[name]
        assert float(said[f'minutely_train_served_{name}{{label="click"}}']) == pytest.approx(wanted)
        for version in (41, 42):
            rows = versions == version
            wanted = class_metrics(scores[rows, 0], truth[rows, 0])[name]
            found = float(said[f'minutely_train_served_version_{name}{{label="click",version="{version}"}}'])
            assert found == pytest.approx(wanted)
