"""From raw columns of impressions, and of side tables, to feature columns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from basis.problems import Problem, ProblemList, Problems
from streaming.features.columns import Column, Ids
from streaming.features.kinds import Feature, SparseFeature
from streaming.features.transforms import Raw, derived, from_raw, is_derived, missing_in
from streaming.source.rows.raw import of_columns, raw_of
from streaming.source.rows.rows import Rows
from streaming.source.rows.side_tables import SideTable

_CROSS = "allowed: two earlier sparse features of one id each"


class FeatureMapper:
    """Makes feature columns of raw ones, a piece of the log after another; ``sides`` are its side tables."""

    def __init__(self, features: Mapping[str, Feature], sides: Mapping[str, SideTable]) -> None:
        self._features = features
        self._sides = sides
        self._count = 0
        self._missing: dict[str, float] = {}

    @property
    def missing(self) -> dict[str, float]:
        """The share of impressions without a value, by feature with a column."""
        return {name: count / self._count for name, count in self._missing.items()}

    def raw(self, rows: Rows) -> dict[str, Raw]:
        """Return the raw columns of the features that are made from the rows' own columns.

        Raises:
            Problems: every column that does not fit; nothing of columns that are missing, which ``rows`` tell.
        """
        wanted = of_columns(self._features, None)
        made: dict[str, Raw] = {}
        problems = ProblemList()
        for name, feature in wanted.items():
            with problems.collect():
                made[name] = raw_of(rows, feature)
        if len(made) < len(wanted):
            raise Problems(problems.found)
        return made

    def columns(
        self, raw: Mapping[str, Raw], places: Mapping[str, Ids], served_at: Ids, sizes: Ids
    ) -> dict[str, Column]:
        """Return all features of impressions: of their own raw columns, and of the rows at ``places`` of each side table;
        ``sizes`` has how many impressions the request of each has.

        Raises:
            Problems: two features cannot be crossed.
        """
        made: dict[str, Column] = {}
        for name, feature in self._features.items():
            if is_derived(feature):
                if isinstance(feature, SparseFeature) and feature.cross is not None:
                    pair = [made.get(part) for part in feature.cross]
                    if not all(isinstance(part, np.ndarray) and part.dtype == np.int64 for part in pair):
                        raise Problems([Problem("features", f"{name}: cross", ", ".join(feature.cross), _CROSS)])
                made[name] = derived(feature, made, served_at, sizes)
                continue
            found = raw[name] if feature.side is None else self._sides[feature.side].take(name, places[feature.side])
            self._missing[name] = self._missing.get(name, 0) + missing_in(found)
            made[name] = from_raw(feature, found, served_at)
        self._count += len(served_at)
        return made
