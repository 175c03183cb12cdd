"""The example of a news site: its config is right, and on its logs freshness is worth what the page says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, execute, run

CONFIG = "examples/news/news.yaml"
COMPARE = f"minutely compare {CONFIG}"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("news") / "news-logs"
    subprocess.run([sys.executable, ROOT / "examples/news/make_logs.py", folder], check=True)
    return folder


def test_check_finds_nothing_to_look_at(logs: Path) -> None:
    done = execute(f"minutely check {CONFIG} --data {logs}")
    assert done.returncode == 0, done.stderr
    for part in ("20,000 impressions", "2,000 requests", "100.0% of the impressions", "at most 8", "seconds"):
        assert part in done.stdout
    assert "look at" not in done.stdout, "the example is one to follow"
    assert "position" not in done.stdout, "a ranking cannot know the position that it decides"


def test_freshness_is_worth_what_the_page_says(logs: Path, tmp_path: Path) -> None:
    summary = run(f"{COMPARE} --data {logs}", tmp_path / "out")
    auc = {name: served["metrics"]["click"]["auc"] for name, served in summary["cadences"].items()}
    assert auc["60s"] > 0.74
    assert auc["60s"] - auc["24h"] > 0.1
    assert summary["dead_letters"] == 0
    assert summary["warnings"] == []
