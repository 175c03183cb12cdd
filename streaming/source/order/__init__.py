"""Rows of all sources in the order of event time: sorted in the spool, assembled into a log on disk."""
