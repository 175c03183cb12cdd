"""What in a log can be used, and is likely to be a mistake: from the features and labels that a replay takes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

from basis.problems import Problem
from basis.settings import format_duration
from minutely.config import Pipeline
from minutely.logs.log_mistakes import refused
from minutely.yaml_file import one_line
from serving.ranking import record_problems
from streaming.features.arrow_columns import UNIT_MS
from streaming.features.columns import Column, Ids, Ragged
from streaming.features.ids import text_id
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.records.labels import Label
from streaming.source.logged_events import LoggedEvents
from streaming.source.rows.actions import columns_of
from streaming.source.settings import WhenContains
from trainer.metrics import auc

Bools: TypeAlias = npt.NDArray[np.bool_]
_RARE_NUMBER = 0.01
"""The share, at either end, of numbers that are not usual: less than that cannot carry the scale of a feature away."""
_FAR = 100.0
"""How many times the range of the usual numbers an extreme is away from them."""
MARKERS = ("NULL", r"\N")
"""Texts that databases write for what is missing."""
_ALONE = 0.98
_ENOUGH = 30
"""Examples of each class, below which an AUC says nothing."""
_MOST_ROWS = 500_000
_MOST = 0.5
_YEAR_MS = 366 * 86_400_000
_NEAR_1970_MS = _YEAR_MS // 6
"""Seconds of this century are within so many milliseconds of 1970."""
_RARE = 0.999
"""The share of the values of a label that are usual."""


class LabelDelays(NamedTuple):
    """When what makes a label positive came: ``delay`` int64 [m] ms from the serving, ``rows`` the impressions that have any,
    and ``kept`` those of them that have any within the window."""

    delay: Ids
    rows: Ids
    kept: Ids

    @classmethod
    def of(cls, label: Label, events: LoggedEvents) -> LabelDelays:
        """Those of one label."""
        positive = events.positive(label)
        delay, row = events.delays()[positive], events.engagements.row[positive]
        return cls(delay, np.unique(row), np.unique(row[delay <= label.window]))

    @property
    def cut(self) -> float:
        """The share of positive impressions whose window closes before."""
        return 1 - len(self.kept) / len(self.rows) if len(self.rows) else 0.0

    def percentile(self, percent: float) -> str:
        """A percentile of the delays; beyond a second, in whole seconds."""
        value = float(np.percentile(self.delay, percent))
        return format_duration(round(value / 1000) * 1000 if value >= 1000 else round(value))


def advice(pipeline: Pipeline, events: LoggedEvents) -> list[Problem]:
    """What deserves a look, each with what could be done."""
    return [
        *_short_windows(pipeline, events),
        *_unbounded_values(pipeline, events),
        *_values_below_0(pipeline, events),
        *_outliers(pipeline, events),
        *_marked(pipeline, events),
        *_leaks(pipeline, events),
        *_large_records(pipeline),
        *_unmatched_engagements(pipeline, events),
        *_unmatched_sides(pipeline, events),
        *_constants(pipeline, events),
        *_mixed_requests(pipeline, events),
        *_wrong_units(pipeline, events),
    ]


def _large_records(pipeline: Pipeline) -> list[Problem]:
    """What `serve` would refuse; a replay does not mind."""
    serve = pipeline.serve
    return (
        record_problems(pipeline.name, pipeline.features, len(pipeline.labels), serve.max_candidates)
        if serve.log
        else []
    )


def _unmatched_sides(pipeline: Pipeline, events: LoggedEvents) -> list[Problem]:
    what = "of the impressions have a row of it; the features of the others are missing"
    return [
        Problem(pipeline.name, f"source.sides.{name}", f"{share:.1%}", what)
        for name, share in events.matched.items()
        if share < _MOST
    ]


def _unmatched_engagements(pipeline: Pipeline, events: LoggedEvents) -> list[Problem]:
    """Actions most of whose events find no impression. By action, since those that columns record always find theirs."""
    log, found = events.engagements, []
    unmatched = refused(pipeline, events)["unmatched"]
    for code, action in enumerate(log.actions):
        of_action = log.action == code
        first = np.flatnonzero(of_action & unmatched)
        if first.size > (1 - _MOST) * of_action.sum():
            value = f"{1 - first.size / of_action.sum():.1%}"
            what = f"of {of_action.sum():,} have an impression; the others count for no label, such as that for "
            what += f"impression {log.impression_id[int(first[0])].as_py()!r}"
            found.append(Problem(pipeline.name, f"source.engagements, action {action}", value, what))
    return found


def _constants(pipeline: Pipeline, events: LoggedEvents) -> list[Problem]:
    """Features that say nothing: one value in all impressions, or none in any."""
    found = []
    for name, column in events.features.items():
        if events.missing.get(name) == 1:
            found.append(Problem(pipeline.name, f"features.{name}", "missing everywhere", "nothing is learned from it"))
        elif not isinstance(column, Ragged) and events.impressions > 1 and (column[1:] == column[:1]).all():
            what = "nothing is learned from it"
            if _is_age(pipeline.features[name]) and not column.any():
                what += "; no time is before its impression, so every age is 0: a shorter unit may be right"
            found.append(Problem(pipeline.name, f"features.{name}", "one value everywhere", what))
    return found


def _marked(pipeline: Pipeline, events: LoggedEvents) -> list[Problem]:
    """Ids of texts by which databases say that a value is missing."""
    found = []
    for name, column in events.features.items():
        for text in MARKERS if isinstance(pipeline.features[name], SparseFeature) else ():
            ids = column.values if isinstance(column, Ragged) else column
            share = float((ids == text_id(text)).mean()) if len(ids) else 0.0
            if share:
                what = (
                    f"are {text!r}, an id like any other; where it means none, missing: {one_line([text])} in its file"
                )
                found.append(Problem(pipeline.name, f"features.{name}", f"{share:.1%} of its ids", what))
    return found


def _mixed_requests(pipeline: Pipeline, events: LoggedEvents) -> list[Problem]:
    count, name = events.mixed
    what = (
        f"such as {name!r}: their ids are the same; where they are not the same requests, name these by one more column"
    )
    value = f"{count:,} requests have impressions of several sources"
    return [Problem(pipeline.name, "source.impressions", value, what)] if count else []


def _wrong_units(pipeline: Pipeline, events: LoggedEvents) -> list[Problem]:
    """Ages of times near 1970, as seconds are where they are taken for milliseconds, that another unit makes dates."""
    found, latest = [], int(events.served_at[-1]) + _YEAR_MS
    for name, feature in pipeline.features.items():
        if not _is_age(feature):
            continue
        age = events.features[name]
        assert isinstance(age, np.ndarray)
        times = (events.served_at[events.request_of_row] - 1000.0 * age)[age > 0]  # without those that are missing
        at = float(np.median(times)) if len(times) else 0.0
        for unit, in_ms in UNIT_MS.items():
            if abs(at) <= _NEAR_1970_MS and _YEAR_MS < abs(at) * in_ms / UNIT_MS[feature.unit] <= latest:
                date = datetime.fromtimestamp(at / 1000, UTC)
                what = f"its times are around {date:%Y-%m-%d}; unit: {unit} makes them those of the log"
                found.append(Problem(pipeline.name, f"features.{name}.unit", feature.unit, what))
                break
    return found


def _is_age(feature: Feature) -> TypeGuard[DenseFeature]:
    return isinstance(feature, DenseFeature) and feature.transform == "age"


def _short_windows(pipeline: Pipeline, events: LoggedEvents) -> list[Problem]:
    found = []
    for name, label in pipeline.labels.items():
        delays = LabelDelays.of(label, events)
        if delays.cut > _MOST:
            half, most = delays.percentile(50), delays.percentile(90)
            what = f"{100 * delays.cut:.0f} % of the positives come later, and are trained on as negatives; "
            what += f"half come within {half}, 90 % within {most}"
            found.append(Problem(pipeline.name, f"labels.{name}.window", format_duration(label.window), what))
    return found


def _unbounded_values(pipeline: Pipeline, events: LoggedEvents) -> list[Problem]:
    """Value labels without ``max_value``. Ten times what all but a thousandth have cuts nothing of an ordinary log."""
    found = []
    for name, label in pipeline.labels.items():
        values = events.truth(label) if label.is_value and label.max_value is None else np.empty(0)
        values = values[values > 0]
        if len(values):
            usual, bound = bound_of(values)
            what = f"{100 * _RARE:g} % of the values above 0 are at most {usual:.4g}; "
            what += f"{bound} keeps any one from deciding what is learned"
            found.append(Problem(pipeline.name, f"labels.{name}.max_value", f"none, largest {values.max():.4g}", what))
    return found


def bound_of(values: npt.NDArray[np.floating[Any]]) -> tuple[float, str]:
    """What nearly all of a label's values above 0 stay below, and a ``max_value`` that cuts none of those."""
    usual = float(np.quantile(values, _RARE, method="lower"))
    return usual, _upwards(10 * usual)


