"""An MQTT 5 client: its calls return when the broker has confirmed."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

DEADLINE = 10.0


class Mqtt:
    def __init__(
        self, address: tuple[str, int], client_id: str = "", username: str | None = None, manual_ack: bool = False
    ):
        self._address = address
        self._messages: queue.Queue[MQTTMessage] = queue.Queue()
        self._connected = threading.Event()
        self._suback = threading.Condition()
        self._reasons: dict[int, Any] = {}
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTv5, manual_ack=manual_ack)
        if username is not None:
            self._client.username_pw_set(username)
        self._client.on_connect = lambda *_: self._connected.set()
        self._client.on_message = lambda client, userdata, message: self._messages.put(message)
        self._client.on_subscribe = self._on_subscribe

    def __enter__(self) -> Mqtt:
        self._client.connect(*self._address)
        self._client.loop_start()
        assert self._connected.wait(DEADLINE), f"no CONNACK within {DEADLINE} s"
        return self

    def __exit__(self, *_) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_subscribe(self, client, userdata, number, reasons, properties) -> None:
        with self._suback:
            self._reasons[number] = reasons
            self._suback.notify_all()

    def subscribe(self, topic_filter: str, qos: int = 1, **properties: Any) -> Mqtt:
        """Properties by their paho names: UserProperty=[(name, value)]."""
        block = _properties(PacketTypes.SUBSCRIBE, properties)
        _, number = self._client.subscribe(topic_filter, qos, properties=block)
        with self._suback:
            granted = self._suback.wait_for(lambda: number in self._reasons, DEADLINE)
        assert granted, f"no SUBACK for {topic_filter!r} within {DEADLINE} s"
        assert not self._reasons[number][0].is_failure, f"SUBACK for {topic_filter!r}: {self._reasons[number]}"
        return self

    def publish(self, topic: str, payload: bytes = b"", qos: int = 1, retain: bool = False, **properties: Any) -> None:
        """Properties by their paho names: UserProperty=[(name, value)], ResponseTopic="a/b", ..."""
        block = _properties(PacketTypes.PUBLISH, properties)
        self._client.publish(topic, payload, qos, retain, block).wait_for_publish(DEADLINE)

    def message(self, deadline: float = DEADLINE) -> MQTTMessage:
        try:
            return self._messages.get(timeout=deadline)
        except queue.Empty:
            raise AssertionError(f"no MQTT message within {deadline} s") from None

    def messages(self, count: int, deadline: float = DEADLINE) -> list[MQTTMessage]:
        until = time.monotonic() + deadline
        return [self.message(max(0.001, until - time.monotonic())) for _ in range(count)]

    def acknowledge(self, message: MQTTMessage) -> None:
        """With manual_ack, which sends no PUBACK by itself."""
        self._client.ack(message.mid, message.qos)

    def lose(self) -> None:
        """The connection ends without DISCONNECT."""
        self._client.loop_stop()
        self._client.socket().close()

    @property
    def waiting(self) -> int:
        return self._messages.qsize()


def _properties(packet: int, properties: dict[str, Any]) -> Properties:
    block = Properties(packet)
    for name, value in properties.items():
        setattr(block, name, value)
    return block


def user_properties(message: MQTTMessage) -> list[tuple[str, str]]:
    return getattr(message.properties, "UserProperty", [])
