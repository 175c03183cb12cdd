"""What replicas served, measured by the trainer: which examples count, and by version."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from streaming.records.examples import ServedColumns
from streaming.records.labels import Label
from trainer.metrics import class_metrics, value_metrics
from trainer.prequential import Prequential

LABELS = {"click": Label(action="click", window="1m"), "spent": Label(action="buy", window="1m", loss="squared")}
RANDOM = np.random.default_rng(1)


def served(scores: npt.NDArray[np.float32], versions: npt.NDArray[np.int64]) -> ServedColumns:
    return ServedColumns(np.zeros(len(scores), np.int32), scores, versions, versions)


def step(count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Scores and labels."""
    click = RANDOM.random(count) < 0.3
    labels = np.stack((click, click * RANDOM.uniform(1, 9, count)), 1).astype(np.float32)
    return (RANDOM.random((count, 2)) + labels / 4).clip(0.01, 0.99).astype(np.float32), labels


def test_served_scores_by_version() -> None:
    """Of the five newest versions that served a thousand examples of the window."""
    newest = Prequential(LABELS, 9000)
    scores, labels = step(12_000)
    versions = np.repeat([3, 4, 5, 6, 7, 8, 9, 10, 11], [2000, 1000, 1500, 1500, 1500, 1500, 1500, 1001, 499])
    for at in range(0, 12_000, 1000):
        rows = slice(at, at + 1000)
        part = served(scores[rows], versions[rows])
        newest.add_served(part, np.zeros(1000, np.int32), torch.from_numpy(labels[rows]), None)
    assert newest.served()["click"] == pytest.approx(class_metrics(scores[3000:, 0], labels[3000:, 0]), nan_ok=True)
    found = newest.served_by_version()
    assert list(found) == [6, 7, 8, 9, 10], "5 is the sixth, 11 served less than a thousand"
    for version, metrics in found.items():
        rows_of = versions == version
        assert metrics["click"] == class_metrics(scores[rows_of, 0], labels[rows_of, 0])
        assert metrics["spent"] == value_metrics(scores[rows_of, 1], labels[rows_of, 1])


def test_versions_of_another_model_begin_at_1_again() -> None:
    """Those that are shown served last, whatever their numbers."""
    newest = Prequential(LABELS)
    for version in [*range(101, 108), 1, 2, 3, 107, 4]:
        scores, labels = step(1000)
        rows = served(scores, np.full(1000, version))
        newest.add_served(rows, np.zeros(1000, np.int32), torch.from_numpy(labels), None)
    assert list(newest.served_by_version()) == [1, 2, 3, 4, 107]


def test_what_no_model_can_have_said_does_not_count() -> None:
    """A product that scores itself may report anything; one number would be the mean of a million."""
    newest = Prequential(LABELS)
    scores, labels = step(100)
    scores[:10, 0], scores[10:20, 0], scores[20:30, 1] = 1e30, -0.1, -np.inf
    scores[30:40, 1] = -3.0
    newest.add_served(served(scores, np.full(100, 7)), np.zeros(100, np.int32), torch.from_numpy(labels), None)
    assert newest.served()["click"] == class_metrics(scores[30:, 0], labels[30:, 0])
    assert newest.served()["spent"] == value_metrics(scores[30:, 1], labels[30:, 1])


def test_what_no_version_scored_and_revisions_do_not_count() -> None:
    newest = Prequential(LABELS)
    scores, labels = step(100)
    versions, revisions = np.full(100, 7), np.zeros(100, np.int32)
    scores[:10, 1] = np.nan
    scores[10:20, 0] = np.inf
    versions[20:30] = 0
    revisions[30:40] = 1
    newest.add_served(served(scores, versions), revisions, torch.from_numpy(labels), None)
    assert newest.served()["click"] == class_metrics(scores[40:, 0], labels[40:, 0])
    empty = Prequential(LABELS)
    empty.add_served(served(scores[:40], versions[:40]), revisions[:40], torch.from_numpy(labels[:40]), None)
    assert set(empty.served()["click"].values()) == {None} and empty.served_by_version() == {}


def test_negatives_that_sampling_left_out_are_counted_in() -> None:
    newest = Prequential(LABELS)
    scores, labels = step(200)
    rates, versions = torch.full((200,), 0.25), np.ones(200, np.int64)
    newest.add_served(served(scores, versions), np.zeros(200, np.int32), torch.from_numpy(labels), rates)
    weights = np.where(labels.any(1), 1.0, 4.0)
    wanted = class_metrics(scores[:, 0], labels[:, 0], weights=weights)
    assert newest.served()["click"]["auc"] == pytest.approx(wanted["auc"])
    assert newest.served()["click"]["calibration"] == pytest.approx(wanted["calibration"])
