"""The wheel: what it holds, and that it works alone. What the environment compiled is not compiled again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

from minutely.built_in import BUILT_IN
from tests.commands import ROOT
from tests.real.movielens import first_ratings

_BUILD = "import sys; from scikit_build_core.build import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", _BUILD, str(folder)], cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("minutely-*.whl"))


@pytest.fixture(scope="module")
def wheel(file: Path) -> dict[str, bytes]:
    """Contents of the wheel by name."""
    with ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def programs(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment that has the wheel, and of this one all that it depends on, but not the sources."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(file)]
    subprocess.run([sys.executable, *install], check=True, capture_output=True, timeout=60)
    find = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", find], check=True, capture_output=True, text=True).stdout.strip()
    # Paths that a .pth file adds come last, and .pth files in them, such as the one that leads to the sources, are not read.
    Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python.parent


def run(program: Path, *arguments: str, folder: Path) -> str:
    """What a program prints, started in a folder as by somebody who has no sources."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MINUTELY_DATA")}
    command = [str(program), *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_built_in_config_is_replayed_where_nothing_else_is(programs: Path, tmp_path: Path) -> None:
    data, folder = first_ratings(2000, tmp_path / "data"), tmp_path / "empty"
    folder.mkdir()
    find = "import minutely, streaming, paramserver._native as native; print(*(m.__file__ for m in (minutely, streaming, native)))"
    found = run(programs / "python", "-c", find, folder=folder).split()
    assert len(found) == 3 and all(Path(path).is_relative_to(programs.parent) for path in found), "not the sources"
    printed = run(programs / "minutely", "check", "movielens", "--data", str(data), folder=folder)
    assert "movielens: 2,000 impressions" in printed
    assert list(folder.iterdir()) == []
    printed = run(programs / "minutely", "replay", "movielens", "--data", str(data), "--out", "run", folder=folder)
    assert "like gauc_mean" in printed
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert (summary["impressions"], summary["dead_letters"]) == (2000, 0)


def test_each_config_ships_once(wheel: dict[str, bytes]) -> None:
    shipped = {name: data for name, data in wheel.items() if name.endswith(".yaml")}
    assert shipped == {f"minutely/configs/{name}.yaml": path.read_bytes() for name, path in BUILT_IN.items()}
    assert set(BUILT_IN) == {"kuairand", "kuairand-live", "movielens"}


def test_types_ship(wheel: dict[str, bytes]) -> None:
    parts = tomllib.loads(Path(ROOT, "pyproject.toml").read_text(encoding="utf-8"))["tool"]["scikit-build"]["wheel"][
        "packages"
    ]
    assert {name for name in wheel if name.endswith("py.typed")} == {f"{part}/py.typed" for part in parts}
    assert "paramserver/_native.pyi" in wheel, "the compiled module is typed by its stub"
    assert not [name for name in wheel if "/native/" in name], "C++ sources are in the sdist"


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
