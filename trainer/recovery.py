"""Recovery: a trainer gets the newest version that is whole, whatever happened to the files."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import Tensor

from basis.problems import BadFile, NoRoomError
from paramserver.delta_log import DeltaLog
from paramserver.files import Files
from paramserver.form import check_form
from paramserver.history import clear, paths_to, restore
from paramserver.manifest import FileRef, Manifest, OtherFormat
from trainer.growth import grow_state
from trainer.models import RankingModel, weight_forms
from trainer.tensors import decode_tensors
from trainer.worker import Trainer

_log = logging.getLogger(__name__)
_NO_DAMAGE = (OSError, MemoryError, NoRoomError, OtherFormat)
"""What an older version would not cure: nothing is passed over for it."""


def recover_newest(files: Files, deltas: DeltaLog, trainer: Trainer) -> Manifest | None:
    """Give a new trainer the newest version that is whole: rows, dense weights, optimizer; None where nothing is published.

    What is damaged is named in the log, and the version before it taken; its offsets say from where the stream is to be trained
    again, so nothing is lost. Where it had fewer features, the trainer's new ones are empty.

    Raises:
        BadFile: no version is whole; the files are named.
        NoRoomError: this machine has no room for the rows.
        OtherFormat: another version of the program wrote a manifest: that is no damage, and nothing is passed over.
    """
    problems: list[str] = []
    for version in _candidates(deltas):
        try:
            for path in paths_to(files, version):
                if path[-1].trainer is None:
                    break
                try:
                    _load_state(files, path[-1], path[-1].trainer, deltas, trainer)
                    restore(files, path, trainer.tables, deltas.executor, deltas.begin_checksums(version).take)
                except Exception as error:
                    if isinstance(error, _NO_DAMAGE) and not isinstance(error, FileNotFoundError):
                        raise
                    clear(trainer.tables)
                    _note(problems, version, error)
                    continue
                return path[-1]
        except OtherFormat:
            raise
        except BadFile as error:
            _note(problems, version, error)
    if problems or deltas.version:
        raise BadFile(f"no version is whole: {'; '.join(problems) or 'none has the state of a trainer'}")
    return None


def read_dense(files: Files, manifest: Manifest, model: RankingModel) -> dict[str, Tensor] | None:
    """The dense weights that a version names, which replicas serve, by name; None, and the log names the file, where they cannot be
    use it for ``model``.

    The trainer's state has its own weights, so nothing is lost: they are to be published again.
    """
    if manifest.dense is None:
        return None
    try:
        file = manifest.dense.file
        return decode_tensors(file.name, file.read(files), weight_forms(model))
    except (BadFile, FileNotFoundError) as error:
        _log.warning("version %d: %s; republishing", manifest.version, _what_is_wrong(error))
        return None


def _load_state(files: Files, manifest: Manifest, state: FileRef, deltas: DeltaLog, trainer: Trainer) -> None:
    trainer.load_state(state.name, _state(files, manifest, state, deltas, trainer))


def _state(files: Files, manifest: Manifest, state: FileRef, deltas: DeltaLog, trainer: Trainer) -> bytes:
    data = state.read(files)
    if manifest.fingerprint == deltas.fingerprint:
        return data
    return grow_state(state.name, data, check_form(files, manifest, deltas.form), trainer.model, trainer.plan)


def _candidates(deltas: DeltaLog) -> Iterator[int]:
    """The versions that training could go on from, the best first."""
    newest = deltas.newest
    if newest is not None and newest.trains_from:
        yield newest.trains_from
    yield from deltas.trainable()


def _note(problems: list[str], version: int, error: Exception) -> None:
    text = _what_is_wrong(error)
    if text not in problems:
        problems.append(text)
        _log.warning("version %d is not whole: %s; using an earlier version", version, text)


def _what_is_wrong(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{error.filename or error}: not there"
    return str(error) if isinstance(error, BadFile) else f"{type(error).__name__}: {error}"
