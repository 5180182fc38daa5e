"""The `ws` and `wss` listeners of the NATS page: as the others, with EMQX's options for WebSocket."""

from __future__ import annotations

import json
import socket
import ssl
import time
from pathlib import Path

import pytest

from certificates import Authority, Certificate, client_context
from emqx.gateway import NAMED, Gateway
from emqx.nats import Address, Nats, NatsFailure
from emqx.node import wait_until
from emqx.page import Page
from ports import HOST, free_port, is_free
from websocket_client import BINARY, CLOSE, PING, PONG, Frame, Response, Unexpected, WebSocket, frame, request

pytestmark = pytest.mark.plugin

REQUEST = request()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Authority(tmp_path_factory.mktemp("certificates")).server()


def pem(path: str) -> str:
    return Path(path).read_text()


def listen_wss(gateway: Gateway, name: str, server: Certificate, **more: object) -> tuple[Address, ssl.SSLContext]:
    ssl_options = {"certfile": pem(server.certfile), "keyfile": pem(server.keyfile), "cacertfile": pem(server.cafile)}
    address = gateway.listen(name, "wss", ssl_options=ssl_options | more.pop("ssl_options", {}), **more)
    return address, client_context(server.cafile)


def status(gateway: Gateway, name: str, kind: str = "ws") -> dict:
    return gateway.listener(name, kind)["status"]


def over_ws(gateway: Gateway, address: Address, **fields: object) -> Nats:
    return gateway.nats(address, websocket=REQUEST, **fields)


def refused(address: Address) -> bool:
    try:
        with Nats(address, websocket=REQUEST) as connection:
            connection.ping()
            return False
    except (NatsFailure, Unexpected, OSError):
        return True


def answer_to(address: Address, data: bytes) -> Response:
    with WebSocket.connect(address) as client:
        client.send(data)
        return client.response()


# --- Listeners -------------------------------------------------------------------------------------------------------


def test_running_and_connection_counts(gateway: Gateway, name: str):
    address = gateway.listen(name, "ws")
    assert status(gateway, name)["running"] is True
    with over_ws(gateway, address), over_ws(gateway, address):
        wait_until(lambda: status(gateway, name)["current_connections"] == 2, "two connections are counted")
    wait_until(lambda: status(gateway, name)["current_connections"] == 0, "none is counted any more")
    gateway.remove_listener(name, "ws")
    assert gateway.listener(name, "ws") is None
    wait_until(lambda: is_free(address[1]), "the port is free")


def test_messages_to_and_from_mqtt_and_tcp(gateway: Gateway, name: str):
    address = gateway.listen(name, "ws")
    with over_ws(gateway, address) as client, gateway.nats() as tcp, gateway.mqtt() as mqtt:
        client.subscribe(f"{name}.in.>")
        tcp.subscribe(f"{name}.out.>")
        mqtt.subscribe(f"{name}/out/#")
        for size in (0, 1, 100, 70000, 1000000):
            payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            client.publish(f"{name}.out.a", payload)
            assert tcp.message().payload == payload
            assert mqtt.message().payload == payload
            mqtt.publish(f"{name}/in/m", payload)
            assert client.message().payload == payload
            tcp.publish(f"{name}.in.t", payload)
            assert client.message().payload == payload


def test_clients_are_listed_and_kicked(gateway: Gateway, name: str):
    gateway.settings(**NAMED)
    address = gateway.listen(name, "ws")
    with WebSocket.connect(address) as client:
        client.upgrade()
        assert json.loads(client.read().payload[5:])["client_ip"] == HOST
        client.send(frame(b'CONNECT {"verbose":false,"name":"%b"}\r\nPING\r\n' % name.encode()))
        assert client.read() == Frame(BINARY, b"PONG\r\n")
        assert gateway.known(name)["ip_address"] == HOST
        info = gateway.node.eval(
            f'#{{conninfo := #{{socktype := S}}, clientinfo := #{{listener := L}}}} ='
            f' emqx_gateway_cm:get_chan_info(nats, <<"{name}">>), {{S, L}}'
        )
        assert info == f"{{ws,'nats:ws:{name}'}}"
        gateway.kick(name)
        closing = client.read()
        assert (closing.opcode, closing.payload[:2]) == (CLOSE, (1011).to_bytes(2, "big"))
        client.ended()
    gateway.forgotten(name)


