"""The table's C++ under sanitizers and as it is shipped: random operations against a map, and readers beside a writer, for a fixed
number of steps or seconds."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import pytest

from paramserver import _native
from tests.commands import execute, missing

SANITIZERS = ["address,undefined", "thread"]


def require(sanitizers: str, folder: Path) -> None:
    """Go on only where the compiler builds with these sanitizers and what it builds runs."""
    compiler = os.environ.get("CXX", "c++")
    source, program = folder / "probe.cpp", folder / "probe"
    source.write_text("int main() { return 0; }\n")
    try:
        built = execute(f"{compiler} -std=c++20 -fsanitize={sanitizers} {source} -o {program}")
    except FileNotFoundError:
        missing(f"a C++20 compiler: {compiler}")
    if built.returncode:
        missing(f"libraries of {compiler} for -fsanitize={sanitizers}: {built.stderr.strip()[-300:]}")
    if (ran := execute(str(program))).returncode:
        missing(f"a system on which -fsanitize={sanitizers} runs: {ran.stderr.strip()[-300:]}")


@pytest.mark.parametrize("sanitizers", SANITIZERS)
def test_fuzz_and_stress(sanitizers: str, tmp_path: Path) -> None:
    """Built in the repository's own build folder, so that a second run compiles only what changed."""
    require(sanitizers, tmp_path)
    done = execute(f"tests/paramserver/native/run.sh {sanitizers}")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert "100% tests passed" in done.stdout
    for name in ("fuzz", "limits", "shrink", "stress"):
        assert f"{name} ." in done.stdout, f"{name} did not run"


def test_stress_of_what_is_shipped() -> None:
    """The optimiser may take apart what must be one move, so the release build is run too, every kernel set in every row format."""
    done = execute('tests/paramserver/native/run.sh "" -R stress -V')
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    for kernels in _native.available_kernels():
        for row_format in ("train", "float32", "float16", "int8"):
            assert re.search(rf"{kernels} +{row_format} +beside a writer", done.stdout), done.stdout
            assert re.search(rf"{kernels} +{row_format} +step by step", done.stdout) or platform.machine() != "x86_64"


@pytest.mark.parametrize(
    ("sanitizers", "said"), [("address,undefined", "heap-buffer-overflow"), ("thread", "data race")]
)
def test_the_sanitizers_see_something(sanitizers: str, said: str, tmp_path: Path) -> None:
    """A mistake that each is there to find ends the program."""
    require(sanitizers, tmp_path)
    (tmp_path / "wrong.cpp").write_text(
        "#include <thread>\n"
        "int main(int count, char**) {\n"
        "    int* values = new int[2];\n"
        "    std::thread other([&] { values[count] = 1; });\n"
        "    values[count] = 2;\n"
        "    other.join();\n"
        "    return values[count + 1] == 7;\n"
        "}\n"
    )
    flags = f"-std=c++20 -g1 -pthread -fsanitize={sanitizers}"
    built = execute(f"{os.environ.get('CXX', 'c++')} {flags} {tmp_path}/wrong.cpp -o {tmp_path}/wrong")
    assert built.returncode == 0, built.stderr
    ran = execute(str(tmp_path / "wrong"))
    assert ran.returncode != 0
    assert said in ran.stderr
