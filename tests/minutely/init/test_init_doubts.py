"""`minutely init` on logs that it took for something else: searches for hotels, events of all kinds in one file, unknown words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from minutely.config import Pipeline, load_pipeline
from streaming.source.settings import WhenEquals
from tests.minutely.init_logs import Row, changed, columns_of, rows_of, typed
from tests.streaming.source.own_logs import write


def guessed(*paths: str) -> tuple[Pipeline, str, str]:
    """The config for some paths, its text, and what was printed, on one line."""
    done = typed("init", *paths, "--out", "made.yaml")
    assert done.exit_code == 0, done.output
    return load_pipeline(Path("made.yaml")), Path("made.yaml").read_text(), " ".join(done.output.split())


def searches() -> list[Row]:
    random = np.random.default_rng(3)
    found = []
    for number in range(300):
        land, nights = int(random.integers(200)), int(random.integers(1, 9))
        for hotel in random.choice(400, 6, replace=False).tolist():
            booked = int(random.random() < 0.05)
            found.append(
                {
                    "srch_id": number + 1,
                    "date_time": f"2024-01-{1 + number // 20:02} 10:{number % 20:02}:00",
                    "visitor_location_country_id": land,
                    "prop_id": hotel,
                    "srch_length_of_stay": nights,
                    "distance": "NULL" if random.random() < 0.3 else round(float(random.gamma(2, 50)), 1),
                    "gross_bookings_usd": round(80.5 * nights, 2) if booked else "NULL",
                    "click_bool": int(booked or random.random() < 0.1),
                    "booking_bool": booked,
                }
            )
    return found


def test_searches_for_hotels(logs: Path) -> None:
    write(logs / "hotels.csv", searches())
    found, text, said = guessed("logs")
    own = found.source.impressions
    assert (own.request, own.missing) == (["srch_id"], ["NULL"])
    assert found.user_feature is None and "user none found" in said.replace("│ ", "")
    columns = columns_of(found)
    assert columns["prop"] == "prop_id"
    assert "unsure: taken for the item, since its ids differ most" in said
    assert "gross_bookings_usd" not in columns.values()
    assert columns["srch_length_of_stay"] == "srch_length_of_stay"
    assert found.features["srch_length_of_stay"].scope == "request"
    assert found.features["distance"].kind == "dense"
    assert {name: (label.action, label.decided_by) for name, label in found.labels.items()} == {
        "click_bool": ("click_bool", None),
        "booking_bool": ("booking_bool", None),
    }
    assert "    stay:" not in text


def test_a_stay_that_may_be_nights_is_unsure(logs: Path) -> None:
    write(logs / "log.csv", changed(rows_of(), length_of_stay=lambda row: 1 + int(row["price"]) % 9))
    _, text, _ = guessed("logs")
    assert "unsure: how long somebody stayed with what was shown, by its name" in text


def test_an_id_of_listeners_is_the_user_before_few_devices(logs: Path) -> None:
    rows = changed(rows_of(), device=lambda row: ("ios", "web")[row["user_id"] % 2])
    write(logs / "log.csv", [{("listener_id" if key == "user_id" else key): row[key] for key in row} for row in rows])
    assert columns_of(guessed("logs")[0])["user"] == "listener_id"


def test_the_table_marks_few_users(logs: Path) -> None:
    rows = changed(rows_of(), user_id=lambda row: row["user_id"] % 3)
    write(logs / "log.csv", rows)
    assert "unsure: 3 different values are few for users" in guessed("logs")[2]


def events() -> list[Row]:
    """Impressions, taps and the ends of videos; nothing is called a request."""
    found: list[Row] = []
    for row in rows_of():
        own = {"feed_id": f"f{row['request_id']}", "user_id": row["user_id"], "item_id": row["item_id"]}
        found.append({"ts": row["ts"], "event": "impression", **own, "country": row["country"], "seconds": None})
        if row["clicked"]:
            found.append({"ts": row["ts"] + 9, "event": "tap", **own, "country": None, "seconds": None})
            found.append({"ts": row["ts"] + 30, "event": "watch_end", **own, "country": None, "seconds": 21.5})
    return found


def test_events_of_all_kinds_in_one_file(logs: Path) -> None:
    write(logs / "app.jsonl", events())
    found, text, said = guessed("logs")
    own, (done,) = found.source.impressions, found.source.engagement_files
    assert own.when == WhenEquals(column="event", equals=["impression"])
    assert done.when == WhenEquals(column="event", equals=["tap", "watch_end"])
    assert (own.request, own.impression, done.request, done.impression) == (["feed_id"], ["item_id"]) * 2
    assert set(found.labels) == {"tap", "watch_end"}
    assert "seconds" not in columns_of(found).values()
    assert "where event is impression" in said
    checked = typed("check", "made.yaml")
    assert checked.exit_code == 0, checked.output + text
    assert "800 impressions in 200 requests" in checked.output


def test_events_that_find_no_impression_are_said(logs: Path) -> None:
    """Views of pages and what was bought, each at its own time, share no request."""
    rows = [
        {"ts": row["ts"], "event": "view", "user_id": row["user_id"], "item_id": row["item_id"]} for row in rows_of()
    ]
    rows += [{**row, "event": "buy", "ts": row["ts"] + 7} for row in rows[::9]]
    write(logs / "app.csv", rows)
    found, text, said = guessed("logs")
    assert found.source.engagements is None
    assert "event is not view in 89 of 889 rows; where these are no impressions, `when` chooses" in said
    assert "# unsure: event is not view in 89 of 889 rows" in text


def apart(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Impressions and events in files of their own."""
    shown = [row for row in rows if row["event"] == "impression"]
    done = [row for row in rows if row["event"] != "impression"]
    return without(shown, "event", "seconds"), without(done, "country")


