"""What replays and services do alike around the core: ids become keys, and what reads found the columns of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streaming.features.columns import Column, Ids
from streaming.features.ids import MISSING, cross
from streaming.features.kinds import Feature, SparseFeature, live_address
from streaming.features.transforms import last_of
from streaming.live.numbers import Found, Lists
from streaming.live.spec import LiveSpec, Places


def keys_of(parts: Sequence[Ids]) -> Ids:
    """Return the keys of a definition by the ids of its features, int64 [k]; a part of one id goes with each of the others'."""
    return reduce(cross, parts)


def are_keys(parts: Sequence[Ids]) -> npt.NDArray[np.bool_]:
    """Return where all parts of a key are there, bool [k]: nothing counts at others."""
    found: npt.NDArray[np.bool_] = reduce(np.logical_and, [ids != MISSING for ids in parts])
    return found


def kept_ids(columns: Sequence[Ids], count: int) -> Ids:
    """Return what a definition keeps of ``count`` impressions, int64 [count, fields], by the ids of its fields."""
    return np.stack(columns, axis=1) if columns else np.empty((count, 0), np.int64)


class LiveFeature(NamedTuple):
    """A feature, and the numbers or the list that it has."""

    feature: Feature
    places: Places

    def column(self, found: Mapping[str, Found]) -> Column:
        """Return its column, of what k reads found of each definition."""
        what = found[self.places.definition]
        if isinstance(what, Lists):
            assert isinstance(self.feature, SparseFeature)
            lists = what.column(self.places.at[0])
            return lists if self.feature.last is None else last_of(lists, self.feature.last)
        numbers = what[:, self.places.at]
        if not isinstance(self.feature, SparseFeature):
            return numbers
        assert self.feature.step is not None
        ids: Ids = np.floor(numbers[:, 0] / self.feature.step).astype(np.int64)
        return ids


def live_features(spec: LiveSpec, features: Mapping[str, Feature]) -> dict[str, LiveFeature]:
    """Return the features whose values are live numbers or lists."""
    return {
        name: LiveFeature(feature, places)
        for name, feature in features.items()
        if (places := spec.numbers(live_address(feature))) is not None
    }
