"""What definitions and features of a config say that does not fit together: keys of no feature, addresses of no number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from streaming.features.kinds import Feature, SparseFeature, VectorFeature, live_address
from streaming.live.settings import Sequence as LiveSequence
from streaming.live.spec import LiveSpec, actions_of, fields_of

Mistake: TypeAlias = tuple[tuple[str, ...], str, str]
"""Where in the config, the value, and what is allowed."""


def mistakes(spec: LiveSpec, features: Mapping[str, Feature], actions: Sequence[str] | None) -> Iterator[Mistake]:
    """Yield the mistakes of a config; ``actions`` are those that its log may have, None if they are not known."""
    keys = [name for name, feature in features.items() if _may_be_key(feature)]
    for name, definition in spec.settings.definitions():
        place = ("live", *name.split("."))
        for setting, parts in (("key", definition.key), ("fields", fields_of(definition))):
            for part in parts:
                if part not in keys:
                    what = "sparse features of one id that are not live"
                    yield (*place, setting), part, f"allowed: {what}: {', '.join(keys)}"
        for action in actions_of(definition):
            if actions is not None and action not in actions:
                yield (*place, "of"), action, f"allowed: {', '.join(actions)}"
    for name, feature in features.items():
        if (address := live_address(feature)) is None:
            continue
        places = spec.numbers(address)
        if places is None:
            yield (
                ("features", name, "live"),
                address,
                f"allowed: {', '.join(spec.addresses()) or 'none without a section live'}",
            )
            continue
        lists = isinstance(spec.definition(places.definition), LiveSequence)
        if lists != (isinstance(feature, SparseFeature) and feature.is_list):
            needs = "lists, which need pool: mean or sum" if lists else "numbers, which pool: mean or sum does not take"
            yield ("features", name, "live"), address, f"has {needs}"
        elif isinstance(feature, SparseFeature) and len(places.at) > 1:
            one = [each for each in spec.addresses() if each.startswith(f"{address}.")]
            has = f"{len(places.at)} lists, pool" if lists else f"{len(places.at)} numbers, step"
            yield ("features", name, "live"), address, f"has {has} takes one; allowed: {', '.join(one)}"
        if isinstance(feature, VectorFeature) and feature.size != len(places.at):
            yield ("features", name, "size"), str(feature.size), f"allowed: {len(places.at)}, or leave it out"
        changes = [part for part in spec.definition(places.definition).key if not _is_of_request(features, part)]
        if feature.scope == "request" and changes:
            yield ("features", name, "scope"), "request", f"allowed: impression, as of its key's {', '.join(changes)}"


def _may_be_key(feature: Feature) -> bool:
    return isinstance(feature, SparseFeature) and not feature.is_list and feature.live is None


def _is_of_request(features: Mapping[str, Feature], name: str) -> bool:
    feature = features.get(name)
    return feature is None or feature.scope == "request"
