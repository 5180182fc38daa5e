"""What signals do to a running bin/nats_gateway."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from cli.running import Running
from emqx.nats import Nats
from ports import HOST, free_port
from wire.servers import accepts

@contextmanager
def started(gateway: Running, **settings: object) -> Iterator[Running]:
    gateway.write(**settings)
    gateway.start()
    yield gateway


def refused(port: int) -> bool:
    return not accepts((HOST, port))


# --- SIGTERM and SIGUSR2 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_requests_under_way_are_answered(gateway: Running, number: int):
    with started(gateway, lame_duck_grace_period="1h", lame_duck_duration="1h"):
        with gateway.client(protocol=1) as service, gateway.client(protocol=1) as client:
            service.subscribe("svc").ping()
            client.subscribe("answer").ping()
            client.send(b"PUB svc answer 1\r\n?\r\n")
            request = service.message()
            gateway.signal(number)
            assert b'"ldm":true' in client.line() and b'"ldm":true' in service.line()
            gateway.until(lambda: refused(gateway.port), "nobody else is accepted")
            service.send(b"PUB " + request.reply.encode() + b" 2\r\nok\r\n")
            assert client.message().payload == b"ok"
        # As soon as the last client has gone.
        assert gateway.ended() == 0


def test_sigterm_ends_after_the_grace_period(gateway: Running):
    with started(gateway, lame_duck_grace_period="1s"):
        with gateway.client(protocol=1) as client:
            began = time.monotonic()
            gateway.signal(signal.SIGTERM)
            assert b'"ldm":true' in client.line()
            client.ping()
            client.closed()
            # That of the default is 10 s.
            assert 0.9 < time.monotonic() - began < 9
            assert gateway.ended() == 0


def test_a_second_sigterm_does_not_wait(gateway: Running):
    with started(gateway, lame_duck_grace_period="1h"):
        with gateway.client(protocol=1) as client:
            gateway.signal(signal.SIGTERM)
            assert b'"ldm":true' in client.line()
            gateway.signal(signal.SIGTERM)
            assert gateway.ended() == 0


def test_a_sigterm_leaves_a_lame_duck_its_time(gateway: Running):
    """As on a nats-server: a service manager may send both."""
    with started(gateway, lame_duck_grace_period="1h", lame_duck_duration="1h"):
        with gateway.client(protocol=1) as client:
            gateway.signal(signal.SIGUSR2)
            assert b'"ldm":true' in client.line()
            for times in (1, 2):
                gateway.signal(signal.SIGTERM)
                gateway.until(lambda: gateway.log.count("lame_duck_goes_on") == times, "it has heard of it")
            client.ping()
        assert gateway.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_lame_duck_opens_no_listener(gateway: Running, number: int):
    more, moved = free_port(), free_port()
    with started(gateway, listeners={"a": gateway.port}, lame_duck_grace_period="1h", lame_duck_duration="1h"):
        with gateway.client(protocol=1) as client:
            gateway.signal(number)
            assert b'"ldm":true' in client.line()
            gateway.write(listeners={"a": moved, "b": more})
            gateway.reload("reload_failed")
            assert "lame duck" in gateway.log
            assert refused(gateway.port) and refused(more) and refused(moved)
            client.ping()
        assert gateway.ended() == 0


def test_no_grace_period(gateway: Running):
    with started(gateway, lame_duck_grace_period="0s"), gateway.client(protocol=1) as client:
        gateway.signal(signal.SIGTERM)
        assert b'"ldm":true' in client.line()
        client.closed()
        assert gateway.ended() == 0


def test_a_lame_duck_closes_its_clients_one_after_the_other(gateway: Running):
    with started(gateway, lame_duck_grace_period="0s", lame_duck_duration="2s"):
        clients = [gateway.client(protocol=1) for _ in range(4)]
        began = time.monotonic()
        gateway.signal(signal.SIGUSR2)
        closed = []
        for client in clients:
            assert b'"ldm":true' in client.line()
        for client in clients:
            client.closed()
            closed.append(time.monotonic() - began)
        assert 1.5 < max(closed) < 20
        assert gateway.ended() == 0


# --- Signals that end it, and those that do not ----------------------------------------------------------------------


@pytest.mark.parametrize("number, status", [(signal.SIGQUIT, 0), (signal.SIGINT, -signal.SIGINT)])
def test_it_ends_at_once(gateway: Running, number: int, status: int):
    with started(gateway, lame_duck_grace_period="1h", lame_duck_duration="1h"), gateway.client() as client:
        gateway.signal(number)
        client.closed()
        assert gateway.ended() == status


def test_sigusr1_does_nothing(gateway: Running):
    with started(gateway), gateway.client() as client:
        gateway.signal(signal.SIGUSR1)
        # Handled after it.
        gateway.reload("settings_reloaded")
        client.ping()


# --- SIGHUP ----------------------------------------------------------------------------------------------------------


def test_a_reload_changes_users_and_limits(gateway: Running):
    with started(gateway, users=[{"user": "old", "password": "p"}], max_payload_size=1000):
        info = Nats((HOST, gateway.port)).info
        with gateway.client(user="old", **{"pass": "p"}, protocol=1) as old:
            gateway.write(users=[{"user": "new", "password": "p"}], max_payload_size=2000)
            gateway.reload("settings_reloaded")
            assert b'"max_payload":2000' in old.line()
            old.ping()
        with gateway.client(user="new", **{"pass": "p"}) as new:
            # Clients that compare it take it for the same server.
            assert new.info["server_id"] == info["server_id"]
        with Nats((HOST, gateway.port)) as late:
            late.send('CONNECT {"user":"old","pass":"p"}\r\n')
            late.rejected("Authorization Violation")


@pytest.mark.parametrize("text", ["max_payload_size = \n", "no_such_setting = 1\n"])
def test_a_broken_file_changes_nothing(gateway: Running, text: str):
    with started(gateway, max_payload_size=1000), gateway.client() as client:
        gateway.file.write_text(text)
        gateway.reload("reload_failed")
        client.ping()
        assert Nats((HOST, gateway.port)).info["max_payload"] == 1000
        gateway.write(max_payload_size=2000)
        gateway.reload("settings_reloaded")
        assert Nats((HOST, gateway.port)).info["max_payload"] == 2000


def test_a_reload_adds_moves_and_removes_listeners(gateway: Running):
    more, moved = free_port(), free_port()
    with started(gateway, listeners={"a": gateway.port, "b": more}), gateway.client() as client:
        with Nats((HOST, more)).connect() as gone:
            gateway.write(listeners={"a": gateway.port, "c": moved})
            gateway.reload("settings_reloaded")
            gone.closed()
        assert refused(more)
        Nats((HOST, moved)).connect().ping()
        client.ping()


def test_a_listener_that_cannot_be_added_leaves_the_others(gateway: Running):
    with socket.create_server((HOST, 0)) as taken, started(gateway), gateway.client() as client:
        gateway.write(listeners={"default": gateway.port, "more": taken.getsockname()[1]})
        gateway.reload("listener_not_changed")
        client.ping()
        gateway.client().ping()


def test_a_reload_changes_the_level_of_the_log(gateway: Running):
    with started(gateway, log_level="notice"):
        gateway.client().close()
        gateway.write(log_level="info")
        gateway.reload("settings_reloaded")
        gateway.client().close()
        gateway.until(lambda: gateway.log.count("client_closed") == 1, "one of two ends is in the log")


# --- The start -------------------------------------------------------------------------------------------------------


def test_what_the_first_client_does_is_in_the_log(gateway: Running):
    """When the log was set up after the listeners, 14 of 15 first clients were missing from it."""
    gateway.write()

    def first_client() -> str:
        until = time.monotonic() + 30
        while True:
            try:
                client = socket.create_connection((HOST, gateway.port), 5)
                break
            except OSError:
                assert time.monotonic() < until
        with client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while client.recv(4096):
                pass
            return "{}:{}".format(*client.getsockname())

    with ThreadPoolExecutor() as pool:
        first = pool.submit(first_client)
        gateway.start()
        peer = first.result()
    gateway.until(lambda: f"peername={peer}" in gateway.log, "it is in the log")
