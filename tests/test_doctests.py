"""The examples in docstrings run as they stand there, with imports, so that they can be copied."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

from minutely.config import load_pipeline
from paramserver.delta_log import DeltaLog
from paramserver.files import LocalFiles
from paramserver.follower import Follower
from paramserver.table import Table
from serving.replica import Replica
from streaming.embedded_log import EmbeddedLog
from streaming.features.columns import Ragged
from streaming.join.negatives import Negatives
from streaming.records.examples import ExampleFormat
from streaming.records.labels import Label
from streaming.records.schema import Schema
from tests.commands import ROOT
from trainer.metrics import class_metrics

SHOWN: list[Any] = [
    *(Ragged, Label, Schema, ExampleFormat, Negatives, EmbeddedLog),
    *(Table, LocalFiles, DeltaLog, Follower, Replica, class_metrics, load_pipeline),
]
"""What people use from Python; `serving.client.Client` needs a replica, and has its example in docs/serving.md."""


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: str(shown.__name__))
def test_the_example_of(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (example,) = doctest.DocTestFinder(recurse=False).find(shown, shown.__name__, globs={})
    assert example.examples, "no example"
    printed: list[str] = []
    found = doctest.DocTestRunner(verbose=False).run(example, out=printed.append)
    assert not found.failed, "".join(printed)
