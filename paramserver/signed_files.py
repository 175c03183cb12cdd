"""Files that end with their signature, for places that strangers may write to."""

from __future__ import annotations

import hashlib
import hmac

from basis.problems import BadFile
from paramserver.files import Files

KEY_VARIABLE = "MINUTELY_DELTAS_KEY"
LEAST_KEY_BYTES = 32
_SIGNATURE_BYTES = hashlib.sha256().digest_size


class SignedFiles:
    """Adds an HMAC-SHA256 (RFC 2104) of name and bytes to what is written, and takes it off what is read.

    Every file is signed, not only manifests: their checksums of other files find damage, but not a forgery.
    The name is part of it, so that a signed file is none under another name.
    """

    def __init__(self, files: Files, key: bytes) -> None:
        self._files = files
        self._key = key

    def write(self, name: str, data: bytes) -> None:
        """Put a file in place at once, replacing one of the same name."""
        self._files.write(name, data + self._signature(name, data))

    def create(self, name: str, data: bytes) -> None:
        """Put a file in place at once; ``FileExistsError`` where one of the same name is there. Of two writers one succeeds."""
        self._files.create(name, data + self._signature(name, data))

    def read(self, name: str) -> bytes:
        """The bytes of a file; ``FileNotFoundError`` where it is not, `BadFile` where its writer did not have the key."""
        signed = self._files.read(name)
        data, signature = signed[:-_SIGNATURE_BYTES], signed[-_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(name, data)):
            raise BadFile(f"{name}: not signed with the key in {KEY_VARIABLE}")
        return data

    def names(self) -> list[str]:
        """The names of all files, in no order."""
        return self._files.names()

    def delete(self, name: str) -> None:
        """Remove a file if it is there."""
        self._files.delete(name)

    def _signature(self, name: str, data: bytes) -> bytes:
        code = hmac.new(self._key, name.encode() + b"\0", hashlib.sha256)
        code.update(data)
        return code.digest()
