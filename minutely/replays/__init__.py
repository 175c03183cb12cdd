"""Replays: the whole loop in one process, what it measures, and what it leaves behind."""
