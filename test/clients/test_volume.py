"""Ten thousand messages of mixed sizes in each direction: none lost, none twice, none out of order."""

from __future__ import annotations

import asyncio
import functools
import random
import struct
import zlib
from collections.abc import Sequence

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from paho.mqtt.client import MQTTMessage

from clients.aio import barrier, connected, subscribed, within
from clients.mqtt import Mqtt
from clients.stack import MAX_PAYLOAD, Stack

COUNT = 10_000
SEED = 20_240_229
DEADLINE = 40.0
# Sequence number and checksum of the rest.
PREFIX = struct.Struct(">II")
# A PING after so many messages, or so many bytes, keeps what is under way below every limit.
MESSAGES_PER_FLUSH = 200
BYTES_PER_FLUSH = 4 * MAX_PAYLOAD

pytestmark = pytest.mark.timeout(4 * DEADLINE, func_only=True)


@functools.cache
def payloads() -> list[bytes]:
    chance = random.Random(SEED)
    sizes = [chance.randrange(300) for _ in range(COUNT - 540)]
    sizes += [chance.randrange(16 * 1024) for _ in range(500)]
    sizes += [chance.randrange(MAX_PAYLOAD) for _ in range(36)] + [0, 1, PREFIX.size, MAX_PAYLOAD]
    chance.shuffle(sizes)
    return [_payload(number, chance.randbytes(max(0, size - PREFIX.size)), size) for number, size in enumerate(sizes)]


def _payload(number: int, body: bytes, size: int) -> bytes:
    # The shortest hold only a part of their prefix; their place in the sequence tells which they must be.
    return (PREFIX.pack(number, zlib.crc32(body)) + body)[:size]


def _describe(payload: bytes) -> str:
    if len(payload) < PREFIX.size:
        return f"{len(payload)} bytes"
    number, checksum = PREFIX.unpack_from(payload)
    intact = zlib.crc32(payload[PREFIX.size :]) == checksum
    return f"message {number} ({len(payload)} bytes, {'intact' if intact else 'damaged'})"


def verify(received: Sequence[bytes]) -> None:
    for number, (expected, payload) in enumerate(zip(payloads(), received, strict=False)):
        assert payload == expected, f"at place {number}: {_describe(payload)} instead of {_describe(expected)}"
    assert len(received) == COUNT, f"{len(received)} of {COUNT} messages"


def test_payloads_are_mixed():
    sizes = [len(payload) for payload in payloads()]
    assert len(sizes) == COUNT
    assert min(sizes) == 0 and max(sizes) == MAX_PAYLOAD
    assert sum(size > 64 * 1024 for size in sizes) >= 24
    assert sum(sizes) < 48 * MAX_PAYLOAD
    with pytest.raises(AssertionError, match="at place 1: "):
        verify([payloads()[0], *payloads()[2:]])
    with pytest.raises(AssertionError, match="of 10000 messages"):
        verify(payloads()[:-1])


class Receiver:
    """Takes COUNT messages, and one more that must be the last."""

    def __init__(self):
        self.received: list[bytes] = []
        self._complete = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def on_nats(self, message: Msg) -> None:
        self._add(message.data)

    def on_mqtt(self, message: MQTTMessage) -> None:
        self._loop.call_soon_threadsafe(self._add, message.payload)

    def _add(self, payload: bytes) -> None:
        self.received.append(payload)
        if payload == LAST:
            self._complete.set()

    async def verify(self) -> None:
        try:
            await within("the last message", self._complete.wait(), DEADLINE)
        except AssertionError as error:
            raise AssertionError(f"{error}; {len(self.received)} of {COUNT} messages arrived") from None
        assert self.received[-1] == LAST, "a message came after the last one"
        verify(self.received[:-1])


LAST = b"no more messages follow"


async def publish_nats(nc: Client, subject: str) -> None:
    size = 0
    for number, payload in enumerate(payloads()):
        await nc.publish(subject, payload)
        size += len(payload)
        if number % MESSAGES_PER_FLUSH == 0 or size > BYTES_PER_FLUSH:
            await barrier(nc, f"PONG after message {number}", DEADLINE)
            size = 0
    await nc.publish(subject, LAST)
    await barrier(nc, "PONG after the last message", DEADLINE)


def publish_mqtt(mqtt: Mqtt, topic: str) -> None:
    for number, payload in enumerate(payloads()):
        posted = mqtt.post(topic, payload, qos=1)
        if number % MESSAGES_PER_FLUSH == 0:
            posted.wait_for_publish(DEADLINE)
            assert posted.is_published(), f"no PUBACK for message {number} within {DEADLINE} s"
    mqtt.publish(topic, LAST)


async def test_nats_to_nats(stack: Stack, subject: str):
    async with connected(stack.url) as publisher, connected(stack.url) as subscriber:
        receiver = Receiver()
        await subscribed(subscriber, f"{subject}.>", cb=receiver.on_nats)
        await within("all is published", publish_nats(publisher, f"{subject}.data"), DEADLINE)
        await receiver.verify()


async def test_nats_to_mqtt(bridge: Stack, subject: str):
    async with connected(bridge.url) as publisher:
        with Mqtt(bridge.mqtt) as subscriber:
            receiver = Receiver()
            subscriber.on_message(receiver.on_mqtt)
            subscriber.subscribe(f"{subject}/#", qos=1)
            await within("all is published", publish_nats(publisher, f"{subject}.data"), DEADLINE)
            await receiver.verify()


async def test_mqtt_to_nats(bridge: Stack, subject: str):
    async with connected(bridge.url) as subscriber:
        with Mqtt(bridge.mqtt) as publisher:
            receiver = Receiver()
            await subscribed(subscriber, f"{subject}.>", cb=receiver.on_nats)
            publishing = asyncio.to_thread(publish_mqtt, publisher, f"{subject}/data")
            await within("all is published", publishing, DEADLINE)
            await receiver.verify()
