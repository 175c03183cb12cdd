from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def rates(found: NDArray[np.float64], shares: NDArray[np.float64], prior: float, out: NDArray[np.float32]) -> None:
    """Numbers of ``rates`` from what `Tally.take` found; see ``native/numbers.hpp``."""

def ages(found: NDArray[np.float64], at: NDArray[np.int64], expire_ms: float, out: NDArray[np.float32]) -> None: ...
def seen(found: NDArray[np.float64], at: NDArray[np.int64], within_ms: float, out: NDArray[np.float32]) -> None: ...

class _Kept:
    """One packed record a key; see ``native/records.hpp``."""

    def pack(self, keys: NDArray[np.int64], out: NDArray[np.uint64]) -> None: ...
    def put(self, keys: NDArray[np.int64], packed: NDArray[np.uint64]) -> None: ...
    @property
    def keys(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class Tally(_Kept):
    """Counts and times by key; see ``native/tally.hpp``."""

    def __init__(self, *, expire_ms: int, half_lives_ms: Sequence[float], actions: int, keeps_times: bool) -> None: ...
    def take(
        self,
        keys: NDArray[np.int64],
        what: NDArray[np.int32],
        at: NDArray[np.int64],
        counted_at: NDArray[np.int64],
        out: NDArray[np.float64],
    ) -> None: ...

class Trail(_Kept):
    """The last actions by key; see ``native/trail.hpp``."""

    def __init__(self, *, within_ms: int, last: int, actions: int, fields: int) -> None: ...
    def take(
        self,
        keys: NDArray[np.int64],
        what: NDArray[np.int32],
        at: NDArray[np.int64],
        ids: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> int: ...
    def found(self, out: NDArray[np.int64]) -> None: ...
