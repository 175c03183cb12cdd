"""The head of the state that follows another one."""

from __future__ import annotations

from streaming.join.configs import keep_ms
from streaming.join.core import Joiner
from streaming.join.head import Head, Offsets, RebuildPoint
from streaming.join.spec import JoinSpec
from streaming.log import IMPRESSIONS

_POINTS = 64


def following(head: Head, spec: JoinSpec, joiner: Joiner, offsets: Offsets, sequence: int, published: int) -> Head:
    """Return the head that follows ``head``. It keeps what a rebuild may still need of rebuild points and configs."""
    points, at, keep = head.rebuild_points, joiner.reached.newest, keep_ms(head.configs, spec)
    while len(points) > 1 and points[1].newest < published - keep:
        points = points[1:]
    is_over = at < published - keep  # nothing that was taken matters any more; without new input, examples still grows
    if is_over or at >= points[-1].newest + keep // _POINTS:
        point = RebuildPoint(at, dict(offsets))
        points = [point] if is_over else [*points, point]
    if len(points) > 4 * _POINTS:  # one input is far ahead; with fewer points a rebuild reads a little more
        points = [points[0], *points[1::2]]
    configs = head.configs
    while (
        len(configs) > 1
        and configs[1].impressions <= points[0].offsets[IMPRESSIONS]
        and max(configs[1].since_ms, configs[1].engaged_ms) < published - keep
    ):
        configs = configs[
            1:
        ]  # nor does an engagement wait by it any more, nor was one read by it whose request may come
    return Head(
        state_id=head.state_id,
        sequence=sequence,
        decided_until=joiner.watermark,
        published=published,
        offsets=dict(offsets),
        reached=dict(joiner.reached.inputs),
        newest=joiner.reached.newest,
        rebuild_points=points,
        schemas=dict(joiner.upgrades.known),
        configs=configs,
        prefix=head.prefix,
    )
