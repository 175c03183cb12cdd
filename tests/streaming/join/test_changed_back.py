"""A config that changes and changes back while requests are pending, and others that change more than once."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.join.commit import Committed
from streaming.join.sent import Sent
from streaming.join.settings import JoinSettings
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from streaming.loop.brokers import OutputRecord
from streaming.records.events import FORMAT_VERSION, MAX_TIME_MS, Engagement, Request, decode_request, encode
from streaming.records.labels import Label
from tests.streaming.join.changing import (
    BEFORE,
    END,
    ENDED,
    FEATURES,
    LABELS,
    LOGARITHM,
    REFUSED,
    START,
    TAKEN_OVER,
    Pipeline,
    both_of,
    done,
    request,
)

WITHOUT_BUY = {
    "removed": TAKEN_OVER["a label removed"],
    "renamed": (FEATURES, {**LABELS, "buy": Label(action="purchase", window="2s")}),
}


@pytest.mark.parametrize("lost", ["kept", "lost between", "lost again"])
@pytest.mark.parametrize("taken", ["before", "between"])
@pytest.mark.parametrize("between", WITHOUT_BUY.values(), ids=WITHOUT_BUY)
def test_a_label_that_was_away_decides_nothing_of_that_time(
    between: tuple[dict[str, Feature], dict[str, Label]], taken: str, lost: str, tmp_path: Path
) -> None:
    """What happened meanwhile was passed over: the label of what was pending then is unknown, not 0."""
    pipeline = Pipeline(tmp_path)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(2, START, FEATURES))
    if taken == "before":
        pipeline.take(join, ENGAGEMENTS, done(2, "buy", START + 100))
    join.step(ENDED, START + 150, 0)
    _lose(pipeline, lost == "lost between")
    join = pipeline.start(between)
    if taken == "between":
        pipeline.take(join, ENGAGEMENTS, done(2, "buy", START + 200))
    pipeline.take(join, IMPRESSIONS, request(4, START + 200, FEATURES))
    join.step(ENDED, START + 300, 0)
    _lose(pipeline, lost == "lost again")
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(6, START + 400, FEATURES))
    pipeline.take(join, ENGAGEMENTS, done(6, "buy", START + 500))
    for at in (START + 500, END, END + 1000):
        join.step(ENDED, at, 0)
    pipeline.stop()
    assert pipeline.letters() == [("schema", "impressions")] * 2
    examples = pipeline.examples(BEFORE)
    assert examples.keys() == both_of(6) and examples["r6/6.0"]["label.buy"] == 1


@pytest.mark.parametrize(
    "between", [REFUSED["another size"][:2], REFUSED["another transform"][:2], TAKEN_OVER["a number removed"]]
)
def test_what_could_not_be_read_again_is_not_taken_for_missing(between: Any, tmp_path: Path) -> None:
    """A JSON request is packed anew where the state is lost; under another config not all of it can be."""
    pipeline = Pipeline(tmp_path)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(1, START, FEATURES), request(2, START, FEATURES))  # JSON, msgpack
    join.step(ENDED, START + 150, 0)
    _lose(pipeline, True)
    join = pipeline.start(between)
    join.step(ENDED, START + 300, 0)
    join = pipeline.start(BEFORE)
    for at in (START + 400, END, END + 1000):
        join.step(ENDED, at, 0)
    pipeline.stop()
    examples = pipeline.examples(BEFORE)
    assert examples.keys() == both_of(2)
    assert {(row["feature.price"], *row["feature.embedding"]) for row in examples.values()} == {(1.0, 1.0, 1.0)}
    (letter,) = pipeline.dead_letters()
    assert letter.reason == "schema" and "could not be read again" in letter.detail


TAP = {**LABELS, "tap": Label(action="tap", window="1s")}
TOUCH = {**LABELS, "tap": Label(action="touch", window="1s")}
ROOT: dict[str, Feature] = {**FEATURES, "price": DenseFeature(kind="dense", column="p", transform="sqrt")}
TWICE = {
    "label tap differs": ((FEATURES, TAP), (FEATURES, TOUCH)),
    "feature price differs": (({**FEATURES, "price": LOGARITHM}, LABELS), (ROOT, LABELS)),
}


@pytest.mark.parametrize("lost", ["kept", "lost"])
@pytest.mark.parametrize("lateness", ["300ms", "10s"])
@pytest.mark.parametrize("what", TWICE)
def test_a_schema_is_known_though_nothing_was_emitted_under_it(
    what: str, lateness: str, lost: str, tmp_path: Path
) -> None:
    """With a greater lateness the watermark stands still for a while, so there was nothing to publish."""
    first, second = TWICE[what]
    pipeline = Pipeline(tmp_path)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(4, START - 9000, FEATURES))
    join.step(ENDED, START, 0)
    settings = JoinSettings(lateness=lateness, max_rows=16)
    pipeline.world.spec = pipeline.world.spec._replace(settings=settings)
    join = pipeline.start(first)
    features = first[0]
    pipeline.take(join, IMPRESSIONS, request(1, START + 100, features), request(2, START + 100, features))
    join.step(ENDED, START + 500, 0)
    _lose(pipeline, lost == "lost")
    join = pipeline.start(second)
    for at in (START + 600, END, END + 1000):
        join.step(ENDED, at, 0)
    pipeline.stop()
    letters = pipeline.dead_letters()
    assert [(letter.reason, letter.detail.rpartition(": ")[2]) for letter in letters] == [("schema", what)] * 2
    assert pipeline.names() == both_of(4)


def test_what_is_joined_gets_no_letter_however_many_configs_there_were(tmp_path: Path) -> None:
    """More than a commit names: what early requests were taken under is unknown, and their JSON may not fit features of now."""
    pipeline = Pipeline(tmp_path)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(1, START, FEATURES), request(3, START, FEATURES))  # both JSON
    for action in ("like", "buy"):
        pipeline.take(join, ENGAGEMENTS, *(_acted("r1", f"1.{place}", action, START + 10) for place in (0, 1)))
    join.step(ENDED, START + 400, 0)
    assert pipeline.names() == both_of(1)
    configs = [TAKEN_OVER["a number added"], BEFORE]
    for change in range(9):
        join = pipeline.start(configs[change % 2])
        pipeline.take(join, IMPRESSIONS, request(100 + 2 * change, START + 500, configs[change % 2][0]))
        join.step(ENDED, START + 600 + 10 * change, 0)
    _lose(pipeline, True)
    join = pipeline.start(REFUSED["another size"][:2])
    for at in (START + 900, END, END + 1000):
        join.step(ENDED, at, 0)
    pipeline.stop()
    about = {decode_request(letter.payload, MAX_TIME_MS).request_id for letter in pipeline.dead_letters()}
    assert about == {"r3", *(f"r{100 + 2 * change}" for change in range(9))}
    assert pipeline.names() == both_of(1)


@pytest.mark.parametrize("moves", [1, 7, 9, 12, 30])
def test_a_partition_that_moves_between_two_configs(moves: int, tmp_path: Path) -> None:
    """As in a rolling restart in which the new joiner crashes again and again; each has a folder of its own."""
    pipeline = Pipeline(tmp_path)
    other = FEATURES, {**LABELS, "like": Label(action="love", window="2s")}
    more = TAKEN_OVER["a number added"]
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(2, START, FEATURES), request(3, START, FEATURES))
    pipeline.take(join, ENGAGEMENTS, done(2, "like", START + 10))
    join.step(ENDED, START + 50, 0)
    for move in range(moves):
        _lose(pipeline, True)
        join = pipeline.start([more, BEFORE][move % 2])
        join.step(ENDED, START + 100 + 10 * move, 0)
    join = pipeline.start(other if moves == 9 else BEFORE)
    for at in (START + 5000, START + 6000):
        join.step(ENDED, at, 0)
    pipeline.stop()
    if moves == 9:
        assert pipeline.letters() == [("schema", "impressions")] * 2 and not pipeline.names()
    else:
        assert pipeline.letters() == [] and pipeline.names() == both_of(2, 3)
        assert pipeline.examples(BEFORE)["r2/2.0"]["label.like"] == 1


def test_what_was_taken_under_more_configs_than_a_commit_names_is_not_guessed(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    for change in range(14):
        config = {**FEATURES, f"extra{change}": DenseFeature(kind="dense", column="x")}, LABELS
        join = pipeline.start(config)
        pipeline.take(join, IMPRESSIONS, request(2 * change, START + change, {**FEATURES}, schema="another"))
        join.step(ENDED, START + 50 + change, 0)
    _lose(pipeline, True)
    join = pipeline.start(BEFORE)
    for at in (END, END + 1000):
        join.step(ENDED, at, 0)
    pipeline.stop()
    assert pipeline.names() == both_of(*range(16, 28, 2))
    assert {(each.reason, each.detail.rpartition(": ")[2]) for each in pipeline.dead_letters()} == {
        ("schema", "too many configs since")
    }


def test_another_request_does_not_take_the_place_of_a_dead_letter(tmp_path: Path) -> None:
    """Only the letter itself, sent again, has its time."""
    pipeline = Pipeline(tmp_path)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(2, START, FEATURES))
    pipeline.take(join, ENGAGEMENTS, done(2, "like", START + 10))
    join.step(ENDED, START + 100, 0)
    join = pipeline.start(REFUSED["another size"][:2])
    pipeline.take(join, ENGAGEMENTS, done(2, "buy", START + 150))
    join.step(ENDED, START + 200, 0)
    letter = next(each for each in pipeline.dead_letters() if each.topic == IMPRESSIONS)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(2, START + 700, FEATURES), letter.payload)
    for at in (START + 800, END, END + 1000):
        join.step(ENDED, at, 0)
    pipeline.stop()
    assert pipeline.letters(after=2) == [("request_id used again", "impressions")]
    assert {row["served_at"] for row in pipeline.examples(BEFORE).values()} == {START}


@pytest.mark.parametrize("number", [2, 3], ids=["msgpack", "JSON"])
def test_a_request_that_its_product_sends_twice_stays_a_dead_letter(number: int, tmp_path: Path) -> None:
    """Only letters name a schema, by which a config knows whether it can take them."""
    pipeline = Pipeline(tmp_path)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(number, START, FEATURES))
    pipeline.take(join, ENGAGEMENTS, done(number, "tap", START + 50))
    join.step(ENDED, START + 100, 0)
    join = pipeline.start((FEATURES, TAP))
    pipeline.take(join, ENGAGEMENTS, done(number, "like", START + 150))
    join.step(ENDED, START + 200, 0)
    letters = pipeline.letters()
    pipeline.take(join, IMPRESSIONS, request(number, START, FEATURES))
    for at in (START + 300, END, END + 1000):
        join.step(ENDED, at, 0)
    pipeline.stop()
    assert sorted(letters) == [("schema", "engagements"), ("schema", "impressions")]
    assert pipeline.letters() == letters and not pipeline.names()


@pytest.mark.parametrize("count", [4, 7, 10, 20])
@pytest.mark.parametrize("lost", [False, True], ids=["kept", "lost"])
def test_a_label_that_was_away_is_remembered_however_many_features_come(lost: bool, count: int, tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(2, START, FEATURES), request(3, START, FEATURES))
    join.step(ENDED, START + 150, 0)
    join = pipeline.start(WITHOUT_BUY["removed"])
    pipeline.take(join, ENGAGEMENTS, done(2, "buy", START + 200))
    join.step(ENDED, START + 250, 0)
    for number in range(count):
        _lose(pipeline, lost and number == count - 1)
        join = pipeline.start(({**FEATURES, f"extra{number}": DenseFeature(kind="dense", column="p")}, LABELS))
        join.step(ENDED, START + 300 + number, 0)
    for at in (END, END + 1000):
        join.step(ENDED, at, 0)
    pipeline.stop()
    assert pipeline.letters() == [("schema", "impressions")] * 2 and not pipeline.names()


FEW: dict[str, Feature] = {"item": SparseFeature(column="i")}


def test_features_that_are_missing_take_memory_when_they_are_emitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vector is added while requests are pending: 50 impressions have 150 kB of it, which no record ever had."""
    pipeline = Pipeline(tmp_path)
    join = pipeline.start((FEW, LABELS))
    pipeline.take(join, IMPRESSIONS, *(_of_items(f"r{number}", 50) for number in range(20)))
    join.step(ENDED, START + 100, 0)
    spec = pipeline.world.spec
    pipeline.world.spec = spec._replace(limits=spec.limits._replace(batch_bytes=1 << 20))
    join = pipeline.start(({**FEW, "text": VectorFeature(kind="vector", column="t", size=768)}, LABELS))
    pipeline.take(join, ENGAGEMENTS, *(_acted(f"r{number}", "0", "like", START + 10) for number in range(20)))
    join.step(ENDED, START + 200, 0)
    assert pipeline.state is not None and pipeline.state._bytes < 200_000
    sizes = []
    send = join._outlet.send

    def measured(outbox: Sequence[OutputRecord], commit: Committed) -> Mapping[str, int]:
        sizes.append(sum(len(item.value) for item in outbox))
        return send(outbox, commit)

    monkeypatch.setattr(join._outlet, "send", measured)
    join.step(ENDED, END, 0)
    while join.busy:
        join.step(ENDED, END, 0)
    join.step(ENDED, END + 1000, 0)
    pipeline.stop()
    assert len(pipeline.names()) == 1000 and not pipeline.letters()
    assert sum(sizes) > 3_000_000 and max(sizes) < (1 << 20) + 200_000


