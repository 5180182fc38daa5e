"""How a client ends that does not go by itself, and what EMQX is told of each end."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from certificates import Authority, Certificate, client_context
from emqx.conftest import BUILT_IN
from emqx.gateway import NAMED, Gateway
from emqx.nats import Nats
from emqx.node import wait_until
from emqx.page import Page
from websocket_client import CLOSE, Frame, WebSocket, frame, request

TRANSPORTS = ["tcp", "ssl", "ws", "wss"]
MB = 1 << 20
# More than the kernel takes for somebody who does not read.
MUCH = 32 * MB


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Authority(tmp_path_factory.mktemp("certificates")).server()


@pytest.fixture
def connect(gateway: Gateway, server: Certificate, name: str) -> Callable[..., Nats]:
    """A client that is logged in under the test's name, over a transport."""
    gateway.settings(**NAMED)
    addresses = {"tcp": gateway.address}

    def connected(transport: str = "tcp", **fields: object) -> Nats:
        if transport not in addresses:
            options = {}
            if transport in ("ssl", "wss"):
                files = {key: Path(getattr(server, key)).read_text() for key in ("certfile", "keyfile")}
                options = {"ssl_options": files}
            addresses[transport] = gateway.listen(f"{name}{transport}", transport, **options)
        tls: ssl.SSLContext | None = client_context(server.cafile) if transport in ("ssl", "wss") else None
        websocket = request() if transport in ("ws", "wss") else None
        return gateway.nats(
            addresses[transport],
            tls=tls,
            tls_first=BUILT_IN and transport == "ssl",
            websocket=websocket,
            **{"name": name, "user": name} | fields,
        )

    return connected


# --- Somebody ends it ------------------------------------------------------------------------------------------------


def kick(gateway: Gateway, connect: Callable[..., Nats], name: str) -> None:
    gateway.kick(name)


def replace(gateway: Gateway, connect: Callable[..., Nats], name: str) -> None:
    """Another client with its id."""
    connect().close()


ENDS = pytest.mark.parametrize("end", [kick, replace])


@pytest.mark.plugin
@ENDS
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nothing_is_said(gateway: Gateway, connect: Callable[..., Nats], name: str, transport: str, end: Callable):
    """As by nats-server. What the built-in says makes three of the official clients give up for good."""
    with connect(transport) as client:
        gateway.known(name)
        end(gateway, connect, name)
        client.closed()
        gateway.forgotten(name)


@pytest.mark.plugin
@pytest.mark.parametrize(("end", "text"), [(kick, b"Kicked"), (replace, b"Duplicate Client ID")])
def test_a_websocket_has_a_code_for_it(
    gateway: Gateway, connect: Callable[..., Nats], name: str, end: Callable, text: bytes
):
    connect().close()
    address = gateway.listen(f"{name}code", "ws")
    with WebSocket.connect(address) as client:
        client.upgrade()
        client.read()
        client.send(frame(f'CONNECT {{"verbose":false,"name":"{name}"}}\r\nPING\r\n'.encode()))
        client.read()
        gateway.known(name)
        end(gateway, connect, name)
        assert client.read() == Frame(CLOSE, (1011).to_bytes(2, "big") + text)


@pytest.mark.plugin
@ENDS
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_client_that_does_not_read(
    gateway: Gateway, page: Page, connect: Callable[..., Nats], name: str, transport: str, end: Callable
):
    """Its end does not wait for it, although it would not be cut off for a long time."""
    page.change(send_timeout="10m", max_pending="256MB")
    with connect(transport) as client, gateway.nats() as publisher:
        port = int(client.peername.rpartition(":")[2])
        client.subscribe(name)
        for _ in range(MUCH // MB):
            publisher.publish(name, b"x" * MB)
        publisher.ping()
        assert any(one["port"] == port for one in gateway.clients())
        end(gateway, connect, name)
        wait_until(lambda: not any(one["port"] == port for one in gateway.clients()), "it is not listed any more")


# --- What EMQX is told -----------------------------------------------------------------------------------------------


def close(gateway: Gateway, client: Nats, connect: Callable[..., Nats], name: str) -> None:
    client.close()


def is_kicked(gateway: Gateway, client: Nats, connect: Callable[..., Nats], name: str) -> None:
    gateway.kick(name)


def is_replaced(gateway: Gateway, client: Nats, connect: Callable[..., Nats], name: str) -> None:
    connect(user="other").close()


def is_silent(gateway: Gateway, client: Nats, connect: Callable[..., Nats], name: str) -> None:
    client.expect(b"PING\r\n-ERR 'Stale Connection'\r\n", deadline=20)


@contextmanager
def disconnected(rule: Callable[[str], str], gateway: Gateway, name: str) -> Iterator[Callable[[], dict]]:
    topic = rule(f"SELECT * FROM \"$events/client/disconnected\" WHERE username = '{name}'")
    with gateway.mqtt() as mqtt:
        mqtt.subscribe(topic)
        yield lambda: json.loads(mqtt.message().payload)


@pytest.mark.parametrize(
    ("end", "transport", "reason"),
    [
        (close, "tcp", "tcp_closed"),
        (close, "ssl", "ssl_closed"),
        pytest.param(close, "ws", "tcp_closed", marks=pytest.mark.plugin),
        pytest.param(close, "wss", "ssl_closed", marks=pytest.mark.plugin),
        (is_kicked, "tcp", "kicked"),
        # of these the built-in says nothing
        pytest.param(is_replaced, "tcp", "discarded", marks=pytest.mark.plugin),
        pytest.param(is_silent, "tcp", "keepalive_timeout", marks=pytest.mark.plugin),
    ],
)
def test_the_reason_of_an_end(
    gateway: Gateway,
    connect: Callable[..., Nats],
    rule: Callable[[str], str],
    name: str,
    end: Callable,
    transport: str,
    reason: str,
):
    """In EMQX's words, for rules and dashboards."""
    if end is is_silent:
        gateway.settings(**NAMED, default_heartbeat_interval="1s", heartbeat_wait_timeout="1s")
    with disconnected(rule, gateway, name) as event, connect(transport) as client:
        gateway.known(name)
        end(gateway, client, connect, name)
        assert event()["reason"] == reason
