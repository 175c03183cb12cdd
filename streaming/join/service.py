"""The joiners' service: `PartitionService`, each of whose partitions has a joiner."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from streaming.clock import Clock
from streaming.join.calibration import ServedCalibration
from streaming.join.memory import MemoryShare
from streaming.join.partition import JoinPartition
from streaming.loop.brokers import Brokers, History, Outlet
from streaming.loop.service import PartitionService

_log = logging.getLogger("minutely.join")
GARBAGE_AFTER = 100_000
"""Objects, instead of Python's 700: with those, a tenth of the joiner's time goes into looking at pending requests for cycles."""


class JoinService(PartitionService[JoinPartition]):
    """Joins the partitions that its group assigns to it. All joiners share ``memory``, and compare scores with labels in
    ``served``."""

    def __init__(
        self,
        brokers: Brokers,
        make_partition: Callable[[int, Outlet[Any], History], JoinPartition],
        clock: Clock,
        *,
        max_wait_ms: int,
        batch_records: int = 2000,
        publish_every_ms: int = 1000,
        asked: str | None = None,
        served: ServedCalibration | None = None,
        memory: MemoryShare | None = None,
    ) -> None:
        super().__init__(
            brokers,
            make_partition,
            clock,
            _log,
            max_wait_ms=max_wait_ms,
            batch_records=batch_records,
            publish_every_ms=publish_every_ms,
            asked=asked,
            assigned=(lambda partitions: None) if memory is None else memory.divide,
        )
        self.served = served
