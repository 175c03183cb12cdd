"""What does it cost to keep rows less exactly? Served AUC of replicas in float32, float16 and int8 that follow one delta log.

    MINUTELY_DATA=FOLDER python -m benchmarks.row_formats [--config FILE] [--dims 8,64] [--out row_formats.json]

One replay a dim. All replicas pull every minute and score the same impressions before anything is learned from them; the scores
of the first go to the log. Each is checked to hold exactly the trainer's rows, rounded, in the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from minutely.built_in import BUILT_IN
from minutely.config import Pipeline, load_pipeline
from minutely.logs.own_logs import load_events
from minutely.parts import make_replica
from minutely.replays.loop import open_loop
from minutely.replays.results import results_of
from paramserver.files import LocalFiles, WriteBack
from paramserver.precision import Precision, rounded
from serving.replica import Replica
from streaming.source.logged_events import LoggedEvents
from trainer.worker import Trainer

ROOT = Path(__file__).resolve().parent.parent
FORMATS: tuple[Precision, ...] = ("float32", "float16", "int8")
EVERY_MS = 60_000
WARMUP = 0.5  # as `minutely replay`


def changed(pipeline: Pipeline, section: str, **values: Any) -> Pipeline:
    return pipeline.model_copy(update={section: getattr(pipeline, section).model_copy(update=values)})


def check_rows(trainer: Trainer, replica: Replica, kind: Precision) -> None:
    for name, table in trainer.tables.items():
        ours, theirs = table.export(), replica.tables[name].export()
        assert (ours.ids == theirs.ids).all(), (kind, name)
        assert rounded(ours.embeddings, kind).tobytes() == theirs.embeddings.tobytes(), (kind, name)


def measure(pipeline: Pipeline, events: LoggedEvents, folder: Path) -> dict[str, Any]:
    """AUC of each label by format, and what it differs from float32's; bytes of the rows that each replica holds."""
    pipeline = changed(pipeline, "sync", rows="float32")
    files = WriteBack(LocalFiles(folder / "deltas", durable=False), 128 << 20)
    found: dict[str, Any] = {}
    with open_loop(pipeline, events, folder, files, dict.fromkeys(FORMATS, EVERY_MS), WARMUP) as loop:
        for served in loop.replicas[1:]:
            served.replica = make_replica(changed(pipeline, "sync", rows=served.name), files)
        while loop.tick():
            pass
        loop.finish()
        exact = results_of(loop, loop.primary)["metrics"]
        for kind, served in zip(FORMATS, loop.replicas, strict=True):
            check_rows(loop.trainer, served.replica, kind)
            metrics = results_of(loop, served)["metrics"]
            auc = {label: of["auc"] for label, of in metrics.items() if "auc" in of}
            found[kind] = {
                "auc": auc,
                "auc - float32": {label: value - exact[label]["auc"] for label, value in auc.items()},
                "row_mb": sum(table.stats.row_bytes for table in served.replica.tables.values()) / 1e6,
            }
        found["impressions"], found["versions"] = loop.impressions - loop.scored_from, loop.deltas.version
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=BUILT_IN["kuairand"])
    parser.add_argument("--dims", default="8,64")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "row_formats.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = load_pipeline(options.config)
    events = load_events(pipeline, time.time_ns() // 1_000_000)
    report: dict[str, Any] = {}
    for dim in map(int, options.dims.split(",")):
        folder = ROOT / "build" / f"row_formats-{dim}"
        shutil.rmtree(folder, ignore_errors=True)
        report[f"dim {dim}"] = found = measure(changed(pipeline, "model", dim=dim), events, folder)
        shutil.rmtree(folder)
        print(f"\ndim {dim}: {found['impressions']} impressions, {found['versions']} versions")
        for kind in FORMATS:
            for label, value in found[kind]["auc"].items():
                print(f"  {kind:8} {label:10} {value:.5f} {found[kind]['auc - float32'][label]:+.5f}")
        print(end="", flush=True)
        options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