@pytest.mark.parametrize("change", ["a label removed", "a shorter window"])
def test_a_config_that_recovers_and_never_commits_leaves_no_trace(change: str, tmp_path: Path) -> None:
    """It dies, or is rolled back, within its first second; its state has passed over what the last seconds brought."""
    pipeline = Pipeline(tmp_path)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(2, START, FEATURES), request(3, START, FEATURES))
    join.step(ENDED, START + 100, 0)
    join = pipeline.start(BEFORE, writes=False)
    pipeline.take(join, ENGAGEMENTS, done(2, "buy", START + 200), done(3, "buy", START + 200))
    join.step(ENDED, START + 250, 0)
    shorter = FEATURES, {**LABELS, "buy": Label(action="buy", window="100ms")}
    pipeline.start(WITHOUT_BUY["removed"] if change == "a label removed" else shorter)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(2, START, FEATURES))
    for at in (START + 300, END, END + 1000):
        join.step(ENDED, at, 0)
    pipeline.stop()
    examples = pipeline.examples(BEFORE)
    assert examples.keys() == both_of(2, 3) and not pipeline.letters()
    assert {name for name, row in examples.items() if row["label.buy"]} == {"r2/2.0", "r3/3.0"}


def test_another_record_with_the_id_of_a_request_stays_refused(tmp_path: Path) -> None:
    """A letter says whether its record was taken: that of another schema never was, and must not be read again."""
    pipeline = Pipeline(tmp_path)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(2, START, FEATURES))
    join.step(ENDED, START + 100, 0)
    older = tmp_path / "older"
    shutil.copytree(pipeline.folder, older)
    pipeline.start(REFUSED["another transform"][:2]).step(ENDED, START + 150, 0)
    schema = pipeline.world.spec.schema.fingerprint
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, request(2, START + 50, FEATURES, schema=schema))
    join.step(ENDED, START + 200, 0)
    letters = pipeline.letters()
    assert letters == [("schema", "impressions")]
    _lose(pipeline, True)
    shutil.copytree(older, pipeline.folder)
    join = pipeline.start(TAKEN_OVER["a number added"])
    for at in (START + 300, END, END + 1000):
        join.step(ENDED, at, 0)
    pipeline.stop()
    assert pipeline.names() == both_of(2) and pipeline.letters() == letters


