"""What the products' client refuses before it sends, and how it waits for brokers that are away."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from basis.problems import Problems
from minutely.client import BadRecord, BrokerError, Client
from streaming.kafka.settings import BOOTSTRAP

NOW = time.time_ns() // 1_000_000
WAIT = 0.5


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client without brokers: what is sound gets as far as `BrokerError`."""
    monkeypatch.delenv(BOOTSTRAP, raising=False)
    with Client(bootstrap="127.0.0.1:1", on_lost=lambda lost: pytest.fail(str(lost)), wait_seconds=WAIT) as found:
        yield found


REQUEST: dict[str, Any] = {"request_id": "r", "impressions": ["a", "b"], "features": {"item": [1, 2]}}
WRONG_REQUESTS: list[tuple[dict[str, Any], str, str]] = [
    ({"request_id": ""}, "malformed", r"request '': .*length >= 1"),
    ({"request_id": "r" * 257}, "malformed", "length <= 256"),
    ({"request_id": 7}, "malformed", r"request 7: .*`str`, got `int`"),
    ({"request_id": "\ud800"}, "malformed", "surrogates"),
    ({"impressions": [], "features": {}}, "malformed", "length >= 1"),
    ({"impressions": ["a", "a"]}, "malformed", "given twice"),
    ({"impressions": [str(at) for at in range(10_001)], "features": {}}, "malformed", "length <= 10000"),
    ({"features": {"item": [1]}}, "feature", "feature item: 1 values for 2 impressions"),
    ({"features": {"item": "ab"}}, "feature", "feature item: 'ab'; allowed: a list with one value an impression"),
    ({"features": {"price": [1.5, math.inf]}}, "feature", "feature price: inf; allowed: numbers that are finite"),
    ({"features": {"vector": [[1.0], [-math.inf]]}}, "feature", "feature vector: -inf"),
    ({"shared": {"age": math.inf}}, "feature", "feature age: inf"),
    ({"features": {"price": np.ones(2)}}, "malformed", r"type float64; allowed: .*tolist\(\)"),
    ({"scores": [[0.1]]}, "malformed", "scores: 1 for 2 impressions"),
    ({"scores": [[0.1], [0.1, 0.2]]}, "malformed", "scores: rows of different lengths"),
    ({"scores": [[0.1], [math.nan]]}, "malformed", "`float`, got `null`"),
    ({"positions": [1]}, "malformed", "positions: 1 for 2 impressions"),
    ({"positions": [1, 2**31]}, "malformed", f"positions: {2**31}"),
    ({"served_at": NOW // 1000}, "malformed", f"{NOW // 1000 * 1000} if these are seconds"),
    ({"served_at": NOW + 7_200_000}, "future", "served_at"),
    ({"served_at": NOW + 0.5}, "malformed", "`int`"),
    ({"features": {"text": ["x" * 5_000_000, ""]}}, "too_large", "allowed: 4194304"),
]


@pytest.mark.parametrize(("change", "reason", "said"), WRONG_REQUESTS, ids=range(len(WRONG_REQUESTS)))
def test_a_request_that_breaks_the_contract(change: dict[str, Any], reason: str, said: str, client: Client) -> None:
    with pytest.raises(BadRecord, match=said) as error:
        client.served(**{**REQUEST, **change})
    assert error.value.reason == reason
    assert str(error.value).startswith("request ") and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        ({"request_id": ""}, "malformed", "length >= 1"),
        ({"impression_id": None}, "malformed", "`str`, got `None`"),
        ({"action": 3}, "malformed", "`str`, got `int`"),
        ({"value": 1e39}, "malformed", "value 1e\\+39; allowed: numbers that are finite in 32 bits"),
        ({"value": math.nan}, "malformed", "value nan"),
        ({"happened_at": NOW * 1000}, "malformed", "if these are microseconds"),
        ({"happened_at": NOW + 7_200_000}, "future", "happened_at"),
        ({"action": "x" * 5_000_000}, "too_large", "allowed: 4194304"),
    ],
)
def test_an_engagement_that_breaks_the_contract(change: dict[str, Any], reason: str, said: str, client: Client) -> None:
    with pytest.raises(BadRecord, match=said) as error:
        client.engaged(**{"request_id": "r", "impression_id": "a", "action": "click", **change})
    assert error.value.reason == reason
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"features": {"price": [None, math.nan], "tags": [[1, 2], []], "text": ["null", "a"]}},
        {"scores": [[0.1, 0.2], [0.3, 0.4]], "positions": [4, 2], "served_at": NOW - 86_400_000},
        {"shared": {"user": "u7", "vector": [0.5, 1]}, "impressions": ("a", "b")},
    ],
)
def test_what_is_sound_is_sent(change: dict[str, Any], client: Client) -> None:
    with pytest.raises(BrokerError, match=r"asked 127\.0\.0\.1:1 \(kafka\.bootstrap\)"):
        client.served(**{**REQUEST, **change})


def test_brokers_that_are_away_hold_nobody_up(client: Client) -> None:
    """The first call tries for as long as it may; others fail at once for a second. None of their records is kept."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(BrokerError, match="KafkaConnectionError: 111 ECONNREFUSED"):
            client.engaged("r", "a", "click")
        took.append(time.monotonic() - began)
    assert took[0] < WAIT + 2 and max(took[1:]) < 0.2
    threads = [
        threading.Thread(target=pytest.raises, args=(BrokerError, client.engaged, "r", "a", "click")) for _ in range(4)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert time.monotonic() - began < 2 * WAIT + 2
    assert client.flush(0) == client.close() == 0
    with pytest.raises(ValueError, match="the client is closed"):
        client.engaged("r", "a", "click")


def test_a_port_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BOOTSTRAP, raising=False)
    client = Client(bootstrap="broker:kafka", on_lost=print)
    with pytest.raises(ValueError, match=r"brokers broker:kafka \(kafka.bootstrap\): .*; allowed: host:port"):
        client.engaged("r", "a", "click")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prefix": "a/b"}, r"kafka: prefix: 'a/b'; .*letters, digits"),
        ({"bootstrap": ""}, "kafka: bootstrap"),
        ({"tls": {"ca": "/nowhere.pem"}}, "/nowhere.pem; .*allowed: PEM files"),
        ({"tls": {"certificate": "a.pem"}}, "certificate and key go together"),
        ({"sasl": {"username": "u"}}, "exactly one of password_env"),
        ({"sasl": {"username": "u", "password_env": "NO_SUCH_VARIABLE"}}, "the variable is not set"),
        ({"sasl": {"username": "u", "password": "hunter2"}}, "kafka: sasl.password"),
        ({"wait_seconds": 0}, "wait_seconds 0; allowed: 0.1 or more"),
        ({"delivery_seconds": math.nan}, "delivery_seconds nan; allowed: 1 or more"),
        ({"memory_bytes": 0}, "memory_bytes 0; allowed: 1 or more"),
    ],
)
def test_settings_are_those_of_services(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        Client(on_lost=print, **options)
    assert "hunter2" not in str(error.value)
    assert isinstance(error.value, Problems) or "_seconds" in said or "_bytes" in said
