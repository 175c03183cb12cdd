"""What a joiner took, and what became of it."""

from __future__ import annotations

from collections import Counter

import msgspec


class JoinCounts(msgspec.Struct):
    """Counts since a recovery."""

    records: Counter[str] = msgspec.field(default_factory=Counter)
    """By topic."""
    refused: Counter[str] = msgspec.field(default_factory=Counter)
    """Dead letters, by reason."""
    repeated: int = 0
    unused: int = 0
    """Engagements of actions that no label uses."""
    redundant: int = 0
    """Engagements that came late and change nothing."""
    corrected: int = 0
    """Examples emitted again."""
    dropped: int = 0
    """Negatives that are not kept."""
    examples: int = 0
