"""Write a small shop's logs: a week of impressions (CSV), engagements (JSON lines) and items (Parquet), all made up.

What people buy depends on the item and on a taste of the hour that drifts, so that fresh models have something to find.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

USERS, ITEMS, SECONDS = 400, 80, 7 * 86_400
START = 1_767_225_600  # 2026-01-01
REQUESTS, SHOWN = 600, 5


def main(folder: Path) -> None:
    """Write the three files into ``folder``."""
    random = np.random.default_rng(7)
    folder.mkdir(parents=True, exist_ok=True)
    brand = random.integers(0, 8, ITEMS)
    categories = [
        [f"c{category}" for category in random.choice(12, random.integers(1, 4), replace=False)] for _ in range(ITEMS)
    ]
    items = {
        "item": [f"i{item}" for item in range(ITEMS)],
        "brand": [f"b{number}" for number in brand],
        "categories": categories,
        "price": random.gamma(2.0, 20.0, ITEMS).round(2),
        "added": START - random.integers(0, 90 * 86_400, ITEMS),
        "picture": random.normal(size=(ITEMS, 4)).astype(np.float32).tolist(),
    }
    pa.parquet.write_table(pa.table(items), folder / "items.parquet")
    quality = random.normal(size=ITEMS)
    lines, events = ["time,request,position,user,item"], []
    for request in range(REQUESTS):
        at = START + request * SECONDS // REQUESTS
        user = int(random.integers(USERS))
        wanted = brand[at // 3600 * 7 % ITEMS]
        for position, item in enumerate(random.choice(ITEMS, SHOWN, replace=False)):
            lines.append(f"{at},r{request},{position},u{user},i{item}")
            odds = quality[item] + 2.0 * (brand[item] == wanted) - 0.3 * position - 1.5
            if random.random() < 1 / (1 + np.exp(-odds)):
                delay = float(random.exponential(60.0))
                event = {
                    "time": at + delay,
                    "request": f"r{request}",
                    "item": f"i{item}",
                    "action": "click",
                    "value": 1,
                }
                events.append(event)
                if random.random() < 0.2:
                    price = float(items["price"][item])
                    events.append({**event, "time": at + delay + 120.0, "action": "buy", "value": price})
    (folder / "impressions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
