"""The order and the steps in which examples are trained on, from the live log and from the archive alike."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streaming.records.identity import request_ids


def cut_per_step(batch: pa.RecordBatch, step_ms: int, max_rows: int) -> Iterator[pa.RecordBatch]:
    """Cut a batch ordered by ``decided_at`` into training steps: one per step of event time, at most ``max_rows``."""
    if not batch.num_rows:
        return
    steps = batch.column("decided_at").to_numpy() // step_ms
    if batch.num_rows <= max_rows and steps[0] == steps[-1]:
        yield batch
        return
    bounds = [0, *(np.flatnonzero(np.diff(steps)) + 1).tolist(), batch.num_rows]
    for start, stop in pairwise(bounds):
        for at in range(start, stop, max_rows):
            yield batch.slice(at, min(max_rows, stop - at))


def training_order(
    batch: pa.RecordBatch | pa.Table, starts: npt.NDArray[np.int64], partitions: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64] | None:
    """Return how to reorder the examples of several records, of which all but the first start at ``starts``, for training:
    by decision, partition, request and place in it, however the joiner cut them into records. None where they are in order.

    The joiner emits what is decided of a request at one time together, in the order of the places.
    """
    decided = batch.column("decided_at").to_numpy()
    if not (decided[1:] < decided[:-1]).any() and not (decided[starts] == decided[starts - 1]).any():
        return None
    requests = pc.rank(request_ids(batch.column("example_id")), tiebreaker="dense").to_numpy()
    return np.lexsort((requests, decided) if partitions is None else (requests, partitions, decided))
