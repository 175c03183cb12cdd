"""What decided when requests were due, by the offsets from which they were taken: a config may change between two starts.

Recovery must not take today's config for the one that ran: what was open under that and would be due under today's was neither
emitted nor dropped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from streaming.join.spec import JoinSpec

_AT_MOST = 8


class TakenUnder(NamedTuple):
    """What decided when requests taken from offset ``impressions`` on were due: the schema, the longest window of its labels,
    and ``join.lateness``, since ``since_ms`` was the published watermark. An empty text or a negative number is unknown.

    Not ``join.emit``: what it emits early is in `examples`, or dropped again if it is decided again.
    """

    fingerprint: str
    impressions: int
    window_ms: int
    lateness_ms: int = -1
    since_ms: int = -1

    @classmethod
    def of(cls, spec: JoinSpec, impressions: int = 0, since_ms: int = -1) -> TakenUnder:
        """Return what a config decides from an offset on."""
        return cls(spec.schema.fingerprint, impressions, spec.window_ms, spec.settings.lateness, since_ms)

    def is_like(self, other: TakenUnder) -> bool:
        """Whether both decide alike, wherever they begin."""
        return self == other._replace(impressions=self.impressions, since_ms=self.since_ms)


def taken_on(taken: Sequence[TakenUnder], spec: JoinSpec, impressions: int, since_ms: int) -> list[TakenUnder]:
    """Return ``taken`` for requests that are taken under ``spec`` from offset ``impressions`` on.

    A config that took nothing and moved no watermark leaves no entry. The oldest of too many become one, of an unknown schema and
    with the longest window.
    """
    ours = TakenUnder.of(spec, impressions, since_ms)
    if taken and taken[-1].is_like(ours):
        return list(taken)
    found = [*(each for each in taken if each.impressions < impressions or each.since_ms < since_ms), ours]
    while len(found) > _AT_MOST:
        first, second, *others = found
        window, lateness = max(first.window_ms, second.window_ms), max(first.lateness_ms, second.lateness_ms)
        found = [TakenUnder("", first.impressions, window, lateness, first.since_ms), *others]
    return found


def at_offset(taken: Sequence[TakenUnder], spec: JoinSpec, impressions: int) -> Sequence[TakenUnder]:
    """Return what was in force since the request at an offset was taken, the oldest first.

    Before the first entry that is unknown. What ``spec`` would not read again in a rebuild counts as due then: of a request that
    was repeated, the first may be before what is read.
    """
    at = bisect_right(taken, impressions, key=lambda each: each.impressions)
    return taken[at - 1 :] if at else [TakenUnder("", 0, keep_ms([], spec)), *taken]


def _in_force(taken: Sequence[TakenUnder], watermark: int) -> Iterator[tuple[TakenUnder, int]]:
    """Yield each entry, and how far the watermark moved under it; if it did not, 0. The last has moved it up to ``watermark``."""
    ends = [*(each.since_ms for each in taken[1:]), watermark]
    return ((each, end if each.since_ms < end else 0) for each, end in zip(taken, ends, strict=False))


def was_due(since: Sequence[TakenUnder], served_at: int, watermark: int) -> bool:
    """Whether a request was due while one of these was in force. It may have waited for the window of an earlier one."""
    longest = 0
    for each, end in _in_force(since, watermark):
        longest = max(longest, each.window_ms)
        if served_at + longest < end:
            return True
    return False


def forgotten_before(taken: Sequence[TakenUnder], spec: JoinSpec, watermark: int) -> int:
    """Return until when (ms) requests were served, and engagements happened, that one of these forgot.

    A later config may wait longer, but what was forgotten by then comes too late.
    """
    return max((end - _wait_ms(each, spec) for each, end in _in_force(taken, watermark)), default=0)


def _wait_ms(each: TakenUnder, spec: JoinSpec) -> int:
    lateness = each.lateness_ms if each.lateness_ms >= 0 else spec.settings.lateness
    return each.window_ms + lateness


def keep_ms(taken: Sequence[TakenUnder], spec: JoinSpec) -> int:
    """Return how long after its event a record may matter to the joiner's state (ms), under ``spec`` or any of ``taken``."""
    every = [*taken, TakenUnder.of(spec)]
    return 2 * max(each.window_ms for each in every) + max(each.lateness_ms for each in every)
