"""The beginning of MovieLens-100K, for what need not be seen on all of it."""

from __future__ import annotations

from pathlib import Path

from pyarrow import csv

from minutely.built_in_data import movielens_100k

FILE = "ml-100k.inter"
_TABS = csv.ParseOptions(delimiter="\t")


def first_ratings(count: int, folder: Path) -> Path:
    """Write the first ``count`` ratings by time into a new folder, as the data set's own file; the folder."""
    folder.mkdir()
    ratings = csv.read_csv(movielens_100k() / FILE, parse_options=_TABS).sort_by("timestamp:float")
    csv.write_csv(ratings.slice(0, count), folder / FILE, csv.WriteOptions(delimiter="\t", quoting_style="none"))
    return folder
