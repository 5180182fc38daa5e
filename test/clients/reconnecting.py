"""NATS clients that reconnect as real ones do while a gateway goes, MQTT clients beside them, and what each saw."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import nats
from paho.mqtt.client import Client as MqttClient
from paho.mqtt.client import MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from emqx.nats import Address, Nats, NatsFailure

DEADLINE = 20.0
# What one client publishes: often enough to show a pause, seldom enough for a busy machine.
EVERY = 0.01
RETRY = 0.05

CONNECT = {"verbose": True, "pedantic": False, "headers": True, "no_responders": True, "protocol": 1}


@dataclass
class Seen:
    """The connections of one NATS client, with the times of what it was told."""

    name: str
    notices: list[float] = field(default_factory=list)
    closed: list[float] = field(default_factory=list)
    opened: list[float] = field(default_factory=list)
    # the client has given up
    ended: list[str] = field(default_factory=list)

    def since(self, begin: float) -> Seen:
        def later(times: list[float]) -> list[float]:
            return [at for at in times if at >= begin]

        return Seen(self.name, later(self.notices), later(self.closed), later(self.opened), self.ended)


class Verbose(threading.Thread):
    """Publishes numbers on a connection of its own, each when the one before was acknowledged (+OK), and reconnects."""

    def __init__(self, address: Address, subject: str, stop: threading.Event, fields: dict[str, object]):
        super().__init__(daemon=True)
        self.seen = Seen(subject)
        self.acknowledged: list[int] = []
        self.failures: list[str] = []
        self._address, self._subject, self._halt, self._fields = address, subject, stop, fields
        self._number = 0

    def run(self) -> None:
        while not self._halt.is_set():
            with suppress(OSError, NatsFailure), Nats(self._address, 5.0) as client:
                client.send(f"CONNECT {json.dumps(CONNECT | self._fields)}\r\nPING\r\n")
                self._await(client, b"PONG")
                self.seen.opened.append(time.monotonic())
                try:
                    self._publish(client)
                finally:
                    self.seen.closed.append(time.monotonic())
            self._halt.wait(RETRY)

    def _publish(self, client: Nats) -> None:
        while not self._halt.is_set():
            client.publish(self._subject, b"%d" % self._number)
            self._await(client, b"+OK")
            self.acknowledged.append(self._number)
            self._number += 1
            self._halt.wait(EVERY)

    def _await(self, client: Nats, answer: bytes) -> None:
        while (line := client.operation()) != answer:
            if line.startswith(b"INFO ") and json.loads(line[5:]).get("ldm"):
                self.seen.notices.append(time.monotonic())
            elif line.startswith(b"-ERR"):
                self.failures.append(line.decode())


class NatsPy(threading.Thread):
    """Clients of nats-py with its own ways to reconnect: subscribers, publishers that flush, a service and its requester."""

    def __init__(self, address: Address, name: str, stop: threading.Event, options: dict[str, object]):
        super().__init__(daemon=True)
        self.name = name
        self.seen: list[Seen] = []
        # by subscriber: the numbers of MQTT's publisher
        self.received: dict[str, dict[int, float]] = {}
        self.flushed: dict[str, list[int]] = {}
        self.answered: list[float] = []
        self.ready = threading.Event()
        self._url = f"nats://{address[0]}:{address[1]}"
        self._halt, self._options = stop, options

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        clients = [await self._client(role) for role in ("sub-1", "sub-2", "sub-3", "pub-1", "pub-2", "service", "requester")]
        *subscribers, first, second, service, requester = clients
        for (client, seen) in subscribers:
            await self._subscribe(client, self.received.setdefault(seen.name, {}))

        async def answer(message) -> None:
            await message.respond(b"done")

        await service[0].subscribe(f"{self.name}.service", "workers", cb=answer)
        for client, _ in clients:
            await client.flush()
        self.ready.set()
        await asyncio.gather(
            self._publish(*first), self._publish(*second), self._request(requester[0])
        )
        for client, _ in clients:
            await client.close()

    async def _client(self, role: str) -> tuple[nats.NATS, Seen]:
        seen = Seen(role)
        self.seen.append(seen)

        def note(times: list[float]):
            async def called(*_) -> None:
                times.append(time.monotonic())

            return called

        async def ended() -> None:
            if not self._halt.is_set():
                seen.ended.append(f"{role} has given up: {client.last_error}")

        client = await nats.connect(
            self._url, name=role, max_reconnect_attempts=-1, error_cb=note([]), closed_cb=ended,
            lame_duck_mode_cb=note(seen.notices), disconnected_cb=note(seen.closed), reconnected_cb=note(seen.opened),
            **self._options,
        )
        seen.opened.append(time.monotonic())
        return client, seen

    async def _subscribe(self, client: nats.NATS, received: dict[int, float]) -> None:
        async def take(message) -> None:
            received[int(message.data)] = time.monotonic()

        await client.subscribe(f"{self.name}.mqtt", cb=take)

    async def _publish(self, client: nats.NATS, seen: Seen) -> None:
        """A number is acknowledged when the PONG for it came on the same connection.

        nats-py writes the PING of a flush at once, before what its own flusher has not written yet.
        """
        acknowledged = self.flushed.setdefault(seen.name, [])
        number = 0
        while not self._halt.is_set():
            if client.is_connected:
                before = len(seen.closed), client.stats["reconnects"]
                with suppress(Exception):
                    await client.publish(f"{self.name}.{seen.name}", b"%d" % number)
                    while client.pending_data_size and client.is_connected:
                        await asyncio.sleep(0)
                    await client.flush(2)
                    if before == (len(seen.closed), client.stats["reconnects"]):
                        acknowledged.append(number)
                number += 1
            await asyncio.sleep(EVERY)

    async def _request(self, client: nats.NATS) -> None:
        while not self._halt.is_set():
            if client.is_connected:
                with suppress(Exception):
                    await client.request(f"{self.name}.service", b"", timeout=1)
                    self.answered.append(time.monotonic())
            await asyncio.sleep(EVERY)


class Mqtt(threading.Thread):
    """One MQTT client that publishes numbers with QoS 1 and one that is subscribed to all with QoS 1."""

    def __init__(self, address: Address, name: str, stop: threading.Event):
        super().__init__(daemon=True)
        self._topic, self._halt = name, stop
        self.disconnects: list[object] = []
        # by number: when it was published, when it was acknowledged
        self.published: dict[int, tuple[float, float]] = {}
        # by the last level of the topic: number and time
        self.received: dict[str, list[tuple[int, float]]] = {}
        subscribed = threading.Event()
        self._subscriber = self._client(address)
        self._subscriber.on_message = self._take
        self._subscriber.on_subscribe = lambda *_: subscribed.set()
        self._subscriber.subscribe(f"{name}/#", 1)
        assert subscribed.wait(DEADLINE), "no SUBACK"
        self._publisher = self._client(address)

    def _client(self, address: Address) -> MqttClient:
        connected = threading.Event()
        client = MqttClient(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        client.on_connect = lambda *_: connected.set()
        client.on_disconnect = lambda *what: self._halt.is_set() or self.disconnects.append(what)
        client.connect(*address)
        client.loop_start()
        assert connected.wait(DEADLINE), "no CONNACK"
        return client

    def _take(self, client, userdata, message) -> None:
        with suppress(ValueError):
            number = int(message.payload)
            self.received.setdefault(message.topic.rpartition("/")[2], []).append((number, time.monotonic()))

    def run(self) -> None:
        number = 0
        while not self._halt.is_set():
            begin = time.monotonic()
            self._publisher.publish(f"{self._topic}/mqtt", b"%d" % number, 1).wait_for_publish(DEADLINE)
            self.published[number] = begin, time.monotonic()
            number += 1
            self._halt.wait(EVERY)

    def close(self) -> None:
        for client in (self._publisher, self._subscriber):
            client.disconnect()
            client.loop_stop()

    def numbers(self, topic: str) -> list[int]:
        return [number for number, _ in self.received.get(topic, [])]

    def longest_wait(self, begin: float, end: float = float("inf")) -> float:
        """Between two messages of MQTT's publisher at MQTT's subscriber."""
        times = [at for _, at in self.received["mqtt"] if begin <= at <= end]
        return max(later - earlier for earlier, later in zip(times, times[1:]))


@dataclass
class Load:
    verbose: list[Verbose]
    real: NatsPy
    mqtt: Mqtt

    @property
    def seen(self) -> list[Seen]:
        return [one.seen for one in self.verbose] + self.real.seen


@contextmanager
def load(nats_address: Address, mqtt_address: Address, name: str, **fields: object) -> Iterator[Load]:
    """fields: of CONNECT, under the names that nats-py has for them, too."""
    stop = threading.Event()
    mqtt = Mqtt(mqtt_address, name, stop)
    options = {"token": fields["auth_token"]} if "auth_token" in fields else {}
    real = NatsPy(nats_address, name, stop, options)
    verbose = [Verbose(nats_address, f"{name}.verbose-{number}", stop, fields) for number in range(3)]
    threads = [mqtt, real, *verbose]
    for thread in threads:
        thread.start()
    try:
        assert real.ready.wait(DEADLINE), "nats-py is not connected"
        yield Load(verbose, real, mqtt)
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE)
        # What was published last is on its way.
        settle(mqtt)
        mqtt.close()
    assert not any(thread.is_alive() for thread in threads)


def settle(mqtt: Mqtt) -> None:
    """Until nothing more comes."""
    count = -1
    while count != (count := sum(map(len, mqtt.received.values()))):
        time.sleep(0.3)
