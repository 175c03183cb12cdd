from typing import Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

class _Stats(TypedDict):
    live: int
    inserted: int
    admitted: int
    expired: int
    evicted: int
    erased: int
    rejected_gradients: int
    rejected_ids: tuple[int, ...]
    rowless_gradients: int
    candidates: int
    candidates_dropped: int
    overflow: int
    index_bytes: int
    row_bytes: int

_RowArrays: TypeAlias = tuple[
    NDArray[np.int64],
    NDArray[np.float32],
    NDArray[np.float32],
    NDArray[np.uint32],
    NDArray[np.uint32],
    NDArray[np.int64],
]

class NativeTable:
    def __init__(
        self,
        *,
        dim: int,
        optimizer: str,
        optimizer_values: list[float],
        initializer: str,
        a: float,
        b: float,
        seed: int,
        name: str,
        expire_after_seconds: int,
        admit_after: int,
        candidates: int,
        secret: int,
        max_rows: int,
        row_format: str,
        kernels: str,
    ) -> None: ...
    def lookup(self, ids: Any, out: Any) -> None: ...
    def lookup_or_insert(self, ids: Any, now_ms: int, out: Any) -> None: ...
    def apply(self, ids: Any, gradients: Any, now_ms: int) -> None: ...
    def apply_default_row(self, gradient: Any) -> None: ...
    def contains(self, ids: Any, out: Any) -> None: ...
    def upsert(self, ids: Any, embeddings: Any) -> None: ...
    def erase(self, ids: Any) -> int: ...
    def expire(self, now_ms: int, budget: int) -> int: ...
    def seal(self) -> _RowArrays: ...
    def export(self) -> _RowArrays: ...
    def ids(self) -> NDArray[np.int64]: ...
    def reserve(self, rows: int) -> None: ...
    def restore(
        self,
        ids: Any,
        embeddings: Any,
        state: Any,
        last_seen_seconds: Any,
        counts: Any,
        expired: Any,
        default_embedding: Any,
        default_state: Any,
    ) -> None: ...
    def default_row(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
    def set_default_row(self, embedding: Any, state: Any | None) -> None: ...
    def size(self) -> int: ...
    def stats(self) -> _Stats: ...
    @property
    def dim(self) -> int: ...
    @property
    def state_dim(self) -> int: ...
    @property
    def kernels(self) -> str: ...

class NativeTables:
    def __init__(self, tables: list[NativeTable]) -> None: ...
    def lookup(self, ids: Any, ends: list[int], out: Any) -> None: ...
    def lookup_or_insert(self, ids: Any, ends: list[int], now_ms: int, out: Any) -> None: ...
    def apply(self, ids: Any, ends: list[int], gradients: Any, now_ms: int) -> None: ...
    def expire(self, now_ms: int, budget: int) -> int: ...
    def seal(
        self,
    ) -> tuple[
        NDArray[np.int64],
        NDArray[np.float32],
        NDArray[np.float32],
        NDArray[np.uint32],
        NDArray[np.uint32],
        NDArray[np.int64],
        NDArray[np.float32],
        NDArray[np.float32],
        list[int],
        list[int],
    ]: ...

class Checksum:
    def __init__(self, dim: int) -> None: ...
    def set(self, ids: Any, values: Any) -> None: ...
    def remove(self, ids: Any) -> None: ...
    def value(self) -> tuple[int, int]: ...

def checksum_of(ids: Any, values: Any) -> tuple[int, int]: ...
def available_kernels() -> list[str]: ...
def bucket_hashes(seed: int, name: str, secret: int, id: int) -> tuple[int, int]: ...
