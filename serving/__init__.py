"""Scores from fresh rows: the replica."""
