"""Measurements: each is started as ``python -m benchmarks.NAME``, from the repository, and prints what it compares."""
