"""Tables of data lakes as the programs that keep them lay them out, and the ways in which a config may name their files."""

from __future__ import annotations

LOGS = {
    "a Delta table": "ev/_delta_log/00000000000000000000.json",
    "a Hudi table": "ev/.hoodie/hoodie.properties",
    "written by Spark's streaming sink": "ev/_spark_metadata/0",
    "an Iceberg table": "ev/metadata/v1.metadata.json",
}
FILE = "ev/data/day=1/part-0.parquet"
WAYS = {
    "the table": ("", "ev"),
    "a pattern": ("", "ev/data/*/*.parquet"),
    "a pattern of any depth": ("", "**/*.parquet"),
    "a folder in it": ("", "ev/data/day=1"),
    "the folder above": ("", "."),
    "one file": ("", FILE),
    "the source's folder": ("/ev", "data"),
}
