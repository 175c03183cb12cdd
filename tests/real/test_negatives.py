"""MovieLens with a tenth of its negatives: scores stay calibrated, and order impressions nearly as well."""

from __future__ import annotations

from pathlib import Path

from minutely.built_in import BUILT_IN
from tests.commands import run
from tests.real.movielens import first_ratings


def test_served_scores_stay_calibrated(tmp_path: Path) -> None:
    config = BUILT_IN["movielens"].read_text().replace("\nlabels:", "\nnegatives: {keep: 0.1}\n\nlabels:")
    (tmp_path / "sampled.yaml").write_text(config)
    data = first_ratings(40_000, tmp_path / "data")
    summary = run(f"minutely replay {tmp_path / 'sampled.yaml'} --data {data} --sync-every 1h", tmp_path / "run")
    assert summary["examples"] + summary["dropped_negatives"] == summary["impressions"] == 40_000
    assert 23_800 < summary["examples"] < 25_200
    like = summary["metrics"]["like"]
    assert abs(like["calibration"] - 1) < 0.07, "of these examples 1.6 times as many are positive as of the stream"
    assert like["auc"] >= 0.63, "0.707 with all of them at this cadence"
