"""kafka-python's log: what it says only there, which is why it cannot connect, and what it must not say, which is a password."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from kafka.errors import KafkaError, RequestTimedOutError, SaslAuthenticationFailedError

_CONNECTS = "kafka.net.manager"
_SHOW_BYTES = ("kafka.net.connection", "kafka.protocol.parser")
"""What logs requests as they are when it debugs; that of SASL PLAIN is the password."""


class _Reason(logging.Filter):
    """Keeps the error that a thread was last warned of. A wrong password takes precedence: the library hears of it only now and
    then, since it drops what was read before a broker hung up; and its own deadline says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self.error: KafkaError | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.WARNING and record.thread == self._thread and isinstance(record.args, tuple):
            for each in record.args:
                is_telling = isinstance(each, KafkaError) and not isinstance(each, RequestTimedOutError)
                if is_telling and not isinstance(self.error, SaslAuthenticationFailedError):
                    self.error = each
        return True


class _WithoutBytes(logging.Filter):
    """Lets nothing pass that only helps to debug the library."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.DEBUG


_without_bytes = _WithoutBytes()


@contextmanager
def noting_why() -> Iterator[_Reason]:
    """Note why connecting fails: the error that it ends with says only that it took too long."""
    log, reason = logging.getLogger(_CONNECTS), _Reason()
    log.addFilter(reason)
    try:
        yield reason
    finally:
        log.removeFilter(reason)


def keep_secrets() -> None:
    """Keep passwords out of the log, at whatever level it is."""
    for name in _SHOW_BYTES:
        logging.getLogger(name).addFilter(_without_bytes)
