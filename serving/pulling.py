"""When a replica pulls, and what becomes of a pull that fails. Synchronous: the owner of the thread calls `step` and waits."""

from __future__ import annotations

import logging
from collections import Counter
from random import Random
from typing import NamedTuple

from basis.problems import BadFile
from paramserver import manifest as manifests
from paramserver.files import Files
from serving.replica import Replica
from serving.status import PinnedBy
from streaming.clock import Clock

_log = logging.getLogger("minutely.serve")

_NOW = -(1 << 62)
_LOOKS = 50
_LOOK_MS = (10, 1000)
_LONGEST_BACKOFF_MS = 30_000
_SHORTEST_BACKOFF_MS = 100
_CHECK_EVERY_MS = 3_600_000


class Pinned(NamedTuple):
    """The version that a replica stays at, and why: its own pin, which wins, or a rollback."""

    version: int
    by: PinnedBy


class Puller:
    """Keeps a replica at the newest version, or at one that it is pinned to: by its own pin, or else by that which a rollback
    put beside the versions for all replicas.

    The next version is looked for ``sparse_every`` ms after the last one was published, and from then on fifty times as
    often (every 10 ms to 1 s) until it is there, each time with up to as much jitter, so that replicas neither wait for a whole
    interval nor all come at once. A failed pull leaves the version as it was; it is counted, and tried again after 100 ms, then
    twice as long each time, up to 30 s.

    After the first pull and once an hour the rows are compared with the checksums of their version. Where they differ the replica
    forgets them and loads all again; where those differ as well, it serves what the log holds until the next comparison.
    """

    def __init__(self, files: Files, replica: Replica, clock: Clock, random: Random, sparse_every: int) -> None:
        self._files = files
        self._replica = replica
        self._clock = clock
        self._random = random
        self._every = sparse_every
        self._look_every = min(max(sparse_every // _LOOKS, _LOOK_MS[0]), _LOOK_MS[1])
        self._failures_in_a_row = 0
        self._next_at = _NOW
        self._pin: int | None = None
        self._held: Pinned | None = None
        self.failures: Counter[str] = Counter()
        """Failed pulls by reason: ``damaged``, ``unreadable``, or ``failed`` where it is something else, such as no memory."""
        self.drifted: Counter[str] = Counter()
        """How often a table's rows were not those of their version, by table."""
        self._checked_at: int | None = None
        self._loads_again = False
        self.problem: str | None = None
        """Why the last pull failed; None where it did not."""

    @property
    def pinned(self) -> Pinned | None:
        """What keeps the replica at a version; None where it follows the newest."""
        pin, held_at = self._pin, self._replica.held_at
        if pin is not None:
            return Pinned(pin, "replica")
        return Pinned(held_at, "rollback") if held_at else None

    @property
    def held(self) -> Pinned | None:
        """What keeps the replica at the version that it has, on purpose, however old that is; None where nothing does, or where it
        is not there yet. Once nothing does, it is held until the next pull has brought, or failed to bring, what is newer."""
        pinned = self.pinned
        return pinned if pinned is not None and pinned.version == self._replica.sparse_version else self._held

    def find(self, version: int | None) -> int:
        """The version to `pin` to, the one that is served where it is None. Lists what is published, which may take a while.

        ``LookupError`` where it is not there, ``OSError`` where that is unknown.
        """
        wanted = self._replica.sparse_version if version is None else version
        there = manifests.numbers(self._files)
        if not wanted or wanted not in {*there, self._replica.sparse_version}:
            oldest = f"{there[0]} to {there[-1]}" if there else "none is published"
            raise LookupError(f"version {wanted} is not there; allowed: {oldest}")
        return wanted

    def pin(self, version: int) -> None:
        """Stay at a version that was found."""
        self._pin, self._next_at = version, _NOW

    def unpin(self) -> None:
        """Follow the newest version again, or that at which a rollback holds all replicas."""
        self._pin, self._next_at = None, _NOW

    def wait_ms(self) -> int:
        """How long until `step` has something to do; 0 where it is due."""
        return max(0, self._next_at - self._clock.elapsed_ms())

    def step(self) -> None:
        """Pull, if it is time."""
        if self._clock.elapsed_ms() < self._next_at:
            return
        pin = self._pin
        try:
            if pin is None or pin != self._replica.sparse_version:
                self._replica.pull(until=pin)
        except Exception as error:  # whatever it is, keep serving the version at hand, and log that
            self._failed(error)
        else:
            if self._failures_in_a_row:
                _log.warning("pulling works again, at version %d", self._replica.sparse_version)
            self._failures_in_a_row, self.problem = 0, None
            self._next_at = self._next_look()
            self._check(self._clock.elapsed_ms())
        pinned = self.pinned
        self._held = pinned if pinned is not None and pinned.version == self._replica.sparse_version else None
        if self._pin != pin:
            self._next_at = _NOW

    def _check(self, elapsed_ms: int) -> None:
        """Compare rows with checksums, if it is time."""
        last, loaded_again = self._checked_at, self._loads_again
        if last is not None and elapsed_ms - last < _CHECK_EVERY_MS and not loaded_again:
            return
        if not self._replica.sparse_version:
            return
        self._checked_at, self._loads_again = elapsed_ms, False
        for table in (drifted := self._replica.drifted()):
            self.drifted[table] += 1
            _log.error(
                "table %s: its rows differ from the checksum of version %d; %s",
                table,
                self._replica.sparse_version,
                "so do those in the delta log" if loaded_again else "loading all of them again",
            )
        if drifted and not loaded_again:
            self._replica.forget_rows()
            self._loads_again, self._next_at = True, _NOW

    def _next_look(self) -> int:
        manifest = self._replica.manifest
        jitter = self._random.randrange(self._look_every)
        # Clocks that were set, or differ from the trainer's, must keep us neither from looking nor from waiting.
        age = min(max(0, self._clock.now_ms() - manifest.published_at), self._every) if manifest else self._every
        return self._clock.elapsed_ms() + max(self._every - age, self._look_every) + jitter

    def _failed(self, error: Exception) -> None:
        reason = "damaged" if isinstance(error, BadFile) else "unreadable" if isinstance(error, OSError) else "failed"
        self.failures[reason] += 1
        self.problem = f"{type(error).__name__}: {error}"
        if not self._failures_in_a_row:
            _log.error("staying at version %d: %s", self._replica.sparse_version, self.problem)
        wait_ms = min(_SHORTEST_BACKOFF_MS << min(self._failures_in_a_row, 12), _LONGEST_BACKOFF_MS)
        self._failures_in_a_row += 1
        self._next_at = self._clock.elapsed_ms() + wait_ms + self._random.randrange(wait_ms)
