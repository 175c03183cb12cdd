"""How values are clipped, by the joiner's rule and by the log's truth; other tests compare the two."""

from __future__ import annotations

import pytest

from streaming.records.labels import Label, Rule, decide


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({"loss": "tweedie"}, [0, 0, 5, 5000]),
        ({"loss": "zero_inflated_log_normal", "max_value": 100}, [0, 0, 5, 100]),
        ({"loss": "squared", "transform": "log", "max_value": 100}, [0, 0, 5, 100]),
        ({"loss": "squared", "max_value": 100}, [-5, 0, 5, 100]),
    ],
)
def test_values_count_within_what_the_loss_knows(options: dict[str, object], counts: list[float]) -> None:
    rule = Rule.of(Label(action="buy", window="1m", **options))  # type: ignore[arg-type]
    assert [decide([rule], 0, [(1, "buy", value)]).values[0] for value in (-5.0, 0.0, 5.0, 5000.0)] == counts
