"""A WebSocket client for the tests: it can send what is wrong, and takes nothing that is."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import ssl
import struct
import time
from dataclasses import dataclass
from typing import Any


class Unexpected(AssertionError):
    """What came is not what a WebSocket server sends."""


CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="

REQUEST = {
    "Host": "127.0.0.1",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY.decode(),
    "Sec-WebSocket-Version": "13",
}


def request(line: str = "GET / HTTP/1.1", **changes: str | None) -> bytes:
    """The request with headers changed, added or (None) left out; `_` in a name stands for `-`."""
    headers = dict(REQUEST)
    for name, value in changes.items():
        headers[name.replace("_", "-")] = value
    lines = [line, *(f"{name}: {value}" for name, value in headers.items() if value is not None)]
    return "\r\n".join([*lines, "", ""]).encode()


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Frame:
    opcode: int
    payload: bytes
    deflated: bool = False


def masked(payload: bytes, key: bytes) -> bytes:
    repeated = int.from_bytes((key * (len(payload) // 4 + 1))[: len(payload)], "big")
    return (int.from_bytes(payload, "big") ^ repeated).to_bytes(len(payload), "big")


def frame(
    payload: bytes = b"",
    opcode: int = BINARY,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = b"\x01\x80\xfe\x7f",
    length_form: int | None = None,
) -> bytes:
    """A client's frame. length_form 7, 16 or 64: that many bits for the length, whatever it is."""
    size = len(payload)
    form = length_form or (7 if size < 126 else 16 if size < 65536 else 64)
    first = fin << 7 | rsv << 4 | opcode
    bit = 0x80 if mask is not None else 0
    match form:
        case 7:
            header = struct.pack("!BB", first, bit | size)
        case 16:
            header = struct.pack("!BBH", first, bit | 126, size)
        case _:
            header = struct.pack("!BBQ", first, bit | 127, size)
    return header + (payload if mask is None else mask + masked(payload, mask))


def next_frame(data: bytes) -> tuple[Frame, int] | None:
    """A server's frame at the front, and its size: whole, not masked, nothing reserved."""
    if len(data) < 2:
        return None
    first, second = data[0], data[1]
    if second & 0x80 or not first & 0x80 or first & 0x30:
        raise Unexpected(f"no server sends a frame that begins with {first:02x} {second:02x}")
    start, size = 2, second
    if second > 125:
        start = 4 if second == 126 else 10
        size = int.from_bytes(data[2:start], "big")
    if len(data) < start + size:
        return None
    return Frame(first & 0x0F, data[start : start + size], bool(first & 0x40)), start + size


class WebSocket:
    """A connection, from its HTTP request on."""

    def __init__(self, opened: socket.socket, deadline: float = 5.0):
        self.deadline = deadline
        self.received = b""
        self.socket = opened

    @classmethod
    def connect(cls, address: tuple[str, int], tls: ssl.SSLContext | None = None) -> WebSocket:
        opened = socket.create_connection(address, timeout=5.0)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(tls.wrap_socket(opened, server_hostname=address[0]) if tls else opened)

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_slowly(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.send(piece)
            time.sleep(0.002)

    def upgrade(self, data: bytes | None = None) -> Response:
        self.send(data or request())
        response = self.response()
        if response.status != 101:
            raise Unexpected(f"not upgraded: {response}")
        accept = base64.b64encode(hashlib.sha1(KEY + GUID).digest()).decode()
        if response.headers["sec-websocket-accept"] != accept:
            raise Unexpected(f"wrong accept key: {response}")
        return response

    def response(self) -> Response:
        head = self._read_until(b"\r\n\r\n").decode()
        status, *lines = head.split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines if line)}
        body = self._read(int(headers.get("content-length", 0)))
        return Response(int(status.split()[1]), headers, body)

    def read(self) -> Frame:
        while (parsed := next_frame(self.received)) is None:
            self._receive()
        read, used = parsed
        self.received = self.received[used:]
        return read

    def ended(self) -> None:
        """The server has closed the connection and said nothing more."""
        self.socket.settimeout(self.deadline)
        try:
            rest = self.received or self.socket.recv(1 << 16)
        except TimeoutError:
            raise Unexpected("the connection is still open") from None
        except (ConnectionResetError, ssl.SSLError):
            rest = b""
        if rest:
            raise Unexpected(f"bytes where the connection should have been closed: {rest!r}")

    def _read(self, size: int) -> bytes:
        while len(self.received) < size:
            self._receive()
        data, self.received = self.received[:size], self.received[size:]
        return data

    def _read_until(self, end: bytes) -> bytes:
        while end not in self.received:
            self._receive()
        data, _, self.received = self.received.partition(end)
        return data

    def _receive(self) -> None:
        self.socket.settimeout(self.deadline)
        try:
            data = self.socket.recv(1 << 18)
        except TimeoutError:
            raise Unexpected(f"no more bytes came within {self.deadline} s; so far {self.received!r}") from None
        except ConnectionResetError:
            data = b""
        if not data:
            raise Unexpected(f"the connection was closed too early, after {self.received!r}")
        self.received += data


class Stream:
    """What is left of a WebSocket for who knows only sockets: every send is a frame, every read is (of) one."""

    def __init__(self, websocket: WebSocket):
        self._websocket = websocket
        self._pending = b""
        self._begun = False
        self.close_code: int | None = None

    def sendall(self, data: bytes) -> None:
        self._websocket.send(frame(data, mask=os.urandom(4)))

    def recv(self, size: int) -> bytes:
        while not self._pending:
            parsed = next_frame(self._websocket.received)
            if parsed is None:
                data = self._websocket.socket.recv(1 << 18)
                if not data:
                    return b""
                self._websocket.received += data
                continue
            received, used = parsed
            self._websocket.received = self._websocket.received[used:]
            if received.opcode == CLOSE and self.close_code is None:
                self.close_code = int.from_bytes(received.payload[:2], "big")
            elif received.opcode == BINARY and received.payload and self.close_code is None:
                self._take(received.payload)
            else:
                raise Unexpected(f"unexpected frame {received}")
        data, self._pending = self._pending[:size], self._pending[size:]
        return data

    def _take(self, payload: bytes) -> None:
        if not self._begun and not (payload.startswith(b"INFO ") and payload.find(b"\n") == len(payload) - 1):
            raise Unexpected(f"the first frame is not INFO alone: {payload!r}")
        self._begun = True
        self._pending = payload

    def __getattr__(self, name: str) -> Any:
        return getattr(self._websocket.socket, name)


def stream(opened: socket.socket, data: bytes | None = None) -> Stream:
    """What becomes of a new connection."""
    websocket = WebSocket(opened)
    websocket.upgrade(data)
    return Stream(websocket)
