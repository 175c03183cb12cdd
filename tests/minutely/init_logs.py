"""A made-up log in several shapes, and the configs that `minutely init` writes for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

from minutely.cli import cli
from minutely.config import Pipeline, load_pipeline

START = 1_700_000_000  # 2023-11-14
REQUESTS, SHOWN = 200, 4
Row = dict[str, Any]


def rows_of() -> list[Row]:
    """Requests of four impressions, a minute apart, with clicks and the seconds until them."""
    random = np.random.default_rng(5)
    found = []
    for number in range(REQUESTS):
        user = int(random.integers(40))
        for item in random.choice(30, SHOWN, replace=False).tolist():
            clicked = int(random.random() < 0.3)
            found.append(
                {
                    "ts": START + 60 * number,
                    "request_id": f"r{number}",
                    "user_id": user,
                    "item_id": f"i{item}",
                    "price": round(float(random.gamma(2.0, 20.0)), 2),
                    "country": ("CH", "AT", "FR")[user % 3],
                    "clicked": clicked,
                }
            )
    return found


def slates_of(rows: Sequence[Row]) -> list[Row]:
    """A row a request, with lists of what was shown and of what was clicked."""
    found = []
    for at in range(0, len(rows), SHOWN):
        first, shown = rows[at], rows[at : at + SHOWN]
        clicked = [row["item_id"] for row in shown if row["clicked"]]
        items = {"items_shown": [row["item_id"] for row in shown], "prices": [row["price"] for row in shown]}
        found.append({"ts": first["ts"], "user_id": first["user_id"], **items, "items_clicked": clicked})
    return found


def changed(rows: Sequence[Row], **by: Any) -> list[Row]:
    """Rows with columns replaced by functions of the row."""
    return [{**row, **{name: make(row) for name, make in by.items()}} for row in rows]


def typed(*command: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(part) for part in command])


def written(*paths: str | Path) -> Pipeline:
    """The config for some paths, which `check` takes without an edit."""
    done = typed("init", *paths, "--out", "made.yaml")
    assert done.exit_code == 0, done.output
    checked = typed("check", "made.yaml")
    assert checked.exit_code == 0, checked.output + Path("made.yaml").read_text()
    return load_pipeline(Path("made.yaml"))


def columns_of(pipeline: Pipeline) -> dict[str, str | None]:
    return {name: getattr(feature, "column", None) for name, feature in pipeline.features.items()}
