"""Clients that do as they like: they send any bytes, and read only when they are told to."""

from __future__ import annotations

import json
import select
import socket
import ssl
import time
import zlib
from contextlib import suppress

from websocket_client import CLOSE, WebSocket, frame, next_frame, request
from wire.transports import trusting

Address = tuple[str, int]

DEADLINE = 60.0
# ws-deflate: a WebSocket that asks for compression.
TRANSPORTS = ("tcp", "tls", "ws", "ws-deflate")
OFFER = request(Sec_WebSocket_Extensions="permessage-deflate; server_no_context_takeover")


def subs(subject: str, count: int, group: str = "") -> bytes:
    """So many subscriptions; `{}` in the subject is the number of each."""
    group = f"{group} " if group else ""
    return "".join(f"SUB {subject.format(sid)} {group}{sid}\r\n" for sid in range(count)).encode()


def pub(subject: str, payload: bytes = b"", reply: str = "") -> bytes:
    return f"PUB {subject} {reply}{' ' if reply else ''}{len(payload)}\r\n".encode() + payload + b"\r\n"


class Raw:
    """A connection that has not said anything yet."""

    def __init__(self, address: Address, receive_buffer: int | None = None):
        self.socket: socket.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_if_taken(self, data: bytes) -> None:
        """Whoever is cut off meanwhile need not have sent all of it."""
        with suppress(OSError):
            self.send(data)

    def is_cut_off(self) -> bool:
        """Found out without reading."""
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def cut_off(self, deadline: float = DEADLINE) -> None:
        until = time.monotonic() + deadline
        while not self.is_cut_off():
            assert time.monotonic() < until, f"still connected after {deadline} s"
            time.sleep(0.01)


class Client(Raw):
    """A connection on which INFO has come; it logs in unless it is told not to."""

    def __init__(
        self,
        address: Address,
        transport: str = "tcp",
        receive_buffer: int | None = None,
        login: bool = True,
        **fields: object,
    ):
        super().__init__(address, receive_buffer)
        self._frames: WebSocket | None = None
        self._received = bytearray()
        try:
            self._begin(address, transport)
            if login:
                self.connect(**fields)
        except BaseException:
            self.close()
            raise

    def _begin(self, address: Address, transport: str) -> None:
        if transport.startswith("ws"):
            self._frames = WebSocket(self.socket, DEADLINE)
            self._frames.upgrade(OFFER if transport == "ws-deflate" else None)
            # INFO may have come together with the response.
            self._unpack(b"")
        self.info = json.loads(self.line()[5:])
        if transport == "tls":
            self.socket = trusting().wrap_socket(self.socket, server_hostname=address[0])

    def connect(self, **fields: object) -> None:
        options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True} | fields
        self.send(f"CONNECT {json.dumps(options)}\r\n".encode())
        self.ping()

    def send(self, data: bytes) -> None:
        super().send(frame(data) if self._frames else data)

    def send_frames(self, frames: bytes, deadline: float) -> None:
        """As they are, as far as they are taken in time."""
        self.socket.settimeout(deadline)
        with suppress(OSError):
            super().send(frames)
        self.socket.settimeout(DEADLINE)

    def ping(self, deadline: float = DEADLINE) -> None:
        """All sent before has been taken; what was delivered before is thrown away."""
        self.send(b"PING\r\n")
        until = time.monotonic() + deadline
        while (line := self.line(until - time.monotonic())) != b"PONG":
            assert not line.startswith(b"-ERR"), line
            if line.startswith((b"MSG ", b"HMSG ")):
                self.take(int(line.rsplit(b" ", 1)[1]) + 2)

    def line(self, deadline: float = DEADLINE) -> bytes:
        until = time.monotonic() + deadline
        while (end := self._received.find(b"\r\n")) < 0:
            assert self._receive(until), f"the connection ended within {bytes(self._received[-200:])!r}"
        line = bytes(self._received[:end])
        del self._received[: end + 2]
        return line

    def take(self, size: int, deadline: float = DEADLINE) -> bytes:
        until = time.monotonic() + deadline
        while len(self._received) < size:
            assert self._receive(until), f"the connection ended, {size - len(self._received)} bytes are missing"
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _receive(self, until: float) -> bool:
        self.socket.settimeout(max(0.001, until - time.monotonic()))
        try:
            data = self.socket.recv(1 << 18)
        except TimeoutError:
            raise AssertionError(f"nothing came in time after {bytes(self._received[-200:])!r}") from None
        except (ConnectionResetError, ssl.SSLError):
            data = b""
        finally:
            self.socket.settimeout(DEADLINE)
        if self._frames:
            self._unpack(data)
        else:
            self._received += data
        return bool(data)

    def _unpack(self, data: bytes) -> None:
        self._frames.received += data
        while parsed := next_frame(self._frames.received):
            one, used = parsed
            self._frames.received = self._frames.received[used:]
            if one.opcode != CLOSE:
                self._received += _inflated(one.payload) if one.deflated else one.payload


def _inflated(payload: bytes) -> bytes:
    return zlib.decompressobj(wbits=-15).decompress(payload + b"\0\0\xff\xff")
