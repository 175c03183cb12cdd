"""Losses of values: what they are, and that what they predict is the mean where that is their promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional

from streaming.records.labels import Label
from trainer.losses import Loss, outputs_of

MEANS = ["zero_inflated_log_normal", "tweedie"]
LIKE = Label(action="like", window="1m")


def value(loss: str, **changes: Any) -> Label:
    return Label.model_validate({"action": "play", "window": "1m", "loss": loss, **changes})


def heavy_tailed(count: int, zeros: float, seed: int = 0) -> torch.Tensor:
    """Three in ten are 0, the rest log-normal, in ms: the mean is 11 times the median of what is not 0."""
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(count) < zeros, 0, rng.lognormal(np.log(5000), 2.2, count))
    return torch.from_numpy(values.astype(np.float32))


def fitted(label: Label, values: torch.Tensor) -> float:
    """What a model without features predicts that was trained to its end."""
    labels = {"time": label}
    outputs = torch.zeros(outputs_of(labels), requires_grad=True)
    optimizer = torch.optim.LBFGS([outputs], max_iter=200, line_search_fn="strong_wolfe")
    loss, weights = Loss(labels), torch.full((len(values),), 1 / len(values))

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        found = loss(outputs.expand(len(values), -1), values.unsqueeze(1), weights)
        found.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return found

    optimizer.step(step)
    return Loss(labels).predict(outputs.detach().unsqueeze(0)).item()


@pytest.mark.parametrize("loss", MEANS)
def test_what_is_predicted_is_the_mean(loss: str) -> None:
    values = heavy_tailed(100_000, zeros=0.3)
    assert 0.9 < fitted(value(loss, scale=1000), values) / values.mean() < 1.1
    log = fitted(value("squared", scale=1000, transform="log"), values)
    assert log < values.mean() / 10, "the mean of logarithms is that of something else"


def test_values_that_were_alike_may_come_to_differ() -> None:
    """While all are one price their deviation goes to its bound; there it stayed for good, and half of the mean was predicted."""
    label = value("zero_inflated_log_normal")
    outputs = torch.zeros(3, requires_grad=True)
    optimizer, loss = torch.optim.Adam([outputs], lr=0.05), Loss({"time": label})
    varied = torch.from_numpy(np.random.default_rng(1).lognormal(np.log(5), 1.2, 20_000).astype(np.float32))

    def train(values: torch.Tensor, steps: int) -> None:
        weights = torch.full((len(values),), 1 / len(values))
        for _ in range(steps):
            optimizer.zero_grad()
            loss(outputs.expand(len(values), -1), values.unsqueeze(1), weights).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    train(torch.full((10,), 9.99), 500)
    train(varied, 500)
    found = Loss({"time": label}).predict(outputs.detach().unsqueeze(0)).item()
    assert 0.9 < found / varied.mean() < 1.1


@given(st.integers(0, 2**32 - 1))
def test_zero_inflated_log_normal_is_its_likelihood(seed: int) -> None:
    torch.manual_seed(seed)
    outputs = torch.randn(6, 3, dtype=torch.float64)
    values = heavy_tailed(6, zeros=0.5, seed=seed).double()
    found = Loss({"time": value("zero_inflated_log_normal", scale=1000)})(outputs, values.unsqueeze(1), torch.ones(6))
    some, deviation = values > 0, functional.softplus(outputs[:, 2]) + 0.1
    log_normal = torch.distributions.LogNormal(outputs[:, 1], deviation)
    wanted = -functional.logsigmoid(torch.where(some, outputs[:, 0], -outputs[:, 0])).sum()
    wanted -= log_normal.log_prob((values / 1000).clamp(min=1e-9))[some].sum()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    mean = outputs[:, 0].sigmoid() * log_normal.mean * 1000
    torch.testing.assert_close(
        Loss({"time": value("zero_inflated_log_normal", scale=1000)}).predict(outputs)[:, 0], mean, rtol=1e-6, atol=1e-3
    )


@given(st.floats(-5, 5), st.floats(0, 1e6))
def test_a_tweedie_step_goes_from_the_prediction_towards_the_value(output: float, target: float) -> None:
    """The gradient of the unit deviance, halved, by the logarithm of the mean: (mean - y) / sqrt(mean)."""
    at = torch.tensor([[output]], dtype=torch.float64, requires_grad=True)
    labels = {"time": value("tweedie")}
    Loss(labels)(at, torch.tensor([[target]], dtype=torch.float64), torch.ones(1)).backward()
    mean = np.exp(output)
    assert at.grad is not None
    assert at.grad.item() == pytest.approx((mean - target) / np.sqrt(mean), rel=1e-6, abs=1e-9)
    assert Loss(labels).predict(at.detach()).item() == pytest.approx(mean)


def test_each_label_has_its_outputs() -> None:
    """A class on both sides of a label of three outputs gets its own loss and its own prediction."""
    labels = {
        "like": LIKE,
        "time": value("zero_inflated_log_normal", weight=0.5),
        "share": LIKE,
        "spent": value("tweedie"),
    }
    assert outputs_of(labels) == 6
    outputs, targets = torch.randn(5, 6), torch.tensor([[1.0, 2.5, 0.0, 7.0]]).repeat(5, 1)
    weights = torch.rand(5)
    alone = {"like": slice(0, 1), "time": slice(1, 4), "share": slice(4, 5), "spent": slice(5, 6)}
    found = Loss(labels).predict(outputs)
    total = torch.zeros(())
    for at, (name, where) in enumerate(alone.items()):
        one = {name: labels[name]}
        total = total + Loss(one)(outputs[:, where], targets[:, at : at + 1], weights)
        torch.testing.assert_close(found[:, at], Loss(one).predict(outputs[:, where])[:, 0])
    torch.testing.assert_close(Loss(labels)(outputs, targets, weights), total)
    assert torch.isfinite(Loss(labels).predict(torch.full((1, 6), 1e6))).all()


@pytest.mark.parametrize(
    ("loss", "changes", "problem"),
    [
        ("tweedie", {"transform": "log"}, "transform is for loss: squared"),
        ("zero_inflated_log_normal", {"min_value": 1}, "min_value is for classes"),
        ("log", {"scale": 10}, "scale is for values"),
    ],
)
def test_what_does_not_go_together(loss: str, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        value(loss, **changes)
