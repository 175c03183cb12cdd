"""The live features of a pipeline as one value: definitions, the actions that they count, and what addresses name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from streaming.features.kinds import Feature, VectorFeature, live_address
from streaming.live.settings import Definition, LiveSettings, Seen, Sequence, kept_ms
from streaming.records.labels import Label, action_windows
from streaming.records.schema import Schema, hashed


class Places(NamedTuple):
    """Numbers of a definition, by their places among all of its numbers."""

    definition: str
    at: list[int]


class LiveSpec(NamedTuple):
    """The ``live`` section, and for each action that it names how long after its serving (ms) it counts."""

    settings: LiveSettings
    windows: Mapping[str, int]

    @classmethod
    def of(cls, settings: LiveSettings, labels: Mapping[str, Label]) -> LiveSpec:
        """Return what a pipeline counts. An action counts as long as a label uses it, or else as long as any label waits."""
        of_labels = action_windows(labels)
        longest = max(label.window for label in labels.values())
        named = [action for _, each in settings.definitions() for action in actions_of(each)]
        return cls(settings, {action: of_labels.get(action, longest) for action in dict.fromkeys(named)})

    @property
    def kept_ms(self) -> int | None:
        """How long a key is kept at most since something happened at it; None without definitions."""
        return max((kept_ms(each) for _, each in self.settings.definitions()), default=None)

    def numbers(self, address: str | None) -> Places | None:
        """Return the numbers that an address names: all of a definition, or those whose names begin with what comes after it; None
        if there is no such address."""
        for name, definition in self.settings.definitions():
            if f"{address}.".startswith(f"{name}."):
                numbers = [f"{name}.{number}." for number in definition.numbers()]
                found = [at for at, number in enumerate(numbers) if number.startswith(f"{address}.")]
                return Places(name, found) if found else None
        return None

    def identities(self, features: Mapping[str, Feature]) -> dict[str, str]:
        """Return for each definition its address with a hash of what its numbers depend on: counts of one are not another's."""
        recorded = Schema.of(features, {}).features
        found = {}
        for name, definition in self.settings.definitions():
            keys = [recorded.get(part) for part in (*definition.key, *fields_of(definition))]
            windows = [self.windows[action] for action in actions_of(definition)]
            found[name] = f"{name}-{hashed([definition.model_dump(mode='json'), keys, windows])[:8]}"
        return found

    def defined(self, features: Mapping[str, Feature]) -> dict[str, Feature]:
        """Return the live features whose addresses there are, with what decides their numbers, and their sizes."""
        found: dict[str, Feature] = {}
        for name, feature in features.items():
            if (places := self.numbers(live_address(feature))) is not None:
                # A size of 1 is what a feature begins with; another one was given, and may be wrong.
                size = {"size": len(places.at)} if isinstance(feature, VectorFeature) and feature.size == 1 else {}
                found[name] = feature.defined(self._decides(places), **size)
        return found

    def _decides(self, places: Places) -> str:
        """Return what decides recorded numbers, as JSON: which of their definition's they are, and what those depend on."""
        definition = self.definition(places.definition)
        numbers = definition.numbers()
        parts = {
            "numbers": [numbers[at] for at in places.at],
            "windows": [self.windows[action] for action in actions_of(definition)],
            "visible_after": self.settings.visible_after,
            **definition.model_dump(mode="json"),
        }
        return msgspec.json.encode(parts).decode()

    def addresses(self) -> list[str]:
        """Return the addresses of all definitions and of all their numbers."""
        return [
            address
            for name, definition in self.settings.definitions()
            for address in (name, *(f"{name}.{number}" for number in definition.numbers()))
        ]

    def definition(self, name: str) -> Definition:
        """Return the definition at an address."""
        return dict(self.settings.definitions())[name]


def actions_of(definition: Definition) -> list[str]:
    """Return the actions that a definition counts, each once."""
    return [] if isinstance(definition, Seen) else list(dict.fromkeys(definition.of))


def counts_servings(definition: Definition) -> bool:
    """Return whether servings matter to a definition, and not only actions."""
    return not isinstance(definition, Sequence)


def fields_of(definition: Definition) -> list[str]:
    """Return the features whose ids a definition keeps of each impression, each once."""
    return list(dict.fromkeys(definition.fields)) if isinstance(definition, Sequence) else []


NOTHING_LIVE = LiveSpec(LiveSettings(), {})
