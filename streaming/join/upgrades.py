"""Requests of this config and of others: checks whether their columns fit its features, and converts those that it can take over.

A config can change between two starts, so pending requests may have been made under another one. And while replicas restart one by
one, some serve by a config that the joiner does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from streaming.features.columns import all_finite, check_packed, packed_width
from streaming.features.kinds import Feature, SparseFeature
from streaming.join.configs import ConfigSince, read_before, since_offset
from streaming.join.policy import Earlier
from streaming.join.spec import JoinSpec
from streaming.records.events import BadRecord, Request
from streaming.records.schema import Schema, between, differences, label_differences

_KNOWN = 16
"""More than a commit names."""
_UNKNOWN = "too many configs since"


class _Expected(NamedTuple):
    name: str
    feature: Feature
    shared: bool
    width: int
    floats: bool


class Upgrades:
    """Decides which requests a config can take. ``known`` has the known schemas by fingerprint, the config's own last."""

    def __init__(self, spec: JoinSpec) -> None:
        self.configs: Sequence[ConfigSince] = ()
        """What was in force from which offset of `impressions` on, ours last."""
        self.ours = spec.schema
        self.fingerprint = self.ours.fingerprint
        self.known: dict[str, Schema] = {}
        self._features = dict(spec.features)
        self._expected = [
            _Expected(
                name,
                feature,
                feature.scope == "request",
                packed_width(feature),
                not isinstance(feature, SparseFeature),
            )
            for name, feature in spec.features.items()
        ]
        self.know([])

    def know(self, schemas: Iterable[Schema]) -> None:
        """Add schemas found in a state or in `examples`; only the newest few are kept."""
        for schema in (*schemas, self.ours):
            self.known.pop(schema.fingerprint, None)
            self.known[schema.fingerprint] = schema
        while len(self.known) > _KNOWN:
            del self.known[next(iter(self.known))]

    def is_ours(self, request: Request, offset: int) -> bool:
        """Whether a request that was taken at an offset is of this config, and has been pending under no other."""
        is_since = not self.configs or offset >= self.configs[-1].impressions
        return is_since and request.schema == self.fingerprint and request.columns != "reread"

    def features(self, earlier: Earlier | None) -> Mapping[str, Feature]:
        """Return the features for reading a JSON request; of one taken under another schema, only those that are unchanged."""
        theirs = self._schemas(earlier.config.fingerprint) if earlier and earlier.config else []
        return {name: feature for name, feature in self._features.items() if self._is_same(name, theirs)}

    def accept(self, request: Request, earlier: Earlier | None) -> None:
        """Accept a request as one of ours; if it was taken under another schema before, as one of that, for `take_over`.

        A product must send all features. Features that a replica with another config lacks are missing values. A request that was
        taken before its schema was known, as it is now, is left as one of that, too.

        Raises:
            BadRecord: the request does not fit, or did not fit then.
        """
        if earlier and earlier.config:
            self._accept_again(request, earlier.config.fingerprint)
        elif request.schema in ("", self.fingerprint):
            may_lack = bool(request.schema) and request.columns == "some"
            self._check(request, self._expected, may_lack=may_lack)
            request.schema, request.columns = self.fingerprint, "some" if may_lack else "all"
        elif problem := self.take_over(request):
            if earlier is None or earlier.outdated:
                raise BadRecord("schema", problem)
            request.columns = "some"

    def _accept_again(self, request: Request, fingerprint: str) -> None:
        theirs, made_under = self._schemas(fingerprint), self.known.get(request.schema)
        labels = None if made_under is None else list(made_under.labels)
        if request.schema and any(list(each.labels) != labels for each in theirs):
            request.scores = b""  # as when it was taken
        if theirs:
            same = [each for each in self._expected if self._is_same(each.name, theirs)]
            self._check(request, same, may_lack=bool(request.schema))
        request.columns = "some" if request.schema else "reread"
        request.schema = fingerprint

    def _schemas(self, fingerprint: str) -> list[Schema]:
        """Return the schemas that an entry of `ConfigSince` or a request names, as far as they are known."""
        return [self.known[each] for each in fingerprint.split() if each in self.known]

    def _is_known(self, fingerprint: str) -> bool:
        """Whether schemas are named, and all of them are known."""
        named = fingerprint.split()
        return bool(named) and all(each in self.known for each in named)

    def _is_same(self, name: str, theirs: Sequence[Schema]) -> bool:
        return all(each.features.get(name) == self.ours.features[name] for each in theirs)

    def take_over(self, request: Request, offset: int | None = None) -> str | None:
        """Convert a request to ours, be it new, sent again, or pending since an offset. Return None, or why that is impossible: of
        a label that its schema, or one in force since, does not have, what happened until now may have been passed over."""
        fingerprint = request.schema
        theirs = self._schemas(fingerprint)
        wrong = list(dict.fromkeys(found for each in theirs for found in differences(each, self.ours)))
        if offset is not None and not self._is_known(fingerprint):
            wrong = [_UNKNOWN]
        if not wrong:
            problems = (self._problem(request, each, theirs) for each in self._expected)
            wrong = [problem for problem in problems if problem is not None]
        if wrong:
            return between(request.schema, self.ours, wrong)
        if offset is not None:
            since = since_offset(self.configs, offset)
            if (problem := self._passed_over(since, "was pending")) is not None:
                return problem
        if not theirs or any(list(each.labels) != list(self.ours.labels) for each in theirs):
            request.scores = b""  # it is unknown which labels they are of
        lacks = any(_column(request, each) is None for each in self._expected)
        request.schema, request.columns = self.fingerprint, "some" if lacks else "all"
        return None

    def engaged_before(self, at_ms: int) -> str | None:
        """Return which engagements of a new request, served at ``at_ms``, may have been passed over before it came, or None."""
        return self._passed_over(read_before(self.configs, at_ms), "its engagements may have been read")

    def _passed_over(self, configs: Iterable[ConfigSince], was: str) -> str | None:
        """Return which engagements one of these configs did not look at; None if there is no such config."""
        for each in configs:
            if not self._is_known(each.fingerprint):
                return between(each.fingerprint, self.ours, [_UNKNOWN], was)
            for theirs in self._schemas(each.fingerprint):
                if wrong := list(label_differences(theirs, self.ours)):
                    return between(theirs.fingerprint, self.ours, wrong, was)
        return None

    def _problem(self, request: Request, expected: _Expected, theirs: Sequence[Schema]) -> str | None:
        if _column(request, expected) is not None:
            return _problem(request, expected)
        is_known = self._is_known(request.schema)  # else it may have had the feature
        if request.columns == "reread" and not (
            is_known and all(expected.name not in each.features for each in theirs)
        ):
            return f"feature {expected.name} could not be read again"
        return None

    def _check(self, request: Request, expected: Iterable[_Expected], *, may_lack: bool) -> None:
        count = len(request.impression_ids)
        for each in expected:
            name, _, shared, width, floats = each
            packed: Any = (request.shared if shared else request.features).get(name)
            size = width if shared else width * count
            if type(packed) is bytes and len(packed) == size and (not floats or all_finite(packed)):
                continue
            if packed is None:
                if may_lack:
                    continue
                raise BadRecord("feature", f"feature {name} is missing")
            problem = _problem(request, each)
            if problem is not None:
                raise BadRecord("feature", problem)


def _columns(request: Request, expected: _Expected) -> dict[str, Any]:
    return request.shared if expected.shared else request.features


def _column(request: Request, expected: _Expected) -> Any:
    return _columns(request, expected).get(expected.name)


def _problem(request: Request, expected: _Expected) -> str | None:
    count = 1 if expected.shared else len(request.impression_ids)
    return check_packed(expected.name, expected.feature, _column(request, expected), count)
