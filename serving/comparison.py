"""Two versions compared on the same requests: by their scores, and by what users then did."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving.ranking import impression_ids
from serving.requests import RankQuery
from serving.status import Compared, Quality
from streaming.records.events import Engagement
from streaming.records.labels import Label, Rule, decide, used_actions
from trainer.metrics import class_metrics

SIDES = ("served", "shadow")
_JUDGED = 65_536
_WAITING = 131_072
_EVENTS = 131_072

Scores = npt.NDArray[np.float32]


class _Served(NamedTuple):
    """An answer whose labels are awaited; ``scores`` float32 [sides, impressions, labels], ``events`` by impression."""

    served_at: int
    impression_ids: list[str]
    scores: Scores
    events: dict[str, list[tuple[int, str, float]]]


class Comparison:
    """Takes both versions' scores of each request, and the engagements that come later.

    Impressions wait until the longest window of a class label has closed and ``lateness_ms`` have passed; they are labelled as the
    joiner does. At most 131,072 wait, with as many events, and the newest 65,536 that were labelled are looked at. What there
    is no room for is counted in ``dropped``. Labels that are values have no log loss, and are left out.
    """

    def __init__(self, labels: Mapping[str, Label], lateness_ms: int) -> None:
        self._labels = {name: (at, label) for at, (name, label) in enumerate(labels.items()) if not label.is_value}
        self._places = [at for at, _ in self._labels.values()]
        self._rules = [Rule.of(label) for _, label in self._labels.values()]
        self._actions = used_actions({name: label for name, (_, label) in self._labels.items()})
        self._wait_ms = max((rule.window for rule in self._rules), default=0) + lateness_ms
        self._waiting: OrderedDict[str, _Served] = OrderedDict()
        self._impressions = self._events = 0
        self._judged: deque[tuple[Scores, Scores]] = deque()
        self._judged_count = 0
        self._requests = self._candidates = self._other_first = 0
        self._sum = self._max = 0.0
        self.dropped = 0

    def served(
        self, asked: RankQuery, order: npt.NDArray[np.int64], scores: Scores, combined: npt.NDArray[np.floating]
    ) -> None:
        """Take a request: what was served and what the shadow says, ``scores`` [sides, candidates, labels], ``combined`` [sides,
        candidates]; the candidates in ``order`` were answered."""
        apart = np.abs(combined[0] - combined[1])
        self._requests += 1
        self._candidates += len(apart)
        self._sum += float(apart.sum())
        self._max = max(self._max, float(apart.max()))
        self._other_first += int(combined[0].argmax() != combined[1].argmax())
        if not self._rules or asked.request_id in self._waiting:
            return
        if self._impressions + len(order) > _WAITING:
            self.dropped += 1
            return
        kept = scores[:, order][:, :, self._places]
        self._waiting[asked.request_id] = _Served(asked.asked_at, impression_ids(asked, order), kept, {})
        self._impressions += len(order)

    def engaged(self, engagement: Engagement) -> None:
        """Take what a user did."""
        found = self._waiting.get(engagement.request_id)
        if found is None or engagement.action not in self._actions or engagement.happened_at < found.served_at:
            return
        if self._events >= _EVENTS:
            self.dropped += 1
            return
        self._events += 1
        event = (engagement.happened_at, engagement.action, engagement.value)
        found.events.setdefault(engagement.impression_id, []).append(event)

    def close(self, now_ms: int) -> None:
        """Label the impressions whose windows have closed."""
        while self._waiting:
            request_id, served = next(iter(self._waiting.items()))
            if served.served_at + self._wait_ms > now_ms:
                return
            del self._waiting[request_id]
            labels = np.zeros((len(served.impression_ids), len(self._rules)), np.float32)
            for place, name in enumerate(served.impression_ids):
                if name in served.events:
                    labels[place] = decide(self._rules, served.served_at, served.events[name]).values
            self._impressions -= len(labels)
            self._events -= sum(map(len, served.events.values()))
            self._judged.append((served.scores, labels))
            self._judged_count += len(labels)
            while self._judged_count - len(self._judged[0][1]) >= _JUDGED:
                self._judged_count -= len(self._judged.popleft()[1])

    def compared(self) -> Compared:
        """What came of it so far."""
        quality: dict[str, dict[str, Quality]] = {}
        if self._judged:
            scores = np.concatenate([part[0] for part in self._judged], axis=1)
            labels = np.concatenate([part[1] for part in self._judged])
            for at, name in enumerate(self._labels):
                quality[name] = {
                    side: _quality(scores[of, :, at], labels[:, at]) for of, side in enumerate(SIDES)
                }  # fmt: skip
        return Compared(
            requests=self._requests,
            candidates=self._candidates,
            mean_difference=self._sum / self._candidates if self._candidates else None,
            max_difference=self._max if self._candidates else None,
            other_first=self._other_first / self._requests if self._requests else None,
            judged=self._judged_count,
            quality=quality,
        )


def _quality(scores: Scores, labels: Scores) -> Quality:
    found = class_metrics(scores, labels)
    return Quality(found["log_loss"], found["auc"], found["calibration"])