def test_add_change_and_remove_leave_the_others_alone(gateway: Gateway, name: str):
    with gateway.nats() as other:
        other.subscribe(f"{name}.>")
        address = gateway.listen(name, "ws")
        with over_ws(gateway, address) as client:
            client.publish(f"{name}.added", b"1")
            assert other.message().payload == b"1"
        # another address
        moved = (HOST, free_port())
        assert gateway.change_listener(name, moved, "ws").status == 200
        wait_until(lambda: is_free(address[1]), "the old port is free")
        with over_ws(gateway, moved) as before:
            # the same address, other options: of the gateway, of the socket, of both
            for changes in (
                {"mountpoint": f"{name}/"},
                {"mountpoint": f"{name}/", "max_connections": 7},
                {"mountpoint": f"{name}/", "acceptors": 3, "tcp_options": {"backlog": 77}},
                {"mountpoint": f"{name}/", "websocket": {"path": "/"}, "max_conn_rate": 500},
            ):
                assert gateway.change_listener(name, moved, "ws", **changes).status == 200
                assert status(gateway, name)["running"] is True
                with over_ws(gateway, moved) as client:
                    client.publish("mounted", b"3")
                    assert other.message().subject == f"{name}.mounted"
                before.ping()
        gateway.remove_listener(name, "ws")
        wait_until(lambda: is_free(moved[1]), "the port is free")
        other.publish(f"{name}.last", b"4")
        assert other.message().payload == b"4"


def test_clients_of_a_removed_listener_are_told(gateway: Gateway, name: str):
    address = gateway.listen(name, "ws")
    with WebSocket.connect(address) as client:
        client.upgrade()
        client.read()
        client.send(frame(b'CONNECT {"verbose":false,"protocol":1}\r\nPING\r\n'))
        client.read()
        gateway.remove_listener(name, "ws")
        told = client.read()
        assert told.payload.startswith(b"INFO ") and json.loads(told.payload[5:])["ldm"] is True
        closing = client.read()
        assert (closing.opcode, closing.payload[:2]) == (CLOSE, (1001).to_bytes(2, "big"))
        client.ended()


@pytest.mark.kills  # ranch logs an error for it
def test_a_port_in_use_is_refused_with_a_clear_error(gateway: Gateway, name: str):
    with socket.create_server((HOST, 0)) as taken:
        address = taken.getsockname()
        answer = gateway.try_listen(name, address, "ws")
        assert answer.status == 400, answer
        assert "address already in use" in answer.body["message"] and str(address[1]) in answer.body["message"]
        assert gateway.listener(name, "ws") is None
        with gateway.nats():
            pass


@pytest.mark.kills  # ranch logs an error for it
def test_a_listener_that_cannot_move_stays_where_it_is(gateway: Gateway, name: str):
    address = gateway.listen(name, "ws")
    with socket.create_server((HOST, 0)) as taken:
        answer = gateway.change_listener(name, taken.getsockname(), "ws")
        assert answer.status == 400, answer
        assert "address already in use" in answer.body["message"]
        with over_ws(gateway, address):
            pass
    moved = (HOST, free_port())
    assert gateway.change_listener(name, moved, "ws").status == 200
    with over_ws(gateway, moved):
        pass


def test_a_port_goes_from_one_type_to_another(gateway: Gateway, name: str):
    address = gateway.listen(name, "tcp")
    gateway.remove_listener(name, "tcp")
    gateway.listen(name, "ws", port=address[1])
    with over_ws(gateway, address):
        pass
    gateway.remove_listener(name, "ws")
    gateway.listen(name, "tcp", port=address[1])
    with gateway.nats(address):
        pass


def test_max_connections(gateway: Gateway, name: str):
    """The others wait, in the order in which they came."""
    address = gateway.listen(name, "ws", max_connections=2, acceptors=1)
    with over_ws(gateway, address), over_ws(gateway, address) as second:
        with socket.create_connection(address, 5) as waiting:
            waiting.sendall(REQUEST)
            waiting.settimeout(0.5)
            with pytest.raises(TimeoutError):
                waiting.recv(1)
            second.close()
            waiting.settimeout(5)
            assert waiting.recv(12) == b"HTTP/1.1 101"


def test_max_conn_rate(gateway: Gateway, name: str):
    rate = 5
    address = gateway.listen(name, "ws", max_conn_rate=rate)
    began = time.monotonic()
    for _ in range(4 * rate):
        with Nats(address, deadline=10, websocket=REQUEST):
            pass
    # a full bucket, and what has flown in meanwhile
    assert time.monotonic() - began >= 3 - 0.3


def test_access_rules(gateway: Gateway, name: str):
    denied = gateway.listen(f"{name}d", "ws", access_rules=["deny 127.0.0.0/8", "allow all"])
    allowed = gateway.listen(f"{name}a", "ws", access_rules=["allow 127.0.0.0/8", "deny all"])
    assert refused(denied)
    assert not refused(allowed)


