"""A pipeline's logs. What is wrong with a column is told with the keys of the config that name it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

from basis.problems import Problem, Problems
from minutely.config import Pipeline
from streaming.features.transforms import is_derived
from streaming.source.files.find import Folder, find
from streaming.source.load import load
from streaming.source.logged_events import LoggedEvents
from streaming.source.rows.actions import columns_of
from streaming.source.rows.keys import action_columns
from streaming.source.settings import File

Item = TypeVar("Item", bound=File)
_COLUMN = "column "
NAME_A_COLUMN = "NAME-A-COLUMN"
"""Stands for a column that only the reader of a first config can name."""


def load_events(pipeline: Pipeline, now_ms: int) -> LoggedEvents:
    """Read them. ``now_ms`` is the wall clock's time, which bounds those of events.

    Raises:
        Problems: everything that is wrong with the files as a whole, with the rows that could not be used.
    """
    folder = pipeline.data_folder()
    try:
        return load(folder, pipeline.source, pipeline.features, now_ms, pipeline.live_spec())
    except Problems as found:
        keys = _Keys(pipeline, folder)
        raise type(found)([keys.added_to(problem) for problem in found.problems]) from None


class _Keys:
    """The keys of a config that name each column, by file."""

    def __init__(self, pipeline: Pipeline, folder: Folder) -> None:
        self._of: dict[tuple[str, str], list[str]] = {}
        for file, key, columns in _named(pipeline):
            paths = {str(folder / file.file)}
            with suppress(Problems):  # told already
                paths |= {found.name for found in find(folder, file)}
            for path in paths:
                for column in columns:
                    self._of.setdefault((path, column), []).append(key)

    def added_to(self, problem: Problem) -> Problem:
        """A problem of a column as a whole begins with the keys that name it."""
        keys = self._of.get((problem.file, problem.place.removeprefix(_COLUMN)), [])
        is_column = problem.place.startswith(_COLUMN) and bool(keys)
        if problem.place == f"{_COLUMN}{NAME_A_COLUMN}":
            said = f"{problem.allowed}; `minutely init` found none that says what came of an impression: name it here"
            problem = problem._replace(allowed=said)
        return problem._replace(place=f"{', '.join(keys)}: {problem.place}") if is_column else problem


def _named(pipeline: Pipeline) -> Iterator[tuple[File, str, list[str]]]:
    """Each key that names columns of a file."""
    source = pipeline.source
    for place, own in _places("source.impressions", source.impression_files):
        yield from _chosen(own, place)
        yield own, f"{place}.time", [own.time.column]
        yield own, f"{place}.explode", [] if own.explode is None else own.explode.columns
        yield own, f"{place}.request", own.request or []
        yield own, f"{place}.impression", own.impression or []
        for name, action in source.actions.items():
            yield own, f"source.actions.{name}", columns_of(action)
        for name, side in source.sides.items():
            yield own, f"source.sides.{name}.{'key' if side.on is None else 'on'}", side.on_columns
        for name, feature in pipeline.features.items():
            if not is_derived(feature) and feature.side is None:
                yield own, f"features.{name}", [str(feature.column)]
    for name, side in source.sides.items():
        yield from _chosen(side, f"source.sides.{name}")
        yield side, f"source.sides.{name}.key", side.key
    for place, events in _places("source.engagements", source.engagement_files):
        yield from _chosen(events, place)
        yield events, f"{place}.time", [events.time.column]
        yield events, f"{place}.request", events.request
        yield events, f"{place}.impression", events.impression
        yield events, f"{place}.action", action_columns(events)
        yield events, f"{place}.value", [events.value] if events.value else []
    for name, feature in pipeline.features.items():
        if not is_derived(feature) and feature.side is not None:
            yield source.sides[feature.side], f"features.{name}", [str(feature.column)]


def _chosen(file: File, place: str) -> Iterator[tuple[File, str, list[str]]]:
    """The key that says which rows of a file are read."""
    if file.when is not None:
        yield file, f"{place}.when", [file.when.column]


def _places(place: str, files: Sequence[Item]) -> Iterator[tuple[str, Item]]:
    """Yield files with their places in the config: of several, with their numbers."""
    yield from [(place, files[0])] if len(files) == 1 else [(f"{place}.{at}", file) for at, file in enumerate(files)]
