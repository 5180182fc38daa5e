"""The header of a PROXY protocol on the listeners of the standalone gateway, before TLS and HTTP."""

from __future__ import annotations

import socket
import ssl
import struct

import pytest

from certificates import Authority, Certificate, client_context
from cli.running import Running
from emqx.nats import Nats
from ports import HOST
from websocket_client import request

TEXT = b"PROXY TCP4 192.0.2.7 127.0.0.1 5555 4222\r\n"
BINARY = (
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11"
    + struct.pack(">H", 12)
    + bytes((192, 0, 2, 7, 127, 0, 0, 1))
    + struct.pack(">HH", 5555, 4222)
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Authority(tmp_path_factory.mktemp("certificates")).server()


def start(gateway: Running, broker: int, kind: str, certificate: Certificate, timeout: str = "3s") -> None:
    files = f'certfile = "{certificate.certfile}"\nkeyfile = "{certificate.keyfile}"\n'
    gateway.file.write_text(
        f'log_level = "info"\n[upstream]\nurl = "mqtt://{HOST}:{broker}"\n'
        f'[listeners.{kind}.proxied]\nbind = "{HOST}:{gateway.port}"\n'
        f'proxy_protocol = true\nproxy_protocol_timeout = "{timeout}"\n'
        + (f"[listeners.{kind}.proxied.ssl_options]\n{files}" if kind in ("ssl", "wss") else "")
    )
    gateway.start()


def client(gateway: Running, kind: str, header: bytes, trusting: ssl.SSLContext) -> Nats:
    return Nats(
        (HOST, gateway.port), proxy=header, tls=trusting if kind in ("ssl", "wss") else None,
        websocket=request() if kind in ("ws", "wss") else None,
    )


@pytest.mark.parametrize("kind", ["tcp", "ssl", "ws", "wss"])
def test_the_header_names_the_client(gateway: Running, mosquitto: int, kind: str, certificate: Certificate):
    start(gateway, mosquitto, kind, certificate)
    trusting = client_context(certificate.cafile)
    for number, header in enumerate((TEXT, BINARY), 1):
        with client(gateway, kind, header, trusting) as nats:
            assert nats.info["client_ip"] == "192.0.2.7"
            nats.connect().ping()
        gateway.until(lambda: gateway.log.count("peername=192.0.2.7:5555") == number, "the log names the client")


def test_without_a_header_nobody_is_served(gateway: Running, mosquitto: int, certificate: Certificate):
    start(gateway, mosquitto, "tcp", certificate, "200ms")
    for said in (b"", b"CONNECT {}\r\nPING\r\n", TEXT[:20]):
        with socket.create_connection((HOST, gateway.port), 5) as plain:
            plain.sendall(said)
            assert plain.recv(1) == b"", said


def test_elsewhere_a_header_is_no_operation(gateway: Running, mosquitto: int):
    gateway.write()
    gateway.start()
    with socket.create_connection((HOST, gateway.port), 5) as plain:
        plain.sendall(TEXT)
        received = b""
        while more := plain.recv(4096):
            received += more
    assert received.endswith(b"-ERR 'Unknown Protocol Operation'\r\n")
    assert b'"client_ip":"127.0.0.1"' in received
