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


def keys_of(parts: Sequence[Ids]) -> Ids:
    """Return the keys of a definition by the ids of its features, int64 [k]; a part of one id goes with each of the others'."""
    return reduce(cross, parts)


def are_keys(parts: Sequence[Ids]) -> npt.NDArray[np.bool_]:
    """Return where all parts of a key are there, bool [k]: nothing counts at others."""
    found: npt.NDArray[np.bool_] = reduce(np.logical_and, [ids != MISSING for ids in parts])
    return found


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
