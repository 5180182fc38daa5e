"""Bytes that one connection of the standalone gateway holds, by phase: `python test/bench/phases.py`.

The growth of the gateway's resident memory over CONNECTIONS equal ones, as docs/limits.md has it.
"""

from __future__ import annotations

import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clients.stack import gateway_in_front_of, mosquitto
from ports import HOST, free_port
from wire.servers import accepts
from wire.transports import server_certificate

CONNECTIONS = 1000
# The first connections grow tables that all others share.
WARM_UP = 200
HALF_A_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
Address = tuple[str, int]


def tcp(address: Address) -> socket.socket:
    client = socket.create_connection(address, 10)
    client.recv(4096)
    return client


def tls(address: Address) -> socket.socket:
    context = ssl.create_default_context(cafile=server_certificate().cafile)
    client = context.wrap_socket(tcp(address), server_hostname=HOST)
    return client


def half_a_tls_handshake(address: Address) -> socket.socket:
    client = tcp(address)
    client.sendall(bytes.fromhex("1603010200010001fc0303") + bytes(200))
    return client


def silent(address: Address) -> socket.socket:
    return socket.create_connection(address, 10)


def half_a_request(address: Address) -> socket.socket:
    client = silent(address)
    client.sendall(HALF_A_REQUEST)
    return client


def tls_at_once(address: Address) -> socket.socket:
    context = ssl.create_default_context(cafile=server_certificate().cafile)
    return context.wrap_socket(silent(address), server_hostname=HOST)


def half_a_request_over_tls(address: Address) -> socket.socket:
    client = tls_at_once(address)
    client.sendall(HALF_A_REQUEST)
    return client


def websocket(address: Address) -> socket.socket:
    return upgraded(half_a_request(address))


def websocket_over_tls(address: Address) -> socket.socket:
    return upgraded(half_a_request_over_tls(address))


def upgraded(client: socket.socket) -> socket.socket:
    client.sendall(
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    while b"INFO" not in client.recv(4096):
        pass
    return client


def connected(address: Address) -> socket.socket:
    client = tcp(address)
    client.sendall(b"CONNECT {\"verbose\":false}\r\nPING\r\n")
    client.recv(4096)
    return client


def subscribed(address: Address) -> socket.socket:
    client = tcp(address)
    client.sendall(b"CONNECT {\"verbose\":false}\r\nSUB a.b 1\r\nPING\r\n")
    client.recv(4096)
    return client


PHASES: dict[str, tuple[str, Callable[[Address], socket.socket]]] = {
    "TCP, INFO sent, nothing said": ("tcp", tcp),
    "TLS, its first byte waited for": ("ssl", tcp),
    "TLS, half a handshake": ("ssl", half_a_tls_handshake),
    "TLS, nothing said": ("ssl", tls),
    "WebSocket, half a request": ("ws", half_a_request),
    "WebSocket, nothing said": ("ws", websocket),
    "WebSocket over TLS, its first byte waited for": ("wss", silent),
    "WebSocket over TLS, half a request": ("wss", half_a_request_over_tls),
    "WebSocket over TLS, nothing said": ("wss", websocket_over_tls),
    "logged in": ("tcp", connected),
    "logged in, one subscription": ("tcp", subscribed),
}


def resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def settled(pid: int) -> int:
    """When connections have given back what their beginning took."""
    time.sleep(7)
    return resident(pid)


def measure(name: str, directory: Path, connections: int = CONNECTIONS) -> float:
    """Bytes of one connection."""
    kind, begin = PHASES[name]
    own = server_certificate()
    port = free_port()
    broker = mosquitto(directory, "allow_anonymous true\n")
    broker.start()
    gateway = gateway_in_front_of(broker.address, directory, ready=accepts)
    config = directory / "gateway.toml"
    more = "\n[listeners.tcp.default]\n" if kind == "tcp" else f"\n[listeners.{kind}.more]\nbind = \"{HOST}:{port}\"\n"
    if kind in ("ssl", "wss"):
        more += (
            f'ssl_options = {{ certfile = "{own.certfile}", keyfile = "{own.keyfile}", handshake_timeout = "60s" }}\n'
        )
    if kind in ("ws", "wss"):
        more += 'websocket = { handshake_timeout = "60s" }\n'
    config.write_text("idle_timeout = 0\n" + config.read_text() + (more if kind != "tcp" else ""))
    gateway.start()
    address = gateway.address if kind == "tcp" else (HOST, port)
    while not accepts(address):
        time.sleep(0.05)
    # The launcher becomes the runtime.
    pid = gateway.session
    try:
        with ExitStack() as open_ones:
            for _ in range(WARM_UP):
                open_ones.enter_context(begin(address))
            before = settled(pid)
            for _ in range(connections):
                open_ones.enter_context(begin(address))
            return (settled(pid) - before) / connections
    finally:
        gateway.stop()
        broker.stop()


def main() -> None:
    for name in sys.argv[1:] or PHASES:
        with tempfile.TemporaryDirectory() as directory:
            print(f"| {name} | {measure(name, Path(directory)) / 1000:.1f} |", flush=True)


if __name__ == "__main__":
    main()
