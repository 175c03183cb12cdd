"""A replay serves, logs and trains on live features that are what their definitions say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from click.testing import CliRunner

from minutely.cli import cli
from minutely.config import Pipeline
from minutely.logs.own_logs import load_events
from minutely.yaml_file import write_yaml
from streaming.features.columns import Column, Ragged
from streaming.log import EXAMPLES, IMPRESSIONS
from streaming.records.events import decode_request
from streaming.source.logged_events import LoggedEvents
from tests.minutely.replays.test_loop import MINUTE, NOW, Ran, make_pipeline, names_of, write_log
from tests.streaming.live.brute_force import Done, Shown, lists_of, values

LIVE: dict[str, Any] = {
    "visible_after": "30s",
    "rates": {"item": {"key": ["item"], "of": ["like", "play"], "half_life": ["10m", "1d"]}},
    "age": {"user": {"key": ["user"], "of": ["like"]}},
    "seen": {"pair": {"key": ["user", "item"]}},
    "sequences": {"liked": {"key": ["user"], "of": ["like"], "fields": ["item"], "last": 3}},
}
ADDED = {
    "item_rates": {"live": "rates.item"},
    "user_age": {"live": "age.user", "scope": "request"},
    "pair": {"live": "seen.pair"},
    "item_liked": {"live": "rates.item.like.1d", "step": 0.25},
    "liked": {"live": "sequences.liked.item", "pool": "mean", "scope": "request"},
}


def make_live(folder: Path) -> Pipeline:
    write_log(folder / "log.parquet")
    plain = make_pipeline(folder).model_dump(mode="json", exclude_unset=True)
    return Pipeline.model_validate({**plain, "live": LIVE, "features": {**plain["features"], **ADDED}})


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return make_live(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def events(pipeline: Pipeline) -> LoggedEvents:
    return load_events(pipeline, NOW)


@pytest.fixture(scope="module")
def ran(pipeline: Pipeline, events: LoggedEvents) -> Ran:
    return Ran(pipeline, events, {"60s": MINUTE})


def column_of(events: LoggedEvents, name: str) -> Ragged:
    column = events.features[name]
    assert isinstance(column, Ragged)
    return column


def examples_of(ran: Ran) -> Iterator[tuple[list[str], dict[str, Column]]]:
    """The examples that were trained on: their ids and features, some at a time."""
    for payload in ran.log[EXAMPLES]:
        batch, _ = ran.loop.joiner.format.decode(payload)
        yield batch.column("example_id").to_pylist(), ran.loop.joiner.format.columns(batch)


def by_definition(pipeline: Pipeline, events: LoggedEvents) -> dict[str, dict[int, dict[str, Any]]]:
    """The numbers and lists of all impressions, from the file's rows: each action of this log happens once the play is over."""
    assert isinstance(pipeline.source.dir, str)
    rows = pyarrow.parquet.read_table(Path(pipeline.source.dir) / "log.parquet").to_pylist()
    ids = {name: np.asarray(events.features[name]).tolist() for name in ("user", "item")}
    log = [Shown(at, 0, row["t"], {name: of[at] for name, of in ids.items()}) for at, row in enumerate(rows)]
    done = [Done(at, "play", row["t"] + row["played_ms"]) for at, row in enumerate(rows)]
    done += [each._replace(action="like") for each in done if rows[each.impression]["liked"]]
    return values(pipeline.live, log, done, pipeline.live_spec().windows)


def test_examples_have_what_the_definitions_say(pipeline: Pipeline, events: LoggedEvents, ran: Ran) -> None:
    expected = by_definition(pipeline, events)
    place = {name: at for at, name in enumerate(names_of(events))}
    count = 0
    for ids, columns in examples_of(ran):
        rows = [place[name] for name in ids]
        if not rows:
            continue  # only a watermark
        for feature, name in (("item_rates", "rates.item"), ("user_age", "age.user"), ("pair", "seen.pair")):
            wanted = [list(expected[name][row].values()) for row in rows]
            assert np.asarray(columns[feature]) == pytest.approx(np.array(wanted), rel=1e-6, abs=1e-6), feature
        liked = np.array([expected["rates.item"][row]["like.1d"] for row in rows])
        assert (np.abs(np.asarray(columns["item_liked"]) + 0.5 - liked / 0.25) <= 0.5 + 1e-5).all()
        assert lists_of(columns["liked"]) == [expected["sequences.liked"][row]["item"] for row in rows]
        count += len(rows)
    assert count == events.impressions
    varied = np.asarray(events.features["item_rates"])
    assert (np.ptp(varied, axis=0) > 0.5).all(), "there is something to get wrong"
    assert {len(each) for each in lists_of(column_of(events, "liked"))} == {0, 1, 2, 3}


def test_what_is_trained_on_is_what_was_served_and_logged(pipeline: Pipeline, events: LoggedEvents, ran: Ran) -> None:
    """Byte for byte, and once a request where it is the request's."""
    served = [decode_request(payload, NOW) for payload in ran.log[IMPRESSIONS]]
    for name in ("item_rates", "pair", "item_liked"):
        assert b"".join(each.features[name] for each in served) == np.asarray(events.features[name]).tobytes()
    first = np.asarray(events.features["user_age"])[events.starts[:-1]]
    assert b"".join(each.shared["user_age"] for each in served) == first.tobytes()
    place = {name: at for at, name in enumerate(names_of(events))}
    for ids, columns in examples_of(ran):
        rows = np.array([place[name] for name in ids], np.int64)
        assert lists_of(columns["liked"]) == lists_of(column_of(events, "liked").take(rows))
        for name in ADDED.keys() - {"liked"}:
            assert np.asarray(columns[name]).tobytes() == np.asarray(events.features[name])[rows].tobytes()


def test_the_same_seed_gives_the_same_run_bit_for_bit(pipeline: Pipeline, ran: Ran) -> None:
    again = Ran(pipeline, load_events(pipeline, NOW), {"60s": MINUTE})
    assert again.files.content == ran.files.content
    assert again.log == ran.log


def test_check_shows_what_each_definition_keeps(tmp_path: Path) -> None:
    write_yaml(tmp_path / "live.yaml", make_live(tmp_path).model_dump(mode="json", exclude_unset=True))
    done = CliRunner(env={"COLUMNS": "160"}).invoke(cli, ["check", str(tmp_path / "live.yaml")])
    assert done.exit_code == 0, done.output
    rows = [line.split("│") for line in done.output.splitlines() if line.startswith("│")]
    found = {row[1].strip(): [cell.strip() for cell in row[2:-1]] for row in rows}
    key, keys, each, _ = found["seen.pair"]
    assert key == "user, item"
    assert int(keys.replace(",", "")) > 100
    assert 24 <= int(each) <= 100
