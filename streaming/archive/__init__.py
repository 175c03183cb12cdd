"""The archive: examples as a Delta table."""
