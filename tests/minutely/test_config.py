"""Configuration that is right: what its sections and variables come to. Mistakes are in test_config_mistakes.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from minutely.built_in import BUILT_IN
from minutely.config import Pipeline, load_pipeline
from paramserver.table import (
    FTRL,
    SGD,
    Adagrad,
    Adam,
    Constant,
    Initializer,
    Momentum,
    Normal,
    Optimizer,
    Uniform,
    Zeros,
)
from tests.minutely.configs import BASE, load_text


def test_the_base_of_these_tests_is_right(tmp_path: Path) -> None:
    pipeline = load_text(tmp_path, BASE)
    assert pipeline.labels["click"].window == 600_000
    assert pipeline.join.lateness == 30_000
    assert pipeline.tables.of("item").expire_after == 2 * 86_400_000
    assert pipeline.tables.of("user").expire_after is None
    assert pipeline.tables.of("item").learning_rate == 0.05


@pytest.mark.parametrize("option", ["", "learning_rate: 0.2, clip: 1"])
@pytest.mark.parametrize(
    ("optimizer", "made"),
    [
        ("row_adagrad", Adagrad(initial_accumulator=0.1)),
        ("{initial_accumulator: 0.5, eps: 0.01}", Adagrad(initial_accumulator=0.5, eps=0.01)),
        ("adagrad", Adagrad(initial_accumulator=0.1, per_element=True)),
        ("sgd", SGD()),
        ("{kind: momentum, momentum: 0.5}", Momentum(momentum=0.5)),
        ("{kind: adam, beta1: 0.8, beta2: 0.9, eps: 0.001}", Adam(beta1=0.8, beta2=0.9, eps=0.001)),
        ("{kind: ftrl, beta: 2, l1: 0.1, l2: 0.2}", FTRL(beta=2, l1=0.1, l2=0.2)),
    ],
)
def test_an_optimizer_is_what_its_section_says(tmp_path: Path, optimizer: str, made: Optimizer, option: str) -> None:
    text = BASE.replace("{expire_after: 2d}", "{" + f"optimizer: {optimizer}" + (f", {option}" if option else "") + "}")
    item = load_text(tmp_path, text).tables.of("item")
    rate, clip = (0.2, 1.0) if option else (0.05, None)
    assert item.optimizer.make(item.learning_rate, item.clip) == dataclasses.replace(
        made, learning_rate=rate, clip=clip
    )


@pytest.mark.parametrize(
    ("initializer", "made"),
    [
        ("zeros", Zeros()),
        ("{kind: constant, value: -1}", Constant(-1)),
        ("{kind: uniform, low: -1, high: 2}", Uniform(-1, 2)),
        ("normal", Normal(0, 0.01)),
        ("{mean: 1, deviation: 0.5}", Normal(1, 0.5)),
    ],
)
def test_an_initializer_is_what_its_section_says(tmp_path: Path, initializer: str, made: Initializer) -> None:
    text = BASE.replace("learning_rate: 0.05", f"initializer: {initializer}")
    assert load_text(tmp_path, text).tables.of("user").initializer.make() == made


def test_admission_and_default_row_reach_the_table(tmp_path: Path) -> None:
    options = (
        "{admit_after: 3, candidates: 2, default_row: learned, optimizer: sgd, learning_rate: 1, initializer: zeros}"
    )
    pipeline = load_text(tmp_path, BASE.replace("{expire_after: 2d}", options))
    table = pipeline.tables.make("item", 2, seed=1)
    table.lookup_or_insert(np.array([7, 7, 8, 9, 10]), 0)
    assert (table.stats.candidates, table.stats.candidates_dropped) == (2, 2)
    table.lookup_or_insert(np.array([10, 10]), 0)
    assert table.export().ids.tolist() == [10]
    assert pipeline.tables.of("item").default_row == "learned"
    assert pipeline.tables.make("user", 2, seed=1).lookup_or_insert(np.array([7]), 0).any()


def test_a_run_s_config_says_what_was_configured(tmp_path: Path) -> None:
    text = BASE.replace("learning_rate: 0.05", "optimizer: adam").replace("{expire_after: 2d}", "{initializer: zeros}")
    pipeline = load_text(tmp_path, text)
    dumped = pipeline.model_dump(mode="json", exclude_defaults=True)
    assert Pipeline.model_validate(dumped).tables == pipeline.tables
    assert pipeline.tables.of("item").optimizer.kind == "adam", "what a table does not say is as for all tables"


def test_a_default_row_of_all_tables(tmp_path: Path) -> None:
    text = BASE.replace("{expire_after: 2d}", "{default_row: learned}")
    tables = load_text(tmp_path, text).tables
    assert [tables.of(name).default_row for name in ("user", "item")] == ["fixed", "learned"]
    for default_row in ("fixed", "learned"):
        assert {tables.with_default_row(default_row).of(name).default_row for name in ("user", "item")} == {default_row}


@pytest.mark.parametrize(
    ("window", "lateness", "kafka", "days"),
    [
        ("10m", "30s", "", 7),
        ("10m", "30s", "kafka: {partitions: 2}", 7),
        ("10m", "30s", "kafka: {retention: 1d}", 1),
        ("2d", "36h", "kafka: {partitions: 2}", 7),
        ("30d", "40d", "", 140),
        ("30d", "40d", "kafka: {partitions: 2}", 140),
        ("30d", "40d", "kafka: {retention: 141d}", 141),
    ],
)
def test_retention_follows_the_windows_unless_it_is_given(
    tmp_path: Path, window: str, lateness: str, kafka: str, days: int
) -> None:
    text = BASE.replace("window: 10m", f"window: {window}").replace("lateness: 30s", f"lateness: {lateness}")
    pipeline = load_text(tmp_path, text + kafka)
    assert pipeline.kafka.retention == days * 86_400_000
    again = Pipeline.model_validate(pipeline.model_dump(mode="json", exclude_defaults=True))
    assert again.kafka == pipeline.kafka, "a run's config says so too"


def test_environment_variables_name_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_FOLDER", "/data")
    pipeline = load_text(tmp_path, BASE.replace("dir: logs", "dir: ${SOME_FOLDER}/shop"))
    assert pipeline.source.dir == "/data/shop"


def test_a_given_folder_needs_no_variable(tmp_path: Path) -> None:
    pipeline = load_text(tmp_path, BASE.replace("dir: logs", "dir: ${NO_SUCH_FOLDER}/shop"), tmp_path / "given")
    assert pipeline.source.dir == str(tmp_path / "given")


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_shipped_pipelines_are_right(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINUTELY_DATA", str(tmp_path))
    pipeline = load_pipeline(BUILT_IN[name], None)
    assert pipeline.name == name
    assert pipeline.sync.sparse_every == 60_000
    assert pipeline.sync.dense_every == 86_400_000


def test_the_form_is_of_what_decides_the_form_of_rows_and_weights(tmp_path: Path) -> None:
    first = load_text(tmp_path, BASE).form()
    for same in ("lateness: 30s", "sparse_every: 60s", "max_rows: 100", "name: shop"):
        assert load_text(tmp_path, BASE.replace(same, same.replace("30s", "40s").replace("60", "120"))).form() == first
    assert load_text(tmp_path, BASE.replace("dim: 8", "dim: 9")).form() != first
    assert load_text(tmp_path, BASE.replace("item: {column: item}", "item: {column: item2}")).form() != first
