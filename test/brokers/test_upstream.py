"""What clients that have not logged in cost the broker, and what is told of one that is not there."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from brokers.nats import Client, Closed
from clients.stack import Stack, gateway_in_front_of, mosquitto

SILENT = 60


def test_silent_clients_take_no_connection_of_the_broker(tmp_path: Path):
    """A broker for 30: 60 clients that say nothing keep nobody out."""
    broker = mosquitto(tmp_path, "allow_anonymous true\nmax_connections 30\n")
    gateway = gateway_in_front_of(broker.address, tmp_path)
    with Stack(gateway, broker):
        with ExitStack() as silent:
            for _ in range(SILENT):
                silent.enter_context(Client(gateway.address))
            for _ in range(20):
                with Client(gateway.address, verbose=False) as client:
                    assert client.ping() == b""


def test_one_line_for_an_outage_and_one_for_its_end(tmp_path: Path):
    broker = mosquitto(tmp_path, "allow_anonymous true\n")
    gateway = gateway_in_front_of(broker.address, tmp_path)
    with Stack(gateway, broker):
        with Client(gateway.address, verbose=False) as client:
            client.ping()
            broker.stop()
            assert client.closed() == b""
        for _ in range(20):
            refused(gateway.address)
        broker.start()
        with served_again(gateway.address) as client:
            assert client.ping() == b""
    assert gateway.log().count("upstream_connect_failed") == 1
    assert gateway.log().count("upstream_is_back") == 1


def served_again(address: tuple[str, int]) -> Client:
    until = time.monotonic() + 5
    while True:
        with suppress(Closed):
            return Client(address, verbose=False)
        assert time.monotonic() < until, "not served within 5 s"


def refused(address: tuple[str, int]) -> None:
    """Without an INFO, upon which some clients would wait for long."""
    with socket.create_connection(address, 10) as client:
        assert client.recv(100) == b""
