"""What decided when requests were due, by the offsets from which they were taken: a config may change between two starts.

Recovery must not take today's config for the one that ran: what was open under that and would be due under today's was neither
emitted nor dropped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from streaming.join.spec import JoinSpec
from streaming.records.events import MIN_TIME_MS

_AT_MOST = 8
_SCHEMAS = 4
MANY = "?"
"""The fingerprint of more schemas than one entry names."""


class ConfigSince(NamedTuple):
    """What decided when requests taken from offset ``impressions`` on were due: the schema, the longest window of its labels,
    and ``join.lateness``, since ``since_ms`` was the published watermark (-1: nothing was). Where one entry stands for several,
    ``fingerprint`` has those of all their schemas, or `MANY`.

    What is from before ``forgotten_ms`` was forgotten under an earlier config: a request without a marker may be a repeat.
    Engagements up to ``engaged_ms`` may have been read under an earlier config, before their requests.

    Not ``join.emit``: what it emits early is in `examples`, or dropped again if it is decided again.
    """

    fingerprint: str
    impressions: int
    window_ms: int
    lateness_ms: int
    since_ms: int
    forgotten_ms: int = 0
    engaged_ms: int = -1

    @property
    def wait_ms(self) -> int:
        """As of `JoinSpec`, under this config."""
        return self.window_ms + self.lateness_ms

    @classmethod
    def of(cls, spec: JoinSpec, impressions: int = 0, since_ms: int = -1) -> ConfigSince:
        """Return what a config decides from an offset on."""
        return cls(spec.schema.fingerprint, impressions, spec.window_ms, spec.settings.lateness, since_ms)

    def is_like(self, other: ConfigSince) -> bool:
        """Whether both decide alike, wherever they begin."""
        return (self.fingerprint, self.window_ms, self.lateness_ms) == (
            other.fingerprint,
            other.window_ms,
            other.lateness_ms,
        )


def followed_by(
    configs: Sequence[ConfigSince], spec: JoinSpec, impressions: int, since_ms: int, decided_until: int, engaged_ms: int
) -> list[ConfigSince]:
    """Return ``configs`` for requests that are taken under ``spec`` from offset ``impressions`` on, when engagements up to
    ``engaged_ms`` were read.

    The last of ``configs`` forgot by ``decided_until`` (ms), which is ahead of the published watermark while more is due than one
    batch takes. The oldest of too many become one, of all their schemas and with the longest window: a partition that moves between
    joiners of two configs has an entry for each move.
    """
    ours = ConfigSince.of(spec, impressions, since_ms)
    if configs and configs[-1].is_like(ours):
        return list(configs)
    if configs:
        forgotten = max(configs[-1].forgotten_ms, decided_until - configs[-1].wait_ms)
        engaged = max(configs[-1].engaged_ms, engaged_ms)  # a recovery may read less again than was read before
        ours = ours._replace(forgotten_ms=forgotten, engaged_ms=engaged)
    found = [*configs, ours]
    while len(found) > _AT_MOST:
        first, second, *others = found
        window, lateness = max(first.window_ms, second.window_ms), max(first.lateness_ms, second.lateness_ms)
        schemas = _both(first.fingerprint, second.fingerprint)
        both = ConfigSince(schemas, first.impressions, window, lateness, first.since_ms, engaged_ms=first.engaged_ms)
        found = [both, *others]
    return found


def _both(first: str, second: str) -> str:
    names = sorted({*first.split(), *second.split()})
    return MANY if MANY in names or len(names) > _SCHEMAS else " ".join(names)


def since_offset(configs: Sequence[ConfigSince], impressions: int) -> Sequence[ConfigSince]:
    """Return what was in force since the request at an offset was taken, the oldest first."""
    return configs[max(0, bisect_right(configs, impressions, key=lambda each: each.impressions) - 1) :]


def read_before(configs: Sequence[ConfigSince], at_ms: int) -> Sequence[ConfigSince]:
    """Return the configs before the last of ``configs`` that may have read engagements of a request served at ``at_ms``."""
    if not configs or configs[-1].engaged_ms < at_ms:
        return ()
    return [each for each, after in pairwise(configs) if after.engaged_ms >= at_ms]


def _over_before(configs: Sequence[ConfigSince], watermark: int, wait: Callable[[ConfigSince], int]) -> int:
    """Return from before when (ms) nothing waits any more, of all that was taken under the first of these.

    Each was in force until the next began, the last up to ``watermark``. What waits under one waits for as long under the next.
    """
    over, longest = MIN_TIME_MS, 0
    for each, end in zip(configs, [*(each.since_ms for each in configs[1:]), watermark], strict=True):
        longest = max(longest, wait(each))
        if each.since_ms < end:  # else it did not move the watermark, and may not have looked at all
            over = max(over, end - longest)
    return over


def was_due(since: Sequence[ConfigSince], served_at: int, watermark: int) -> bool:
    """Whether a request that was taken under the first of these was due while one of them was in force."""
    return served_at < _over_before(since, watermark, lambda each: each.window_ms)


def waited_before(configs: Sequence[ConfigSince], watermark: int) -> int:
    """Return until when (ms) engagements happened of which none still waits for its request, whichever of these took it."""
    return _over_before(configs, watermark, lambda each: each.wait_ms)


def keep_ms(configs: Sequence[ConfigSince], spec: JoinSpec) -> int:
    """Return how long after its event a record may matter to the joiner's state (ms), under ``spec`` or any of ``configs``."""
    window = max([spec.window_ms, *(each.window_ms for each in configs)])
    return 2 * window + max([spec.settings.lateness, *(each.lateness_ms for each in configs)])