def _values_below_0(pipeline: Pipeline, events: LoggedEvents) -> list[Problem]:
    """Values that a label's loss knows as 0 only, such as refunds among what was spent."""
    found = []
    for name, label in pipeline.labels.items():
        values = events.engagements.value[events.of_action(label.action)] if label.is_value else np.empty(0)
        below = values[values < label.bounds[0]]
        if len(below):
            what = f"{len(below):,} of {len(values):,} values are below 0, down to {below.min():.4g}, and count as 0; "
            what += "loss: squared, without transform: log, takes them as they are"
            found.append(Problem(pipeline.name, f"labels.{name}.loss", label.loss, what))
    return found


def _outliers(pipeline: Pipeline, events: LoggedEvents) -> list[Problem]:
    """Numbers whose extremes are far from nearly all others: most often a stand-in for what is missing, such as 999999."""
    found = []
    for name, feature in pipeline.features.items():
        column = events.features[name]
        if isinstance(feature, SparseFeature) or not isinstance(column, np.ndarray):
            continue
        columns = column.reshape(len(column), -1)
        sample = columns[:: -(-len(columns) // _MOST_ROWS)]
        low = np.quantile(sample, _RARE_NUMBER, axis=0, method="higher").astype(np.float64)
        high = np.quantile(sample, 1 - _RARE_NUMBER, axis=0, method="lower").astype(np.float64)
        least, most = columns.min(0).astype(np.float64), columns.max(0).astype(np.float64)
        away = np.maximum(low - least, most - high)
        at = int(np.argmax(np.where(high > low, away / np.maximum(high - low, 1e-300), 0)))
        if high[at] > low[at] and away[at] > _FAR * (high[at] - low[at]):
            value = f"a value of {(least if low[at] - least[at] == away[at] else most)[at]:.6g}"
            what = f"98 % of its values are {low[at]:.4g} to {high[at]:.4g}; "
            what += "leave the field empty where this stands for a missing value, or take transform: log"
            place = f"features.{name}" + (f", number {at} of the vector" if isinstance(feature, VectorFeature) else "")
            found.append(Problem(pipeline.name, place, value, what))
    return found


def _leaks(pipeline: Pipeline, events: LoggedEvents) -> list[Problem]:
    """Features that know what came of the impression."""
    rows = np.arange(0, events.impressions, -(-events.impressions // _MOST_ROWS) or 1)
    columns = {
        name: column.take(rows) if isinstance(column, Ragged) else column[rows]
        for name, column in events.features.items()
    }
    found = []
    for name, label in pipeline.labels.items():
        truth = events.truth(label)[rows]
        positive = truth > (np.median(truth) if label.is_value else 0)
        own = _label_columns(pipeline, label)
        for feature_name, feature in pipeline.features.items():
            place = f"features.{feature_name}"
            if feature.side is None and feature.column in own:
                what = f"the column that label {name} comes from, which is not known when an impression is served"
                found.append(Problem(pipeline.name, place, str(feature.column), what))
                continue
            alone = _auc_alone(feature, columns[feature_name], positive)
            if alone is not None and alone > _ALONE:
                what = f"it predicts label {name} almost alone; was it known when the impression was served?"
                found.append(Problem(pipeline.name, place, f"AUC {alone:.3f}", what))
    return found


def _label_columns(pipeline: Pipeline, label: Label) -> set[str]:
    """The impressions' columns that reveal a label's actions. Which item it is, which `contains` names, reveals nothing."""
    found: set[str] = set()
    for name in (label.action, label.decided_by):
        action = pipeline.source.actions.get(name or "")
        if action is not None:
            items = {action.when.contains} if isinstance(action.when, WhenContains) else set()
            found |= set(columns_of(action)) - items
    return found


def _auc_alone(feature: Feature, column: Column, positive: Bools) -> float | None:
    """How well one feature orders the later half of the log: a number by its size, ids by their rates in the earlier half.

    None for vectors, and where a class is rare.
    """
    half = len(positive) // 2
    classes = np.bincount(positive[half:], minlength=2)
    if isinstance(feature, VectorFeature) or classes.min() < _ENOUGH:
        return None
    if isinstance(feature, SparseFeature):
        return auc(_by_rates(column, positive, half)[half:], positive[half:])
    assert isinstance(column, np.ndarray)
    found = auc(column[half:], positive[half:])
    return None if found is None else max(found, 1 - found)


def _by_rates(column: Column, positive: Bools, half: int) -> npt.NDArray[np.float64]:
    """For each impression the mean share of positives that its ids have among the first ``half``, float64 [n]; an id that is
    not among them has the share of all."""
    if isinstance(column, Ragged):
        owner, values = np.repeat(np.arange(len(positive)), np.diff(column.offsets)), column.values
    else:
        owner, values = np.arange(len(positive)), column.view(np.int64)
    _, ids = np.unique(values, return_inverse=True)
    early = owner < half
    base = float(positive[:half].mean()) if half else 0.0
    count = np.bincount(ids[early], minlength=ids.max(initial=0) + 1)
    ones = np.bincount(ids[early], positive[owner[early]], minlength=len(count))
    rates = (ones + base) / (count + 1)
    lengths = np.bincount(owner, minlength=len(positive))
    sums = np.bincount(owner, rates[ids] if len(ids) else None, minlength=len(positive))
    means: npt.NDArray[np.float64] = np.where(lengths > 0, sums / np.maximum(lengths, 1), base)
    return means


def _upwards(value: float) -> str:
    """A number that is at least as large, of one digit."""
    power = 10.0 ** np.floor(np.log10(value))
    return f"{np.ceil(value / power - 1e-9) * power:g}"
