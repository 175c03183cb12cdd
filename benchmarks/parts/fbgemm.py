"""fbgemm's embedding tables on the CPU: a yardstick where fbgemm-gpu-cpu is installed for the torch that runs.

Rows are addressed by number, without hashing; row-wise Adagrad is applied within the backward pass.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor


class FbgemmTable:
    """One table of `rows` rows, float32 [rows, dim], in pooled bags of one row each."""

    def __init__(self, rows: int, dim: int, learning_rate: float) -> None:
        # It warns again and again that it was built for another torch than the newest.
        logging.getLogger().setLevel(logging.ERROR)
        from fbgemm_gpu import split_table_batched_embeddings_ops_training as ops  # type: ignore[import-not-found]
        from fbgemm_gpu.split_embedding_configs import EmbOptimType  # type: ignore[import-not-found]

        spec = (rows, dim, ops.EmbeddingLocation.HOST, ops.ComputeDevice.CPU)
        self._bags: Any = ops.SplitTableBatchedEmbeddingBagsCodegen(
            [spec], optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD, learning_rate=learning_rate
        )

    def lookup(self, numbers: Tensor) -> Tensor:
        """Row numbers int64 [n] to rows float32 [n, dim]; a backward pass through them takes one optimizer step."""
        rows: Tensor = self._bags(numbers, torch.arange(len(numbers) + 1))
        return rows


def fbgemm_table(rows: int, dim: int, learning_rate: float = 0.01) -> FbgemmTable | None:
    """A table, or None, and a line that says why, where fbgemm is not installed or does not load."""
    try:
        return FbgemmTable(rows, dim, learning_rate)
    except (ImportError, OSError) as error:
        print(f"without fbgemm: {error}", flush=True)
        return None
