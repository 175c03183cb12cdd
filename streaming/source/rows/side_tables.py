"""Side tables, whose rows impressions find by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from basis.problems import Problem, ProblemList, Problems
from streaming.features.columns import Ids
from streaming.features.ids import MISSING
from streaming.features.kinds import Feature
from streaming.features.transforms import Raw, take
from streaming.source.files.find import Folder
from streaming.source.rows.raw import feature_columns, key_ids, of_columns, raw_of, shown_key
from streaming.source.rows.rejects import Findings
from streaming.source.rows.rows import Rows
from streaming.source.rows.walk import read
from streaming.source.settings import SourceSettings


class SideTable:
    """A side table by key: the raw columns of the features in ``features`` that come from it.

    A key has one column or several. Keys are compared by the ids of all of them, so 17 is the same key as a number, as a text, and
    as a float in a column with gaps.
    """

    def __init__(self, rows: Rows, key: Sequence[str], features: Mapping[str, Feature]) -> None:
        keys, has_key = _keys_of([key_ids(rows, column) for column in key])
        self._order = np.flatnonzero(has_key)
        self._order = self._order[np.argsort(keys[self._order], kind="stable")]
        self._keys = keys[self._order]
        again = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        if again.size:
            value = shown_key(rows, key, int(self._order[again[0]]))
            allowed = "is given twice; allowed: one row per key"
            raise Problems([Problem(rows.name, f"column {'+'.join(key)}", value, allowed)])
        self.name = rows.name
        self.problems: list[Problem] = []
        self._raw: dict[str, Raw] = {}
        problems = ProblemList()
        for name, feature in features.items():
            with problems.collect():
                self._raw[name] = raw_of(rows, feature)
        self.problems = problems.found

    def find(self, columns: Sequence[Ids]) -> Ids:
        """Return the rows of keys, given as the ids of each of their columns, [n] or [1] for one that all keys share: int64 [n],
        -1 for a key that is missing, wholly or in part, or not in the table."""
        keys, has_key = _keys_of(columns)
        if not len(self._keys):
            return np.full(len(keys), -1)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found: Ids = np.where((self._keys[places] == keys) & has_key, self._order[places], -1)
        return found

    def take(self, name: str, at: Ids) -> Raw:
        """Return a feature's raw column for impressions whose rows are ``at``."""
        if name not in self._raw:
            raise Problems([])  # reported when the table was read
        return take(self._raw[name], at)


def _keys_of(columns: Sequence[Ids]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return a value for each key, and which keys have all their parts.

    The value of several columns is their ids end to end, as bytes: two keys have the same only if all their ids are equal.
    """
    spread = np.broadcast_arrays(*columns)
    has_key = np.all([ids != MISSING for ids in spread], axis=0)
    if len(spread) == 1:
        return spread[0], has_key
    return np.stack(spread, axis=1).view(f"S{8 * len(spread)}")[:, 0], has_key


def read_side(
    folder: Folder, settings: SourceSettings, name: str, features: Mapping[str, Feature], findings: list[Findings]
) -> SideTable:
    """Read a side table, and append what is wrong with its rows to ``findings``. `Problems` if it cannot be read; the table's
    own ``problems`` are columns that do not fit."""
    side = settings.sides[name]
    rows = read(folder, side, [*side.key, *feature_columns(features, name)])
    findings.append(rows.findings)
    try:
        table = SideTable(rows, side.key, of_columns(features, name))
    except Problems as problems:
        raise Problems([*rows.missing, *problems.problems]) from None
    table.problems += rows.missing
    return table
