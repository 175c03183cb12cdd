"""A shadow: a second version with tables of its own, which scores a share of the requests beside those that answer them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from serving.buffer import Buffer
from serving.comparison import Comparison
from serving.pulling import Puller
from serving.ranking import Ranker, Ranking
from serving.replica import Replica
from serving.requests import RankQuery
from serving.status import ShadowStatus
from serving.worker import Worker
from streaming.clock import Clock
from streaming.features.columns import columns_bytes
from streaming.records.events import Engagement

_WAITING_BYTES = 64 << 20
_ENGAGEMENT_BYTES = 1024
_REQUEST_BYTES = 2048
_STEP_BYTES = 1 << 20
_EVERY_SECONDS = 0.05
_COMPARE_EVERY_MS = 1000


class _Ranked(NamedTuple):
    """What was answered, without what the shadow does not need; ``scores`` float32 [candidates, labels]."""

    asked: RankQuery
    scores: npt.NDArray[np.float32]
    order: npt.NDArray[np.int64]

    @property
    def size_bytes(self) -> int:
        return _REQUEST_BYTES + columns_bytes(self.asked.columns) + self.scores.nbytes + self.order.nbytes


class _Engaged(NamedTuple):
    engagement: Engagement

    @property
    def size_bytes(self) -> int:
        return _ENGAGEMENT_BYTES


class Shadow:
    """Scores a ``share`` of the requests with another version, which ``puller`` brings to ``replica`` and keeps it at.

    Which requests depends on their ids alone. Answers never wait for it: what was answered is put into a bounded buffer, and
    what does not fit, engagements included, is dropped and counted. One thread calls `step`.
    """

    def __init__(
        self, share: float, replica: Replica, puller: Puller, ranker: Ranker, comparison: Comparison, clock: Clock
    ) -> None:
        assert puller.pinned is not None
        self.version = puller.pinned.version
        self.share = share
        self._replica = replica
        self._puller = puller
        self._ranker = ranker
        self._comparison = comparison
        self._clock = clock
        self._waiting: Buffer[_Ranked | _Engaged] = Buffer("requests for the shadow", _WAITING_BYTES)
        self._dropped = 0
        self._compared = comparison.compared()
        self._compared_at = clock.elapsed_ms()

    def takes(self, request_id: str) -> bool:
        """Whether a request is one of the share."""
        return xxhash.xxh3_64_intdigest(request_id.encode(errors="surrogatepass")) < self.share * 2.0**64

    @property
    def ready(self) -> bool:
        """Whether it has its version, rows and dense weights."""
        return self._replica.whole and self._replica.sparse_version == self.version

    def served(self, asked: RankQuery, answer: Ranking, order: npt.NDArray[np.int64]) -> None:
        """Note what was answered; never waits."""
        if self.ready and self.takes(asked.request_id):
            # A copy of the scores: they are a part of those of a batch.
            self._offer(_Ranked(replace(asked, ids=()), answer.scores.copy(), order.copy()))

    def engaged(self, engagement: Engagement) -> None:
        """Note what a user did; never waits."""
        if self.takes(engagement.request_id):
            self._offer(_Engaged(engagement))

    def _offer(self, item: _Ranked | _Engaged) -> None:
        if not self._waiting.offer(item):
            self._dropped += 1

    def step(self) -> float:
        """Pull, score and compare what is waiting; how long to sleep."""
        self._puller.step()
        taken = self._waiting.take(_STEP_BYTES)
        try:
            for item in taken:
                if isinstance(item, _Ranked):
                    self._score(*item)
                else:
                    self._comparison.engaged(item.engagement)
        finally:
            self._waiting.done(sum(item.size_bytes for item in taken))
        self._comparison.close(self._clock.now_ms())
        elapsed_ms = self._clock.elapsed_ms()
        if elapsed_ms - self._compared_at >= _COMPARE_EVERY_MS:
            self._compared, self._compared_at = self._comparison.compared(), elapsed_ms
        return 0.0 if len(self._waiting) else _EVERY_SECONDS

    def _score(self, asked: RankQuery, served: npt.NDArray[np.float32], order: npt.NDArray[np.int64]) -> None:
        scores = np.stack((served, self._replica.score(asked.columns, asked.count)))
        self._comparison.served(asked, order, scores, self._ranker.combine(scores))

    def status(self) -> ShadowStatus:
        """What it is, and what it said so far."""
        return ShadowStatus(
            version=self.version,
            share=self.share,
            ready=self.ready,
            problem=self._puller.problem,
            dropped=self._dropped + self._comparison.dropped,
            compared=self._compared,
        )


MakeShadow: TypeAlias = Callable[[int, float], Shadow]


class Shadowing:
    """The shadow of a replica, while it has one. ``make`` gives a shadow of a version for a share of the requests; it lists what is
    published, which may take a while. ``LookupError`` where the version is not there, ``OSError`` where that is unknown."""

    def __init__(self, make: MakeShadow) -> None:
        self.make = make
        self._worker: Worker | None = None
        self.current: Shadow | None = None

    def begin(self, shadow: Shadow) -> None:
        """Shadow with this one, instead of the one before."""
        self.end()
        self.current, self._worker = shadow, Worker("shadow", shadow.step)
        self._worker.start()

    def end(self, within_seconds: float = 0.0) -> None:
        """Shadow no more; its memory is free when its thread has ended, for which this waits at most so long."""
        worker, self.current, self._worker = self._worker, None, None
        if worker is not None:
            worker.stop(within_seconds)
