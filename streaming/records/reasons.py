"""Which of the reasons why records are refused a fix can mend: of the config, of a clock, or of what was refused before."""

from __future__ import annotations

MENDABLE = frozenset(
    {
        "future",  # its time has come since, or join.max_future is longer
        "feature",  # the config has the feature now, or another size of it
        "schema",  # the config is another
        "version",  # the program reads that version now
        "unmatched",  # its request was refused as well, and is joined now
    }
)
"""Sending any other again only makes another dead letter: what is late stays late, and bytes that nobody can read stay so."""
