"""The reasons of dead letters, and which of them go away with a fix: of the config, of a clock, or of an earlier dead letter."""

from __future__ import annotations

MENDABLE = frozenset(
    {
        "future",  # its time has come, or join.max_future is now longer
        "feature",  # the config now has the feature, or another size of it
        "schema",  # the config has changed, or is the one before again
        "version",  # the program now reads that version
        "unmatched",  # its request was refused too, and is joined now
    }
)
"""Sending any other record again only makes another dead letter: late records stay late, and unreadable ones unreadable.
What is sent again is judged as if it came for the first time, so these are late, too, once their windows are over."""
JOINER_REASONS = MENDABLE | {"before_served", "late", "malformed", "request_id used again", "too_large", "too_many"}
EXAMPLE_REASONS = frozenset({"malformed", "schema", "version"})
"""Of records of `examples` that cannot be read."""
