"""Retention: which versions and trainer's states may go, and how they go.

The writer first says what may be deleted, in the manifest (`Manifest.forgets`, `Manifest.trainable`); only then is it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence

from basis.problems import BadFile
from paramserver import manifest as manifests
from paramserver.files import Files
from paramserver.history import named_files
from paramserver.manifest import FileRef, Manifest

_log = logging.getLogger(__name__)
KEPT_STATES = 2
_OF_A_VERSION = re.compile(r"^(?:base-|manifest-)?(\d{12})\.")


def forgets(bases: Sequence[int], newest: Manifest | None) -> int:
    """Up to where versions may be deleted that come before the newest two of ``bases``; never less than was said before."""
    return max(bases[-2] if len(bases) > 1 else 0, newest.forgets if newest else 0)


def trainable(states: Collection[int], bases: Collection[int]) -> list[int]:
    """The versions whose trainer's states stay: the newest two, and those of ``bases``."""
    newest = sorted(states)[-KEPT_STATES:]
    return [at for at in sorted(states) if at in bases or at in newest]


def delete_manifests(files: Files, until: int, pinned: Collection[int]) -> None:
    """Of the versions before ``until``, its base stays. They go before other files, so that no version is seen whose files go."""
    for base in (False, True):
        for at in manifests.versions(files, base=base):
            if (at < until or (at == until and not base)) and at not in pinned:
                files.delete(manifests.manifest_name(at, base=base))


def delete_unnamed(files: Files, until: int) -> bool:
    """Files of versions up to ``until`` that no manifest names, since others publish as well; with them what failed publications
    left. False where a manifest cannot be read, so that it is unknown."""
    try:
        needed = named_files(files)
    except BadFile as error:
        _log.warning("%s; nothing is deleted until it is fixed or removed", error)
        return False
    for name in files.names():
        of = _OF_A_VERSION.match(name)
        if of and int(of[1]) <= until and name not in needed:
            files.delete(name)
    return True


def drop_states(files: Files, states: dict[int, FileRef], kept: Collection[int]) -> None:
    """Delete the trainer's states of versions that are not ``kept``, and take them out of ``states``."""
    names = {ref.name for at, ref in states.items() if at in kept}
    for version in [at for at in states if at not in kept]:
        ref = states.pop(version)
        if ref.name not in names:
            files.delete(ref.name)
