"""What replays and services do alike around the core: ids become keys, and numbers the columns of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streaming.features.columns import Floats, Ids
from streaming.features.ids import MISSING, cross
from streaming.features.kinds import Feature, SparseFeature, live_address
from streaming.live.spec import LiveSpec, Places


class Keys(NamedTuple):
    """Keys of a definition, int64 [k], and where all of their parts are there, bool [k]."""

    keys: Ids
    known: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, parts: Sequence[Ids]) -> Keys:
        """Return the keys of the ids of a definition's features; a part of one id goes with each of the others'."""
        return cls(reduce(cross, parts), reduce(np.logical_and, [ids != MISSING for ids in parts]))


class LiveFeature(NamedTuple):
    """A feature, and the numbers that it has."""

    feature: Feature
    places: Places

    def column(self, found: Mapping[str, Floats]) -> Ids | Floats:
        """Return its column, of all numbers [k, numbers] of each definition."""
        numbers = found[self.places.definition][:, self.places.at]
        if not isinstance(self.feature, SparseFeature):
            return numbers
        assert self.feature.step is not None
        ids: Ids = np.floor(numbers[:, 0] / self.feature.step).astype(np.int64)
        return ids


def live_features(spec: LiveSpec, features: Mapping[str, Feature]) -> dict[str, LiveFeature]:
    """Return the features whose values are live numbers."""
    return {
        name: LiveFeature(feature, places)
        for name, feature in features.items()
        if (places := spec.numbers(live_address(feature))) is not None
    }
