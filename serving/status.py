"""What a replica says of itself, as `minutely freshness` reads it."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

State: TypeAlias = Literal["empty", "fresh", "idle", "stale"]
"""``empty``: no version yet. ``stale``: what happened ``fresh_within`` ago is not in it. ``idle``: it is, but nothing happened
since then. ``fresh``: it is, and something did."""

PinnedBy: TypeAlias = Literal["replica", "rollback"]
"""``replica``: its own pin (`PUT /v1/pin`). ``rollback``: the one beside the versions, which holds all replicas that have none of
their own (`minutely rollback`)."""

STATES: tuple[State, ...] = ("empty", "fresh", "idle", "stale")


class Quality(msgspec.Struct):
    """How well scores met a label; null where it is not defined, as AUC without a positive."""

    log_loss: float | None
    auc: float | None
    calibration: float | None


class Compared(msgspec.Struct, kw_only=True):
    """What a shadow said of the requests that it scored, next to what was served: differences of the combined score over all
    candidates, the share of requests with another first item, and the quality of both by label over the newest impressions whose
    windows have closed, of which there are ``judged``.
    """

    requests: int = 0
    candidates: int = 0
    mean_difference: float | None = None
    max_difference: float | None = None
    other_first: float | None = None
    judged: int = 0
    quality: dict[str, dict[str, Quality]] = {}


class ShadowStatus(msgspec.Struct, kw_only=True):
    """A second version that is scored beside. ``dropped`` is what its buffers had no room for: requests, engagements."""

    version: int
    share: float
    ready: bool
    problem: str | None
    dropped: int
    compared: Compared


class Status(msgspec.Struct, kw_only=True):
    """What a replica says of itself. Ages in seconds of event time; None before the first version, or where it is not known.

    ``freshness_seconds`` is the age of the watermark: everything that happened before is in the scores.
    ``newest_behaviour_seconds`` is the age of the newest behaviour in them: it grows where nothing happens, and the model is no
    staler for that.
    """

    replica: str
    state: State
    sparse_version: int
    dense_version: int
    pinned: int | None
    pinned_by: PinnedBy | None
    freshness_seconds: float | None
    newest_behaviour_seconds: float | None
    event_to_servable_seconds: dict[str, float]
    decided_to_servable_seconds: dict[str, float]
    stage_p50_seconds: dict[str, float]
    rows: int
    problem: str | None
    shadow: ShadowStatus | None
