"""A joiner's watermark: how far its inputs allow it to move."""

from __future__ import annotations

from collections.abc import Mapping


def watermark_of(reached: Mapping[str, int], ended: Mapping[str, bool], as_of_ms: int, lateness_ms: int) -> int:
    """Return the smaller time (ms) that the inputs ``reached``, less ``lateness_ms``.

    An input that was read to its end as of a time counts with that time: its missing events happen later.
    """
    return min(as_of_ms if ended[topic] else reached[topic] for topic in reached) - lateness_ms
