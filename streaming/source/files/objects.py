"""Logged files in an object store: S3, GCS or Azure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from obstore.exceptions import BaseError, NotFoundError
from obstore.store import from_url

from basis.problems import Problem, Problems, Unreadable

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import RetryConfig

_NAMES_AT_ONCE = 1000
_PART_BYTES = 8 << 20
"""Read by one request, which has 30 s."""
_RETRIES: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}
_ANSWER = re.compile(r"<Code>([^<]*)</Code>\s*<Message>([^<]*)</Message>")
_NOT_THERE = ("NoSuchBucket", "ContainerNotFound")
_ALLOWED = "allowed: a bucket that is there and may be listed and read; credentials, region and endpoint come from the environment"


class Stored(NamedTuple):
    """An object: its ``path`` within its folder, and what the store says of its content."""

    folder: ObjectFolder
    path: PurePosixPath
    size_bytes: int
    changed_ns: int
    tag: str | None

    def __str__(self) -> str:
        return self.folder / str(self.path)

    def copy_to(self, target: Path) -> None:
        """Write its bytes into a file. `Unreadable` where the store does not give them, or has others meanwhile."""
        with target.open("wb") as out:
            for start in range(0, self.size_bytes, _PART_BYTES):
                out.write(self.folder.read(self, start, min(start + _PART_BYTES, self.size_bytes)))


class ObjectFolder:
    """A prefix of a bucket, as ``s3://bucket/prefix``; credentials, region and endpoint are taken from the environment.

    `Problems` where the address is none. What the store refuses is `Unreadable`, but for a bucket that is not there.
    """

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        try:
            self._store = from_url(address, client_options={"allow_http": True}, retry_config=_RETRIES)
        except (BaseError, ValueError) as error:
            allowed = f"{_said(error)}; allowed: a folder, or an address such as s3://bucket/prefix, gs:// or az://"
            raise Problems([Problem(address, "source.dir", "", allowed)]) from None

    def __str__(self) -> str:
        return self._address

    def __truediv__(self, name: str) -> str:
        return f"{self._address}/{name}"

    def find(self, path: PurePosixPath) -> Stored | None:
        """Return the object of that name, None where there is none."""
        with self._told("file", str(path)):
            try:
                return self._stored(self._store.head(str(path)))
            except (FileNotFoundError, NotFoundError):  # also where there is no such bucket, which a listing tells
                return None

    def within(self, path: PurePosixPath) -> Iterator[Stored]:
        """Yield all objects below a name, but those that stores keep in place of folders: empty, without an ending."""
        prefix = "" if path == PurePosixPath() else str(path)
        with self._told("list of files", prefix or "."):
            for page in self._store.list(prefix or None, chunk_size=_NAMES_AT_ONCE):
                for each in map(self._stored, page):
                    if each.size_bytes or each.path.suffix:
                        yield each

    def read(self, stored: Stored, start: int, end: int) -> memoryview:
        """Return bytes ``start`` to ``end`` of an object as it was found."""
        options: GetOptions = {"range": (start, end)}
        if stored.tag is not None:
            options["if_match"] = stored.tag
        with self._told("file", str(stored.path)):
            return memoryview(self._store.get(str(stored.path), options=options).bytes())

    def _stored(self, meta: ObjectMeta) -> Stored:
        changed_ns = round(meta["last_modified"].timestamp() * 1e9)
        return Stored(self, PurePosixPath(meta["path"]), meta["size"], changed_ns, meta["e_tag"])

    @contextmanager
    def _told(self, place: str, asked: str) -> Iterator[None]:
        """Raise what the store refuses as a problem that says what was asked."""
        try:
            yield
        except (BaseError, OSError) as error:
            said = _said(error)
            kind = Problems if said.startswith(_NOT_THERE) else Unreadable
            raise kind([Problem(str(self), place, repr(asked), f"{said}; {_ALLOWED}")]) from None


def _said(error: Exception) -> str:
    """What a store answered, without the library's own words where it answered as S3, GCS and Azure do."""
    answer = _ANSWER.search(str(error))
    return ": ".join(answer.groups()) if answer else str(error).strip().splitlines()[0]
