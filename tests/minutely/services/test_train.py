"""The trainer's service when its place or its weights fail it: what it says, what it counts, and that nothing is lost."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from basis.problems import BadFile, GuardedError
from minutely import cli
from minutely.config import Pipeline
from minutely.services import train as service
from minutely.services.examples_readers import RefusedExamples
from minutely.services.metrics import Status
from minutely.services.train import TrainService
from minutely.services.versions import roll_back
from paramserver import manifest as manifests
from paramserver.files import LocalFiles
from streaming.clock import EventClock
from streaming.embedded_log import EmbeddedLog
from streaming.log import EXAMPLES
from streaming.records.events import DeadLetter
from streaming.records.unreadable_records import IN_A_ROW
from tests.paramserver.published import BreakableFiles
from tests.trainer.test_retrain import make_replica, records

PIPELINE = Pipeline.model_validate(
    {
        "name": "small",
        "source": {
            "dir": "none",
            "impressions": {"file": "none.csv", "time": {"column": "time"}},
            "actions": {"like": {"when": "liked"}},
        },
        "features": {"user": {"column": "u"}, "example": {"column": "i"}},
        "labels": {"like": {"action": "like", "window": "1m"}},
        "kafka": {"partitions": 1},
        "model": {"dim": 2, "hidden": [3]},
        "sync": {"sparse_every": "60s", "keep_deltas": 2},
    }
)
MINUTE = 60_000


class Fed(EmbeddedLog):
    """An embedded log with what the service asks of Kafka's."""

    lag = {0: 0}
    lost = {0: 0}

    def fill(self, timeout_ms: int) -> None: ...

    def close(self) -> None: ...


class World:
    """A log, a place for versions, and the services that train there one after the other."""

    def __init__(self, folder: Path) -> None:
        self.log = Fed(folder / "log", durable=False)
        self.place = str(folder / "deltas")
        self.files = BreakableFiles(LocalFiles(folder / "deltas", durable=False))
        self.clock, self.status = EventClock(1), Status()
        self.minute = 0
        self.stop: Callable[[], bool] = lambda: False

    def start(self, *, resume: bool = False) -> TrainService:
        return TrainService(PIPELINE, self.log, self.files, self.clock, self.status, lambda: self.stop(), resume=resume)  # type: ignore[arg-type]

    def run(self, trainer: TrainService, minutes: int, each: Callable[[int], None] = lambda minute: None) -> bool:
        """A record of three examples and a publication a minute, then the end."""
        last = self.minute + minutes

        def stop() -> bool:
            if self.minute == last:
                return True
            self.minute += 1
            each(self.minute)
            self.log.append(EXAMPLES, 0, records(1, self.minute - 1))
            self.clock.move_to(self.minute * MINUTE + 1)
            return False

        try:
            self.stop = stop
            return trainer.run()
        finally:
            trainer.close()

    def trained(self) -> tuple[list[int], set[int]]:
        """The ids of the newest version's rows, and how often each was trained."""
        trainer = self.start()
        trainer.close()
        rows = trainer.online.trainer.tables["example"].export()
        return rows.ids.tolist(), set(rows.counts.tolist())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path)
    yield found
    EmbeddedLog.close(found.log)


def _full(operation: str, name: str) -> None:
    if operation == "write":
        raise OSError(28, "No space left on device", name)