@pytest.mark.parametrize("version", [1, 2])
def test_proxy_protocol(gateway: Gateway, name: str, version: int):
    gateway.settings(**NAMED)
    header = {
        1: b"PROXY TCP4 192.0.2.7 127.0.0.1 5555 4222\r\n",
        2: b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes((192, 0, 2, 7, 127, 0, 0, 1, 0x15, 0xB3, 0x10, 0x7E)),
    }[version]
    address = gateway.listen(name, "ws", proxy_protocol=True)
    with gateway.nats(address, proxy=header, websocket=REQUEST, name=name) as client:
        assert client.info["client_ip"] == "192.0.2.7"
        shown = gateway.known(name)
        assert (shown["ip_address"], shown["port"]) == ("192.0.2.7", 5555)
    # nothing of it, and nonsense instead
    gateway.change_listener(name, address, "ws", proxy_protocol=True, proxy_protocol_timeout="300ms")
    with socket.create_connection(address, 5) as mute:
        mute.settimeout(5)
        assert mute.recv(1) == b""
    with socket.create_connection(address, 5) as wrong:
        wrong.settimeout(5)
        wrong.sendall(REQUEST)
        assert wrong.recv(1) == b""


def test_wss(gateway: Gateway, name: str, server: Certificate):
    address, trusting = listen_wss(gateway, name, server)
    assert status(gateway, name, "wss")["running"] is True
    with over_ws(gateway, address, tls=trusting) as client, gateway.nats() as tcp:
        assert client.info["tls_required"] is True and client.info["tls_available"] is True
        tcp.subscribe(f"{name}.>")
        payload = bytes(range(256)) * 800
        client.publish(f"{name}.big", payload)
        assert tcp.message().payload == payload
    # no TLS
    with socket.create_connection(address, 5) as plain:
        plain.settimeout(5)
        plain.sendall(REQUEST)
        assert plain.recv(1) == b""


def test_wss_with_a_client_certificate(gateway: Gateway, page: Page, name: str, tmp_path: Path):
    authority = Authority(tmp_path)
    server, own = authority.server(), authority.issue("client", "/O=Test/CN=Alice")
    page.change(peer_cert_as_username="cn")
    gateway.settings(**NAMED)
    verify = {"verify": "verify_peer", "fail_if_no_peer_cert": True}
    address, stranger = listen_wss(gateway, name, server, ssl_options=verify)
    with over_ws(gateway, address, tls=client_context(server.cafile, own), name=name):
        assert gateway.known(name)["username"] == "Alice"
    with pytest.raises((OSError, NatsFailure, Unexpected)):
        over_ws(gateway, address, tls=stranger)


# --- Options of the page ---------------------------------------------------------------------------------------------


def test_path(gateway: Gateway, name: str):
    address = gateway.listen(name, "ws", websocket={"path": "/nats"})
    for path, expected in {"/nats": 101, "/nats?x=1": 101, "/nats/below": 101, "/": 404, "/natsx": 404}.items():
        assert answer_to(address, request(f"GET {path} HTTP/1.1")).status == expected, path


def test_origins(gateway: Gateway, name: str):
    allowed = {"check_origin_enable": True, "check_origins": "https://a.example, http://b.example:81"}
    address = gateway.listen(name, "ws", websocket=allowed)
    answers = {"https://a.example": 101, "http://b.example:81": 101, "http://a.example": 403, "null": 403, None: 101}
    for origin, expected in answers.items():
        assert answer_to(address, request(Origin=origin)).status == expected, origin
    gateway.change_listener(name, address, "ws", websocket=allowed | {"allow_origin_absence": False})
    assert answer_to(address, REQUEST).status == 403
    refusal = gateway.change_listener(name, address, "ws", websocket=allowed | {"check_origins": "a.example"})
    assert refusal.status == 400 and "origins" in refusal.body["message"], refusal
    assert answer_to(address, REQUEST).status == 403


def test_origin_that_is_the_same(gateway: Gateway, page: Page, name: str):
    page.change(websocket_same_origin=True)
    address = gateway.listen(name, "ws")
    for origin, expected in {"http://127.0.0.1": 101, "http://127.0.0.1:81": 403, None: 101}.items():
        assert answer_to(address, request(Origin=origin)).status == expected, origin


