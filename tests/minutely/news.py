"""A made-up news log: every hour brings articles that nobody asks for an hour later, so most of what is served is new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from minutely.config import Pipeline
from tests.minutely.replays.test_loop import HOUR, START

USERS, ARTICLES, PER_REQUEST = 300, 50, 5


def write_news(path: Path, hours: int = 14, requests: int = 300) -> None:
    """``requests`` an hour for 5 articles each; one in 15 is clicked, seconds after it was served."""
    rng = np.random.default_rng(3)
    served_at = np.repeat(np.sort(rng.integers(0, hours * HOUR, hours * requests)), PER_REQUEST)
    count = len(served_at)
    article = served_at // HOUR * ARTICLES + rng.integers(0, ARTICLES, count)
    log_odds = rng.normal(-3, 0.8, hours * ARTICLES)
    columns = {
        "t": served_at + START,
        "user": np.repeat(rng.integers(0, USERS, hours * requests), PER_REQUEST),
        "article": article,
        "click": rng.random(count) < 1 / (1 + np.exp(-log_odds[article])),
        "delay": rng.integers(3_000, 60_000, count),
    }
    pa.parquet.write_table(pa.table(columns), path / "news.parquet")


def make_news(folder: Path, **changes: Any) -> Pipeline:
    """Clicks are known at once, the rest only 40 minutes later."""
    fields: dict[str, Any] = {
        "name": "news",
        "source": {
            "dir": str(folder),
            "impressions": {"file": "news.parquet", "time": {"column": "t"}, "request": ["user", "t"]},
            "actions": {"click": {"when": "click", "delay": {"column": "delay"}}},
        },
        "features": {"user": {"column": "user", "scope": "request"}, "article": {"column": "article"}},
        "labels": {"click": {"action": "click", "window": "40m"}},
        "model": {"dim": 4, "hidden": [16]},
        "sync": {"dense_every": "1h"},
    }
    return Pipeline.model_validate({**fields, **changes})
