"""What a version stands for besides its rows; nothing that is published goes past the guards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paramserver.delta_log import Cut
from paramserver.learned import Learned
from streaming.log import EXAMPLES
from trainer.worker import Trainer, TrainWorker


def offsets_of(workers: Sequence[TrainWorker]) -> dict[str, int]:
    """How far into `examples` these workers have trained, by topic and partition."""
    return {f"{EXAMPLES}/{worker.partition}": worker.offset for worker in workers}


def cut_of(
    trainer: Trainer,
    watermark: int,
    now_ms: int,
    offsets: Mapping[str, int],
    *,
    dense: bool = True,
    state: bool = True,
    learned: Learned | None = None,
) -> Cut:
    """The cut of what ``trainer`` has learned, with its dense weights and its state or without. Times in ms.

    `GuardedError` where the weights are not fit to be published.
    """
    trainer.check()
    return Cut(
        watermark=watermark,
        now_ms=now_ms,
        offsets=offsets,
        dense=trainer.dense_weights() if dense else None,
        trainer=trainer.state() if state else None,
        learned=learned,
    )
