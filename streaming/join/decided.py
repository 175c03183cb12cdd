"""The joiner's output: decided impressions of any number of requests, as batches in the order of their decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from streaming.features.columns import Column, Ids, Ragged, missing_column, pack, unpack
from streaming.features.kinds import Feature, Packed
from streaming.records.events import MAX_IMPRESSIONS, Request
from streaming.records.examples import ExampleColumns, ExampleFormat, ServedColumns
from streaming.records.identity import example_prefix
from streaming.records.labels import Decision

_IN_ORDER = np.arange(MAX_IMPRESSIONS, dtype="<i4").tobytes()
_NO_SCORE = np.full(1, np.nan, "<f4").tobytes()


class Decided(NamedTuple):
    """Impressions of one request, given by their indices in it, that share one decision."""

    request_id: str
    request: Request
    indices: Sequence[int]
    decision: Decision
    revision: int = 0


def batches(
    ready: Sequence[Decided], example_format: ExampleFormat, sampling_rate: float, max_rows: int
) -> list[pa.RecordBatch]:
    """Return batches of at most ``max_rows`` examples, ordered by the time of decision, the request's id and the index in it.

    Columns are built over all requests at once: one request at a time would cost 15 times as much.
    """
    counts = [len(item.indices) for item in ready]
    group = np.repeat(np.arange(len(ready)), counts)
    index = np.fromiter(chain.from_iterable(item.indices for item in ready), np.int64, len(group))
    rank = {request_id: at for at, request_id in enumerate(sorted({item.request_id for item in ready}))}
    ranks = np.array([rank[item.request_id] for item in ready])
    decided_at = np.array([item.decision.decided_at for item in ready], np.int64)
    order = np.lexsort((index, ranks[group], decided_at[group]))
    group, index = group[order], index[order]
    if len(group) <= max_rows:
        return [_batch(ready, group, index, example_format, sampling_rate)]
    cuts = (slice(at, at + max_rows) for at in range(0, len(group), max_rows))
    return [_batch(*_used(ready, group[cut]), index[cut], example_format, sampling_rate) for cut in cuts]


def _used(ready: Sequence[Decided], group: Ids) -> tuple[list[Decided], Ids]:
    """Return the items of these rows, and of which of them each row is."""
    used, of_row = np.unique(group, return_inverse=True)
    return [ready[at] for at in used.tolist()], of_row


def _batch(
    items: Sequence[Decided], of_row: Ids, index: Ids, example_format: ExampleFormat, sampling_rate: float
) -> pa.RecordBatch:
    """Return the batch of the impressions with these indices, each of an item; no item is without any."""
    requests: dict[str, Request] = {}
    starts: dict[str, int] = {}
    total = 0
    for item in items:
        if item.request_id not in requests:
            requests[item.request_id] = item.request
            starts[item.request_id] = total
            total += len(item.request.impression_ids)
    rows = np.array([starts[item.request_id] for item in items], np.int64)[of_row] + index
    prefixes = [example_prefix(item.request_id) for item in items]
    # Faster than taking from Arrow's columns and joining them, for one row and for thousands.
    ids = [item.request.impression_ids for item in items]
    names = [prefixes[at] + ids[at][row] for at, row in zip(of_row.tolist(), index.tolist(), strict=True)]
    decisions = [item.decision for item in items]
    in_order = list(requests.values())
    return example_format.build(
        gather(example_format.features, in_order, rows),
        ExampleColumns(
            names,
            np.array([decision.values for decision in decisions], np.float32)[of_row],
            np.array([item.request.served_at for item in items], np.int64)[of_row],
            np.array([decision.happened_at for decision in decisions], np.int64)[of_row],
            np.array([decision.decided_at for decision in decisions], np.int64)[of_row],
            sampling_rate,
            np.array([item.revision for item in items], np.int32)[of_row],
            gather_served(in_order, rows, len(example_format.labels)),
        ),
    )


def gather(features: Mapping[str, Feature], requests: Sequence[Request], rows: Ids) -> dict[str, Column]:
    """Return the feature columns of some impressions; ``rows`` index the impressions of all ``requests``, concatenated."""
    counts = [len(request.impression_ids) for request in requests]
    request_of_row = np.repeat(np.arange(len(requests)), counts)[rows]
    all_in_order = len(rows) == sum(counts) and bool((rows[1:] > rows[:-1]).all())
    columns: dict[str, Column] = {}
    for name, feature in features.items():
        if feature.scope == "request":
            shared = [request.shared.get(name) or _missing(feature, 1) for request in requests]
            column, index = unpack(feature, shared), request_of_row
        else:
            own = [
                request.features.get(name) or _missing(feature, count)
                for request, count in zip(requests, counts, strict=True)
            ]
            column, index = unpack(feature, own), rows
            if all_in_order:
                columns[name] = column
                continue
        columns[name] = column.take(index) if isinstance(column, Ragged) else column[index]
    return columns


def _missing(feature: Feature, count: int) -> Packed:
    """Return the column of a request that lacks a feature: its replica did not have it, or it was added later."""
    return pack(missing_column(feature, count), 0, count)


def gather_served(requests: Sequence[Request], rows: Ids, labels: int) -> ServedColumns:
    """Return how some impressions were served, by their requests; ``rows`` as in `gather`.

    Positions and scores whose number does not match impressions and labels are not used: a replica may have one more label.
    """
    positions, scores = [], []
    for request in requests:
        count = len(request.impression_ids)
        positions.append(request.positions if len(request.positions) == 4 * count else _IN_ORDER[: 4 * count])
        size = 4 * labels * count
        scores.append(request.scores if len(request.scores) == size else _NO_SCORE * (labels * count))
    of_row = np.repeat(np.arange(len(requests)), [len(request.impression_ids) for request in requests])[rows]
    return ServedColumns(
        np.frombuffer(b"".join(positions), "<i4")[rows],
        np.frombuffer(b"".join(scores), "<f4").reshape(-1, labels)[rows],
        np.array([request.sparse_version for request in requests], np.int64)[of_row],
        np.array([request.dense_version for request in requests], np.int64)[of_row],
    )
