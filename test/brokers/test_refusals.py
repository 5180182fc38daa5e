"""Each refusal of a broker reads as what it is: to the client as far as NATS has a text, and in the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from brokers.model import Faults, ModelBroker, before
from brokers.nats import Client, Closed
from clients.stack import Server

SUBACK = {
    0x80: "unspecified_error",
    0x83: "implementation_specific_error",
    0x87: None,
    0x8F: "topic_filter_invalid",
    0x91: "packet_identifier_in_use",
    0x97: "quota_exceeded",
    0x9E: "shared_subscriptions_not_supported",
    0xA1: "subscription_identifiers_not_supported",
    0xA2: "wildcard_subscriptions_not_supported",
}
TEXTS = {0x8F: b"Invalid Subject", 0x97: b"maximum subscriptions exceeded"}
PUBACK = {
    0x80: "unspecified_error",
    0x83: "implementation_specific_error",
    0x87: None,
    0x90: "topic_name_invalid",
    0x91: "packet_identifier_in_use",
    0x97: "quota_exceeded",
    0x99: "payload_format_invalid",
}
CONNACK = {
    0x80: "unspecified_error",
    0x84: "unsupported_protocol_version",
    0x88: "server_unavailable",
    0x89: "server_busy",
    0x97: "quota_exceeded",
    0x9C: "use_another_server",
    0x9D: "server_moved",
    0x9F: "connection_rate_exceeded",
}
LOGINS = {
    0x85: "client_identifier_not_valid",
    0x86: "bad_user_name_or_password",
    0x87: "not_authorized",
    0x8A: "banned",
    0x8C: "bad_authentication_method",
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, ModelBroker]]:
    """The broker's faults are each test's."""
    with before(Faults(), tmp_path_factory.mktemp("faulty")) as gateway_and_broker:
        yield gateway_and_broker


def lines_about(log: str, *words: str) -> list[str]:
    return [line for line in log.splitlines() if all(word in line for word in words)]


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("code", SUBACK, ids=hex)
def test_a_refused_subscription(faulty: tuple[Server, ModelBroker], code: int, verbose: bool):
    gateway, broker = faulty
    broker.faults = Faults(suback=lambda _, topic: code if topic == b"no/a" else None)
    with Client(gateway.address, verbose=verbose) as client:
        client.send(b"SUB no.a 1\r\nSUB yes 2\r\nPUB yes 2\r\nhi\r\n")
        said = client.ping().replace(b"+OK\r\n", b"")
    text = TEXTS.get(code, b'Permissions Violation for Subscription to "no.a"')
    assert said == b"-ERR '" + text + b"'\r\nMSG yes 2 2\r\nhi\r\n"
    assert lines(lambda: len(noted(gateway, "subscribe", code)), 1 if SUBACK[code] else 0)


def lines(count: Callable[[], int], expected: int) -> bool:
    """The log is written a moment later."""
    until = time.monotonic() + 5
    while count() < expected and time.monotonic() < until:
        time.sleep(0.01)
    return count() == expected


def noted(gateway: Server, packet: str, code: int) -> list[str]:
    """Not more often than every 10 s."""
    return lines_about(gateway.log(), "upstream_refused_packet", f"packet={packet}", f"reason_code={code} ")


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("code", PUBACK, ids=hex)
def test_a_refused_message(faulty: tuple[Server, ModelBroker], code: int, verbose: bool):
    gateway, broker = faulty
    broker.faults = Faults(puback=lambda _, topic: code if topic == b"no/a" else None)
    with Client(gateway.address, verbose=verbose) as client:
        client.send(b"SUB r 1\r\nPUB no.a r 2\r\nhi\r\n" * 5)
        said = client.ping().replace(b"+OK\r\n", b"")
    assert said == b"-ERR 'Permissions Violation for Publish to \"no.a\"'\r\n" * 5
    assert lines(lambda: len(noted(gateway, "publish", code)), 1 if PUBACK[code] else 0)


def refused_login(address: tuple[str, int]) -> bytes:
    try:
        with Client(address, verbose=True) as client:
            return client.closed()
    except (Closed, ConnectionError) as end:
        return getattr(end, "text", b"")


@pytest.mark.parametrize("code", CONNACK, ids=hex)
def test_a_broker_that_takes_nobody(faulty: tuple[Server, ModelBroker], code: int):
    gateway, broker = faulty
    broker.faults = Faults(connack=bytes([0, code, 0]))
    assert [refused_login(gateway.address) for _ in range(3)] == [b"", b"", b""]
    assert lines(lambda: len(lines_about(gateway.log(), "upstream_refused ", f"reason={CONNACK[code]} ", f"reason_code={code} ")), 1)


def test_the_reason_in_words_is_in_the_log(faulty: tuple[Server, ModelBroker]):
    gateway, broker = faulty
    words = b"\x1f\x00\x04away"
    broker.faults = Faults(connack=bytes([0, 0x83, len(words)]) + words)
    assert refused_login(gateway.address) == b""
    assert lines(lambda: len(lines_about(gateway.log(), "upstream_refused ", "reason_string=away")), 1)


@pytest.mark.parametrize("code", LOGINS, ids=hex)
def test_a_login_that_is_wrong(faulty: tuple[Server, ModelBroker], code: int):
    gateway, broker = faulty
    broker.faults = Faults(connack=bytes([0, code, 0]))
    said = {refused_login(gateway.address) for _ in range(3)}
    assert said == {b"-ERR 'Authorization Violation'\r\n"}
    assert lines(lambda: len(lines_about(gateway.log(), "upstream_refused_login", f"reason={LOGINS[code]} ")), 1)


@pytest.mark.parametrize("code", [0, 1, 5])
def test_a_broker_that_does_not_speak_mqtt_5(faulty: tuple[Server, ModelBroker], code: int):
    gateway, broker = faulty
    broker.faults = Faults(connack=bytes([0, code]))
    assert refused_login(gateway.address) == b""
    assert lines(lambda: len(lines_about(gateway.log(), "upstream_refused ", "reason=it does not speak MQTT 5 ")), 1)
