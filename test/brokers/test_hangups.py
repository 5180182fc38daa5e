"""A subject never costs the connection for good, whatever the broker thinks of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from brokers.model import PUBLISH, SUBSCRIBE, Faults, before
from brokers.nats import Client, Closed, message
from clients.stack import Stack, gateway_in_front_of, mosquitto

MALFORMED, PROTOCOL_ERROR, TOPIC_NAME_INVALID = 0x81, 0x82, 0x90
Address = tuple[str, int]


@pytest.fixture(scope="module")
def before_mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    directory = tmp_path_factory.mktemp("mosquitto")
    broker = mosquitto(directory, "allow_anonymous true\n")
    broker.start()
    gateway = gateway_in_front_of(broker.address, directory)
    gateway.start()
    yield gateway.address
    gateway.stop()
    broker.stop()


def deep(levels: int) -> str:
    return ".".join(["a"] * levels)


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("levels", [1, 199, 200])
def test_what_the_broker_takes_passes(before_mosquitto: Address, levels: int, verbose: bool):
    with Client(before_mosquitto, verbose=verbose) as client:
        client.send(f"SUB {deep(levels)} 1\r\nPUB {deep(levels)} 2\r\nhi\r\n".encode())
        assert client.ping().replace(b"+OK\r\n", b"") == message(deep(levels), 1, b"hi")


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("levels", [201, 202, 1000])
def test_what_is_deeper_is_refused_and_the_rest_goes_on(before_mosquitto: Address, levels: int, verbose: bool):
    with Client(before_mosquitto, verbose=verbose) as client:
        client.send(f"SUB t 1\r\nSUB {deep(levels)} 2\r\nPUB {deep(levels)} 2\r\nhi\r\nPUB t 2\r\nhi\r\n".encode())
        errors = (
            f"-ERR 'Permissions Violation for Subscription to \"{deep(levels)}\", too many tokens'\r\n"
            f"-ERR 'Permissions Violation for Publish to \"{deep(levels)}\"'\r\n"
        ).encode()
        assert client.ping().replace(b"+OK\r\n", b"") == errors + message("t", 1, b"hi")


def test_a_queue_group_on_what_is_deeper_is_refused(before_mosquitto: Address):
    with Client(before_mosquitto, verbose=False) as client:
        client.send(f"SUB {deep(201)} q 2\r\n".encode())
        assert b"too many tokens" in client.ping()


@pytest.mark.parametrize("verbose", [False, True])
def test_a_filter_without_a_byte_is_no_subject(before_mosquitto: Address, verbose: bool):
    with Client(before_mosquitto, verbose=verbose) as client:
        client.send(b"SUB / 1\r\nPUB / 2\r\nhi\r\nSUB /./ 2\r\nPUB /./ 2\r\nhi\r\n")
        assert client.ping().replace(b"+OK\r\n", b"") == b"-ERR 'Invalid Subject'\r\n" + message("/./", 2, b"hi")


@pytest.mark.parametrize("rest", ["", ".>", ".*", ".g.a", ".g", "./"])
@pytest.mark.parametrize("name", ["$share", "$queue", "$exclusive"])
def test_reserved_names_are_refused(before_mosquitto: Address, name: str, rest: str):
    with Client(before_mosquitto, verbose=False) as client:
        client.send(f"SUB {name}{rest} 1\r\n".encode())
        assert client.ping() == f"-ERR 'Permissions Violation for Subscription to \"{name}{rest}\"'\r\n".encode()
        client.send(f"SUB {name}{rest} q 1\r\n".encode())
        assert b"Permissions Violation" in client.ping()


@pytest.mark.parametrize("name", ["$share", "$queue", "$share.a", "$queue.a", "$SYS.a"])
def test_reserved_names_are_not_published_to(before_mosquitto: Address, name: str):
    with Client(before_mosquitto, verbose=False) as client:
        client.send(f"PUB {name} 2\r\nhi\r\n".encode())
        assert client.ping() == f"-ERR 'Permissions Violation for Publish to \"{name}\"'\r\n".encode()


def test_names_that_only_begin_so_are_free(before_mosquitto: Address):
    with Client(before_mosquitto, verbose=False) as client:
        client.send(b"SUB $queued.a 1\r\nPUB $queued.a 2\r\nhi\r\n")
        assert client.ping() == message("$queued.a", 1, b"hi")


def hang_ups(address: Address, operation: bytes) -> int:
    """How often the operation costs the connection, until it is refused or all that follows passes."""
    for attempt in range(10):
        with Client(address, verbose=False, name="learner") as client:
            try:
                client.send(b"SUB good.* 1\r\nPUB good.1 2\r\nhi\r\n" + operation + b"PUB good.2 2\r\nhi\r\n")
                said = client.ping()
            except (Closed, ConnectionError):
                continue
            assert b"-ERR 'Permissions Violation for " in said
            assert message("good.1", 1, b"hi") in said and message("good.2", 1, b"hi") in said
            return attempt
    raise AssertionError("never learned")


OPERATIONS = {"PUB": (PUBLISH, b"PUB bad.subject 2\r\nhi\r\n"), "SUB": (SUBSCRIBE, b"SUB bad.subject 9\r\n")}


@pytest.mark.parametrize("reason", [MALFORMED, PROTOCOL_ERROR, TOPIC_NAME_INVALID])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_packet_that_is_blamed_is_refused_once_it_is_known(tmp_path: Path, operation: str, reason: int):
    kind, lines = OPERATIONS[operation]
    faults = Faults(hangs_up=lambda k, topic: reason if (k, topic) == (kind, b"bad/subject") else None)
    with before(faults, tmp_path) as (gateway, _):
        # The first time it was one of several.
        assert hang_ups(gateway.address, lines) == 2


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_packet_that_ends_the_connection_is_refused_after_it_was_suspected_twice(tmp_path: Path, operation: str):
    kind, lines = OPERATIONS[operation]
    faults = Faults(hangs_up=lambda k, topic: 0 if (k, topic) == (kind, b"bad/subject") else None)
    with before(faults, tmp_path) as (gateway, _):
        # More where the reset of the connection took the last answer with it.
        assert hang_ups(gateway.address, lines) in (3, 4, 5)


def test_one_packet_alone_is_known_at_once(tmp_path: Path):
    faults = Faults(hangs_up=lambda kind, topic: PROTOCOL_ERROR if topic == b"bad/subject" else None)
    with before(faults, tmp_path) as (gateway, _):
        with Client(gateway.address, verbose=False, name="alone") as client:
            assert client.ping() == b""
            client.send(b"PUB bad.subject 2\r\nhi\r\n")
            assert client.closed() == b""
        with Client(gateway.address, verbose=False, name="alone") as client:
            client.send(b"PUB bad.subject 2\r\nhi\r\n")
            assert client.ping() == b"-ERR 'Permissions Violation for Publish to \"bad.subject\"'\r\n"
        # It is nobody else's.
        with Client(gateway.address, verbose=False, name="another") as client:
            client.send(b"PUB bad.subject 2\r\nhi\r\n")
            assert client.closed() == b""


def test_a_broker_that_ends_refuses_nobody_anything(tmp_path: Path):
    broker = mosquitto(tmp_path, "allow_anonymous true\n")
    gateway = gateway_in_front_of(broker.address, tmp_path)
    with Stack(gateway, broker):
        for attempt in range(3):
            with Client(gateway.address, verbose=False, name="innocent") as client:
                client.send(b"SUB t.%d 1\r\n" % attempt * 2 + b"PUB t.%d 2\r\nhi\r\n" % attempt)
                assert b"-ERR" not in client.ping()
                client.send(b"PUB t.%d 2\r\nhi\r\n" % attempt)
                broker.kill()
                assert b"-ERR" not in client.closed()
            broker.start()
