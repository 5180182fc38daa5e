"""Listeners of the NATS page: added, changed and removed while clients are connected to others."""

from __future__ import annotations

import json
import socket
import time

import pytest

from emqx.gateway import NAMED, Gateway
from emqx.nats import Nats, NatsFailure
from emqx.node import wait_until
from ports import HOST, free_port, is_free


def status(gateway: Gateway, name: str) -> dict:
    return gateway.listener(name)["status"]


def test_running_and_connection_counts(gateway: Gateway, name: str):
    address = gateway.listen(name)
    assert status(gateway, name)["running"] is True
    with gateway.nats(address), gateway.nats(address):
        wait_until(lambda: status(gateway, name)["current_connections"] == 2, "two connections are counted")
        overview = next(one for one in gateway.rest.get("/gateways") if one["name"] == "nats")
        assert overview["current_connections"] == 2
        assert {"id": f"nats:tcp:{name}", "name": name, "running": True, "type": "tcp"} in overview["listeners"]
    wait_until(lambda: status(gateway, name)["current_connections"] == 0, "none is counted any more")


def test_add_change_and_remove_leave_the_others_alone(gateway: Gateway, name: str):
    with gateway.nats() as other:
        other.subscribe(f"{name}.>")
        address = gateway.listen(name)
        with gateway.nats(address) as client:
            client.publish(f"{name}.added", b"1")
            assert other.message().payload == b"1"
        # another address
        moved = (HOST, free_port())
        assert gateway.change_listener(name, moved).status == 200
        wait_until(lambda: is_free(address[1]), "the old port is free")
        with gateway.nats(moved) as client:
            client.publish(f"{name}.moved", b"2")
            assert other.message().payload == b"2"
        # the same address, other options
        with gateway.nats(moved) as before:
            assert gateway.change_listener(name, moved, mountpoint=f"{name}/").status == 200
            with gateway.nats(moved) as client:
                client.publish("mounted", b"3")
                assert other.message().subject == f"{name}.mounted"
            before.ping()
        gateway.remove_listener(name)
        wait_until(lambda: is_free(moved[1]), "the port is free")
        assert gateway.listener(name) is None
        other.publish(f"{name}.last", b"4")
        assert other.message().payload == b"4"


def test_clients_of_a_removed_listener_are_told(gateway: Gateway, name: str):
    """Lame duck mode, then the end: a client library reconnects elsewhere."""
    address = gateway.listen(name)
    with gateway.nats(address, protocol=1) as client, gateway.nats(address, protocol=0) as old:
        gateway.remove_listener(name)
        line = client.line()
        assert line.startswith(b"INFO ") and json.loads(line[5:])["ldm"] is True
        client.closed()
        # protocol 0 takes no INFO but the first
        old.closed()


def test_a_port_in_use_is_refused_with_a_clear_error(gateway: Gateway, name: str):
    with socket.create_server((HOST, 0)) as taken:
        address = taken.getsockname()
        answer = gateway.try_listen(name, address)
        assert answer.status == 400, answer
        assert "address already in use" in answer.body["message"] and str(address[1]) in answer.body["message"]
        assert gateway.listener(name) is None
        with gateway.nats():
            pass


def test_a_listener_that_cannot_move_stays_where_it_is(gateway: Gateway, name: str):
    address = gateway.listen(name)
    with socket.create_server((HOST, 0)) as taken, gateway.nats(address) as client:
        answer = gateway.change_listener(name, taken.getsockname())
        assert answer.status == 400, answer
        assert "address already in use" in answer.body["message"]
        assert gateway.listener(name)["bind"] == f"{address[0]}:{address[1]}"
        client.ping()
        with gateway.nats(address):
            pass
    # and it can be changed afterwards
    moved = (HOST, free_port())
    assert gateway.change_listener(name, moved).status == 200
    with gateway.nats(moved):
        pass


def test_max_connections(gateway: Gateway, name: str):
    address = gateway.listen(name, max_connections=2)
    with gateway.nats(address), gateway.nats(address) as second:
        assert refused(address)
        second.close()
        wait_until(lambda: not refused(address), "a place is free again")


def refused(address: tuple[str, int]) -> bool:
    """Closed before it could do anything."""
    try:
        with Nats(address) as connection:
            connection.ping()
            return False
    except (NatsFailure, OSError):
        return True


def test_max_conn_rate(gateway: Gateway, name: str):
    rate = 5
    address = gateway.listen(name, max_conn_rate=rate)
    began = time.monotonic()
    accepted = sum(not refused(address) for _ in range(5 * rate))
    elapsed = time.monotonic() - began
    # a full bucket, and what flows in meanwhile
    assert accepted <= rate * (1 + elapsed) + 1, f"{accepted} accepted within {elapsed:.1f} s"
    assert accepted >= 1
    wait_until(lambda: not refused(address), "a connection is taken again")


def test_access_rules(gateway: Gateway, name: str):
    denied = gateway.listen(f"{name}d", access_rules=["deny 127.0.0.0/8", "allow all"])
    allowed = gateway.listen(f"{name}a", access_rules=["allow 127.0.0.0/8", "deny all"])
    assert refused(denied)
    assert not refused(allowed)


def test_proxy_protocol(gateway: Gateway, name: str):
    gateway.settings(**NAMED)
    address = gateway.listen(name, proxy_protocol=True)
    with socket.create_connection(address, 5) as plain:
        plain.sendall(b"PROXY TCP4 192.0.2.7 127.0.0.1 5555 4222\r\n")
        plain.sendall(b'CONNECT {"verbose":false,"name":"%b"}\r\nPING\r\n' % name.encode())
        received = b""
        while b"PONG\r\n" not in received:
            received += plain.recv(4096)
        assert json.loads(received.split(b"\r\n")[0][5:])["client_ip"] == "192.0.2.7"
        client = gateway.known(name)
        assert (client["ip_address"], client["port"]) == ("192.0.2.7", 5555)


def test_proxy_protocol_timeout(gateway: Gateway, name: str):
    address = gateway.listen(name, proxy_protocol=True, proxy_protocol_timeout="500ms")
    with socket.create_connection(address, 5) as mute:
        mute.settimeout(5)
        assert mute.recv(1) == b""


@pytest.mark.parametrize("acceptors", [1, 3])
def test_acceptors(gateway: Gateway, name: str, acceptors: int):
    address = gateway.listen(name, acceptors=acceptors)
    with gateway.nats(address) as client:
        client.ping()
    shown = gateway.node.eval(f"esockd:get_acceptors({{'nats:tcp:{name}', {{{{127,0,0,1}},{address[1]}}}}})")
    assert shown == str(acceptors)


def test_tcp_options(gateway: Gateway, name: str):
    options = {"nodelay": False, "recbuf": "128KB", "sndbuf": "128KB", "backlog": 64, "keepalive": "60,10,3"}
    address = gateway.listen(name, tcp_options=options)
    with gateway.nats(address) as client:
        shown = gateway.node.eval(
            f"[inet:getopts(P, [nodelay]) || P <- erlang:ports(), {{ok, {{_, {address[1]}}}}} <- [inet:sockname(P)],"
            " {ok, _} <- [inet:peername(P)]]"
        )
        assert shown == "[{ok,[{nodelay,false}]}]"
        client.ping()


@pytest.mark.parametrize("bind", ["127.0.0.1:0x", "nowhere:1", "127.0.0.1:65536"])
def test_a_wrong_bind_is_refused(gateway: Gateway, name: str, bind: str):
    host, _, port = bind.rpartition(":")
    answer = gateway.try_listen(name, (host, port))
    assert answer.status == 400, answer
    assert gateway.listener(name) is None
