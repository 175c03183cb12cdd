"""The ``kafka`` section: where the brokers are, how to authenticate, and how topics are set up."""

from __future__ import annotations

import logging
import os
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from basis import open_files
from basis.problems import Problem, Problems
from basis.settings import PositiveDurationMs, Section, matching
from streaming.records.events import MAX_RECORD_BYTES

if TYPE_CHECKING:  # products import this module, and need no librdkafka
    from confluent_kafka import KafkaError

BOOTSTRAP = "KAFKA_BOOTSTRAP"
MAX_OUTPUT_BYTES = 2 * MAX_RECORD_BYTES
"""The largest record of the joiner's outputs: a refused record of the largest size must fit, with its reason."""
RETRY_BACKOFF_MS = 5
"""With the client's default of 100 ms, a transaction that takes 13 to 39 ms takes 95 to 107 ms."""
_log = logging.getLogger("minutely.kafka")
_REFUSALS = ("_AUTHENTICATION", "_SSL", "_RESOLVE")
_SAY_AGAIN_SECONDS = 600


class TlsSettings(Section):
    """Encryption. ``certificate`` and ``key`` are for brokers that require client certificates."""

    ca: str | None = None
    """PEM file of the authority that signed the brokers' certificates; by default, the system's authorities."""
    certificate: str | None = None
    key: str | None = None

    @model_validator(mode="after")
    def _both(self) -> TlsSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together")
        return self


class SaslSettings(Section):
    """User name and password. The password is in an environment variable or a file, never in the configuration."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: str
    password_env: str | None = None
    password_file: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> SaslSettings:
        if (self.password_env is None) == (self.password_file is None):
            raise ValueError("needs exactly one of password_env (a variable's name) and password_file")
        return self

    def password(self) -> str:
        """Return the password; `Problems` if the variable or file does not provide it."""
        if self.password_env is not None:
            found = os.environ.get(self.password_env)
            if not found:
                allowed = "the variable is not set; allowed: a variable that holds the password"
                raise Problems([Problem("kafka.sasl", "password_env", self.password_env, allowed)])
            return found
        assert self.password_file is not None
        try:
            return Path(self.password_file).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, ValueError) as error:
            allowed = f"{error}; allowed: a file that holds the password"
            raise Problems([Problem("kafka.sasl", "password_file", self.password_file, allowed)]) from None


class KafkaSettings(Section):
    """The ``kafka`` section. ``$KAFKA_BOOTSTRAP`` takes precedence over ``bootstrap``."""

    bootstrap: Annotated[str, Field(min_length=1)] = "127.0.0.1:9092"
    """Brokers to ask first, as ``host:port``, with commas between them."""
    prefix: Annotated[str, matching(r"[A-Za-z0-9._-]{0,100}", "up to 100 of letters, digits and . _ -")] = ""
    """Prepended to the names of topics, groups and transactions, so that several pipelines can share brokers."""
    partitions: Annotated[int, Field(ge=1, le=10_000)] = 6
    replication: Annotated[int, Field(ge=1, le=100)] = 1
    retention: PositiveDurationMs = 7 * 86_400_000
    """How long records are kept at least. If a pipeline does not set it: 7 days, or what its windows need if that is longer."""
    tls: TlsSettings | None = None
    sasl: SaslSettings | None = None

    def topic(self, name: str) -> str:
        """Return a topic's name on the brokers."""
        return self.prefix + name

    @property
    def brokers(self) -> list[str]:
        """The brokers to ask first."""
        return [part.strip() for part in (os.environ.get(BOOTSTRAP) or self.bootstrap).split(",") if part.strip()]

    @property
    def asked(self) -> str:
        """The brokers to ask first and the setting that names them, for messages."""
        return f"{', '.join(self.brokers)} ({'$' + BOOTSTRAP if os.environ.get(BOOTSTRAP) else 'kafka.bootstrap'})"

    @property
    def protocol(self) -> str:
        """What Kafka calls the way to its brokers."""
        return ("SASL_" if self.sasl is not None else "") + ("SSL" if self.tls is not None else "PLAINTEXT")

    def client(self) -> dict[str, Any]:
        """Return the options of every Kafka client of this process. They may hold a password: never print them."""
        options: dict[str, Any] = {
            "bootstrap.servers": ",".join(self.brokers),
            "reconnect.backoff.max.ms": 1000,
            "topic.metadata.refresh.interval.ms": 30_000,
            "allow.auto.create.topics": False,
            "log_level": 0,  # else it writes to stderr at every try to connect; the failing caller reports the cause
            "error_cb": _tell,
        }
        if self.tls is not None:
            tls_context(self.tls)  # of files that are no PEM the client would only say that it cannot be created
            files = {"ca": self.tls.ca, "certificate": self.tls.certificate, "key": self.tls.key}
            options |= {f"ssl.{name}.location": path for name, path in files.items() if path is not None}
        if self.sasl is not None:
            options |= {
                "sasl.mechanism": self.sasl.mechanism,
                "sasl.username": self.sasl.username,
                "sasl.password": self.sasl.password(),
            }
        options["security.protocol"] = self.protocol
        return options


class _Refusals:
    """Logs why brokers cannot be reached at all: the call that fails only reports a timeout."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def __call__(self, error: KafkaError) -> None:
        name, text, now = error.name(), error.str(), time.monotonic()
        if open_files.TOO_MANY in text:
            name, text = "_FS", f"{text}; {open_files.ALLOWED}"
        elif name not in _REFUSALS:
            return
        if now - self._said.get(name, -_SAY_AGAIN_SECONDS) >= _SAY_AGAIN_SECONDS:
            self._said[name] = now
            _log.error("%s", text)


_tell = _Refusals()


def tls_context(tls: TlsSettings) -> ssl.SSLContext:
    """Return what Python's TLS needs; `Problems` that names the files if they are not PEM."""
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
        return context
    except (OSError, ssl.SSLError) as error:
        named = ", ".join(name for name in (tls.ca, tls.certificate, tls.key) if name)
        raise Problems([Problem("kafka.tls", "files", named, f"{error}; allowed: PEM files")]) from None
