"""What is it worth that a young model's dense weights go out at growing intervals? Served AUC from the first impression on.

    MINUTELY_DATA=FOLDER python -m benchmarks.dense_cadence [--config FILE ...] [--seeds 1] [--out FILE]

Replays of the same logs without a warm-up (`minutely replay --warmup 0 --sync-every 60s`), to the end of the first 24 hours or of
the first 1,000 impressions, whichever is later: by ``dense_every`` alone, as a settled model goes, by the growing intervals, and
with ``--change`` (`sync.dense_change`) also when the weights moved by that share of their norm.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from minutely.built_in import BUILT_IN
from minutely.config import Pipeline, load_pipeline
from minutely.logs.own_logs import load_events
from minutely.replays.loop import open_loop
from minutely.replays.results import metrics_of
from paramserver.files import LocalFiles, WriteBack
from paramserver.manifest import read_manifest, versions
from streaming.source.logged_events import LoggedEvents

ROOT = Path(__file__).resolve().parent.parent
EVERY_MS, DAY_MS, FIRST = 60_000, 86_400_000, 1000
OLD, NEW, CHANGE = "dense_every alone", "growing intervals", "or what moved far"


def spans(events: LoggedEvents) -> dict[str, int]:
    """Impressions of the first day and the first thousand, by name."""
    requests = int(np.searchsorted(events.served_at, events.served_at[0] + DAY_MS))
    return {"first day": int(events.starts[requests]), f"first {FIRST:,}": min(FIRST, events.impressions)}


def measure(pipeline: Pipeline, events: LoggedEvents, rule: str, change: float | None) -> dict[str, Any]:
    """AUC and calibration of each label in each span, and how many versions brought dense weights."""
    sync = pipeline.sync.model_copy(update={"dense_change": change if rule == CHANGE else None})
    pipeline = pipeline.model_copy(update={"sync": sync})
    counts = spans(events)
    with TemporaryDirectory() as name:
        files = WriteBack(LocalFiles(Path(name) / "deltas", durable=False), 128 << 20)
        with open_loop(pipeline, events, Path(name), files, {"60s": EVERY_MS}, warmup=0) as loop:
            if rule == OLD:
                loop.trainer.first_at = 0  # a model that has learned since 1970 is at its cadence
            while loop.impressions < max(counts.values()) and loop.tick():
                pass
            scores = loop.primary.scores
            manifests = [read_manifest(files, version, base=False) for version in versions(files, base=False)]
            found = {
                span: {
                    label: {key: of[key] for key in ("auc", "calibration")}
                    for label, of in metrics_of(pipeline, events, scores[:count], 0).items()
                    if "auc" in of
                }
                for span, count in counts.items()
            }
    sent = sum(one.dense is not None and one.dense.version == one.version for one in manifests)
    return {"versions": len(manifests), "with dense weights": sent, **found}


def runs(options: argparse.Namespace) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
    """Results by config, seed and rule."""
    for config in options.config:
        pipeline = load_pipeline(config)
        events = load_events(pipeline, time.time_ns() // 1_000_000)
        for seed in map(int, options.seeds.split(",")):
            for rule in (OLD, NEW, *([CHANGE] if options.change else [])):
                seeded = pipeline.model_copy(update={"seed": seed})
                yield pipeline.name, seed, rule, measure(seeded, events, rule, options.change)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, nargs="+", default=list(BUILT_IN.values()))
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--change", type=float)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "dense_cadence.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = []
    for name, seed, rule, found in runs(options):
        report.append({"data": name, "seed": seed, "rule": rule, **found})
        print(
            f"\n{name}, seed {seed}, {rule}: {found['with dense weights']} of {found['versions']} versions with dense weights"
        )
        for span, labels in found.items():
            for label, of in labels.items() if isinstance(labels, dict) else ():
                print(f"  {span:12} {label:10} AUC {of['auc']:.3f}  calibration {of['calibration']:.2f}")
        print(end="", flush=True)
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
