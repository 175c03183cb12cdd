"""Parts of a pipeline that more than one command puts together."""

from __future__ import annotations

from collections.abc import Callable

from minutely.config import Pipeline
from paramserver.files import Files
from paramserver.manifest import Manifest
from serving.replica import Replica
from streaming.records.examples import ExampleFormat
from trainer.models import make_model
from trainer.newcomers import DefaultRows
from trainer.prequential import Prequential
from trainer.worker import Trainer


def make_trainer(pipeline: Pipeline, prequential: Prequential | None = None, secret: int = 0) -> Trainer:
    """A trainer that has learned nothing yet, with the pipeline's seed.

    Services draw a ``secret`` for the hash of ids, since their ids come from strangers; without one it follows from the seed, as
    replays need that are to give the same numbers again.
    """
    model, plan = make_model(pipeline.model, pipeline.features, pipeline.labels, pipeline.seed)
    tables = {name: pipeline.tables.make(name, model.row_dim, pipeline.seed, secret) for name in plan.tables}
    examples = ExampleFormat(pipeline.features, pipeline.labels)
    learned = {name: table for name, table in tables.items() if pipeline.tables.of(name).default_row == "learned"}
    wait_ms = pipeline.join_spec().wait_ms
    default_rows = DefaultRows(learned, wait_ms) if learned else None
    return Trainer(model, plan, tables, pipeline.labels, examples, pipeline.train, prequential, default_rows)


def make_replica(
    pipeline: Pipeline, files: Files, applied: Callable[[Manifest], None] = lambda manifest: None, secret: int = 0
) -> Replica:
    """A replica that has pulled nothing yet, and refuses versions of a config that the pipeline's does not continue; ``secret`` as
    for a trainer."""
    model, plan = make_model(pipeline.model, pipeline.features, pipeline.labels, pipeline.seed)
    rows, seed = pipeline.sync.rows, pipeline.seed
    tables = {name: pipeline.tables.make_replica(name, model.row_dim, seed, rows, secret) for name in plan.tables}
    return Replica(files, model, plan, tables, pipeline.labels, applied, pipeline.form())
