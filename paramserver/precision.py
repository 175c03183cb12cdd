"""How exactly the replicas' file keeps embeddings: as the table's replica row formats do, value for value."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Precision: TypeAlias = Literal["float32", "float16", "int8"]
Floats: TypeAlias = npt.NDArray[np.float32]


def narrow(embeddings: Floats, precision: Precision) -> tuple[npt.NDArray[Any], Floats]:
    """Embeddings float32 [n, dim] as they are published, and their scales float32 [n] (of int8; else [0]).

    int8: a row's scale is its largest absolute value / 127, its levels are value / scale, rounded half to even; a scale
    below the smallest normal float is 0, since a coarser one would not give the same row when narrowed again. float16:
    rounded to nearest; what is too large becomes infinite, for the caller to refuse.
    """
    none = np.empty(0, np.float32)
    if precision == "float32":
        return embeddings, none
    if precision == "float16":
        with np.errstate(over="ignore"):
            return embeddings.astype(np.float16), none
    scales = np.abs(embeddings).max(axis=1, initial=0) / np.float32(127)
    scales[scales < np.finfo(np.float32).tiny] = 0
    with np.errstate(invalid="ignore"):
        levels = np.rint(embeddings / np.where(scales > 0, scales, np.float32(1))[:, None])
        return levels.clip(-127, 127).astype(np.int8), scales


def widen(values: npt.NDArray[Any], scales: Floats | None) -> Floats:
    """What `narrow` made, as float32 [n, dim] again."""
    if scales is not None:
        return values.astype(np.float32) * scales[:, None]
    return values if values.dtype == np.float32 else values.astype(np.float32)


def rounded(embeddings: Floats, precision: Precision) -> Floats:
    """Embeddings float32 [n, dim] as a replica reads them."""
    values, scales = narrow(embeddings, precision)
    return widen(values, scales if precision == "int8" else None)
