"""The house: which folder may import which, read from the sources themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import ROOT

ALLOWED: dict[str, set[str]] = {
    "basis": set(),
    "streaming": {"basis"},
    "paramserver": {"basis"},
    "trainer": {"basis", "streaming", "paramserver"},
    "serving": {
        "basis",
        "streaming",
        "paramserver",
        "trainer.losses",
        "trainer.models",
        "trainer.rows",
        "trainer.metrics",
    },
    "minutely": {"basis", "streaming", "paramserver", "trainer", "serving"},
    "stack": set(),
}
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FILES = [(part, path) for part in ALLOWED for path in sorted((ROOT / part).rglob("*.py"))]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, wherever in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports name their part"
            assert node.module is not None
            # `from trainer import models` brings in trainer.models
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def is_within(module: str, parts: set[str]) -> bool:
    return any(module == part or module.startswith(f"{part}.") for part in parts)


@pytest.mark.parametrize(("part", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])
def test_a_part_imports_only_what_it_may(part: str, path: Path) -> None:
    for line, module in imports(path):
        if module.split(".")[0] in ALLOWED:
            assert is_within(module, ALLOWED[part] | {part}), f"{path.relative_to(ROOT)}:{line} imports {module}"
        assert not is_within(module, FORBIDDEN), f"{path.relative_to(ROOT)}:{line} imports {module}"
        assert not is_within(module, {"tests"}), f"{path.relative_to(ROOT)}:{line} imports {module}"


def test_every_part_is_looked_at() -> None:
    assert {part for part, _ in FILES} == set(ALLOWED)


@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/**/*.py")), ids=lambda path: path.name)
def test_tests_do_without_pickle_too(path: Path) -> None:
    assert not [module for _, module in imports(path) if is_within(module, FORBIDDEN)]


@pytest.mark.parametrize(("part", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])
def test_nothing_loads_objects_from_bytes(part: str, path: Path) -> None:
    """``torch.load`` and ``numpy.load(allow_pickle=True)`` are pickle by another name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("torch.load", "torch.save", "eval", "exec"), f"{path}:{node.lineno}: {called}"
            assert not any(word.arg == "allow_pickle" for word in node.keywords), f"{path}:{node.lineno}"


OWN = {"streaming/join/state.py", "streaming/join/pending.py", "trainer/growth.py"}
"""What decodes only what was checked before, or what the same service wrote to its own disk."""


@pytest.mark.parametrize(("part", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])
def test_what_decoders_raise_stands_in_one_place(part: str, path: Path) -> None:
    """Lists made by hand were incomplete: nested JSON ended the joiner."""
    text = path.read_text(encoding="utf-8")
    if path == ROOT / "basis/decoding.py":
        return
    catches = False
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            caught = ast.unparse(node.type)
            catches |= "UNDECODABLE" in caught
            for name in ("msgspec.DecodeError", "RecursionError", "UnicodeDecodeError", "UnicodeError"):
                assert name not in caught, f"{path}:{node.lineno}: {name}; catch basis.decoding.UNDECODABLE"
    decodes = re.search(r"msgspec\.(json|msgpack)\.(decode\(|Decoder\b)", text)
    assert decodes is None or catches or str(path.relative_to(ROOT)) in OWN, f"{path}: catches nothing"
