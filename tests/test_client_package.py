"""The products' package: it installs without Minutely, and has exactly the modules of ours that it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.commands import ROOT

HEAVY = {"confluent_kafka", "deltalake", "duckdb", "fastapi", "numpy", "pyarrow", "rocksdict", "torch"}
OURS = {"basis", "minutely", "paramserver", "serving", "streaming", "trainer"}
NEEDS = ("annotated_types", "crc32c", "kafka", "lz4", "msgspec", "pydantic", "pydantic_core", "typing_extensions.py")
NEEDS_TOO = ("typing_inspection", "zstandard")
_BUILD = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
LOADED = """
import json, sys
import minutely.client
print(json.dumps({name: getattr(module, "__file__", None) for name, module in sys.modules.items()}))
"""
USES = """
from minutely.client import BadRecord, BrokerError, Client
client = Client(bootstrap="127.0.0.1:1", on_lost=print, wait_seconds=0.5)
try:
    client.served(request_id="r", impressions=["a"], features={"x": [1, 2]})
except BadRecord as error:
    print(error)
try:
    client.engaged("r", "a", "click")
except BrokerError as error:
    print(error)
"""


def project(path: str) -> dict[str, object]:
    found: dict[str, object] = tomllib.loads(Path(ROOT, path).read_text(encoding="utf-8"))
    return found


def packaged() -> dict[str, str]:
    """Where the package has its files from, by where it has them."""
    build = project("client/pyproject.toml")["tool"]["hatch"]["build"]["targets"]["wheel"]  # type: ignore[index]
    return {to: start.removeprefix("../") for start, to in build["force-include"].items()}


def printed_by(python: Path, code: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "KAFKA"))}
    done = subprocess.run(
        [str(python), "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(python: Path, folder: Path) -> dict[str, str | None]:
    """The modules that importing the client loads, with their files."""
    found: dict[str, str | None] = json.loads(printed_by(python, LOADED, folder))
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of a new environment with the package and what it depends on; of what else this one has, nothing."""
    folder = tmp_path_factory.mktemp("product")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    found = folder / "bin" / "python"
    subprocess.run([sys.executable, "-c", _BUILD, str(folder)], cwd=ROOT / "client", check=True, capture_output=True)
    (wheel,) = folder.glob("minutely_client-*-py3-none-any.whl")
    install = ["-m", "pip", "--python", str(found), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, *install], check=True, capture_output=True, timeout=60)
    find = "import sysconfig; print(sysconfig.get_path('purelib'))"
    theirs, ours = (
        Path(subprocess.run([each, "-c", find], check=True, capture_output=True, text=True).stdout.strip())
        for each in (str(found), sys.executable)
    )
    for name in (*NEEDS, *NEEDS_TOO):
        (theirs / name).symlink_to(ours / name)
    return found


def test_it_is_installed_and_used_alone(python: Path, tmp_path: Path) -> None:
    modules = loaded(python, tmp_path)
    ours = [Path(file or "") for name, file in modules.items() if name.split(".")[0] in OURS]
    assert ours and all(path.is_relative_to(python.parent.parent) for path in ours), "not the sources"
    shown = printed_by(python, USES, tmp_path)
    assert "request 'r': feature x: 2 values for 1 impressions" in shown
    assert "asked 127.0.0.1:1" in shown


def test_importing_it_loads_nothing_heavy(tmp_path: Path) -> None:
    """Also where all of that is installed."""
    modules = loaded(Path(sys.executable), tmp_path)
    assert "kafka" in modules
    assert not {name.split(".")[0] for name in modules} & HEAVY
    native = [file for name, file in modules.items() if name.split(".")[0] in OURS and str(file).endswith(".so")]
    assert native == []


def test_it_has_what_it_loads_and_no_more(tmp_path: Path) -> None:
    files = {file for file in loaded(Path(sys.executable), tmp_path).values() if file}
    ours = {str(Path(file).relative_to(ROOT)) for file in files if Path(file).is_relative_to(ROOT)}
    ours = {path for path in ours if path.split("/")[0] in OURS}
    assert packaged() == {path: path for path in packaged()}, "each where it is here"
    listed = set(packaged()) - {"minutely/client"} | {
        str(p.relative_to(ROOT)) for p in ROOT.glob("minutely/client/*.py")
    }
    assert {path for path in listed if path.endswith(".py")} == ours
    assert {path for path in listed if not path.endswith(".py")} == {
        f"{part}/py.typed" for part in {path.split("/")[0] for path in ours}
    }


def test_both_packages_agree() -> None:
    client, whole = project("client/pyproject.toml")["project"], project("pyproject.toml")["project"]
    for name in ("version", "license", "authors", "requires-python"):
        assert client[name] == whole[name], name  # type: ignore[index]
    assert set(client["dependencies"]) <= set(whole["dependencies"])  # type: ignore[index]
    for name in ("LICENSE", "NOTICE"):
        assert (ROOT / "client" / name).read_bytes() == (ROOT / name).read_bytes()
