"""Write a small news site's logs, all made up: three days of requests in Parquet, a folder a day, and the articles they showed.

Articles are shown for a few hours, and what people want to read drifts from hour to hour, so yesterday's model knows little.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

START, DAYS = np.datetime64("2026-01-05T00:00:00", "ms"), 3
HOUR_MS = 3_600_000
USERS, TOPICS, REQUESTS, SHOWN = 200, 12, 2_000, 10
AN_HOUR, SHOWN_FOR = 4, 8
"""Articles an hour; for how many hours each is shown."""
REMEMBERED = 8
"""Articles in a user's history."""


def main(folder: Path) -> None:
    """Write the articles and a part a day into ``folder``."""
    random = np.random.default_rng(11)
    hours = DAYS * 24
    count = (hours + SHOWN_FOR) * AN_HOUR
    hour = np.sort(random.random(count)) * (hours + SHOWN_FOR) - SHOWN_FOR
    published = START + (hour * HOUR_MS).astype("timedelta64[ms]")
    topic = random.integers(0, TOPICS, count)
    about = random.normal(size=(TOPICS, 4))[topic] + 0.5 * random.normal(size=(count, 4))
    articles = {
        "article": [f"a{article}" for article in range(count)],
        "topic": [f"t{number}" for number in topic],
        "published": published,
        "embedding": about.astype(np.float32).tolist(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.table(articles), folder / "articles.parquet")

    quality = 1.2 * random.normal(size=count)
    taste = random.normal(size=(USERS, TOPICS))
    interest = _drift(random, hours)
    history: list[list[str]] = [[] for _ in range(USERS)]
    rows = []
    for request, at in enumerate(np.sort(random.random(REQUESTS)) * hours):
        user = int(random.integers(USERS))
        time = START + np.timedelta64(int(at * HOUR_MS), "ms")
        live = np.flatnonzero((published < time) & (published > time - np.timedelta64(SHOWN_FOR, "h")))
        shown = random.choice(live, SHOWN, replace=False)
        wish = interest[int(at), topic[shown]] + taste[user, topic[shown]]
        odds = quality[shown] + wish - 0.2 * np.arange(SHOWN) - 2.0
        is_clicked = random.random(SHOWN) < 1 / (1 + np.exp(-odds))
        seconds = np.minimum(np.exp(random.normal(3.5 + 0.3 * wish, 0.6)).round(1), 540.0)
        clicked = [f"a{article}" for article in shown[is_clicked]]
        row = {
            "request": f"r{request}",
            "time": time.item(),
            "user": f"u{user}",
            "history": history[user],
            "articles": [f"a{article}" for article in shown],
            "positions": list(range(SHOWN)),
            "clicked": clicked,
            "read_seconds": [float(read) if hit else None for read, hit in zip(seconds, is_clicked, strict=True)],
        }
        rows.append(row)
        history[user] = [*history[user], *clicked][-REMEMBERED:]
    table = pa.Table.from_pylist(rows)
    days = table["time"].cast(pa.timestamp("s"), safe=False).cast(pa.date32()).to_numpy()
    for day in np.unique(days):
        part = folder / f"impressions/day={day}/part-0.parquet"
        part.parent.mkdir(parents=True, exist_ok=True)
        pa.parquet.write_table(table.filter(days == day), part)


def _drift(random: np.random.Generator, hours: int) -> npt.NDArray[np.float64]:
    """Interest in each topic, by hour: it wanders, and comes back to the middle."""
    interest = np.zeros((hours, TOPICS))
    for hour in range(1, hours):
        interest[hour] = 0.9 * interest[hour - 1] + 0.5 * random.normal(size=TOPICS)
    return interest


if __name__ == "__main__":
    main(Path(sys.argv[1]))