def test_a_full_disk_is_said_once_and_nothing_is_lost(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def each(minute: int) -> None:
        world.files.before = _full if 3 <= minute <= 6 else lambda operation, name: None

    with caplog.at_level(logging.WARNING):
        assert world.run(world.start(), 9, each)
    said = [record.getMessage() for record in caplog.records if record.name == "minutely.train"]
    assert len(said) == 2, said
    assert "publication: OSError: [Errno 28] No space left on device" in said[0]
    assert said[1] == "publication: back after 4 tries"
    assert world.status.refused == 4
    assert world.trained() == (list(range(27)), {1})


def test_a_disk_that_is_full_to_the_end_is_an_error_and_the_next_trainer_trains_it_again(world: World) -> None:
    with pytest.raises(OSError, match="No space left"):
        world.run(world.start(), 5, lambda minute: setattr(world.files, "before", _full) if minute == 4 else None)
    world.files.before = lambda operation, name: None
    assert manifests.versions(world.files, base=False)[-1] == 3
    world.run(world.start(), 1)
    assert world.trained() == (list(range(18)), {1})


def test_a_weight_that_is_no_number_ends_the_trainer_until_it_is_told_to_resume(world: World) -> None:
    trainer = world.start()

    def spoil(minute: int) -> None:
        if minute == 3:
            trainer.online.trainer.weights.vector[0] = float("nan")

    with pytest.raises(GuardedError, match=r"dense weights that are no finite numbers.*; version 2 stays"):
        world.run(trainer, 5, spoil)
    with pytest.raises(GuardedError, match="held after version 2"):
        world.start()
    assert world.run(world.start(resume=True), 2)
    assert world.trained() == (list(range(3 * world.minute)), {1})


def test_a_weight_that_is_no_number_is_told_where_the_disk_is_full_too(world: World) -> None:
    trainer = world.start()

    def spoil(minute: int) -> None:
        if minute == 3:
            trainer.online.trainer.tables["example"].upsert(*_not_a_number(trainer))
        world.files.before = _full if minute == 3 else lambda operation, name: None

    with pytest.raises(GuardedError, match=r"table example: .* holds nan"):
        world.run(trainer, 5, spoil)


def _not_a_number(trainer: TrainService):  # type: ignore[no-untyped-def]
    rows = trainer.online.trainer.tables["example"].export()
    return rows.ids[:1], rows.embeddings[:1] * float("nan")


def test_a_damaged_file_ends_it_and_is_named_and_the_next_one_goes_on(world: World) -> None:
    def damage(name: str, data: bytes) -> bytes:
        return data[:-1] if name.startswith("base-") and name.endswith("rows.arrow") else data

    with pytest.raises(BadFile, match=r"base-.*rows.arrow: \d+ bytes with another checksum"):
        world.run(world.start(), 40, lambda minute: setattr(world.files, "damage", damage) if minute == 4 else None)
    world.files.damage = lambda name, data: data
    world.run(world.start(), 2)
    assert world.trained() == (list(range(3 * world.minute)), {1})


def test_another_programs_version_is_an_error_that_names_it(world: World) -> None:
    world.run(world.start(), 2)
    world.files.damage = lambda name, data: (
        manifests.encode_checked({"format": 9}) if name == "manifest-000000000002.json" else data
    )
    with pytest.raises(BadFile, match=r"manifest-000000000002.json: format 9, this program reads"):
        world.start()


@pytest.mark.parametrize("training", [True, False])
def test_a_rollback_beside_a_trainer_at_work(world: World, training: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The trainer learns of it at its next publication, and begins again where it says; replicas follow, byte for byte."""
    replica, old = make_replica(world.files), make_replica(world.files)  # type: ignore[arg-type]
    went_back_to: list[int] = []

    def go_back(minute: int) -> None:
        if minute == 6:
            went_back_to.append(trainer.online.deltas.trainable()[-1] if training else 4)
            old._follower.load(went_back_to[0])
            roll_back(Console(quiet=True), world.place, went_back_to[0], training=training)

    trainer = world.start()
    with caplog.at_level(logging.INFO):
        assert not world.run(trainer, 8, go_back), "it is to begin again"
    assert f"goes back to version {went_back_to[0]}: restarting from there" in caplog.text
    replica.pull()
    assert replica.sparse_version == 6
    for name, table in replica.tables.items():
        assert table.export().embeddings.tobytes() == old.tables[name].export().embeddings.tobytes()
        assert table.export().ids.tobytes() == old.tables[name].export().ids.tobytes()
    assert world.run(world.start(), 2)
    replica.pull()
    assert replica.sparse_version == (8 if training else 6), "held until it is released"
    assert world.trained() == (list(range(3 * world.minute)), {1})


def test_a_second_trainer_ends_the_first_one(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """In an object store, where no lock keeps people from it."""
    trainer = world.start()

    def another(minute: int) -> None:
        if minute == 3:
            other = world.start()
            other.online.step()
            world.log.append(EXAMPLES, 0, records(1, 2))
            other.online.step()
            other.online.publish()
            other.close()

    with caplog.at_level(logging.INFO):
        assert world.run(trainer, 5, another)
    assert "version 3 is by another trainer, which took over; exiting" in caplog.text


def test_folding_runs_beside_and_is_waited_for(world: World) -> None:
    trainer = world.start()
    world.run(trainer, 9)
    assert manifests.versions(world.files, base=True)[-1] >= 6
    assert trainer._folder._shutdown
    assert not trainer.online.deltas._folding


def test_resume_and_status_3_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(PIPELINE.model_dump(mode="json", exclude_defaults=True)))
    told: list[tuple[bool, dict[int, list[range]]]] = []

    def guarded(*_: object, resume: bool, pass_over: dict[int, list[range]]) -> None:
        told.append((resume, pass_over))
        raise GuardedError("a weight is no number; version 2 stays")

    monkeypatch.setattr(service, "train", guarded)
    for options in ("", "--resume", "--resume --pass-over 0:3-5 --pass-over 1:2 --pass-over 0:9"):
        monkeypatch.setattr(sys, "argv", ["minutely", "train", str(config), *options.split()])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 3
        assert "not published a weight is no number; version 2 stays" in capsys.readouterr().err
    left = {0: [range(3, 6), range(9, 10)], 1: [range(2, 3)]}
    assert told == [(False, {}), (True, {}), (True, left)]


def test_letters_are_sent_before_a_trainer_ends_at_what_nobody_can_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever passes over these records makes no letters of them."""
    told: list[DeadLetter] = []

    def tell(self: RefusedExamples, letters: Sequence[DeadLetter]) -> bool:
        told.extend(letters)
        return True

    monkeypatch.setattr(RefusedExamples, "tell", tell)
    trainer = world.start()
    world.log.append(EXAMPLES, 0, [b"?"] * (IN_A_ROW + 1))
    with pytest.raises(GuardedError, match="the config of the joiners"):
        world.run(trainer, 3)
    assert [letter.offset for letter in told] == list(range(IN_A_ROW))
