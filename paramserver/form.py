"""What decides the form of rows and weights, as a text, and whether another one continues it.

The text is JSON with sections ``features``, ``labels``, ``model`` and ``tables``; this layer knows no more of them than which
of their differences leave every row and weight that is there what it is. The order of features is theirs too; models sort it out.
"""

from __future__ import annotations

from typing import Any

import msgspec
import xxhash

from basis.decoding import refusing
from basis.problems import BadFile
from paramserver.files import Files
from paramserver.manifest import Manifest


def fingerprint_of(form: str) -> str:
    """XXH3-64 (hex) of a form."""
    return xxhash.xxh3_64_hexdigest(form.encode())


def check_form(files: Files, manifest: Manifest, form: str) -> str:
    """The form of a version that has another one, which ``form`` continues: features, or tables of new features, came to it.

    `BadFile` where it does not, with every difference.
    """
    if manifest.form is None:
        raise BadFile(f"version {manifest.version}: made by another config, which is not recorded with it")
    name, data = manifest.form.name, manifest.form.read(files)
    with refusing(lambda why: BadFile(f"{name}: no config: {why}")):
        earlier = data.decode()
        found = differences(earlier, form)
    if found:
        shown = "; ".join(f"{place}: {change}" for place, change in found.items())
        raise BadFile(
            f"version {manifest.version}: made by another config; allowed: that one, with features or tables added, "
            f"or a new place for the versions: {shown}"
        )
    return earlier


def differences(earlier: str, later: str) -> dict[str, str]:
    """What keeps ``later`` from continuing ``earlier``, place by place; nothing where it only adds features or their tables."""
    try:
        whole = [msgspec.json.decode(form) for form in (earlier, later)]
    except Exception:
        return {} if earlier == later else {"form": f"{earlier} before, {later} now"}
    before, after = map(_flat, whole)
    known, kept = ({place[1] for place in form if place[0] == "features"} for form in (before, after))
    found = {f"features.{name}": "there before, not now" for name in sorted(known - kept)}
    for place in {**before, **after}:
        if before.get(place) == after.get(place) or (place[0] == "features" and place[1] in known - kept):
            continue
        if place not in before and _is_added(place, known):
            continue
        old, new = (
            msgspec.json.encode(form[place]).decode() if place in form else "nothing" for form in (before, after)
        )
        found[".".join(place)] = f"{old} before, {new} now"
    old, new = (", ".join(form.get("labels", {})) for form in whole)
    if not found and old != new:  # a model's outputs are by position
        found["labels"] = f"{old} before, {new} now"
    return found


def _is_added(place: tuple[str, ...], known: set[str]) -> bool:
    """Whether a place that was not there belongs to a feature, or to a table's own settings, that was not there."""
    if place[0] == "features":
        return place[1] not in known
    return place[:2] == ("tables", "only") and place[2] not in known


def _flat(value: Any, place: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every leaf by its path. Null is left out: a program with a new setting continues what was made before there was one."""
    if isinstance(value, dict):
        return {key: leaf for name, part in value.items() for key, leaf in _flat(part, (*place, name)).items()}
    return {} if value is None else {place: value}
