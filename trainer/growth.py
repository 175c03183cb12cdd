"""Growth: weights, and the trainer's state, of a model with fewer features, as the model with more takes them.

What was learned stays with its feature, whatever the order. The weights that new features multiply start at 0, so that the model
says what it said before until it has learned something of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from pydantic import TypeAdapter
from safetensors.torch import save
from torch import Tensor

from basis.decoding import refusing
from basis.problems import BadFile
from streaming.features.kinds import Feature, FeatureSet
from streaming.records.labels import Label, LabelSet
from trainer.models import RankingModel, make_model, weight_forms
from trainer.rows import RowPlan
from trainer.settings import ModelSettings
from trainer.state import read_state
from trainer.tensors import decode_tensors


class _Growth:
    """From the model of a form (see `paramserver.form`) to one with more features; `BadFile` where there is no such form."""

    def __init__(self, file: str, form: str, model: RankingModel, plan: RowPlan) -> None:
        with refusing(lambda why: BadFile(f"{file}: its config cannot be read: {why}")):
            sections: dict[str, Any] = msgspec.json.decode(form)
            features: Mapping[str, Feature] = TypeAdapter(FeatureSet).validate_python(sections["features"])
            labels: Mapping[str, Label] = TypeAdapter(LabelSet).validate_python(sections["labels"])
            settings = ModelSettings.model_validate(sections["model"])
            self.earlier, self.earlier_plan = make_model(settings, features, labels, seed=0)
        self.model = model
        self.before = self.earlier.columns(self.earlier_plan.field_names, self.earlier_plan.dense_names)
        self.after = model.columns(plan.field_names, plan.dense_names)

    def grown(self, name: str, old: Tensor) -> Tensor:
        """What belongs to one weight, in the new places."""
        return _rearrange(old, self.before[name], self.after[name]) if name in self.after else old

    def weights(self, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All weights, by name."""
        out = {}
        for name, fresh in self.model.state_dict().items():
            if name in learned:
                out[name] = self.grown(name, learned[name]).contiguous()
            else:  # of the first dense features
                out[name] = torch.zeros_like(fresh) if name in self.after else fresh.clone()
        return out


def grow_weights(file: str, weights: bytes, form: str, model: RankingModel, plan: RowPlan) -> bytes:
    """What `dump_weights` gave for a model of ``form``, for ``model``, which has more features and says the same with them.

    `BadFile` where these are no weights of such a model.
    """
    growth = _Growth(file, form, model, plan)
    data: bytes = save(growth.weights(decode_tensors(file, weights, weight_forms(growth.earlier))))
    return data


def grow_state(file: str, state: bytes, form: str, model: RankingModel, plan: RowPlan) -> bytes:
    """What `Trainer.state` gave for a model of ``form`` (see `paramserver.form`), for ``model``, which has more features.

    `BadFile` where it is no state of such a model.
    """
    growth = _Growth(file, form, model, plan)
    earlier, before, after, grown = growth.earlier, growth.before, growth.after, growth.grown
    learned = read_state(file, state, earlier, growth.earlier_plan.tables)
    out = dict(learned)  # what is not by feature stays as it is,
    out.pop("since.first_at", None)  # but the model is young again: what it learns of new features goes out soon
    weights = {name.removeprefix("model."): tensor for name, tensor in learned.items() if name.startswith("model.")}
    out |= {f"model.{name}": tensor for name, tensor in growth.weights(weights).items()}
    sizes = {name: weight.shape for name, weight in earlier.named_parameters()}
    for part in ("mean", "variance"):
        pieces = torch.split(learned[f"optimizer.{part}"], [size.numel() for size in sizes.values()])
        old_parts = {name: piece.view(sizes[name]) for name, piece in zip(sizes, pieces, strict=True)}
        new_parts = [
            grown(name, old_parts[name]) if name in old_parts else torch.zeros_like(weight)
            for name, weight in model.named_parameters()
        ]
        out[f"optimizer.{part}"] = torch.cat([piece.detach().reshape(-1) for piece in new_parts])
    for part in ("seen", "first"):
        if f"norm.{part}" in learned:
            places = (names["norm.count"] for names in (before, after))
            out[f"norm.{part}"] = _rearrange(learned[f"norm.{part}"], *places).contiguous()
    data: bytes = save(out)
    return data


def _rearrange(old: Tensor, before: list[str], after: list[str]) -> Tensor:
    """The last dimension of ``old``, whose places are called ``before``, in the order of ``after``; 0 where it has none."""
    place = {name: at for at, name in enumerate(before)}
    known = [at for at, name in enumerate(after) if name in place]
    out = old.new_zeros((*old.shape[:-1], len(after)))
    out[..., known] = old[..., [place[after[at]] for at in known]]
    return out
