"""The ``serve`` section of the configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from basis.problems import Problem, Problems
from basis.settings import PositiveDurationMs, Section
from streaming.features.kinds import Name
from streaming.records.events import MAX_IMPRESSIONS, MAX_RECORD_BYTES

Role: TypeAlias = Literal["rank", "engage", "admin"]
"""``rank`` asks for scores, ``engage`` sends engagements, ``admin`` may do both and change what is served."""
Weight: TypeAlias = Annotated[float, Field(ge=-1e6, le=1e6)]

_LEAST_TOKEN = 16


class TokenSettings(Section):
    """Where the tokens of a role are: in a variable, or in a file with one a line. Any of them is good, so they can be changed
    one after the other."""

    env: str | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> TokenSettings:
        if (self.env is None) == (self.file is None):
            raise ValueError("needs exactly one of env (a variable's name) and file")
        return self

    def read(self, role: str) -> list[str]:
        """The tokens; `Problems` where there is none, or one that could be guessed."""
        place, allowed = f"tokens.{role}", f"allowed: tokens of {_LEAST_TOKEN} or more ASCII characters, one a line"
        if self.env is not None:
            text = os.environ.get(self.env, "")
        else:
            assert self.file is not None
            try:
                text = Path(self.file).read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise Problems([Problem("serve", place, self.file, f"{error}; {allowed}")]) from None
        found = [line.strip() for line in text.splitlines() if line.strip()]
        if not found or any(len(token) < _LEAST_TOKEN or not token.isascii() for token in found):
            raise Problems([Problem("serve", place, self.env or self.file or "", allowed)])
        return found


class ServeTlsSettings(Section):
    """The certificate that the service shows, and its key, as PEM files."""

    certificate: str
    key: str


class ServeSettings(Section):
    """The ``serve`` section."""

    score: dict[Name, Weight] = {}
    """What candidates are ordered by: the sum of these weights times the labels' predictions; by default the first label's."""
    fresh_within: PositiveDurationMs = 300_000
    """A version is stale when what happened this long ago is not in it."""
    stale_is_unready: bool = False
    """Whether a stale replica says that it is not ready, so that it gets no more requests."""
    latency_budget: PositiveDurationMs = 100
    """A request whose scores would take longer than this, by what batches cost lately, is refused at once (503)."""
    timeout: PositiveDurationMs = 5_000
    """The longest that a request may take, its body's arrival included."""
    max_candidates: Annotated[int, Field(ge=1, le=MAX_IMPRESSIONS)] = 2_000
    """The most candidates of one request."""
    max_ids: Annotated[int, Field(ge=1, le=1_000_000)] = 50_000
    """The most ids in lists that one request may give, all features together; a text with ``split`` is a list."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=MAX_RECORD_BYTES)] = 1 << 20
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 4_096
    """The most connections at once, as far as the system's limit of open files allows. For one more, the one that is idle the
    longest makes room; where all are busy it is refused (503)."""
    max_connections_by_peer: Annotated[int, Field(ge=1, le=1_000_000)] = 1_024
    """The same for those from one address, or from one network of 64 bits in IPv6."""
    header_timeout: PositiveDurationMs = 5_000
    """The longest that a request's header, or a TLS handshake, may take."""
    idle_timeout: PositiveDurationMs = 75_000
    """How long a connection may wait for its next request. Balancers, which should close first, mostly wait 60 s."""
    rate: Annotated[float, Field(gt=0)] | None = None
    """The most requests a second for each role; more are refused (429)."""
    log: bool = True
    """Whether what was served goes to Kafka's ``impressions``."""
    log_buffer_bytes: Annotated[int, Field(ge=MAX_RECORD_BYTES, le=1 << 36)] = 64 << 20
    """The memory of records that wait for Kafka at most. Requests beyond are not logged, and counted; engagements beyond are
    refused (503)."""
    tokens: dict[Role, TokenSettings] = {}
    """Tokens by role. A role ``rank`` or ``engage`` without tokens is open to anyone who can connect, ``admin`` without
    tokens is closed."""
    tls: ServeTlsSettings | None = None
