"""Published files in an object store: plain puts, and conditional ones for what only one writer may publish."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import from_url

if TYPE_CHECKING:
    from obstore.store import RetryConfig

_NAMES_AT_ONCE = 1000
_RETRIES: RetryConfig = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
"""Few, since callers try again later anyway, and have other work meanwhile."""


class ObjectFiles:
    """A prefix of a bucket, as ``s3://bucket/prefix``; credentials, region and endpoint are taken from the environment.

    ``ValueError`` where the address is none. What the store refuses is an ``OSError``, to be tried again as with a full disk.
    """

    def __init__(self, address: str) -> None:
        try:
            self._store = from_url(address, client_options={"allow_http": True}, retry_config=_RETRIES)
        except BaseError as error:
            raise ValueError(_first_line(error)) from None

    def write(self, name: str, data: bytes) -> None:
        """Put a file in place at once, replacing one of the same name."""
        with _as_os_errors(name):
            self._store.put(name, data)

    def create(self, name: str, data: bytes) -> None:
        """Put a file in place at once; ``FileExistsError`` where one of the same name is there. Of two writers one succeeds."""
        with _as_os_errors(name):
            self._store.put(name, data, mode="create", use_multipart=False)

    def read(self, name: str) -> bytes:
        """The bytes of a file; ``FileNotFoundError`` where it is not."""
        with _as_os_errors(name):
            return self._store.get(name).bytes().to_bytes()

    def names(self) -> list[str]:
        """The names of all files, in no order."""
        with _as_os_errors("the list of files"):
            pages = self._store.list(chunk_size=_NAMES_AT_ONCE)
            return [item["path"] for page in pages for item in page if "/" not in item["path"]]

    def delete(self, name: str) -> None:
        """Remove a file if it is there."""
        with _as_os_errors(name):
            try:
                self._store.delete(name)
            except FileNotFoundError:
                return


@contextmanager
def _as_os_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotFoundError):
        raise FileNotFoundError(name) from None
    except (FileExistsError, AlreadyExistsError):
        raise FileExistsError(name) from None
    except BaseError as error:
        raise OSError(f"{name}: {_first_line(error)}") from None


def _first_line(error: BaseError) -> str:
    return str(error).strip().splitlines()[0]
