"""What a wheel holds besides modules: types, licenses, metadata. Built without the native module, which would take minutes."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.commands import ROOT

_BUILD = (
    "import sys; from scikit_build_core.build import build_wheel; build_wheel(sys.argv[1], {'wheel.cmake': 'false'})"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Contents of the wheel by name."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", _BUILD, str(folder)], cwd=ROOT, check=True, capture_output=True)
    with ZipFile(next(folder.glob("minutely-*.whl"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_types_ship(wheel: dict[str, bytes]) -> None:
    parts = tomllib.loads(Path(ROOT, "pyproject.toml").read_text(encoding="utf-8"))["tool"]["scikit-build"]["wheel"][
        "packages"
    ]
    assert {name for name in wheel if name.endswith("py.typed")} == {f"{part}/py.typed" for part in parts}
    assert "paramserver/_native.pyi" in wheel, "the compiled module is typed by its stub"
    assert not [name for name in wheel if name.startswith("paramserver/native/")], "C++ sources are in the sdist"


def test_licenses_ship(wheel: dict[str, bytes]) -> None:
    info = next(name for name in wheel if name.endswith(".dist-info/METADATA")).removesuffix("METADATA")
    metadata = message_from_bytes(wheel[f"{info}METADATA"])
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    for name in ("LICENSE", "NOTICE"):
        assert wheel[f"{info}licenses/{name}"] == Path(ROOT, name).read_bytes()


def test_what_is_linked_is_named() -> None:
    """A library that is compiled into the native module, or put into reports, is in NOTICE with its license."""
    notice = Path(ROOT, "NOTICE").read_text(encoding="utf-8")
    for name in ("nanobind", "robin-map", "plotly.js"):
        assert name in notice
