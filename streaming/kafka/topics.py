"""The pipeline's topics: created if missing, checked if present."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple, TypeAlias

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ClusterMetadata, ConfigEntry, ConfigResource, NewTopic

from basis.problems import Problem, Problems
from basis.settings import format_duration
from streaming.kafka.client import BLOCK_SECONDS, POLL_SECONDS, as_broker_error
from streaming.kafka.settings import MAX_OUTPUT_BYTES, KafkaSettings
from streaming.log import (
    DEAD_LETTERS,
    ENGAGEMENTS,
    EXAMPLES,
    FEATURES,
    IMPRESSIONS,
    INPUTS,
    INTERACTIONS,
    OUTPUTS,
    TOPICS,
)
from streaming.records.events import MAX_RECORD_BYTES

_log = logging.getLogger("minutely.kafka")
_RECORD_OVERHEAD_BYTES = 1024
_ASK_SECONDS = 10
_LARGEST = {
    IMPRESSIONS: MAX_RECORD_BYTES + _RECORD_OVERHEAD_BYTES,
    ENGAGEMENTS: MAX_RECORD_BYTES + _RECORD_OVERHEAD_BYTES,
    EXAMPLES: MAX_OUTPUT_BYTES,
    DEAD_LETTERS: MAX_OUTPUT_BYTES,
    INTERACTIONS: MAX_OUTPUT_BYTES,
    FEATURES: MAX_OUTPUT_BYTES,
}
_RETENTION = "retention.ms"
_FOREVER = "-1"
_PASSING = (KafkaError.REQUEST_TIMED_OUT, KafkaError.NOT_CONTROLLER)


class _Setting(NamedTuple):
    """One setting of a topic, as the brokers spell it. With ``at_least``, a larger value is as good."""

    name: str
    value: str
    at_least: bool = False


_Wanted: TypeAlias = Mapping[str, Sequence[_Setting]]
"""The settings of each topic, by the pipeline's own name."""


@as_broker_error
def ensure_topics(settings: KafkaSettings, live_ms: int | None = None) -> None:
    """Create missing topics; `Problems` with everything that is not as configured, and how to fix it. With live features, whose
    keys are kept for up to ``live_ms`` since something happened at them, also their topics."""
    with AdminClient(settings.client()) as admin:
        try:
            problems = _ensure(admin, settings, _wanted(settings, live_ms))
        except KafkaException:
            admin.poll(0)  # runs the client's callback, which logs why brokers refuse us
            raise
    if problems:
        raise Problems(problems)


def _ensure(admin: AdminClient, settings: KafkaSettings, wanted: _Wanted) -> list[Problem]:
    names = [settings.topic(name) for name in wanted]
    there = admin.list_topics(timeout=_ASK_SECONDS).topics
    for name, items in wanted.items():
        if settings.topic(name) not in there:
            _create(admin, settings, name, items)
    until = time.monotonic() + BLOCK_SECONDS
    while True:
        cluster = admin.list_topics(timeout=_ASK_SECONDS)
        configs = _configs(admin, names) if _led(cluster, names) else None
        if configs is not None:
            if not (problems := _mismatches(cluster, configs, settings, wanted)):
                _tell_of_longer_retention(configs, settings)
            return problems
        if time.monotonic() > until:
            what = f"no leaders of all partitions of {', '.join(names)} after {BLOCK_SECONDS} s"
            raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE, what))
        time.sleep(POLL_SECONDS)


def _led(cluster: ClusterMetadata, names: list[str]) -> bool:
    """Whether brokers know the topics and a leader of each partition."""
    found = [cluster.topics.get(name) for name in names]
    return all(
        topic is not None
        and topic.error is None
        and topic.partitions
        and all(partition.leader >= 0 for partition in topic.partitions.values())
        for topic in found
    )


def _configs(admin: AdminClient, names: list[str]) -> dict[str, dict[str, ConfigEntry]] | None:
    """Return the settings of each topic; None if the broker that answered does not know one of them yet."""
    resources = {name: ConfigResource(ConfigResource.Type.TOPIC, name) for name in names}
    described = admin.describe_configs(list(resources.values()), request_timeout=BLOCK_SECONDS)
    found = {}
    for name, resource in resources.items():
        try:
            found[name] = described[resource].result()
        except KafkaException as error:
            cause = error.args[0]
            if cause.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return None
            asked = f"DescribeConfigs of topic {name}: {cause.str()}"
            raise KafkaException(KafkaError(cause.code(), asked)) from None
    return found


def _wanted(settings: KafkaSettings, live_ms: int | None) -> dict[str, list[_Setting]]:
    wanted = {name: _settings_of(settings, name, settings.retention, "delete") for name in TOPICS}
    if live_ms is not None:
        wanted[INTERACTIONS] = _settings_of(settings, INTERACTIONS, settings.retention, "delete")
        # Of each key the newest record is kept, and no longer than the key itself.
        wanted[FEATURES] = _settings_of(settings, FEATURES, max(live_ms, settings.retention), "compact,delete")
    return wanted


