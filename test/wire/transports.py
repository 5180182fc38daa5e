"""The ways a connection may begin: in clear, TLS after INFO, TLS first, WebSocket over the one or the other."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from certificates import Authority, Certificate, client_context
from websocket_client import Stream, stream

Address = tuple[str, int]
Settings = dict[str, Any]


@functools.cache
def authority() -> Authority:
    """Who signs all certificates of a run."""
    directory = Path(tempfile.mkdtemp(prefix="wire-certificates-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Authority(directory)


@functools.cache
def server_certificate() -> Certificate:
    return authority().server()


@functools.cache
def trusting() -> ssl.SSLContext:
    """WIRE_CAFILE: who has signed the certificate of the gateway at GATEWAY_ADDRESS."""
    return client_context(os.environ.get("WIRE_CAFILE") or server_certificate().cafile)


def secure(plain: socket.socket, address: Address) -> socket.socket:
    return trusting().wrap_socket(plain, server_hostname=address[0])


def upgrade(plain: socket.socket, _: Address) -> Stream:
    return stream(plain)


def secure_and_upgrade(plain: socket.socket, address: Address) -> Stream:
    return stream(secure(plain, address))


@dataclass(frozen=True)
class Transport:
    """settings: of the server that is spoken to so; before_info and after_info: what becomes of the socket."""

    name: str
    settings: Settings = field(default_factory=dict, hash=False)
    before_info: Callable[[socket.socket, Address], socket.socket] | None = None
    after_info: Callable[[socket.socket, Address], socket.socket] | None = None

    @property
    def is_plain(self) -> bool:
        return self.before_info in (None, upgrade) and self.after_info is None


TCP = Transport("tcp")
TLS = Transport("tls", {"tls": {}}, after_info=secure)
TLS_FIRST = Transport("tls-first", {"tls": {"mode": "handshake_first"}}, before_info=secure)
TLS_AUTO = Transport("tls-auto", {"tls": {"mode": "auto"}}, after_info=secure)
TLS_AUTO_FIRST = Transport("tls-auto-first", {"tls": {"mode": "auto"}}, before_info=secure)
TLS_OPTIONAL = Transport("tls-optional", {"tls": {"allow_non_tls": True}}, after_info=secure)
TLS_OPTIONAL_CLEAR = Transport("tls-optional-clear", {"tls": {"allow_non_tls": True}})

WS = Transport("ws", {"websocket": {}}, before_info=upgrade)
WSS = Transport("wss", {"websocket": {"tls": True}}, before_info=secure_and_upgrade)

TRANSPORTS = {
    one.name: one
    for one in (TCP, TLS, TLS_FIRST, TLS_AUTO, TLS_AUTO_FIRST, TLS_OPTIONAL, TLS_OPTIONAL_CLEAR, WS, WSS)
}


def for_settings(settings: Settings) -> Transport:
    """How to ask a server with these settings whether it is there."""
    if "websocket" in settings:
        return WSS if settings["websocket"].get("tls") else WS
    match settings.get("tls"):
        case None:
            return TCP
        case {"mode": "handshake_first"}:
            return TLS_FIRST
        case _:
            return TLS
