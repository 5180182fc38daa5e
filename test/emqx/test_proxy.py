"""The header of the PROXY protocol, before anything else on a listener that asks for it."""

from __future__ import annotations

import json
import socket
import struct
import time

import pytest

from emqx.gateway import Gateway
from emqx.nats import Address
from emqx.node import wait_until
from websocket_client import WebSocket, frame, request

pytestmark = pytest.mark.plugin

KINDS = ["tcp", "ws"]
PLACES = bytes((192, 0, 2, 7, 127, 0, 0, 1)) + struct.pack(">HH", 5555, 4222)
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def binary(body: bytes, command: int = 0x21, family: int = 0x11) -> bytes:
    return SIGNATURE + bytes((command, family)) + struct.pack(">H", len(body)) + body


TEXT = b"PROXY TCP4 192.0.2.7 127.0.0.1 5555 4222\r\n"
# with what HAProxy can add: the name asked for, an id of the connection
BINARY = binary(PLACES + b"\x02\0\x03a.b" + b"\x05\0\x04abcd")
# what the proxy sends to see whether the gateway is well
LOCAL = binary(b"", 0x20, 0)


def client_ip(address: Address, kind: str, *pieces: bytes) -> str:
    """As INFO tells it to a client whose header comes in these pieces, its own bytes behind the last one."""
    with socket.create_connection(address, 5) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces[:-1]:
            plain.sendall(piece)
            time.sleep(0.01)
        if kind == "tcp":
            plain.sendall(pieces[-1] + b"PING\r\n")
            received = b""
            while not received.endswith(b"PONG\r\n"):
                assert (more := plain.recv(4096)), f"the end after {received!r}"
                received += more
        else:
            client = WebSocket(plain)
            client.upgrade(pieces[-1] + request())
            received = client.read().payload
            client.send(frame(b"PING\r\n"))
            assert client.read().payload == b"PONG\r\n"
        return json.loads(received.split(b"\r\n")[0][5:])["client_ip"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_may_come_in_pieces(gateway: Gateway, name: str, kind: str):
    address = gateway.listen(name, kind, proxy_protocol=True)
    for header in (TEXT, BINARY):
        for at in range(1, len(header)):
            assert client_ip(address, kind, header[:at], header[at:]) == "192.0.2.7", at
        assert client_ip(address, kind, *(bytes((byte,)) for byte in header)) == "192.0.2.7"


@pytest.mark.parametrize("kind", KINDS)
def test_headers_that_name_no_client(gateway: Gateway, name: str, kind: str):
    """What comes behind them is not taken for a part of them."""
    address = gateway.listen(name, kind, proxy_protocol=True)
    for header in (LOCAL, binary(b"12345", 0x20, 0), binary(b"", 0x21, 0), b"PROXY UNKNOWN\r\n"):
        assert client_ip(address, kind, header) == "127.0.0.1"
        assert client_ip(address, kind, header, b"") == "127.0.0.1"


WRONG = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"CONNECT {}\r\nPING\r\n",
    b"\x16\x03\x01\x00\x05hello",
    b"PROXY " + b"x" * 200,
    b"PROXY TCP4\r\n",
    b"PROXY TCP4 x y z w\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 a b\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
    b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY TCP9 1.2.3.4 5.6.7.8 1 2\r\n",
    SIGNATURE + b"\x20\x00",
    SIGNATURE + b"\x20",
    SIGNATURE + b"\x31\x11\x00\x00",
    binary(b"\1\2\3\4"),
    binary(PLACES, family=0x99),
    binary(PLACES, command=0x22),
    binary(PLACES, family=0x21),
    binary(PLACES + b"\x20\0\3abc"),
    binary(PLACES + b"\x20\xff\xffabc"),
    binary(PLACES + b"\1"),
    b"",
]


@pytest.mark.usefixtures("noticing")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_header_is_one_line_in_the_log(gateway: Gateway, name: str, kind: str):
    address = gateway.listen(name, kind, proxy_protocol=True, proxy_protocol_timeout="300ms")
    for wrong in WRONG:
        begin = gateway.node.log_size
        with socket.create_connection(address, 5) as plain:
            plain.settimeout(5)
            plain.sendall(wrong)
            assert plain.recv(1) == b"", wrong
            port = plain.getsockname()[1]

        def lines() -> list[str]:
            return [line for line in gateway.node.log(begin).splitlines() if line.strip()]

        wait_until(lambda: any(f"nats:{kind}:{name}" in line for line in lines()), f"a line for {wrong!r}")
        assert len(lines()) == 1, (wrong, lines())
        assert "[notice]" in lines()[0] and f"127.0.0.1:{port}" in lines()[0], (wrong, lines())
