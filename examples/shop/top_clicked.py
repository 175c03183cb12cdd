"""A metric of one's own, from what `minutely replay --scores FILE` wrote: how often the item with the highest score is clicked."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

served = pq.read_table(sys.argv[1], filters=pc.field("counts"))
served = served.sort_by([("request_id", "ascending"), ("score_click", "descending")])
clicked = served["label_click"].to_numpy() > 0
_, top, request = np.unique(served["request_id"].to_numpy(), return_index=True, return_inverse=True)
with_click = np.bincount(request, clicked) > 0
print(f"of {with_click.sum():,} requests with a click, {clicked[top][with_click].mean():.1%} have it at the top")
