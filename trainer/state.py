"""A trainer's state as a file: which tensors it has."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from trainer.models import RankingModel, weight_forms
from trainer.norm import START_ROWS
from trainer.tensors import Form, decode_tensors

_FAR_MS = float(1 << 53)


def read_state(file: str, data: bytes, model: RankingModel, tables: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of what `Trainer.state` gave for a model of this form with these tables; `BadFile` where they are others."""
    count = sum(weight.numel() for weight in model.parameters())
    forms = {f"model.{name}": form for name, form in weight_forms(model).items()}
    forms["optimizer.mean"] = Form(torch.float32, (count,))
    forms["optimizer.variance"] = Form(torch.float32, (count,), 0)
    forms["optimizer.steps"] = Form(torch.float32, (), 0)
    time = Form(torch.int64, (), -_FAR_MS, _FAR_MS)
    optional = {f"newcomers.{table}": Form(torch.int64, (2, None)) for table in tables} | {"since.first_at": time}
    if model.norm is not None:
        width = len(model.norm.count)
        optional["norm.seen"] = Form(torch.int64, (width,), 0, START_ROWS)
        optional["norm.first"] = Form(torch.float32, (None, width))
        optional["norm.at"] = time
    return decode_tensors(file, data, forms, optional)
