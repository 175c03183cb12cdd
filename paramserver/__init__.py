"""Rows: the cuckoo table, epochs, the delta log and its followers."""