def test_a_rebuild_looks_once_for_what_was_emitted_of_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each engagement would take 19 ms each where a request has 10,000 impressions."""
    pipeline = Pipeline(tmp_path)
    join = pipeline.start((FEW, LABELS))
    pipeline.take(join, IMPRESSIONS, _of_items("old", 1, START - 5000), _of_items("r", 1000))
    pipeline.take(join, ENGAGEMENTS, *(_acted("r", str(number), "like", START + 10) for number in range(1000)))
    join.step(ENDED, START + 20, 0)
    _lose(pipeline, True)
    looked_up = 0
    emitted = Sent.emitted

    def counted(self: Sent, request_id: str, served_at: int, impression_ids: Sequence[str]) -> bytearray:
        nonlocal looked_up
        looked_up += len(impression_ids)
        return emitted(self, request_id, served_at, impression_ids)

    monkeypatch.setattr(Sent, "emitted", counted)
    join = pipeline.start((FEW, LABELS))
    for at in (END, END + 1000):
        join.step(ENDED, at, 0)
    pipeline.stop()
    assert len(pipeline.names()) == 1001
    assert looked_up == 1001


def _lose(pipeline: Pipeline, lost: bool) -> None:
    pipeline.stop()
    if lost:
        shutil.rmtree(pipeline.folder)


def _of_items(request_id: str, count: int, served_at: int = START) -> bytes:
    ids = [str(number) for number in range(count)]
    features: Mapping[str, Any] = {"item": np.arange(count).tobytes()}
    return encode(
        Request(
            version=FORMAT_VERSION, request_id=request_id, served_at=served_at, impression_ids=ids, features=features
        )
    )


def _acted(request_id: str, impression_id: str, action: str, at: int) -> bytes:
    return encode(
        Engagement(
            version=FORMAT_VERSION, request_id=request_id, impression_id=impression_id, action=action, happened_at=at
        )
    )
