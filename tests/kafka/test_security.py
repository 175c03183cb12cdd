"""TLS and SASL, by a broker that asks for both."""

from __future__ import annotations

import logging
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from basis.problems import Problems
from minutely.client import Client, Lost
from minutely.services.again import send_again
from minutely.services.join import make_join_service
from stack.kafka import BrokerUnavailable, running
from streaming.clock import WallClock
from streaming.kafka.log import KafkaLog
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, BrokerError
from streaming.records.events import MAX_TIME_MS, DeadLetter, decode_engagement, encode
from streaming.records.examples import ExampleFormat
from tests.commands import ROOT, missing
from tests.kafka.services import joiner, started, write_config
from tests.kafka.test_join import MINUTE, joined_through, now_ms, run_until
from tests.kafka.traffic import (
    check_examples,
    make_pipeline,
    make_traffic,
    producer_of,
    read_examples,
    read_messages,
    send,
)

PASSWORD = "correct horse"
WRONG = "battery staple"
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required"


def certificate(folder: Path) -> Path:
    """A certificate for the loopback address that vouches for itself, and beside it the broker's key store."""
    key, path = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
    (folder / "store.pem").write_text(key.read_text() + path.read_text())
    return path


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A broker that wants both, and the certificate of its authority."""
    folder = tmp_path_factory.mktemp("guarded")
    ca = certificate(folder)
    users = f'user_admin="{PASSWORD}" user_minutely="{PASSWORD}"'
    extra = {
        "listener.security.protocol.map": "CLIENT:SASL_SSL,CONTROLLER:PLAINTEXT",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "store.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(ca),
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.client.plain.sasl.jaas.config": f'{_PLAIN} username="admin" password="{PASSWORD}" {users};',
        "listener.name.client.scram-sha-512.sasl.jaas.config": f"{_SCRAM};",
    }
    scram = ["--add-scram", f"SCRAM-SHA-512=[name=minutely,password={PASSWORD}]"]
    try:
        with running(folder / "cluster", extra=extra, options=scram) as cluster:
            yield cluster.bootstrap, ca
    except BrokerUnavailable as error:
        missing(str(error))


def settings(guarded: tuple[str, Path], mechanism: str, **sasl: str) -> KafkaSettings:
    bootstrap, ca = guarded
    return KafkaSettings.model_validate(
        {
            "bootstrap": bootstrap,
            "prefix": f"{mechanism.lower()}.",
            "partitions": 1,
            "tls": {"ca": str(ca)},
            "sasl": {"mechanism": mechanism, "username": "minutely", **sasl},
        }
    )


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_traffic_is_joined_over_tls_with_a_password(
    mechanism: str, guarded: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_PASSWORD", PASSWORD)
    kafka = settings(guarded, mechanism, password_env="THE_PASSWORD")
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    start = now_ms() - 10 * MINUTE
    traffic = make_traffic(6, 200, 2, start, 100)
    with producer_of(kafka) as producer:
        send(producer, kafka, traffic.events)
    run_until(make_join_service(pipeline, tmp_path, WallClock()), joined_through(start + MINUTE, 1))
    check_examples(read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels)), traffic.labels)


def test_a_wrong_password_is_said_once_and_not_shown(guarded: tuple[str, Path], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(WRONG + "\n")
    kafka = settings(guarded, "SCRAM-SHA-512", password_file=str(secret))
    config = write_config(make_pipeline(kafka), tmp_path)
    service = joiner(config, tmp_path, "a")
    with started(service):
        until = time.monotonic() + 100
        while not ("retrying" in service.output and "invalid credentials" in service.output):
            assert time.monotonic() < until, service.output
            time.sleep(0.2)
        assert service.runs, service.output
        assert service.output.count("invalid credentials") == 1, service.output
    assert WRONG not in service.output
    assert WRONG not in config.read_text()


def client_of(kafka: KafkaSettings, lost: list[Lost], **more: float) -> Client:
    """The products' client, which takes the settings as a product writes them."""
    assert kafka.tls is not None and kafka.sasl is not None
    tls, sasl = kafka.tls.model_dump(exclude_none=True), kafka.sasl.model_dump(exclude_none=True)
    return Client(bootstrap=kafka.bootstrap, prefix=kafka.prefix, tls=tls, sasl=sasl, on_lost=lost.append, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_product_sends_over_tls_with_a_password(
    mechanism: str, guarded: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_PASSWORD", PASSWORD)
    kafka = settings(guarded, mechanism, password_env="THE_PASSWORD")
    kafka = kafka.model_copy(update={"prefix": f"product.{kafka.prefix}"})
    ensure_topics(kafka)
    lost: list[Lost] = []
    with client_of(kafka, lost) as client:
        client.engaged("r1", "i1", "click")
        assert client.flush(20) == 0
    assert lost == []
    ((message,),) = read_messages(kafka, ENGAGEMENTS).values()
    assert decode_engagement(message.value() or b"", MAX_TIME_MS).request_id == "r1"


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_product_is_told_of_a_wrong_password_and_does_not_show_it(
    mechanism: str,
    guarded: tuple[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("kafka"), "propagate", True)  # `produce` may have run before
    secret = tmp_path / "secret"
    secret.write_text(WRONG + "\n")
    client = client_of(settings(guarded, mechanism, password_file=str(secret)), [], wait_seconds=3)
    began = time.monotonic()
    with caplog.at_level("DEBUG"), caplog.at_level("DEBUG", "kafka"), pytest.raises(BrokerError) as error:
        client.engaged("r1", "i1", "click")
    assert re.search("SaslAuthenticationFailedError|user name or password are wrong", str(error.value))
    assert time.monotonic() - began < 8
    assert "DEBUG    kafka." in caplog.text, "it is listened to"
    assert WRONG not in caplog.text + str(error.value)


def test_the_documented_rights_are_needed_and_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that to describe settings, which administrators forget, the error names it and the topic."""
    monkeypatch.setenv("THE_PASSWORD", PASSWORD)
    users = f'user_admin="{PASSWORD}" user_minutely="{PASSWORD}"'
    extra = {
        "listener.security.protocol.map": "CLIENT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.client.plain.sasl.jaas.config": f'{_PLAIN} username="admin" password="{PASSWORD}" {users};',
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:admin;User:ANONYMOUS",
    }
    sasl = {"mechanism": "PLAIN", "username": "minutely", "password_env": "THE_PASSWORD"}
    rights = documented_rights()
    assert {kind for kind, *_ in rights} == {ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID}
    try:
        with running(tmp_path / "cluster", extra=extra) as cluster:
            settings = {"bootstrap": cluster.bootstrap, "prefix": "shop.", "partitions": 1, "sasl": sasl}
            kafka = KafkaSettings.model_validate(settings)
            admin = KafkaSettings.model_validate(settings | {"sasl": {**sasl, "username": "admin"}})
            allow(admin, [right for right in rights if right[2] is not AclOperation.DESCRIBE_CONFIGS])
            refused = r"^TOPIC_AUTHORIZATION_FAILED: DescribeConfigs of topic shop\.impressions: "
            with pytest.raises(BrokerError, match=refused):
                ensure_topics(kafka)
            allow(admin, rights)
            ensure_topics(kafka)
            pipeline, start = make_pipeline(kafka), now_ms() - 10 * MINUTE
            traffic = make_traffic(6, 200, 2, start, 100)
            letter = DeadLetter(topic=IMPRESSIONS, partition=0, offset=0, reason="future", detail="", payload=b"r")
            with producer_of(kafka) as producer:
                send(producer, kafka, traffic.events)
                producer.send(kafka.topic(DEAD_LETTERS), encode(letter), partition=0)
            run_until(make_join_service(pipeline, tmp_path / "state", WallClock()), joined_through(start + MINUTE, 1))
            check_examples(read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels)), traffic.labels)
            assert send_again(pipeline, "future").sent == {"future": 1}
            log = KafkaLog(kafka, EXAMPLES)  # as trainers and archivers read
            with closing(log):
                assert log.read(EXAMPLES, 0, log.begin(EXAMPLES, 0), 1) == []
                log.fill(20_000)
                assert len(log.read(EXAMPLES, 0, log.begin(EXAMPLES, 0), 1)) == 1
    except BrokerUnavailable as error:
        missing(str(error))


def documented_rights() -> list[tuple[ResourceType, str, AclOperation]]:
    """The table of ACLs in docs/kafka.md: kind of resource, name or its beginning, operation."""
    page = (ROOT / "docs/kafka.md").read_text()
    rows = page.split("| resource | names | operations |\n")[1].split("\n\n")[0].splitlines()[1:]
    found = []
    for row in rows:
        _, kind, names, operations, _ = row.split("|")
        for operation in re.sub(r"\(.*?\)", "", operations).split(","):
            wanted = AclOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation.strip()).upper()]
            resource = ResourceType[kind.strip().upper().replace(" ", "_")]
            found += [(resource, name, wanted) for name in re.findall(r"`(.*?)`", names)]
    return found


def allow(kafka: KafkaSettings, rights: list[tuple[ResourceType, str, AclOperation]]) -> None:
    """Give rights to the user of the services, as an administrator."""
    made = [
        AclBinding(
            resource,
            kafka.topic(name),
            ResourcePatternType.PREFIXED if name.endswith("-") else ResourcePatternType.LITERAL,
            "User:minutely",
            "*",
            operation,
            AclPermissionType.ALLOW,
        )
        for resource, name, operation in rights
    ]
    with AdminClient(kafka.client()) as admin:
        for done in admin.create_acls(made).values():
            done.result()


def test_secrets_that_are_not_there_are_said_without_a_broker(tmp_path: Path) -> None:
    where = ("127.0.0.1:1", tmp_path)
    with pytest.raises(Problems, match="NO_SUCH_VARIABLE; the variable is not set") as error:
        settings(where, "PLAIN", password_env="NO_SUCH_VARIABLE").model_copy(update={"tls": None}).client()
    with pytest.raises(Problems, match="No such file"):
        settings(where, "PLAIN", password_file=str(tmp_path / "none")).model_copy(update={"tls": None}).client()
    with pytest.raises(Problems, match="allowed: PEM files"):
        settings(("127.0.0.1:1", tmp_path / "none.pem"), "PLAIN", password_env="PATH").client()
    with pytest.raises(ValueError, match="exactly one of password_env"):
        settings(where, "PLAIN")
    assert "NO_SUCH_VARIABLE" in str(error.value)
