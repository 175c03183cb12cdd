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
        "trainer.growth",
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


IN_ORDER = {
    "streaming": ("features", "records", "loop", "live", "source", "join", "archive", "kafka"),
    "streaming/source": ("files", "rows", "order"),
}
"""Folders, each of which imports only those before it."""
IN_FOLDERS = [(folder, path) for folder in IN_ORDER for path in sorted((ROOT / folder).glob("*/**/*.py"))]


@pytest.mark.parametrize(
    ("within", "path"), IN_FOLDERS, ids=[f"{at}-{path.relative_to(ROOT)}" for at, path in IN_FOLDERS]
)
def test_no_import_of_streaming_runs_back_up(within: str, path: Path) -> None:
    folders = IN_ORDER[within]
    own = path.relative_to(ROOT / within).parts[0]
    later = {f"{within.replace('/', '.')}.{each}" for each in folders[folders.index(own) + 1 :]}
    for line, module in imports(path):
        assert not is_within(module, later), f"{path.relative_to(ROOT)}:{line} imports {module}"


ROOMS = ("logs", "replays", "services", "init")
"""The folders of `minutely/`, each of which imports only those before it; none imports the command line."""


@pytest.mark.parametrize(
    "path", sorted((ROOT / "minutely").glob("**/*.py")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_no_import_of_minutely_runs_back_up(path: Path) -> None:
    room = path.parent.name
    later = {f"minutely.{folder}" for folder in ROOMS[ROOMS.index(room) + 1 if room in ROOMS else 0 :]}
    if room in ROOMS:
        later |= {"minutely.cli", "minutely.cli_services"}
    for line, module in imports(path) if not path.name.startswith("cli") else ():
        assert not is_within(module, later), f"{path.relative_to(ROOT)}:{line} imports {module}"


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


OWN = {"streaming/join/state.py"}
"""What decodes what the same service wrote to its own disk."""
DECODES = (
    "pa.ipc.MessageReader.open_stream",
    "pa.ipc.open_stream",
    "pa.ipc.read_record_batch",
    "msgspec.json.decode",
    "msgspec.msgpack.decode",
    "safetensors.torch.load",
)


def is_boundary(node: ast.AST, within: ast.AST) -> bool:
    """Whether whatever ``within``, a child of ``node``, raises is caught there."""
    if isinstance(node, ast.With):
        return within in node.body and any(ast.unparse(item).startswith("refusing(") for item in node.items)
    caught = [handler.type for handler in node.handlers] if isinstance(node, ast.Try) and within in node.body else []
    return any(kind is not None and ast.unparse(kind) == "Exception" for kind in caught)


def decodes(node: ast.AST, imported: dict[str, str]) -> bool:
    """Whether a node makes values of bytes."""
    if not isinstance(node, ast.Call):
        return False
    called = ast.unparse(node.func)
    name, _, attribute = called.rpartition(".")
    return imported.get(called, called) in DECODES or (attribute == "decode" and "decoder" in name.rpartition(".")[2])


def outside_of_boundaries(path: Path) -> Iterator[str]:
    """What decodes where not everything that it raises is caught, and decoders whose name does not say what they are."""
    imported = {name.rpartition(".")[2]: name for _, name in imports(path)}
    todo: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text(encoding="utf-8")), False)]
    while todo:
        node, is_safe = todo.pop()
        is_misnamed = (
            isinstance(node, ast.Assign)
            and re.search(r"\.Decoder\(", ast.unparse(node.value))
            and not ast.unparse(node.targets[0]).endswith("decoder")
        )
        if isinstance(node, ast.stmt | ast.expr) and (is_misnamed or (decodes(node, imported) and not is_safe)):
            yield f"{path}:{node.lineno}: {ast.unparse(node)}"
        todo += [(child, is_safe or is_boundary(node, child)) for child in ast.iter_child_nodes(node)]


@pytest.mark.parametrize(("part", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])
def test_every_decoder_stands_in_a_boundary(part: str, path: Path) -> None:
    """Lists of what they raise were incomplete each time: nested JSON ended the joiner."""
    assert str(path.relative_to(ROOT)) in OWN or list(outside_of_boundaries(path)) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("with refusing(BadFile):\n    msgspec.json.decode(b'')", 0),
        ("try:\n    _decoder.decode(b'')\nexcept Exception:\n    pass", 0),
        ("msgspec.json.decode(b'')", 1),
        ("try:\n    _decoder.decode(b'')\nexcept ValueError:\n    pass", 1),
        ("try:\n    pass\nexcept Exception:\n    _a_decoder.decode(b'')", 1),
        ("with suppress(OSError):\n    _decoder(body, 7).decode(b'')", 1),
        ("from safetensors.torch import load\nload(b'')", 1),
        ("_wanted = msgspec.json.Decoder(int)", 1),
    ],
)
def test_the_rule_on_decoders_finds(tmp_path: Path, text: str, wrong: int) -> None:
    (tmp_path / "one.py").write_text(text)
    assert len(list(outside_of_boundaries(tmp_path / "one.py"))) == wrong
