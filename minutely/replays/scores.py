"""The scores that a replay served, as a Parquet file, so that people can compute metrics of their own."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from basis.problems import Problem, Problems
from minutely.place import require_writable
from minutely.replays.loop import EmbeddedLoop
from streaming.features.ids import MISSING

_ROWS_AT_ONCE = 1 << 16


def require_free(path: Path, out: Path | None) -> None:
    """`Problems` where no file can be made at ``path``, beside a run in ``out``. Leaves nothing there."""
    require_writable(path.parent, "--scores")
    if path == out:
        why = "is the folder of --out"
    else:
        try:
            path.lstat()
            why = "is there already"
        except FileNotFoundError:
            return
        except OSError as error:  # such as a name that is too long
            why = error.strerror or "cannot be written"
    raise Problems([Problem(str(path), "--scores", why, "allowed: a new file")])


def write_scores(path: Path, loop: EmbeddedLoop) -> None:
    """Write one row for each impression that the first replica served; the file is there when it is whole, and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".minutely-{secrets.token_hex(8)}.tmp")
    scored_by = np.array(loop.primary.scored_by, np.int64).reshape(-1, 3)
    try:
        with aside.open("xb") as file:
            with pq.ParquetWriter(file, _rows(loop, scored_by, 0, 0).schema) as writer:
                for begin in range(0, loop.impressions, _ROWS_AT_ONCE):
                    writer.write_batch(_rows(loop, scored_by, begin, min(begin + _ROWS_AT_ONCE, loop.impressions)))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"{path}: scores not written: {error.strerror or error}") from None
    finally:
        aside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _rows(loop: EmbeddedLoop, scored_by: npt.NDArray[np.int64], begin: int, stop: int) -> pa.RecordBatch:
    """Impressions ``begin`` to ``stop``. ``scored_by`` int64 [m, 3] is as of `minutely.replays.loop.Served`."""
    events, pipeline = loop.events, loop.pipeline
    requests, impressions = events.request_of_row[begin:stop], np.arange(begin, stop)
    columns = {
        "request_id": events.request_ids.take(pa.array(requests)),
        "impression_id": events.impression_ids.slice(begin, stop - begin),
        "served_at": pa.array(events.served_at[requests], pa.timestamp("ms", "UTC")),
    }
    if pipeline.user_feature is not None:
        users = np.asarray(events.features[pipeline.user_feature])[begin:stop]
        columns["user"] = pa.array(users, pa.int64(), mask=users == MISSING)
    for at, name in enumerate(pipeline.labels):
        columns[f"score_{name}"] = pa.array(loop.primary.scores[begin:stop, at])
        columns[f"label_{name}"] = pa.array(loop.truth[name][begin:stop])
    stretch = np.searchsorted(scored_by[:, 0], impressions, side="right") - 1
    columns["sparse_version"] = pa.array(scored_by[stretch, 1])
    columns["dense_version"] = pa.array(scored_by[stretch, 2])
    columns["counts"] = pa.array(impressions >= loop.scored_from)
    return pa.record_batch(columns)