def without(rows: Sequence[Row], *columns: str) -> list[Row]:
    return [{name: row[name] for name in row if name not in columns} for row in rows]


def test_an_id_that_both_files_share_is_the_request(logs: Path) -> None:
    """Not a known word, and some with one impression each, so that it is no request by its own file alone."""
    shown, done = apart(events())
    write(logs / "shown.csv", [row for row in shown if row["item_id"] < "i2"])
    write(logs / "events.csv", [row for row in done if row["item_id"] < "i2"])
    found, text, _ = guessed("logs")
    (told,) = found.source.engagement_files
    assert (found.source.impressions.request, told.request, told.impression) == (["feed_id"], ["feed_id"], ["item_id"])
    assert "no column names requests" not in text


def test_what_both_files_have_is_named_where_it_names_no_request(logs: Path) -> None:
    shown, done = apart(events())
    by_user = [{**row, "feed_id": f"u{row['user_id']}"} for row in shown]
    write(logs / "shown.csv", by_user)
    write(logs / "events.csv", [{**row, "feed_id": f"u{row['user_id']}"} for row in done])
    said = guessed("logs")[2]
    assert "events without the columns that name a request, user_id, ts; feed_id, user_id, item_id are in both" in said


def test_ids_of_each_impression_match_events(logs: Path) -> None:
    shown, done = apart(events())
    for rows in (shown, done):
        for row in rows:
            row["token_id"] = json.dumps([row.pop("feed_id"), row["item_id"]])
    write(logs / "shown.jsonl", shown)
    write(logs / "events.jsonl", done)
    found, _, _ = guessed("logs")
    assert found.source.impressions.request == ["token_id"]
    assert list(found.labels) == ["tap", "watch_end"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_objects_are_looked_into(logs: Path, kind: str) -> None:
    rows = [
        {
            "meta": {"ts": row["ts"], "request_id": row["request_id"]},
            "user": {"id": row["user_id"], "home": {"country": row["country"]}},
            "item_id": row["item_id"],
            "clicked": row["clicked"],
        }
        for row in rows_of()
    ]
    write(logs / f"log.{kind}", rows)
    found, _, _ = guessed("logs")
    own = found.source.impressions
    assert (own.time.column, own.request) == ("meta.ts", ["meta.request_id"])
    assert columns_of(found)["user"] == "user.id"
    assert "user.home.country" in columns_of(found).values()
    checked = typed("check", "made.yaml")
    assert checked.exit_code == 0, checked.output
