"""The cold start: how well users' first impressions are served, under both default rows.

An id on its way to a row reads as its table's default row, so what that row is shows most where the user is new.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from basis.problems import Problem, Problems
from minutely.config import Pipeline
from paramserver.settings import DefaultRow
from streaming.features.ids import MISSING
from streaming.source.logged_events import LoggedEvents
from trainer.metrics import auc

FIRST = 5
DEFAULT_ROWS: tuple[DefaultRow, ...] = ("fixed", "learned")
Scores = npt.NDArray[np.float32]


def require_user(pipeline: Pipeline) -> str:
    """The feature that is the user's id; `Problems` where there is none, or no default row is served for long enough to measure."""
    found, user = [], pipeline.user_feature
    if not is_admitting(pipeline):
        what = "no table has admission, so an id has its row at once"
        found.append((what, "needed: tables.admit_after, or tables.only.TABLE.admit_after, of 2 or more"))
    if user is None:
        names = ", ".join(pipeline.single_id_features()) or "there is none"
        needed = f"needed: user: NAME at the top of the config, of a sparse feature of one id: {names}"
        found.append(("no feature is the user's id", needed))
    if found or user is None:
        raise Problems([Problem(pipeline.name, "--cold-start", *each) for each in found])
    return user


def is_admitting(pipeline: Pipeline) -> bool:
    """Whether an id has to occur several times in any table to get a row."""
    return any(pipeline.tables.of(name).admit_after > 1 for name in pipeline.table_names)


def is_default_row(pipeline: Pipeline, default_row: DefaultRow) -> bool:
    """Whether all tables with admission have this default row; in the others no id trains it."""
    tables = [pipeline.tables.of(name) for name in pipeline.table_names]
    return all(table.default_row == default_row for table in tables if table.admit_after > 1)


def first_rows(users: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Which impressions are among the first `FIRST` of their user: ascending rows, int64 [m].

    ``users`` int64 [n] are ids in the order of serving; impressions without a user are left out.
    """
    order = np.argsort(users, kind="stable")
    mine = users[order]
    begin = np.flatnonzero(np.concatenate(([True], mine[1:] != mine[:-1])))
    place = np.arange(len(mine)) - np.repeat(begin, np.diff(np.append(begin, len(mine))))
    return np.sort(order[(place < FIRST) & (mine != MISSING)])


def measure(
    pipeline: Pipeline,
    events: LoggedEvents,
    user: str,
    scores: Mapping[DefaultRow, Scores],
    scored_from: int,
) -> dict[str, Any]:
    """AUC of each class label over the users' first impressions from ``scored_from`` on, by default row.

    ``scores`` are those that were served, float32 [n, labels]. The first ones are counted from the log's beginning, so an
    old user does not become new where scores begin to count.
    """
    users = events.features[user]
    assert isinstance(users, np.ndarray)
    rows = first_rows(users.astype(np.int64, copy=False))
    rows = rows[rows >= scored_from]
    labels = [(at, name, label) for at, (name, label) in enumerate(pipeline.labels.items()) if not label.is_value]
    truth = {name: events.truth(label)[rows] for _, name, label in labels}
    return {
        "user": user,
        "first": FIRST,
        "impressions": len(rows),
        "users": len(np.unique(users[rows])),
        "auc": {
            default_row: {name: auc(served[rows, at], truth[name]) for at, name, _ in labels}
            for default_row, served in scores.items()
        },
    }
