"""Served calibration: scores that do not add up to their labels are reported, chance is not, and no score breaks it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streaming.join.calibration import ServedCalibration, Sums
from streaming.records.labels import Label

BOUNDS = (0.8, 1.25)
LABELS = {
    "like": Label(action="like", window="1m"),
    "spent": Label(action="buy", window="1m", loss="squared"),
}


class Told:
    def __init__(self) -> None:
        self.warned, self.informed = list[str](), list[str]()
        self.served = ServedCalibration(LABELS, BOUNDS, self.warned.append, self.informed.append)

    def serve(self, likes: float, score: float, requests: int = 500) -> None:
        """Add ``requests`` of two impressions with equal scores. A share ``likes`` of the requests is liked; a like spends 10."""
        for at in range(requests):
            liked = math.floor((at + 1) * likes) - math.floor(at * likes)
            scores = np.array([[score, 10 * score]] * 3, np.float32).tobytes()
            self.served.add(scores, [0, 2], (float(liked), 10.0 * liked))


def test_who_goes_astray_is_told_once_and_so_is_the_way_back() -> None:
    told = Told()
    told.serve(0.2, 0.2, 4000)
    assert not told.warned
    told.serve(0.2, 0.9, 8000)
    assert len(told.warned) == 2, "once a label"
    assert told.warned[0].startswith("like: served scores average 0.")
    assert "train.guards.served_calibration: 0.8 to 1.25" in told.warned[0]
    assert told.served.stray == {"like": True, "spent": True}
    assert told.served.sums["like"].calibration == pytest.approx(4.5)
    told.serve(0.2, 0.2, 8000)
    assert [line.split(":")[0] for line in told.informed] == ["like", "spent"]
    assert told.served.sums["like"].impressions == 16_000, "older ones are forgotten"
    assert len(told.warned) == 2


def test_a_loss_that_predicts_no_mean_is_named_with_those_that_do() -> None:
    sums = Sums.of(np.full(1000, 1.0), np.full(1000, 9.0))
    for label, remedy in (
        (Label(action="buy", window="1m", loss="squared", transform="log"), True),
        (Label(action="buy", window="1m", loss="tweedie"), False),
    ):
        line = sums.say("spent", label, BOUNDS)
        assert ("labels.spent.transform: log predicts about a median" in line) == remedy
        assert ("loss: tweedie or zero_inflated_log_normal" in line) == remedy


def test_too_few_labels_say_nothing() -> None:
    """Two likes where one was predicted are chance, not a calibration of 2."""
    told = Told()
    told.serve(0.002, 0.001, 500)
    assert not told.warned
    assert Sums.of(np.array([]), np.array([])).calibration is None
    assert not Sums().stray(BOUNDS)
    assert Sums.of(np.full(1000, 0.3), np.zeros(1000)).stray(BOUNDS), "nothing came of what was promised"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e38, -3.0])
def test_no_score_ends_it(bad: float) -> None:
    told = Told()
    told.served.add(np.array([[bad, math.nan]], np.float32).tobytes(), [0], (1.0, 1.0))
    told.serve(0.5, 0.5, 1000)
    assert told.served.sums["like"].calibration == pytest.approx(1.0, rel=0.01)
    assert told.served.sums["spent"].calibration == pytest.approx(1.0, rel=0.01)
    assert not told.warned
