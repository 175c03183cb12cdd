"""Own logs: reads files of impressions, with side tables, as requests and engagements in the order of event time."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping

from basis.problems import ProblemList, Problems
from streaming.features.kinds import Feature, live_address
from streaming.live.spec import NOTHING_LIVE, LiveSpec
from streaming.source.files.find import Folder, find
from streaming.source.live_columns import with_live
from streaming.source.logged_events import LoggedEvents
from streaming.source.order.assemble import assemble
from streaming.source.order.engagements import engagement_columns, read_engagements
from streaming.source.order.impressions import Impressions, impression_columns
from streaming.source.order.on_disk import Mapped
from streaming.source.order.spool import open_spool
from streaming.source.rows.rejects import Findings, as_problems
from streaming.source.rows.side_tables import SideTable, read_side
from streaming.source.rows.time_bounds import TimeBounds
from streaming.source.rows.walk import Walk
from streaming.source.settings import SourceSettings


def load(
    folder: Folder,
    settings: SourceSettings,
    features: Mapping[str, Feature],
    now_ms: int,
    live: LiveSpec = NOTHING_LIVE,
) -> LoggedEvents:
    """Read a pipeline's logs. ``now_ms`` is the wall clock's time, which bounds those of events; ``live`` has the definitions
    of live features.

    Rows are read, checked and sorted some at a time, and what comes of them is on disk, so that logs need not fit in memory:
    half of the settings' ``memory`` is for sorting, a quarter for the reader of a file, the rest for the rows at hand. Side tables
    and rejected rows are in memory.

    Raises:
        Problems: everything that is wrong with the files as a whole, with the rows that could not be used.
    """
    memory = settings.memory or _default_memory()
    logged = {name: feature for name, feature in features.items() if live_address(feature) is None}
    problems = ProblemList()
    findings: list[Findings] = []
    sides: dict[str, SideTable] = {}
    for name in settings.sides:
        with problems.collect():
            sides[name] = read_side(folder, settings, name, logged, findings)
            problems.found += sides[name].problems
    for each in settings.engagement_files:
        with problems.collect():
            find(folder, each)
    with problems.collect(), open_spool(memory) as (spool, scratch):
        bounds = TimeBounds.of(settings, now_ms)
        shown, done = Findings(whole=False), Findings(whole=False)
        findings += [shown, done]
        impressions = Impressions(settings, logged, sides, bounds)
        with problems.collect():
            walks = [
                (file, Walk(folder, file, impression_columns(settings, file, logged), shown, memory // 4))
                for file in settings.impression_files
            ]
            impressions.read(walks, shown, spool)
        for each in settings.engagement_files:
            with problems.collect():
                read_engagements(Walk(folder, each, engagement_columns(each), done, memory // 4), each, bounds, spool)
        problems.raise_any()
        mapped = Mapped(scratch)
        return with_live(assemble(spool, mapped, impressions, shown, findings), features, live, mapped)
    for found in findings:
        with problems.collect():
            problems.found += as_problems(found.rejects)
    more = sum((found.more for found in findings), Counter[str]())
    raise Problems(problems.found + as_problems([], more))


def _default_memory() -> int:
    """Return a quarter of the machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
