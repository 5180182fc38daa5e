"""A NATS client of bare bytes."""

from __future__ import annotations

import json
import socket
import time

Address = tuple[str, int]
DEADLINE = 10.0


class Closed(Exception):
    """The gateway has closed the connection; `.text` is what it said before."""

    def __init__(self, text: bytes):
        super().__init__(text)
        self.text = text


class Client:
    def __init__(self, address: Address, **connect: object):
        self.socket = socket.create_connection(address, DEADLINE)
        self._bytes = b""
        self.info = self.read_info()
        if connect:
            self.connect(**connect)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()

    def connect(self, **options: object) -> None:
        """Quiet, with headers, unless the options say otherwise."""
        fields = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "protocol": 1} | options
        self.send(b"CONNECT %s\r\n" % json.dumps(fields).encode())

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def until(self, end: bytes, deadline: float = DEADLINE) -> bytes:
        """All up to and with these bytes."""
        by = time.monotonic() + deadline
        while end not in self._bytes:
            self.socket.settimeout(max(0.01, by - time.monotonic()))
            try:
                data = self.socket.recv(1 << 20)
            except TimeoutError:
                raise AssertionError(f"no {end!r} in {self._bytes!r}") from None
            except ConnectionResetError:
                data = b""
            if not data:
                raise Closed(self._bytes)
            self._bytes += data
        found, self._bytes = self._bytes[: self._bytes.index(end) + len(end)], self._bytes[self._bytes.index(end) + len(end) :]
        return found

    def read_info(self) -> dict:
        return json.loads(self.until(b"\r\n").removeprefix(b"INFO "))

    def ping(self) -> bytes:
        """What came before the PONG."""
        self.send(b"PING\r\n")
        return self.until(b"PONG\r\n").removesuffix(b"PONG\r\n")

    def closed(self) -> bytes:
        """What was said until the connection was closed."""
        try:
            self.until(b"\0 never \0")
        except Closed as end:
            return end.text
        raise AssertionError


def message(subject: str, sid: int, payload: bytes) -> bytes:
    return b"MSG %s %d %d\r\n%s\r\n" % (subject.encode(), sid, len(payload), payload)
