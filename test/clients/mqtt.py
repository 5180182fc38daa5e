"""MQTT clients for tests: paho-mqtt for MQTT 5, mosquitto_pub and mosquitto_sub for MQTT 3.1.1."""

from __future__ import annotations

import asyncio
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from clients.program import Program
from clients.stack import Address

DEADLINE = 10.0


class Mqtt:
    """An MQTT 5 connection. Its calls return when the broker has confirmed."""

    def __init__(self, address: Address):
        self.messages: queue.Queue[MQTTMessage] = queue.Queue()
        self._suback = threading.Condition()
        self._reasons: dict[int, Any] = {}
        self._connected = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        self._client.max_queued_messages_set(0)
        self._client.max_inflight_messages_set(65535)
        self._client.on_connect = lambda *_: self._connected.set()
        self._client.on_message = lambda client, userdata, message: self.messages.put(message)
        self._client.on_subscribe = self._on_subscribe
        self._address = address

    def __enter__(self) -> Mqtt:
        self._client.connect(*self._address)
        self._client.loop_start()
        assert self._connected.wait(DEADLINE), f"no CONNACK within {DEADLINE} s"
        return self

    def __exit__(self, *_) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def on_message(self, handle: Callable[[MQTTMessage], None]) -> None:
        self._client.on_message = lambda client, userdata, message: handle(message)

    def subscribe(self, topic_filter: str, qos: int = 1, no_local: bool = False) -> None:
        _, number = self._client.subscribe(topic_filter, options=SubscribeOptions(qos=qos, noLocal=no_local))
        with self._suback:
            granted = self._suback.wait_for(lambda: number in self._reasons, DEADLINE)
        assert granted, f"no SUBACK for {topic_filter!r} within {DEADLINE} s"
        assert not self._reasons[number][0].is_failure, f"SUBACK for {topic_filter!r}: {self._reasons[number]}"

    def _on_subscribe(self, client, userdata, number, reasons, properties) -> None:
        with self._suback:
            self._reasons[number] = reasons
            self._suback.notify_all()

    def publish(self, topic: str, payload: bytes = b"", qos: int = 1, retain: bool = False, **properties: Any) -> None:
        """Properties by their paho names: UserProperty=[(name, value)], ResponseTopic="a/b", ..."""
        self.post(topic, payload, qos, retain, **properties).wait_for_publish(DEADLINE)

    def post(self, topic: str, payload: bytes = b"", qos: int = 1, retain: bool = False, **properties: Any):
        """Publishes without waiting for the broker."""
        block = Properties(PacketTypes.PUBLISH)
        for name, value in properties.items():
            setattr(block, name, value)
        return self._client.publish(topic, payload, qos, retain, block)

    def take(self, count: int, deadline: float = DEADLINE, what: str = "") -> list[MQTTMessage]:
        until = time.monotonic() + deadline
        messages: list[MQTTMessage] = []
        while len(messages) < count:
            try:
                messages.append(self.messages.get(timeout=max(0, until - time.monotonic())))
            except queue.Empty:
                raise AssertionError(f"{len(messages)} of {count} MQTT messages {what} within {deadline} s") from None
        return messages

    async def arrived(self, count: int, deadline: float = DEADLINE) -> list[MQTTMessage]:
        """The same without holding up the NATS clients of this process."""
        return await asyncio.to_thread(self.take, count, deadline)


def user_properties(message: MQTTMessage) -> list[tuple[str, str]]:
    return getattr(message.properties, "UserProperty", [])


def mosquitto_pub(address: Address, topic: str, payload: bytes) -> None:
    host, port = address
    command = ["mosquitto_pub", "-V", "mqttv311", "-h", host, "-p", str(port), "-q", "1", "-t", topic]
    subprocess.run([*command, "-s" if payload else "-n"], input=payload, check=True, timeout=DEADLINE)


class MosquittoSub:
    """Prints what arrives, once it is subscribed."""

    def __init__(self, address: Address, *filters: str):
        host, port = address
        options = [option for topic_filter in filters for option in ("-t", topic_filter)]
        command = ["mosquitto_sub", "-V", "mqttv311", "-h", host, "-p", str(port), "-q", "1", "-d", "-F", "=%t %x"]
        # Through a pipe it would write only once its buffer is full.
        self._process = subprocess.Popen(["stdbuf", "-oL", *command, *options], stdout=subprocess.PIPE, text=True)
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> MosquittoSub:
        self._until("SUBACK", lambda line: line.startswith("Subscribed "))
        return self

    def __exit__(self, *_) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def take(self, count: int) -> list[tuple[str, bytes]]:
        messages = []
        while len(messages) < count:
            line = self._until(f"message {len(messages) + 1} of {count}", lambda line: line.startswith("="))
            topic, _, payload = line[1:].rpartition(" ")
            messages.append((topic, bytes.fromhex(payload)))
        return messages

    def _until(self, what: str, wanted: Callable[[str], bool]) -> str:
        until = time.monotonic() + DEADLINE
        seen = []
        while True:
            try:
                line = self._lines.get(timeout=max(0, until - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"mosquitto_sub: no {what} within {DEADLINE} s, but {seen}") from None
            if wanted(line):
                return line
            seen.append(line)

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))


def topics(messages: Iterable[MQTTMessage]) -> list[str]:
    return [message.topic for message in messages]


# Values of user properties that are not ASCII.
WORDS = {"City": ["Zürich", "Genève"], "Unit": ["20 °C"], "Place": ["日本 😀"], "Plain": ["x"]}


def exchange_words(program: Program, url: str, broker: Address, subject: str) -> None:
    """The program says back what it was told, twice: its connection has to outlive the first one."""
    pairs = [(name, value) for name, values in WORDS.items() for value in values]
    with Mqtt(broker) as mqtt, program.start("words", url=url, subject=subject, words=WORDS) as talk:
        mqtt.subscribe(f"{subject}/out")
        talk.expect("ready")
        for _ in range(2):
            mqtt.publish(f"{subject}/in", b"words", UserProperty=pairs)
        for message in mqtt.take(2, what="from the client"):
            assert sorted(user_properties(message)) == sorted(pairs)
        talk.finished()