def test_subprotocols(gateway: Gateway, name: str):
    address = gateway.listen(name, "ws")
    # EMQX's own list is NATS/1.0, NATS
    for offered, chosen in {"nats": "nats", "mqtt, NATS/1.0": "NATS/1.0", "mqtt": None, None: None}.items():
        answer = answer_to(address, request(Sec_WebSocket_Protocol=offered))
        assert (answer.status, answer.headers.get("sec-websocket-protocol")) == (101, chosen)
    # It is what may be answered, not what must be asked for: test_schema.py has the setting for that.
    gateway.change_listener(name, address, "ws", websocket={"supported_subprotocols": "mqtt"})
    for offered, chosen in {"nats": "nats", "mqtt": "mqtt", "xmpp": None, None: None}.items():
        answer = answer_to(address, request(Sec_WebSocket_Protocol=offered))
        assert (answer.status, answer.headers.get("sec-websocket-protocol")) == (101, chosen)


def test_compress(gateway: Gateway, name: str):
    options = {"compress": True, "deflate_opts": {"level": "best_compression", "mem_level": 9}}
    address = gateway.listen(name, "ws", websocket=options)
    with WebSocket.connect(address) as client:
        answer = client.upgrade(request(Sec_WebSocket_Extensions="permessage-deflate"))
        assert answer.headers["sec-websocket-extensions"].startswith("permessage-deflate; ")
        client.read()
        client.send(frame(b'CONNECT {"verbose":false}\r\nSUB a 1\r\nPUB a 1000\r\n' + b"x" * 1000 + b"\r\n"))
        message = client.read()
        assert message.deflated and len(message.payload) < 100


def test_max_frame_size(gateway: Gateway, name: str):
    address = gateway.listen(name, "ws", websocket={"max_frame_size": 1000})
    with WebSocket.connect(address) as client:
        client.upgrade()
        client.read()
        client.send(frame(b"PING\r\nPING" + b" " * 988 + b"\r\n"))
        assert client.read() == Frame(BINARY, b"PONG\r\nPONG\r\n")
        client.send(frame(b"x" * 1001)[:8])
        assert client.read().payload[:2] == (1009).to_bytes(2, "big")
        client.ended()


def test_proxy_headers(gateway: Gateway, name: str):
    """EMQX trusts them unless they are given no names."""
    gateway.settings(**NAMED)
    address = gateway.listen(name, "ws")
    forwarded = request(X_Forwarded_For="192.0.2.9, 10.0.0.1", X_Forwarded_Port="7777")
    with gateway.nats(address, websocket=forwarded, name=name) as client:
        assert client.info["client_ip"] == "192.0.2.9"
        shown = gateway.known(name)
        assert (shown["ip_address"], shown["port"]) == ("192.0.2.9", 7777)
    gateway.forgotten(name)
    nobody = {"proxy_address_header": "", "proxy_port_header": ""}
    assert gateway.change_listener(name, address, "ws", websocket=nobody).status == 200
    with gateway.nats(address, websocket=forwarded, name=name):
        assert gateway.known(name)["ip_address"] == HOST


def test_ping_of_websocket(gateway: Gateway, name: str):
    address = gateway.listen(name, "ws")
    with WebSocket.connect(address) as client:
        client.upgrade()
        client.read()
        client.send(frame(b"payload", PING))
        assert client.read() == Frame(PONG, b"payload")


# --- The rest of the world -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"GET", b"\x16\x03\x01\x02\x00", b'CONNECT {"verbose":false}\r\nPING\r\n', b"\0" * 100]
)
def test_strangers(gateway: Gateway, name: str, data: bytes):
    """They get a refusal or nothing, and leave no error in the log (as every test checks)."""
    address = gateway.listen(name, "ws")
    with socket.create_connection(address, 5) as stranger:
        stranger.sendall(data)
        stranger.shutdown(socket.SHUT_WR)
        stranger.settimeout(5)
        received = b""
        while more := stranger.recv(4096):
            received += more
        assert received == b"" or received.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    with over_ws(gateway, address):
        pass


def test_login(gateway: Gateway, name: str):
    address = gateway.listen(name, "ws")
    chain = "/gateways/nats/authentication"
    gateway.undo("DELETE", chain)
    gateway.rest.post(
        chain,
        {
            "mechanism": "password_based",
            "backend": "built_in_database",
            "user_id_type": "username",
            "password_hash_algorithm": {"name": "sha256", "salt_position": "suffix"},
        },
    )
    gateway.rest.post(f"{chain}/users", {"user_id": name, "password": "secret"})
    with over_ws(gateway, address, user=name, **{"pass": "secret"}) as client:
        client.ping()
    with WebSocket.connect(address) as client:
        client.upgrade()
        assert json.loads(client.read().payload[5:])["auth_required"] is True
        client.send(frame(b'CONNECT {"user":"%b","pass":"wrong"}\r\n' % name.encode()))
        assert client.read() == Frame(BINARY, b"-ERR 'Authorization Violation'\r\n")
        assert client.read() == Frame(CLOSE, (1008).to_bytes(2, "big") + b"Authentication Failure")
        client.ended()
