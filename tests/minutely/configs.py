"""A small config that is right, for tests that change it, and what is said of one that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from basis.problems import Problem, Problems
from minutely.config import Pipeline, load_pipeline

BASE = """\
name: shop
source:
  dir: logs
  impressions:
    file: impressions.csv
    time: {column: time}
  sides:
    items: {file: items.csv, key: item}
  actions:
    click: {when: clicked}
    play: {delay: 5s}
features:
  user: {column: user, scope: request}
  item: {column: item}
  words: {column: words, split: " ", pool: mean}
  price: {kind: dense, column: price, side: items}
  picture: {kind: vector, column: picture, size: 4}
labels:
  click: {action: click, decided_by: play, window: 10m}
join:
  lateness: 30s
model: {kind: deepfm, dim: 8}
tables:
  learning_rate: 0.05
  only:
    item: {expire_after: 2d}
train: {max_rows: 100}
sync:
  sparse_every: 60s
"""


def load_text(folder: Path, text: str, data: Path | None = None) -> Pipeline:
    path = folder / "shop.yaml"
    path.write_text(text, encoding="utf-8")
    return load_pipeline(path, data)


def problems(folder: Path, text: str) -> list[Problem]:
    with pytest.raises(Problems) as caught:
        load_text(folder, text)
    assert all(problem.file == str(folder / "shop.yaml") for problem in caught.value.problems)
    return caught.value.problems
