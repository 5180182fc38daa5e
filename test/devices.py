"""A device that speaks MQTT 3.1.1: it knows no Response Topic, and answers on a topic of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from paho.mqtt.client import Client, MQTTMessage, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion

DEADLINE = 10.0

Answers = list[tuple[str, bytes]]


class Device:
    """answer: from the topic and payload of a command to the topics and payloads of the answers."""

    def __init__(self, address: tuple[str, int], commands: str, answer: Callable[[str, bytes], Answers]):
        self._address = address
        self._commands = commands
        self._answer = answer
        self._ready = threading.Event()
        self.taken: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv311)
        self._client.on_connect = lambda *_: self._client.subscribe(commands, 1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message

    def __enter__(self) -> Device:
        self._client.connect(*self._address)
        self._client.loop_start()
        assert self._ready.wait(DEADLINE), f"no SUBACK for {self._commands!r} within {DEADLINE} s"
        return self

    def __exit__(self, *_) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, client: Client, userdata: object, message: MQTTMessage) -> None:
        self.taken.put((message.topic, message.payload))
        for topic, payload in self._answer(message.topic, message.payload):
            self.publish(topic, payload)

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self._client.publish(topic, payload, qos=1, retain=retain)

    def command(self) -> tuple[str, bytes]:
        return self.taken.get(timeout=DEADLINE)


def echo(topic: str, payload: bytes) -> Answers:
    """The answer topic is the command's with `/reply`."""
    return [(f"{topic}/reply", b"%s: %s" % (topic.encode(), payload))]


def silent(topic: str, payload: bytes) -> Answers:
    return []
