"""Where versions are published: a local folder, or an address such as s3://bucket/prefix."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from basis.problems import Problem, Problems
from paramserver import manifest as manifests
from paramserver.files import Files, LocalFiles
from paramserver.signed_files import KEY_VARIABLE, LEAST_KEY_BYTES, SignedFiles


def folder_of(place: str) -> Path | None:
    """The folder that a place is, None where it is the address of an object store."""
    return None if "://" in place else Path(place)


def open_files(place: str, *, durable: bool) -> Files:
    """The files of a place. ``durable`` syncs a local folder on every write; an object store always keeps what it took.

    Signed where the environment has a key. `Problems` where the address is none that can be opened, or the key is too short.
    """
    files, key = _plain_files(place, durable=durable), os.environ.get(KEY_VARIABLE, "").strip().encode()
    if not key:
        return files
    if len(key) < LEAST_KEY_BYTES:
        allowed = f"allowed: at least {LEAST_KEY_BYTES} bytes, such as `openssl rand -hex 32` prints"
        raise Problems([Problem("environment", KEY_VARIABLE, f"{len(key)} bytes", allowed)])
    return SignedFiles(files, key)


def _plain_files(place: str, *, durable: bool) -> Files:
    folder = folder_of(place)
    if folder is not None:
        return LocalFiles(folder, durable=durable)
    from paramserver.object_files import ObjectFiles  # the library is only loaded where an object store is used

    try:
        return ObjectFiles(place)
    except ValueError as error:
        allowed = "allowed: a folder, or an address such as s3://bucket/prefix"
        raise Problems([Problem(place, "--deltas", str(error), allowed)]) from None


def open_published(place: str) -> Files:
    """The files of a place where something is published; `Problems` where nothing can be, since there is no such folder."""
    folder = folder_of(place)
    if folder is not None and not folder.is_dir():
        allowed = "allowed: one that a trainer publishes to, which makes it, or an address such as s3://bucket/prefix"
        raise Problems([Problem(place, "--deltas", "no such folder", allowed)])
    return open_files(place, durable=True)


def open_versions(place: str) -> Files:
    """The files of a place where at least one version is published; `Problems` where none is."""
    files = open_published(place)
    if not manifests.numbers(files):
        allowed = "allowed: the folder or address that minutely train publishes to, or a run's deltas"
        raise Problems([Problem(place, "--deltas", "no version is there", allowed)])
    return files


def require_writable(folder: Path, option: str) -> None:
    """`Problems` that name the ``option`` where a folder cannot be made or written into. Leaves nothing there."""
    there = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), Path())
    try:
        with TemporaryDirectory(prefix=".minutely-", dir=there):
            return
    except OSError as error:
        allowed = f"{error.strerror}; allowed: a folder that this user may write in, or make"
        raise Problems([Problem(str(folder), option, "cannot be written", allowed)]) from None
