"""Tensors from files: safetensors whose tensors have the forms that the reader wants, or the file is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from safetensors.torch import load
from torch import Tensor

from basis.decoding import refusing
from basis.problems import BadFile


class Form(NamedTuple):
    """What a tensor may be: its type, its shape (None: any length), and from where to where its numbers are, which are finite."""

    dtype: torch.dtype
    shape: tuple[int | None, ...]
    least: float | None = None
    most: float | None = None

    @classmethod
    def of(cls, tensor: Tensor, least: float | None = None) -> Form:
        """The form of a tensor that is there."""
        return cls(tensor.dtype, tuple(tensor.shape), least)

    def problem(self, tensor: Tensor) -> str | None:
        """What is wrong with a tensor, and what is allowed; None where nothing is."""
        fits = len(tensor.shape) == len(self.shape) and all(
            allowed in (None, length) for allowed, length in zip(self.shape, tensor.shape, strict=True)
        )
        if not fits or tensor.dtype != self.dtype:
            allowed = ["any" if length is None else length for length in self.shape]
            return f"{tensor.dtype} {list(tensor.shape)}; allowed: {self.dtype} {allowed}"
        if not tensor.isfinite().all():
            return "holds what is no finite number"
        if self.least is not None and (tensor < self.least).any():
            return f"holds {tensor.min().item():g}; allowed: at least {self.least:g}"
        if self.most is not None and (tensor > self.most).any():
            return f"holds {tensor.max().item():g}; allowed: at most {self.most:g}"
        return None


def decode_tensors(
    file: str, data: bytes, forms: Mapping[str, Form], optional: Mapping[str, Form] | None = None
) -> dict[str, Tensor]:
    """The tensors of a file by name: all of ``forms``, any of ``optional``, and no others. `BadFile` names file and tensor."""
    allowed = {**forms, **(optional or {})}
    with refusing(lambda why: BadFile(f"{file}: no safetensors: {why}"), BadFile):
        found: dict[str, Tensor] = load(data)
        for name in forms.keys() - found.keys():
            raise BadFile(f"{file}: {name}: not there")
        for name, tensor in found.items():
            problem = allowed[name].problem(tensor) if name in allowed else "no tensor of this config"
            if problem is not None:
                raise BadFile(f"{file}: {name}: {problem}")
        return found
