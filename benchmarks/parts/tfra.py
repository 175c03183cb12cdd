"""TensorFlow Recommenders Addons' hash tables on the CPU: a yardstick where the package and a TensorFlow it fits are installed.

Its dynamic embeddings are libcuckoo's table behind TensorFlow operations; one thread, as everywhere here.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray


class TfraTable:
    """One table of int64 ids and float32 rows [n, dim]."""

    def __init__(self, rows: int, dim: int) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
        import tensorflow as tf  # type: ignore[import-not-found]

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        from tensorflow_recommenders_addons import dynamic_embedding  # type: ignore[import-not-found]

        self._constant: Any = tf.constant
        self._dim = dim
        self._rows: Any = dynamic_embedding.get_variable(
            f"yardstick_{rows}_{dim}",
            key_dtype=tf.int64,
            value_dtype=tf.float32,
            dim=dim,
            devices=["/CPU:0"],
            init_size=rows,
        )

    def insert(self, ids: NDArray[np.int64]) -> None:
        """Add ids [n] with rows of zeros."""
        self._rows.upsert(self._constant(ids), self._constant(np.zeros((len(ids), self._dim), np.float32)))

    def lookup(self, ids: NDArray[np.int64]) -> Any:
        """Rows float32 [n, dim] of ids [n]."""
        return self._rows.lookup(self._constant(ids))


def tfra_table(rows: int, dim: int) -> TfraTable | None:
    """An empty table, or None, and a line that says why, where TFRA is not installed or does not load."""
    try:
        return TfraTable(rows, dim)
    except (ImportError, OSError, RuntimeError) as error:
        print(f"without TFRA: {str(error).splitlines()[0]}", flush=True)
        return None
