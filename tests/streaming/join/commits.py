"""Commits for tests that need one, whatever it says."""

from __future__ import annotations

from typing import Any

from streaming.join.commit import Committed
from streaming.join.configs import ConfigSince
from streaming.log import ENGAGEMENTS, IMPRESSIONS, TOPICS


def a_commit(lowest: tuple[int, int, int, int] = (1, 2, 0, 5), **changes: Any) -> Committed:
    """``lowest`` in the order of `TOPICS`."""
    fields: dict[str, Any] = {
        "state_id": "a1",
        "sequence": 7,
        "published": 1000,
        "decided_until": 1500,
        "offsets": {IMPRESSIONS: 3, ENGAGEMENTS: 4},
        "configs": (ConfigSince("252b38602581989e", 0, 3_600_000, 60_000, -1),),
    }
    return Committed(lowest=dict(zip(TOPICS, lowest, strict=True)), **{**fields, **changes})
