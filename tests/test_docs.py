"""Every command in the documentation is run: here, or by the test that is named below."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from paramserver.settings import TableSettings, TablesSettings
from tests.commands import ROOT, execute
from tests.minutely import test_news_example
from tests.real import test_kuairand, test_movielens
from tests.serving import test_replay_served
from tests.stack import test_stack
from trainer.metrics import class_metrics, value_metrics

_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

# Long ones, by the test that runs them; make's targets end in these, which test_make_targets holds.
RUN_ELSEWHERE = {
    test_movielens.REPLAY: "tests/real/test_movielens.py",
    test_movielens.COMPARE: "tests/real/test_movielens.py",
    test_kuairand.COMPARE: "tests/real/test_kuairand.py",
    test_news_example.COMPARE: "tests/minutely/test_news_example.py",
    test_stack.PRODUCE: "tests/stack/test_stack.py",
    test_stack.COMPOSE: "tests/stack/test_stack.py, service by service",
    test_stack.FRESHNESS: "tests/stack/test_stack.py, at the ports that are free",
    test_stack.RETRAIN: "tests/stack/test_stack.py, its command",
    test_replay_served.SERVE: "tests/serving/test_replay_served.py, at a port that is free",
    test_replay_served.ASK: "tests/serving/test_replay_served.py, by Python",
}
MAKE = {
    "make replay": test_movielens.REPLAY,
    "TORCH=cpu make replay": test_movielens.REPLAY,
    "make compare": test_movielens.COMPARE,
    "make stack": "python -m stack",
    "make simulate": "tests.simulation.simulate",
    "make simulate-mutants": "tests.simulation.mutants",
    "make test": "scripts/test",
    "TORCH=cpu make lint": "mypy",
}


def _commands(page: Path) -> list[str]:
    lines = [line for block in _BLOCK.findall(page.read_text(encoding="utf-8")) for line in block.splitlines()]
    return [line.split(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def test_there_are_commands() -> None:
    assert sum(len(_commands(page)) for page in PAGES) > 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands(page: Path, tmp_path: Path) -> None:
    """Run a page's commands one after the other, in a folder that has what the repository has."""
    for name in ("examples", "paramserver", "Makefile", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    for command in _commands(page):
        if command in RUN_ELSEWHERE or command in MAKE or command.startswith(("git clone", "cd ", ". .venv/")):
            continue
        if command == test_kuairand.CHECK:
            from tests.commands import require_kuairand

            require_kuairand()
        done = execute(command, tmp_path)
        assert done.returncode == 0, f"{page.name}: {command}\n{done.stdout}{done.stderr}"


def test_commands_of_one_page_leave_room_for_those_of_the_next() -> None:
    """Who reads on in one folder makes no run, no config and no file of scores a second time."""
    commands = [command for page in PAGES for command in _commands(page)]
    made = [name for command in commands for name in re.findall(r"--(?:out|scores) (\S+)", command)]
    made += [f"{command.split()[2]}.yaml" for command in commands if re.fullmatch(r"minutely init \S+", command)]
    assert len(made) > 8
    assert len(made) == len(set(made)), sorted(made)


EXAMPLES = [(page, at) for page in PAGES for at in range(page.read_text(encoding="utf-8").count("```python\n"))]


@pytest.mark.parametrize(("page", "at"), EXAMPLES, ids=lambda value: getattr(value, "name", str(value)))
def test_examples(page: Path, at: int) -> None:
    """Python on a page runs as it stands there; its assertions say what comes out."""
    code = page.read_text(encoding="utf-8").split("```python\n")[at + 1].split("```")[0]
    exec(compile(code, page.name, "exec"), {})


_LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
_SOURCE = re.compile(r"`((?:basis|streaming|paramserver|trainer|serving|minutely|tests|benchmarks|scripts)/[\w/.-]*)`")


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made of their words."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("docs/decisions/*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in _anchors(linked), f"{page.name}: {target}#{anchor}"


def test_every_decision_is_in_the_index_once() -> None:
    folder = ROOT / "docs" / "decisions"
    named = re.findall(r"^- \[.*\]\((.*)\)$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(page.name for page in folder.iterdir() if page.name != "README.md")


_DEFINED_IN = re.compile(r"`([\w/.-]+\.(?:py|hpp|cpp)):+ ?(?:\w+\.)?(\w+)`")


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("docs/decisions/*.md"))], ids=lambda page: page.name)
def test_what_is_named_with_its_file_is_defined_there(page: Path) -> None:
    """`file: name` and `file::name`, also on dated pages: who follows them must arrive."""
    for name, what in _DEFINED_IN.findall(page.read_text(encoding="utf-8")):
        found = [folder / name for folder in (ROOT, ROOT / "tests", ROOT / "streaming") if (folder / name).exists()]
        assert found, f"{page.name}: {name}"
        defined = rf"(def|class|struct) {what}\b|^(self\.)?{what}\b.*[=:]|\b{what}\([^;]*\{{$"
        lines = (line.strip() for path in found for line in path.read_text(encoding="utf-8").splitlines())
        assert any(re.search(defined, line) for line in lines), f"{page.name}: {name}: {what}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_named_sources_are_there(page: Path) -> None:
    """Dated pages say how it was on their day, and the changelog too; all others name files that are there."""
    for name in _SOURCE.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_tables_section_of_the_page_is_right() -> None:
    text = (ROOT / "docs" / "table.md").read_text(encoding="utf-8")
    tables = TablesSettings.model_validate(yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])["tables"])
    for name in ("user", "item", "other"):
        assert tables.make(name, dim=4, seed=1).dim == 4
    options = {row.split("`")[1] for row in text.split("| key (default)")[1].split("\n\n")[0].splitlines()[2:]}
    assert options == set(TableSettings.model_fields), "every option is on the page"


def test_every_metric_is_defined_on_its_page() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    nothing = np.empty(0)
    for heading, measure in (("Of a class label", class_metrics), ("Of a value label", value_metrics)):
        section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(measure(nothing, nothing))


@pytest.mark.parametrize("command", MAKE, ids=str)
def test_make_targets(command: str) -> None:
    target = command.rsplit(maxsplit=1)[1]
    done = execute(f"make --dry-run --assume-old=.venv/ready {target}")
    assert done.returncode == 0
    assert MAKE[command] in done.stdout
