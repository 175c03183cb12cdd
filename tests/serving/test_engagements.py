"""What is told of users' actions is checked as joiners check it, before it is accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minutely.services.serve import make_replica_service
from paramserver.files import LocalFiles
from serving.http import Service
from streaming.clock import EventClock
from streaming.records.events import BadRecord, Engagement, Request, decode_engagement, decode_request, encode
from tests.serving.asgi import ask
from tests.serving.publishing import make_pipeline

NOW = 1_700_000_000_000


def service(folder: Path, **source: Any) -> Service:
    pipeline = make_pipeline(serve={"log": True}, source=source)
    replica = make_replica_service(pipeline, LocalFiles(folder, durable=False), EventClock(NOW), "replica")
    return Service(replica, lambda: None)


def tell(to: Service, *actions: str, **more: Any) -> tuple[int, Any]:
    said = [{"request_id": "r", "impression_id": "r.0", "action": action, **more} for action in actions]
    return ask(to, "POST", "/v1/engagements", {"engagements": said})


@pytest.mark.parametrize("seconds", [NOW // 1000, 0, 631_151_999_999])
def test_times_in_another_unit_are_refused(tmp_path: Path, seconds: int) -> None:
    to = service(tmp_path)
    status, answer = tell(to, "click", happened_at=seconds)
    assert status == 422
    assert f"happened_at {seconds} ms; allowed: 631152000000 to {NOW + 3_600_000}" in answer["error"]
    assert answer["error"].endswith(f"; {NOW} if these are seconds") == (seconds * 1000 == NOW)
    assert tell(to, "click", happened_at=631_152_000_000)[0] == 202
    assert tell(service(tmp_path, earliest="1970-01-01"), "click", happened_at=seconds)[0] == 202, (
        "where the config says so"
    )


def test_what_no_label_looks_at_is_accepted_as_joiners_do_and_counted(tmp_path: Path) -> None:
    to = service(tmp_path)
    assert tell(to, "click", "buy") == (202, {"accepted": 2})
    assert tell(to, "click", "clik", "seen") == (202, {"accepted": 3, "unused": 2})
    assert to._metrics.unused._value.get() == 2


def test_records_have_the_same_bounds() -> None:
    seconds = NOW // 1000
    request = encode(Request(version=1, request_id="r", served_at=seconds, impression_ids=["i"]))
    done = encode(Engagement(version=1, request_id="r", impression_id="i", action="click", happened_at=seconds))
    for decode, record in ((decode_request, request), (decode_engagement, done)):
        with pytest.raises(BadRecord, match=f"{NOW} if these are seconds") as refused:
            decode(record, NOW, 631_152_000_000)
        assert refused.value.reason == "malformed"
        decode(record, NOW)
