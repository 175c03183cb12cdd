"""MovieLens-100K with a tenth of its negatives: scores stay calibrated, and order impressions nearly as well."""

from __future__ import annotations

from pathlib import Path

from tests.commands import ROOT, run


def test_served_scores_stay_calibrated(tmp_path: Path) -> None:
    config = (ROOT / "configs/movielens.yaml").read_text().replace("\nlabels:", "\nnegatives: {keep: 0.1}\n\nlabels:")
    (tmp_path / "sampled.yaml").write_text(config)
    summary = run(f"minutely replay {tmp_path / 'sampled.yaml'} --sync-every 1h", tmp_path / "run")
    assert summary["examples"] + summary["dropped_negatives"] == summary["impressions"] == 100_000
    assert 58_000 < summary["examples"] < 61_000
    like = summary["metrics"]["like"]
    assert abs(like["calibration"] - 1) < 0.03, "of these examples 1.67 times as many are positive as of the stream"
    assert like["auc"] >= 0.67, "0.723 with all of them at this cadence"
