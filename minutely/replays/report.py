"""The report of a run: one self-contained HTML file with its plots."""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from minutely.replays.loop import EmbeddedLoop, Served
from minutely.replays.results import number
from minutely.replays.run_letters import told_letters
from trainer.metrics import auc

Array: TypeAlias = npt.NDArray[Any]

_BINS = 300
_AUC_BINS = 40
_COLORS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#6b7280", "#dc2626")

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
  :root {{ color-scheme: only light; background: #fff }} /* as the plots are */
  body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }}
  h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.1rem; margin: 2rem 0 0 }} p {{ margin: .3rem 0; color: #4b5563 }}
  .wide {{ overflow-x: auto }} .wide :not(:first-child) {{ white-space: nowrap }}
  table {{ border-collapse: collapse; margin: 1rem 0 }} td, th {{ padding: .2rem .8rem; text-align: right }}
  td:first-child, th:first-child {{ text-align: left }} tr {{ border-bottom: 1px solid #e5e7eb }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{facts}</p>
{letters}
{warnings}
{table}
{plots}
</body>
</html>
"""


def write_report(path: Path, loop: EmbeddedLoop, summary: dict[str, Any]) -> None:
    """Write the report of a finished loop."""
    sections = [
        (
            "Freshness",
            "From the moment an example's labels were decided until the replica served with it.",
            _freshness(loop),
        ),
        *(
            (
                f"Served AUC: {name}",
                "Of scores made before the label was known, in stretches of equally many impressions.",
                plot,
            )
            for name, plot in _auc_plots(loop)
        ),
        ("Rows", "Live, admitted and expired.", _rows(loop)),
        (
            "Delta size",
            "Of each epoch, the time between two publications: bytes of the file that replicas read, and the rows in it.",
            _delta_size(loop),
        ),
        (
            "Rows touched in an epoch",
            f"Share of live rows; {_median(_touched(loop)):.3%} in the median epoch. This is why deltas are sparse.",
            _line(loop, {"share of rows": _touched(loop)}, "share of live rows", log=True),
        ),
        (
            "Change in an epoch",
            "Norm of the change over the norm: of the rows that an epoch touched, and of all dense weights "
            f"(medians {_median(_column(loop, 'row_change')):.2%} and {_median(_column(loop, 'dense_change')):.3%}). "
            "This is why rows go out every minute and dense weights daily.",
            _line(
                loop,
                {"touched rows": _column(loop, "row_change"), "dense weights": _column(loop, "dense_change")},
                "relative change",
                log=True,
            ),
        ),
    ]
    plots = []
    for index, (heading, text, figure) in enumerate(sections):
        drawn = figure.to_html(
            full_html=False, include_plotlyjs=index == 0, config={"displayModeBar": False}, div_id=f"plot-{index}"
        )
        plots.append(f"<h2>{html.escape(heading)}</h2>\n<p>{html.escape(text)}</p>\n{drawn}")
    page = _PAGE.format(
        title=html.escape(f"Minutely: {loop.pipeline.name}"),
        facts=html.escape(
            f"{summary['impressions']:,} impressions, {summary['examples']:,} examples, {summary['versions']:,} versions, "
            f"{summary['dead_letters']:,} dead letters, seed {summary['seed']}, {summary['wall_seconds']:.1f} s"
        ),
        letters=f"<p>{html.escape(told)}</p>"
        if (told := told_letters(summary["dead_letters_by_reason"], path.parent))
        else "",
        warnings="".join(f"<p><b>Miscalibrated:</b> {html.escape(line)}</p>" for line in summary["warnings"]),
        table=_table(summary),
        plots="\n".join(plots),
    )
    path.write_text(page, encoding="utf-8")


def _table(summary: dict[str, Any]) -> str:
    cadences = summary.get("cadences") or {summary["sync_every"]: summary}
    head = "".join(f"<th>{html.escape(name)}</th>" for name in cadences)
    lines = [f"<tr><th>after a warm-up of {summary['warmup']:.0%}, pulling every</th>{head}</tr>"]
    for label, metrics in next(iter(cadences.values()))["metrics"].items():
        for metric in metrics:
            cells = "".join(f"<td>{number(item['metrics'][label][metric])}</td>" for item in cadences.values())
            lines.append(f"<tr><td>{html.escape(label)} {metric}</td>{cells}</tr>")
    for name in ("p50", "p95", "p99"):
        cells = "".join(f"<td>{number(item['freshness_seconds'][name], 1)}</td>" for item in cadences.values())
        lines.append(f"<tr><td>freshness {name}, seconds</td>{cells}</tr>")
    return f'<div class="wide" tabindex="0"><table>{"".join(lines)}</table></div>'


def _figure(y_title: str, *, log: bool = False) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="plotly_white",
        height=320,
        margin={"l": 60, "r": 20, "t": 20, "b": 40},
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top"},
        yaxis={"title": y_title, "type": "log" if log else "linear"},
    )
    return figure


def _add(figure: go.Figure, name: str, times: Array, values: Array, index: int, **line: Any) -> None:
    stamps = np.asarray(times).astype("datetime64[ms]").astype(str).tolist()
    style = {"color": _COLORS[index % len(_COLORS)], **line}
    figure.add_scatter(x=stamps, y=np.asarray(values, np.float64).tolist(), name=name, mode="lines", line=style)


def _freshness(loop: EmbeddedLoop) -> go.Figure:
    figure = _figure("seconds", log=True)
    for index, served in enumerate(loop.replicas):
        if not served.latencies:
            continue
        times = np.array(served.pulled_at)
        for percent, dash in ((50, "dot"), (99, "solid")):
            at, values = _binned(times, served.latencies, partial(_percentile_seconds, percent))
            _add(figure, f"{served.name} p{percent}", at, values, index, dash=dash)
    return figure


def _percentile_seconds(percent: int, parts: list[npt.NDArray[np.int64]]) -> float:
    return float(np.percentile(np.concatenate(parts), percent)) / 1000


def _binned(times: Array, parts: Any, reduce: Callable[[Any], float]) -> tuple[Array, Array]:
    """At most `_BINS` points: groups of consecutive entries, each at the time of its last."""
    edges = np.unique(np.linspace(0, len(times), min(_BINS, len(times)) + 1).astype(int))
    groups = list(pairwise(edges))
    return times[[stop - 1 for _, stop in groups]], np.array([reduce(parts[start:stop]) for start, stop in groups])


def _auc_plots(loop: EmbeddedLoop) -> list[tuple[str, go.Figure]]:
    plots = []
    for at, (name, label) in enumerate(loop.pipeline.labels.items()):
        if label.is_value:
            continue
        figure = _figure("AUC")
        for index, served in enumerate(loop.replicas):
            times, values = _auc_over_time(loop, served, at, name)
            _add(figure, served.name, times, values, index)
        plots.append((name, figure))
    return plots


def _auc_over_time(loop: EmbeddedLoop, served: Served, at: int, label: str) -> tuple[Array, Array]:
    begin = 0 if len(loop.replicas) == 1 else loop.scored_from  # the same stretches for all
    edges = np.linspace(begin, min(served.scored_to, loop.impressions), _AUC_BINS + 1).astype(int)
    times, values = [], []
    for start, stop in pairwise(edges):
        found = auc(served.scores[start:stop, at], loop.truth[label][start:stop]) if stop > start else None
        if found is not None:
            times.append(loop.events.served_at[loop.events.request_of_row[stop - 1]])
            values.append(found)
    return np.array(times, np.int64), np.array(values)


def _column(loop: EmbeddedLoop, name: str) -> npt.NDArray[np.float64]:
    return np.array([getattr(epoch, name) for epoch in loop.measures.epochs], np.float64)


def _touched(loop: EmbeddedLoop) -> npt.NDArray[np.float64]:
    return _column(loop, "changed") / np.maximum(_column(loop, "live"), 1)


def _median(values: npt.NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else 0.0


def _line(
    loop: EmbeddedLoop, series: dict[str, npt.NDArray[np.float64]], y_title: str, *, log: bool = False
) -> go.Figure:
    """Means of epochs that have a value, over time."""
    figure = _figure(y_title, log=log)
    times = _column(loop, "at").astype(np.int64)
    for index, (name, values) in enumerate(series.items()):
        known = np.isfinite(values) & ((values > 0) if log else True)
        if known.any():
            _add(figure, name, *_binned(times[known], values[known], lambda part: float(np.mean(part))), index)
    return figure


def _rows(loop: EmbeddedLoop) -> go.Figure:
    names = {"live": "live", "admitted": "admitted_so_far", "expired": "expired_so_far"}
    return _line(loop, {name: _column(loop, column) for name, column in names.items()}, "rows")


def _delta_size(loop: EmbeddedLoop) -> go.Figure:
    return _line(loop, {"bytes": _column(loop, "file_bytes"), "rows": _column(loop, "changed")}, "an epoch", log=True)
