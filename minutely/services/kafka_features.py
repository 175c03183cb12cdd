"""What is kept of live features, from the topic `features` into a replica."""

from __future__ import annotations

import logging

from basis.problems import GapError
from serving.live import LiveValues
from streaming.clock import WallClock
from streaming.kafka.log import KafkaLog
from streaming.kafka.settings import KafkaSettings
from streaming.log import FEATURES, BrokerError
from streaming.retry import Retry

_log = logging.getLogger("minutely.serve")

_WAIT_MS = 100
_LOOK_SECONDS = 0.1
_AT_ONCE = 200
"""Records whose decoding keeps the interpreter from requests, less than a millisecond."""


class KafkaFeatures:
    """Reads the topic from its beginning, and then what comes. While brokers are away it waits.

    It begins again where records that come next are gone: topics can be deleted and made again.
    """

    def __init__(self, settings: KafkaSettings, live: LiveValues) -> None:
        self._live = live
        self._log = KafkaLog(settings, FEATURES)
        self._retry = Retry(_log, "live features", WallClock(), settings.asked)
        self._next: dict[int, int] = {}
        """The next offset of each partition; empty before it begins."""
        self._ends: dict[int, int] = {}
        """Where partitions ended as it began; empty once it has read that far."""

    def step(self) -> float:
        """Read what there is, waiting for it a little; how long to sleep."""
        if not self._retry.ready:
            return _LOOK_SECONDS
        try:
            if not self._next:
                self._begin()
            self._read()
        except GapError as error:
            _log.warning("%s; live features are read from the beginning", error)
            self._next = {}
        except BrokerError as error:
            self._retry.failed(error)
            self._live.problem = f"live features: {error}"
        else:
            self._retry.worked()
        return 0.0

    def _begin(self) -> None:
        there = self._log.there()
        self._live.begin()
        self._ends = {partition: offsets.stop for partition, offsets in there.items()}
        self._next = {partition: offsets.start for partition, offsets in there.items()}

    def _read(self) -> None:
        live, log = self._live, self._log
        for partition in self._next:
            while records := log.read(FEATURES, partition, self._next[partition], _AT_ONCE):
                live.fold(partition, records)
                self._next[partition] = records[-1].offset + 1
        if self._ends and all(log.read_to[partition] >= end for partition, end in self._ends.items()):
            self._ends = {}
            live.caught_up()
            _log.info(
                "live features: %s", ", ".join(f"{kept.keys} keys of {name}" for name, kept in live.kept().items())
            )
        log.fill(_WAIT_MS)
        live.unreadable = log.lost.total()
        live.heard(sum(log.lag.values()) if log.lag else None)

    def close(self) -> None:
        """Close the connections."""
        self._log.close()
