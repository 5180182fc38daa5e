"""The broker's Maximum Packet Size is what INFO says, and beyond it a client is told."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from brokers.nats import Client, Closed, message
from clients.stack import Stack, gateway_in_front_of, mosquitto

MAX_PACKET = 100_000
# What is left for subjects: a control line, and 64 bytes.
MAX_PAYLOAD = MAX_PACKET - 4096 - 64


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("small")
    broker = mosquitto(directory, f"allow_anonymous true\nmax_packet_size {MAX_PACKET}\n")
    with Stack(gateway_in_front_of(broker.address, directory), broker) as stack:
        yield stack


def test_who_comes_first_is_told_by_a_second_info(tmp_path: Path):
    broker = mosquitto(tmp_path, f"allow_anonymous true\nmax_packet_size {MAX_PACKET}\n")
    with Stack(gateway_in_front_of(broker.address, tmp_path), broker) as stack:
        with Client(stack.gateway.address) as first:
            assert first.info["max_payload"] > MAX_PAYLOAD
            first.connect()
            assert first.ping() == b""
            assert first.read_info()["max_payload"] == MAX_PAYLOAD
        until = time.monotonic() + 5
        while (info := told(stack)) != MAX_PAYLOAD:
            assert time.monotonic() < until, info


def told(stack: Stack) -> int:
    with Client(stack.gateway.address) as client:
        return client.info["max_payload"]


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("subject", ["s", "s" * 4000])
@pytest.mark.parametrize("size", [0, 1, MAX_PAYLOAD - 1, MAX_PAYLOAD])
def test_what_info_allows_arrives(small: Stack, size: int, subject: str, verbose: bool):
    payload = b"x" * size
    with Client(small.gateway.address, verbose=verbose) as client:
        client.ping()
        client.send(f"SUB {subject} 1\r\nPUB {subject} {size}\r\n".encode() + payload + b"\r\n")
        assert message(subject, 1, payload) in client.ping()


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("size", [MAX_PAYLOAD + 1, MAX_PACKET, 1_048_576])
def test_what_is_larger_is_a_violation(small: Stack, size: int, verbose: bool):
    with Client(small.gateway.address, verbose=verbose) as client:
        client.ping()
        client.send(f"PUB s {size}\r\n".encode())
        assert client.closed().endswith(b"-ERR 'Maximum Payload Violation'\r\n")


@pytest.mark.parametrize("verbose", [False, True])
def test_headers_that_become_too_large_are_refused_and_told(small: Stack, verbose: bool):
    """Percent-encoded for MQTT they take three times their size and more."""
    block = b"NATS/1.0\r\nA: " + b"\x01" * 40_000 + b"\r\n\r\n"
    with Client(small.gateway.address, verbose=verbose) as client:
        client.send(b"SUB s 1\r\nHPUB s %d %d\r\n%s\r\nPUB s 2\r\nhi\r\n" % (len(block), len(block), block))
        said = client.ping().replace(b"+OK\r\n", b"")
        assert b"-ERR 'Permissions Violation for Publish to \"s\"'\r\n" in said
        assert said.endswith(message("s", 1, b"hi"))


def test_a_request_is_answered_or_refused(small: Stack):
    with Client(small.gateway.address, verbose=False) as client:
        client.ping()
        client.send(b"SUB r 1\r\nPUB nobody r 2\r\nhi\r\n")
        assert b"503" in client.ping()
        client.send(b"PUB nobody r %d\r\n" % (MAX_PAYLOAD + 1))
        with pytest.raises(Closed, match="Maximum Payload Violation"):
            client.until(b"PONG\r\n")


def test_a_message_that_is_too_large_for_clients_is_counted_and_named(tmp_path: Path):
    """Four times max_payload and 256 KB of one packet are taken, unless the setting says otherwise."""
    broker = mosquitto(tmp_path, "allow_anonymous true\n")
    with Stack(gateway_in_front_of(broker.address, tmp_path, {"log_level": "info"}), broker) as stack:
        with Client(stack.gateway.address, verbose=False) as client:
            client.send(b"SUB big 1\r\n")
            client.ping()
            fits, larger = b"x" * 4_400_000, b"y" * 4_500_000
            for payload in (fits, larger, larger, b"after"):
                publish(stack, payload)
            assert client.until(message("big", 1, fits), 30).startswith(b"MSG big 1 4400000\r\n")
            assert client.until(b"after\r\n", 30) == message("big", 1, b"after")
        until = time.monotonic() + 5
        while "messages_unroutable=2" not in stack.gateway.log():
            assert time.monotonic() < until, stack.gateway.log_tail()
            time.sleep(0.01)
        named = [line for line in stack.gateway.log().splitlines() if "message_larger_than_max_packet_size" in line]
        assert len(named) == 1 and " topic=big " in named[0]


def publish(stack: Stack, payload: bytes) -> None:
    host, port = stack.mqtt
    command = ["mosquitto_pub", "-V", "5", "-h", host, "-p", str(port), "-q", "1", "-t", "big", "-s"]
    subprocess.run(command, input=payload, check=True, timeout=30)
