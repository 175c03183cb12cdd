"""The config for MIND in docs/data.md is right for files as Microsoft writes them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np

from tests.commands import ROOT, execute

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
CONFIG = PAGE.split("```yaml\n")[1].split("```")[0]
REQUESTS, ARTICLES = 60, 30


def write_mind(folder: Path) -> int:
    """Both files, in a folder of MIND's name; how many articles were shown."""
    rng = np.random.default_rng(5)
    lines, shown = [], 0
    for request in range(REQUESTS):
        items = rng.choice(ARTICLES, int(rng.integers(2, 9)), replace=False).tolist()
        shown += len(items)
        packed = " ".join(f"N{item}-{int(item % 5 == request % 5)}" for item in items)
        history = " ".join(f"N{item}" for item in items[: request % 3])
        time = f"11/{9 + request // 10}/2019 {1 + request % 12}:05:58 PM"
        lines.append(f"{request + 1}\tU{request % 7}\t{time}\t{history}\t{packed}\n")
    (folder / "behaviors.tsv").write_text("".join(lines))
    titles = [f'"Title {item}" and more' if item % 4 == 0 else f'The "{item}"' for item in range(ARTICLES)]
    news = [
        f"N{item}\tt{item % 3}\ts{item % 6}\t{title}\t\thttps://x.org/{item}\t[]\t[]\n"
        for item, title in enumerate(titles)
    ]
    (folder / "news.tsv").write_text("".join(news))
    return shown


def test_check_finds_all_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "MINDsmall_train"
    folder.mkdir()
    shown = write_mind(folder)
    (cut,) = re.findall(r"`(cut [^`]*)`", PAGE)
    subprocess.run(cut, shell=True, cwd=folder, check=True)
    (tmp_path / "mind.yaml").write_text(CONFIG)
    done = execute("minutely check mind.yaml", tmp_path)
    assert done.returncode == 0, done.stderr
    for part in (f"{shown} impressions", f"{REQUESTS} requests", "100.0% of the impressions"):
        assert part in done.stdout, done.stdout
