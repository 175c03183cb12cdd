"""A replica that follows a folder as a process of its own, for tests that kill it: writes a line for every version that it has."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from basis.problems import BadFile
from minutely.config import Pipeline, load_pipeline
from minutely.ends import stop_on_signal
from paramserver.files import LocalFiles
from serving.replica import Replica
from trainer.models import make_model

_PULL_SECONDS = 0.2


def digest(rows: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Of ids and embeddings of all tables, byte for byte."""
    found = hashlib.sha256()
    for name in sorted(rows):
        ids, embeddings = rows[name]
        found.update(name.encode() + np.int64(len(ids)).tobytes() + ids.tobytes() + embeddings.tobytes())
    return found.hexdigest()


def make_replica(pipeline: Pipeline, deltas: Path) -> Replica:
    model, plan = make_model(pipeline.model, pipeline.features, pipeline.labels, pipeline.seed)
    tables = {name: pipeline.tables.make_replica(name, model.row_dim, pipeline.seed) for name in plan.tables}
    files = LocalFiles(deltas, durable=True)
    return Replica(files, model, plan, tables, pipeline.labels)


def follow(config: str, deltas: str, lines: str) -> None:
    """Until SIGTERM, then once more."""
    torch.set_num_threads(1)
    replica = make_replica(load_pipeline(Path(config)), Path(deltas))
    with Path(lines).open("a") as output, stop_on_signal() as stop:
        going = True
        while going:
            going = not stop()
            before = replica.sparse_version
            try:
                replica.pull()
            except BadFile as error:
                output.write(json.dumps({"error": str(error)}) + "\n")
            manifest = replica.manifest
            if manifest is not None and manifest.version != before:
                exported = {name: table.export() for name, table in replica.tables.items()}
                rows = {name: (part.ids, part.embeddings) for name, part in exported.items()}
                line = {"version": manifest.version, "watermark": manifest.watermark, "rows": digest(rows)}
                output.write(json.dumps(line) + "\n")
                output.flush()
            time.sleep(_PULL_SECONDS)
