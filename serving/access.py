"""Access: roles, tokens, and rates."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from serving.settings import Role

_ALLOWED: Mapping[Role, tuple[Role, ...]] = {
    "rank": ("rank", "admin"),
    "engage": ("engage", "admin"),
    "admin": ("admin",),
}


class Denied(PermissionError):
    """A request may not do what it asks for; ``status`` is 401 without a valid token, else 403."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Gate:
    """Checks bearer tokens. A role without tokens is open to everybody, but admin's, which is then closed.

    Only digests of tokens are kept, and all of them are compared, so that the time says nothing about them.
    """

    def __init__(self, tokens: Mapping[Role, Sequence[str]]) -> None:
        self._digests: dict[Role, list[bytes]] = {
            role: [_digest(token.encode()) for token in each] for role, each in tokens.items()
        }

    def check(self, role: Role, authorization: str | None) -> None:
        """`Denied` unless what came as ``Authorization`` may do what ``role`` may."""
        if not self._digests.get(role):
            if role != "admin":
                return
            raise Denied(403, "no admin token is configured (serve.tokens.admin)")
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise Denied(401, f"allowed: Authorization: Bearer TOKEN, with a token of {role}")
        given = _digest(token.strip().encode("utf-8", "surrogateescape"))
        found = {
            known
            for known, digests in self._digests.items()
            if sum(hmac.compare_digest(given, digest) for digest in digests)
        }
        if not found:
            raise Denied(401, "unknown token")
        if not found & set(_ALLOWED[role]):
            raise Denied(403, f"a token of {', '.join(sorted(found))}; allowed: {' or '.join(_ALLOWED[role])}")


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


class Rate:
    """Lets through ``per_second`` requests a second, and at most as many at once; ``now`` in seconds."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._most = max(per_second, 1.0)
        self._left = self._most
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Whether one more may pass."""
        self._left = min(self._most, self._left + max(0.0, now - self._at) * self._per_second)
        self._at = max(self._at, now)
        if self._left < 1:
            return False
        self._left -= 1
        return True
