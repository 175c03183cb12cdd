"""`minutely features --host faust`: the same work on partitions, in a Faust worker.

Faust brings the flow: membership of the group, batches of records, and what users know of its workers. Exactness stays ours. Its
group is the one in which our transactions commit, and it commits nothing itself, so it reads on where the newest transaction ended;
its consumer reads committed, which Faust sets only together with transactions of its own.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import faust
from faust.auth import SASLCredentials, SSLCredentials
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, StreamT

from streaming.clock import WallClock
from streaming.kafka.brokers import KafkaBrokers
from streaming.kafka.settings import KafkaSettings
from streaming.live.partition import LivePartition
from streaming.log import INTERACTIONS, BrokerError, Record
from streaming.loop.brokers import History, Outlet
from streaming.loop.service import Member

_log = logging.getLogger("minutely.features")
_RECORDS_AT_ONCE = 2000
_RETRY_SECONDS = 0.5
_SESSION_SECONDS = 10
"""How long others wait for a worker that was killed, as in our own membership; Faust's default is a minute."""


class _Thread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"  # before it starts, which is when it is used
        return consumer


class _Consumer(driver.Consumer):
    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit nothing: our transactions do."""
        return True


class _Transport(driver.Transport):
    Consumer = _Consumer


class FaustHost:
    """Runs ``make``'s partitions in a Faust worker; ``members`` are those that are ours."""

    def __init__(
        self,
        settings: KafkaSettings,
        brokers: KafkaBrokers,
        group: str,
        make: Callable[[int, Outlet[Any], History], LivePartition],
        wait_ms: int,
    ) -> None:
        self.members: dict[int, Member[LivePartition]] = {}
        self._brokers = brokers
        self._make = make
        self._wait_ms = wait_ms
        self._clock = WallClock()
        self._folder = tempfile.TemporaryDirectory()  # Faust wants one, and keeps nothing there without tables
        self.app = app = faust.App(
            settings.topic(group),
            broker=[f"kafka://{each}" for each in settings.brokers],
            broker_credentials=_credentials(settings),
            broker_session_timeout=_SESSION_SECONDS,
            broker_heartbeat_interval=_SESSION_SECONDS / 5,
            consumer_auto_offset_reset="earliest",
            datadir=self._folder.name,
            topic_disable_leader=True,
            web_enabled=False,
            loghandlers=[],
        )
        app.transport = _Transport(app.conf.broker_consumer, app, app.loop)
        topic = app.topic(
            settings.topic(INTERACTIONS), value_type=bytes, value_serializer="raw", partitions=settings.partitions
        )
        app.agent(topic)(self._work)
        cast(Any, app.on_partitions_revoked).connect(self._revoked)  # its type knows no coroutines

    def run(self) -> None:
        """Work until SIGINT or SIGTERM."""
        try:
            faust.Worker(
                self.app, loglevel="WARNING", quiet=True, override_logging=False, redirect_stdouts=False
            ).execute_from_commandline()
        finally:
            self._close(list(self.members))
            self._folder.cleanup()

    async def _revoked(self, _app: Any, revoked: set[TP], **_others: Any) -> None:
        self._close([each.partition for each in revoked if each.partition in self.members])

    def _close(self, partitions: list[int]) -> None:
        for partition in partitions:
            self.members.pop(partition).close()
            _log.info("partition %d revoked", partition)

    async def _work(self, stream: StreamT[bytes]) -> AsyncIterator[None]:
        """Take batches, each as a transaction for each of its partitions; Faust goes on when all are committed."""
        async for events in cast(Any, stream).take_events(_RECORDS_AT_ONCE, within=self._wait_ms / 1000):
            records: dict[int, list[Record]] = defaultdict(list)
            for event in events:
                message = event.message
                records[message.partition].append(
                    Record(message.offset, cast(bytes, message.value), int(message.timestamp * 1000))
                )
            for partition, found in records.items():
                await self._commit(partition, found)
            yield

    async def _commit(self, partition: int, records: list[Record]) -> None:
        while partition in self._assigned():
            try:
                await asyncio.to_thread(self._commit_once, partition, records)
                return
            except BrokerError as error:
                if (member := self.members.get(partition)) is not None:
                    member.recovered = False
                    member.retry.failed(error)
                await asyncio.sleep(_RETRY_SECONDS)

    def _assigned(self) -> set[int]:
        return {each.partition for each in self.app.consumer.assignment()}

    def _commit_once(self, partition: int, records: list[Record]) -> None:
        member = self.members.get(partition)
        if member is None:
            outlet = self._brokers.outlet(partition)
            work = self._make(partition, outlet, self._brokers.history(partition))
            member = self.members[partition] = Member(partition, work, outlet, self._clock, _log)
            _log.info("partition %d assigned", partition)
        if not member.recovered:
            for _ in member.work.recover():
                pass
            member.recovered = True
            member.tell_gaps()
        offset = member.work.offsets[INTERACTIONS]
        member.work.take(INTERACTIONS, [record for record in records if record.offset >= offset])
        member.work.step({}, self._clock.now_ms(), 0)
        member.retry.worked()


def _credentials(settings: KafkaSettings) -> Any:
    context = None
    if settings.tls is not None:
        context = ssl.create_default_context(cafile=settings.tls.ca)
        if settings.tls.certificate is not None and settings.tls.key is not None:
            context.load_cert_chain(settings.tls.certificate, settings.tls.key)
    if settings.sasl is not None:
        return SASLCredentials(
            username=settings.sasl.username,
            password=settings.sasl.password(),
            mechanism=settings.sasl.mechanism,
            ssl_context=context,
        )
    return None if context is None else SSLCredentials(context)
