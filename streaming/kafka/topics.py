"""The pipeline's topics: made where they are missing, checked where they are there."""

from __future__ import annotations

from typing import Any, NamedTuple

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from basis.problems import Problem, Problems
from basis.settings import format_duration
from streaming.events import MAX_RECORD_BYTES
from streaming.kafka.settings import MAX_OUTPUT_BYTES, KafkaSettings
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS

_RECORD_OVERHEAD_BYTES = 1024
_LARGEST = {
    IMPRESSIONS: MAX_RECORD_BYTES + _RECORD_OVERHEAD_BYTES,
    ENGAGEMENTS: MAX_RECORD_BYTES + _RECORD_OVERHEAD_BYTES,
    EXAMPLES: MAX_OUTPUT_BYTES,
    DEAD_LETTERS: MAX_OUTPUT_BYTES,
}


class _Setting(NamedTuple):
    """One setting of a topic, as the brokers spell it; a larger value than ``at_least`` is as good."""

    name: str
    value: str
    at_least: bool = False


def ensure_topics(settings: KafkaSettings) -> None:
    """Make the topics that are missing; `Problems` with everything that is not as configured, and how to mend it."""
    admin = KafkaAdminClient(**settings.python_client())
    try:
        there = set(admin.list_topics())
        missing = [name for name in _LARGEST if settings.topic(name) not in there]
        for name in missing:
            _create(admin, settings, name)
        admin.wait_for_topics([settings.topic(name) for name in _LARGEST])
        problems = _mismatches(admin, settings)
    finally:
        admin.close()
    if problems:
        raise Problems(problems)


def _settings_of(settings: KafkaSettings, name: str) -> list[_Setting]:
    return [
        _Setting("max.message.bytes", str(_LARGEST[name]), at_least=True),
        _Setting("retention.ms", str(settings.retention)),
        _Setting("cleanup.policy", "delete"),
        # Event time is in the payload: a broker refuses future timestamps, and deletes by old ones.
        _Setting("message.timestamp.type", "LogAppendTime"),
    ]


def _create(admin: Any, settings: KafkaSettings, name: str) -> None:
    wanted = {item.name: item.value for item in _settings_of(settings, name)}
    topic = NewTopic(settings.topic(name), settings.partitions, settings.replication, topic_configs=wanted)
    try:
        admin.create_topics([topic])
    except TopicAlreadyExistsError:  # another service was faster; what it made is checked like any other
        pass
    except KafkaError as error:
        allowed = f"{error}; allowed: kafka.replication up to the number of brokers, and the right to create topics"
        raise Problems([Problem("kafka", f"topic {topic.name}", "not created", allowed)]) from None


def _mismatches(admin: Any, settings: KafkaSettings) -> list[Problem]:
    names = {settings.topic(name): name for name in _LARGEST}
    found = []
    for described in admin.describe_topics(list(names)):
        topic, partitions = described["name"], described["partitions"]
        place = f"topic {topic}"
        if len(partitions) != settings.partitions:
            fix = (
                f"allowed: {settings.partitions}. Set kafka.partitions to {len(partitions)}, or use another kafka.prefix: "
                "partitions of a topic that holds records cannot change, since requests would part from their engagements"
            )
            found.append(Problem("kafka", place, f"{len(partitions)} partitions", fix))
        copies = min((len(partition["replica_nodes"]) for partition in partitions), default=0)
        if copies < settings.replication:
            fix = f"allowed: {settings.replication} or more. Use kafka-reassign-partitions, or lower kafka.replication"
            found.append(Problem("kafka", place, f"{copies} replicas", fix))
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in names]
    by_topic = _configs(admin.describe_configs(resources, config_filter="all"))
    for topic, name in names.items():
        for item in _settings_of(settings, name):
            value = by_topic[topic].get(item.name, "")
            if value == item.value or (item.at_least and int(value or 0) >= int(item.value)):
                continue
            fix = f"allowed: {item.value}{' or more' if item.at_least else ''}. Run: kafka-configs --alter --topic {topic} "
            fix += f"--add-config {item.name}={item.value}"
            if item.name == "retention.ms" and value.isdigit():
                fix += f", or set kafka.retention to {format_duration(int(value))}"
            found.append(Problem("kafka", f"topic {topic}", f"{item.name}={value}", fix))
    return found


def _configs(described: Any) -> dict[str, dict[str, str]]:
    """Topic to settings."""
    return {
        topic: {key: str(item["value"]) for key, item in values.items()} for topic, values in described["topic"].items()
    }
