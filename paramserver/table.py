"""The embedding table: 64-bit id to row, collisionless, expiring, with admission. A thin, typed face of `paramserver._native`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from basis.problems import NoRoomError
from paramserver import _native
from paramserver.options import (
    FTRL,
    SGD,
    Adagrad,
    Adam,
    Constant,
    Initializer,
    Momentum,
    Normal,
    Optimizer,
    Uniform,
    Zeros,
    check,
    initializer_arguments,
    optimizer_arguments,
)

if TYPE_CHECKING:
    import torch

Ids: TypeAlias = "NDArray[np.int64] | torch.Tensor"
Floats: TypeAlias = "NDArray[np.float32] | torch.Tensor"
RowFormat: TypeAlias = Literal["train", "float32", "float16", "int8"]

__all__ = [
    "FTRL",
    "SGD",
    "Adagrad",
    "Adam",
    "Constant",
    "Initializer",
    "Momentum",
    "Normal",
    "Optimizer",
    "RowFormat",
    "Rows",
    "Stats",
    "Table",
    "Uniform",
    "Zeros",
]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows by ascending id, the ids that left the table, also ascending, and the default row.

    ids int64 [n], embeddings float32 [n, dim], state float32 [n, state_dim] (the optimizer's), last_seen_seconds uint32 [n]
    (event time), counts uint32 [n] (occurrences), expired int64 [m], default_embedding float32 [dim] and default_state float32
    [state_dim] of the default row, always. An id may be in both ids and expired: it left and came back, so a reader applies
    the rows removes the expired ids first.
    """

    ids: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    state: NDArray[np.float32]
    last_seen_seconds: NDArray[np.uint32]
    counts: NDArray[np.uint32]
    expired: NDArray[np.int64]
    default_embedding: NDArray[np.float32]
    default_state: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Counts since the table was made, unless said otherwise.

    live: rows now. inserted: rows made, by whatever operation. admitted: of them by lookup_or_insert. expired, evicted, erased:
    rows gone, evicted for max_rows, erased also by restore. rejected_gradients: gradients not finite; rejected_ids: the ids of the
    last 16. rowless_gradients: summed gradients of ids without a row. candidates: ids being counted now; candidates_dropped:
    forgotten because the budget was full. overflow: ids now outside the buckets because too many share theirs. index_bytes,
    row_bytes: memory now.
    """

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


class Table:
    """Rows of `dim` float32 by 64-bit id; every value is an id.

    `ids` everywhere are contiguous int64 [n], and `out`, `gradients` and `embeddings` contiguous float32 [n, dim], numpy arrays
    or torch CPU tensors, used in place and held for the whole call. TypeError and ValueError say which buffer
    is wrong and what is allowed; nothing is written then. The interpreter's lock is released during every call.

    One writer works at a time. `lookup` and `contains` run beside `upsert` and `erase`, and see each row as it was before or
    after, whole; the other operations change rows in place and let readers wait for the length of one batch.

    Times are event times in milliseconds since 1970, below 2**32 seconds.

    expire_after_seconds: a row not seen for so long may be expired; None: never. admit_after: occurrences (1 to 65,535) in
    lookup_or_insert until an id gets a row. candidates: how many ids may be counted on their way there; past it the one seen
    longest ago goes. max_rows: past it those go that were not seen for longest, of several the lowest id, and the next seal says
    so; None: past what the machine can hold. secret: mixed into the hash, so that without knowing it nobody can choose ids that
    collide; it decides in which order `expire` finds rows, and no value. row_format: `train`, or how a replica keeps embeddings
    (whose rows change by upsert and erase alone; int8 has one scale a row).
    kernels: an instruction set by name, for tests; the best one otherwise.

    >>> import numpy as np
    >>> from paramserver.options import SGD
    >>> from paramserver.table import Table
    >>> table = Table(2, optimizer=SGD(learning_rate=1.0))
    >>> table.lookup_or_insert(np.array([7, 8]), now_ms=0)
    array([[0., 0.],
           [0., 0.]], dtype=float32)
    >>> table.apply(np.array([7, 7]), np.ones((2, 2), np.float32), now_ms=0)
    >>> table.lookup(np.array([7, 9]))
    array([[-2., -2.],
           [ 0.,  0.]], dtype=float32)
    """

    def __init__(
        self,
        dim: int,
        *,
        optimizer: Optimizer = Adagrad(),
        initializer: Initializer = Zeros(),
        seed: int = 0,
        name: str = "",
        expire_after_seconds: int | None = None,
        admit_after: int = 1,
        candidates: int = 1 << 20,
        max_rows: int | None = None,
        secret: int = 0,
        row_format: RowFormat = "train",
        kernels: str = "",
    ) -> None:
        check("dim", dim, "in 1 to 4096", 1 <= dim <= 4096)
        check("seed", seed, "in 0 to 2**64 - 1", 0 <= seed < 1 << 64)
        check("admit_after", admit_after, "in 1 to 65535", 1 <= admit_after <= 65535)
        check("candidates", candidates, "in 1 to 2**30", 1 <= candidates <= 1 << 30)
        check("secret", secret, "in 0 to 2**64 - 1", 0 <= secret < 1 << 64)
        if max_rows is not None:
            check("max_rows", max_rows, "in 1 to 2**31 - 1, or None", 1 <= max_rows < 1 << 31)
        if expire_after_seconds is not None:
            allowed = 1 <= expire_after_seconds < 1 << 32
            check("expire_after_seconds", expire_after_seconds, "in 1 to 2**32 - 1, or None", allowed)
        kind, values = optimizer_arguments(optimizer)
        first, a, b = initializer_arguments(initializer)
        self._native = _native.NativeTable(
            dim=dim,
            optimizer=kind,
            optimizer_values=values,
            initializer=first,
            a=a,
            b=b,
            seed=seed,
            name=name,
            expire_after_seconds=expire_after_seconds or 0,
            admit_after=admit_after,
            candidates=candidates,
            secret=secret,
            max_rows=max_rows or 0,
            row_format=row_format,
            kernels=kernels,
        )
        self._dim = dim
        self._name = name
        self.row_format = row_format

    @property
    def native(self) -> _native.NativeTable:
        """The table itself, for what works on several."""
        return self._native

    @property
    def dim(self) -> int:
        """Floats in an embedding."""
        return self._dim

    @property
    def state_dim(self) -> int:
        """Floats of optimizer state in a row; 0 in a replica."""
        return self._native.state_dim

    @property
    def kernels(self) -> str:
        """The instruction set in use."""
        return self._native.kernels

    def __len__(self) -> int:
        return self._native.size()

    def _out(self, ids: Ids, out: Floats | None) -> Floats:
        return np.empty((len(ids), self._dim), np.float32) if out is None else out

    def lookup(self, ids: Ids, out: Floats | None = None) -> Floats:
        """Embeddings float32 [n, dim], in `out` where given; an id without a row reads as the default row."""
        out = self._out(ids, out)
        self._native.lookup(ids, out)
        return out

    def lookup_or_insert(self, ids: Ids, now_ms: int, out: Floats | None = None) -> Floats:
        """As lookup, and counts the occurrence and stamps the row; an id that has now occurred `admit_after` times gets a row.

        An id that occurs several times in the batch is handled in order, as by several calls.
        """
        out = self._out(ids, out)
        self._native.lookup_or_insert(ids, now_ms, out)
        return out

    def apply(self, ids: Ids, gradients: Floats, now_ms: int) -> None:
        """One optimizer step for each distinct id, with the sum of its gradients (float32 [n, dim]) in order of occurrence.

        A gradient that is not finite, or whose squared norm is not, is left out and counted (Stats.rejected_gradients). Ids
        without a row are only counted (Stats.rowless_gradients). A row's first change after a seal stamps it as seen; further
        ones leave the stamp to lookup_or_insert.
        """
        self._native.apply(ids, gradients, now_ms)

    def apply_default_row(self, gradient: Floats) -> None:
        """One optimizer step for the default row, by a gradient float32 [dim]; one that is not finite is left out and counted."""
        self._native.apply_default_row(gradient)

    def contains(self, ids: Ids) -> NDArray[np.bool_]:
        """Which ids have a row, bool [n]."""
        out = np.empty(len(ids), np.bool_)
        self._native.contains(ids, out)
        return out

    def upsert(self, ids: Ids, embeddings: Floats) -> None:
        """Sets embeddings (float32 [n, dim]), making rows as needed; the last of several for one id stays."""
        self._native.upsert(ids, embeddings)

    def erase(self, ids: Ids) -> int:
        """Removes rows and returns how many there were. A training table reports them as expired in the next seal."""
        return self._native.erase(ids)

    def seal(self) -> Rows:
        """The rows that changed since the last seal, inserted and seen ones included, and the ids that left, each once."""
        return Rows(*self._native.seal(), *self._native.default_row())

    def export(self) -> Rows:
        """Every row; no expired ids. A replica's rows have no state, and zeros for last seen and count."""
        return Rows(*self._native.export(), *self._native.default_row())

    def ids(self) -> NDArray[np.int64]:
        """The id of every row, int64 [n] ascending: what `export` has, without a copy of the rows."""
        return self._native.ids()

    def reserve(self, rows: int) -> None:
        """Makes room for so many rows in all at once, before the table is filled; without it, the table grows as rows come.

        `NoRoomError` where this machine has none.
        """
        check("rows", rows, "in 0 to 2**31 - 1", 0 <= rows < 1 << 31)
        try:
            self._native.reserve(rows)
        except (ValueError, MemoryError) as error:
            why = f": {error}" if str(error) else ""
            raise NoRoomError(
                f"table {self._name}: {rows:,} rows; allowed: as many as this machine has memory for{why}; "
                "run it on a larger one, or set tables.max_rows for the trainer"
            ) from None

    def restore(self, rows: Rows) -> None:
        """Removes rows.expired, then sets rows and default row exactly, optimizer state, last seen and count included.

        The rows count as unchanged. Candidates for admission are not part of rows: their counts start at zero.
        """
        self._native.restore(
            rows.ids,
            rows.embeddings,
            rows.state,
            rows.last_seen_seconds,
            rows.counts,
            rows.expired,
            rows.default_embedding,
            rows.default_state,
        )

    def expire(self, now_ms: int, budget: int) -> int:
        """Removes rows last seen expire_after_seconds or longer before now, and returns how many.

        Looks at about `budget` places (at least four) from where the last call stopped, and goes round the table. Forgets as
        many candidates at most. RuntimeError where 2**26 expired ids wait for a seal.
        """
        check("budget", budget, "at least 1", budget >= 1)
        return self._native.expire(now_ms, budget)

    def default_row(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What ids without a row read as, float32 [dim], and its optimizer state, float32 [state_dim]."""
        return self._native.default_row()

    def set_default_row(self, embedding: Floats, state: Floats | None = None) -> None:
        """Sets what ids without a row read as, float32 [dim], and its optimizer state, float32 [state_dim], where given."""
        self._native.set_default_row(embedding, state)

    @property
    def stats(self) -> Stats:
        """Counters and sizes; see Stats."""
        return Stats(**self._native.stats())