def _settings_of(settings: KafkaSettings, name: str, kept_ms: int, policy: str) -> list[_Setting]:
    return [
        _Setting("max.message.bytes", str(_LARGEST[name]), at_least=True),
        _Setting(_RETENTION, str(kept_ms), at_least=True),
        _Setting("retention.bytes", "-1"),  # a limit would delete records before their time
        _Setting("cleanup.policy", policy),
        # With 1, what only one broker has counts as written, and is lost with it; with all copies, each broker stops everything.
        _Setting("min.insync.replicas", str(max(1, settings.replication - 1)), at_least=True),
        # Event time stays in the payload: as a timestamp, brokers would refuse it if in the future, and delete early if old.
        _Setting("message.timestamp.type", "LogAppendTime"),
    ]


def _create(admin: AdminClient, settings: KafkaSettings, name: str, items: Sequence[_Setting]) -> None:
    wanted = {item.name: item.value for item in items}
    topic = NewTopic(settings.topic(name), settings.partitions, settings.replication, config=wanted)
    made = admin.create_topics([topic], operation_timeout=BLOCK_SECONDS, request_timeout=BLOCK_SECONDS)
    try:
        made[topic.topic].result()
    except KafkaException as error:
        cause = error.args[0]
        if cause.code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return  # another service was faster; its topic is checked like any other
        if cause.code() < 0 or cause.code() in _PASSING:
            raise
        allowed = (
            f"{cause.str()}; allowed: kafka.replication up to the number of brokers, and the right to create topics"
        )
        raise Problems([Problem("kafka", f"topic {topic.topic}", "not created", allowed)]) from None


def _tell_of_longer_retention(configs: Mapping[str, Mapping[str, ConfigEntry]], settings: KafkaSettings) -> None:
    kept = {name: str(configs[name][_RETENTION].value) for name in map(settings.topic, TOPICS)}
    longer = [
        f"{topic} {'forever' if value == _FOREVER else 'for ' + format_duration(int(value))}"
        for topic, value in kept.items()
        if value != str(settings.retention)
    ]
    if longer:
        _tell_once(
            f"brokers keep records longer than kafka.retention ({format_duration(settings.retention)}): {', '.join(longer)}"
        )


@cache
def _tell_once(text: str) -> None:
    """Log a text once: topics are checked whenever a service starts."""
    _log.info("%s", text)


def _mismatches(
    cluster: ClusterMetadata,
    configs: Mapping[str, Mapping[str, ConfigEntry]],
    settings: KafkaSettings,
    wanted: _Wanted,
) -> list[Problem]:
    names = {settings.topic(name): name for name in wanted}
    found = []
    for topic in names:
        partitions = cluster.topics[topic].partitions.values()
        place = f"topic {topic}"
        if len(partitions) != settings.partitions:
            fix = (
                f"allowed: {settings.partitions}. Set kafka.partitions to {len(partitions)}, or use another kafka.prefix: "
                "the number must not change while a topic holds records, or requests would part from their engagements"
            )
            found.append(Problem("kafka", place, f"{len(partitions)} partitions", fix))
        copies = min((len(partition.replicas) for partition in partitions), default=0)
        if copies < settings.replication:
            fix = f"allowed: {settings.replication} or more. Use kafka-reassign-partitions, or lower kafka.replication"
            found.append(Problem("kafka", place, f"{copies} replicas", fix))
    for topic, name in names.items():
        entries = configs[topic]
        for item in wanted[name]:
            value = str(entries[item.name].value) if item.name in entries else ""
            is_longer = item.name == _RETENTION and value == _FOREVER
            if value == item.value or is_longer or (item.at_least and int(value or 0) >= int(item.value)):
                continue
            fix = f"allowed: {item.value}{' or more' if item.at_least else ''}. Run: kafka-configs --alter --topic {topic} "
            fix += f"--add-config {item.name}={item.value}"
            if item.name == _RETENTION and value.isdigit():
                fix += f", or, if the labels' windows allow it, set kafka.retention to {format_duration(int(value))}"
            found.append(Problem("kafka", f"topic {topic}", f"{item.name}={value}", fix))
    return found or _outputs_kept_too_briefly(configs, settings)


def _outputs_kept_too_briefly(
    configs: Mapping[str, Mapping[str, ConfigEntry]], settings: KafkaSettings
) -> list[Problem]:
    """Outputs that hold nothing, while inputs do, look as if nothing had been joined: a joiner whose offsets brokers forgot would
    join it all again."""

    def kept_ms(name: str) -> float:
        value = str(configs[settings.topic(name)][_RETENTION].value)
        return math.inf if value == _FOREVER else int(value)

    longest = max(INPUTS, key=kept_ms)
    wanted = str(configs[settings.topic(longest)][_RETENTION].value)
    return [
        Problem(
            "kafka", f"topic {settings.topic(name)}", f"{_RETENTION}={configs[settings.topic(name)][_RETENTION].value}",
            f"allowed: {wanted}, as {settings.topic(longest)}, or more. Run: kafka-configs --alter --topic "
            f"{settings.topic(name)} --add-config {_RETENTION}={wanted}",
        )
        for name in OUTPUTS
        if kept_ms(name) < kept_ms(longest)
    ]  # fmt: skip
