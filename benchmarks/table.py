"""How fast is the table? Side by side in one run: the table, the limits of the memory, libcuckoo, torch and what else installs.

    python -m benchmarks.table [--rows 1000000,10000000] [--dims 16,64] [--rounds 7] [--out table.json]

Contenders take turns batch group by batch group, so that noise meets them alike; every ratio is the median of paired ratios.
At the end it prints the goals beside what was measured, the worst of the sizes and laws for each, and writes all as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.parts.table_alone import beside_a_writer, growth, large, seal
from benchmarks.parts.table_contenders import speed, yardsticks
from benchmarks.parts.table_work import BATCH, ROOT


class Goal(NamedTuple):
    """A figure of the report: `at_least` or, where it is false, at most `bound`."""

    part: str
    figure: str
    bound: float
    at_least: bool = True


GOALS = (
    Goal("speed", "insert / libcuckoo presized", 3),
    Goal("speed", "apply / libcuckoo", 8),
    Goal("speed", "lookup + apply / torch", 12),
    Goal("speed", "lookup / gather", 0.45),
    Goal("growth", "slowest batch / median", 10, at_least=False),
)


def measured(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal with the figures for it, one a size and law, and whether the worst of them meets it; none where not measured."""
    found = []
    for goal in GOALS:
        part = report.get(goal.part)
        if part is None:
            continue
        figures = [one["ratios"][goal.figure] for one in part] if goal.part == "speed" else [part[goal.figure]]
        worst = min(figures) if goal.at_least else max(figures)
        # A contender that is missing leaves NaN, which meets none.
        met = all(one >= goal.bound if goal.at_least else one <= goal.bound for one in figures)
        found.append(goal._asdict() | {"figures": figures, "worst": worst, "met": met})
    return found


def finite(value: Any) -> Any:
    """The same with None for what could not be measured: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1000000,10000000")
    parser.add_argument("--dims", default="16,64")
    parser.add_argument("--laws", default="uniform,zipf")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="speed,beside,growth,seal,large")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "table.json")
    options = parser.parse_args()
    native = yardsticks()
    report: dict[str, Any] = {}
    wanted = options.only.split(",")
    if "speed" in wanted:
        report["speed"] = []
        for dim in map(int, options.dims.split(",")):
            for rows in map(int, options.rows.split(",")):
                for law in options.laws.split(","):
                    one = speed(native, rows, dim, law, options.rounds)
                    report["speed"].append(one)
                    print(f"\n{rows:,} rows, dim {dim}, {law} ids, batches of {BATCH}", flush=True)
                    for name, rate in one["rates_million_per_second"].items():
                        print(f"  {name:28} {rate:8.2f} M/s")
                    for name, ratio in one["ratios"].items():
                        print(f"  {name:28} {ratio:8.2f}")
                    print(f"  fresh memory                 {one['fresh_memory_gb_per_second']:8.2f} GB/s")
                    print(f"  bytes / (embeddings + state) {one['bytes_over_embeddings_and_state']:8.2f}", flush=True)
    tasks: dict[str, Callable[[], dict[str, float]]] = {
        "beside": lambda: beside_a_writer(10_000_000, 16, options.rounds),
        "growth": lambda: growth(20_000_000),
        "seal": lambda: seal(4_000_000, 16, options.rounds),
        "large": lambda: large(50_000_000),
    }
    for name, task in tasks.items():
        if name in wanted:
            report[name] = task()
            print(f"\n{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in report[name].items()), flush=True)
    report["goals"] = measured(report)
    if report["goals"]:
        print(f"\n{'goal':36} {'':>9} {'measured':>9}")
    for goal in report["goals"]:
        bound = ("≥ " if goal["at_least"] else "≤ ") + f"{goal['bound']:g}"
        print(f"{goal['figure']:36} {bound:>9} {goal['worst']:9.2f}  {'met' if goal['met'] else 'not met'}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(finite(report), indent=1, allow_nan=False))


if __name__ == "__main__":
    main()
