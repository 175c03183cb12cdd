"""The configs that come with the package, which commands take by name."""

from __future__ import annotations

from pathlib import Path

from basis.problems import Problem, Problems

BUILT_IN = dict(sorted((path.stem, path) for path in Path(__file__).with_name("configs").glob("*.yaml")))
"""Their files by name."""


def find_config(given: Path) -> Path:
    """The config that is meant: the file ``given``, or where there is none, the built-in one of that name; else `Problems`."""
    if given.exists() and not given.is_dir():
        return given
    if (name := str(given)) in BUILT_IN:
        return BUILT_IN[name]
    why = "is a folder" if given.is_dir() else "no such file"
    allowed = f"allowed: a configuration file, or the name of a built-in one: {', '.join(BUILT_IN)}"
    raise Problems([Problem(name, "file", why, allowed)])
