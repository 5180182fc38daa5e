"""A raw NATS client: a socket, exact bytes, and a deadline on every read."""

from __future__ import annotations

import json
import socket
import ssl
import time
from dataclasses import dataclass

from websocket_client import stream

# Of a machine that does much else; nothing waits for it in vain.
DEADLINE = 20.0

Address = tuple[str, int]


class NatsFailure(AssertionError):
    pass


@dataclass(frozen=True)
class Message:
    subject: str
    sid: str
    reply: str | None
    headers: bytes | None
    payload: bytes


class Nats:
    def __init__(
        self,
        address: Address,
        deadline: float = DEADLINE,
        source: str | None = None,
        tls: ssl.SSLContext | None = None,
        tls_first: bool = False,
        proxy: bytes = b"",
        websocket: bytes | None = None,
    ):
        """proxy: the PROXY header of somebody in between; websocket: the HTTP request that opens one."""
        self._deadline = deadline
        self._buffer = b""
        self._socket = socket.create_connection(address, deadline, (source, 0) if source else None)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._socket.sendall(proxy)
            if tls and (tls_first or websocket):
                self._secure(tls, address)
            if websocket:
                self._socket = stream(self._socket, websocket)
            line = self.line()
            if not line.startswith(b"INFO "):
                raise NatsFailure(f"expected INFO, got {line!r}")
            if tls and not (tls_first or websocket):
                if self._buffer:
                    raise NatsFailure(f"after INFO, in clear: {self._buffer!r}")
                self._secure(tls, address)
        except BaseException:
            self.close()
            raise
        self.info = json.loads(line[5:])

    def _secure(self, tls: ssl.SSLContext, address: Address) -> None:
        self._socket = tls.wrap_socket(self._socket, server_hostname=address[0])

    @property
    def server_certificate(self) -> bytes:
        return self._socket.getpeercert(binary_form=True)

    def __enter__(self) -> Nats:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    @property
    def peername(self) -> str:
        host, port = self._socket.getsockname()
        return f"{host}:{port}"

    def send(self, data: bytes | str) -> None:
        self._socket.settimeout(self._deadline)
        self._socket.sendall(data.encode() if isinstance(data, str) else data)

    def connect(self, **fields: object) -> Nats:
        """CONNECT, and the proof that it was taken."""
        self.login(**fields)
        self.ping()
        return self

    def login(self, **fields: object) -> None:
        options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True} | fields
        self.send(f"CONNECT {json.dumps(options)}\r\n")

    def ping(self) -> None:
        """All sent before has been taken, and nothing was answered."""
        self.send(b"PING\r\n")
        self.expect(b"PONG\r\n")

    def subscribe(self, subject: str, sid: str = "1", group: str | None = None) -> Nats:
        self.send(f"SUB {subject} {group + ' ' if group else ''}{sid}\r\n")
        self.ping()
        return self

    def publish(
        self, subject: str, payload: bytes = b"", reply: str | None = None, headers: bytes | None = None
    ) -> None:
        target = f"{subject} {reply}" if reply else subject
        if headers is None:
            self.send(f"PUB {target} {len(payload)}\r\n".encode() + payload + b"\r\n")
        else:
            sizes = f"{len(headers)} {len(headers) + len(payload)}"
            self.send(f"HPUB {target} {sizes}\r\n".encode() + headers + payload + b"\r\n")

    def message(self, deadline: float | None = None) -> Message:
        """The next operation is a message; PINGs of the server are answered."""
        parts = self.operation(deadline).decode().split(" ")
        match parts:
            case ["MSG", subject, sid, *reply, size]:
                payload = self._take(int(size) + 2, deadline)[:-2]
                return Message(subject, sid, reply[0] if reply else None, None, payload)
            case ["HMSG", subject, sid, *reply, header_size, size]:
                content = self._take(int(size) + 2, deadline)[:-2]
                split = int(header_size)
                return Message(subject, sid, reply[0] if reply else None, content[:split], content[split:])
        raise NatsFailure(f"expected MSG or HMSG, got {' '.join(parts)!r}")

    def available(self) -> Message | None:
        """A message, if one has arrived."""
        if not self._buffer:
            try:
                self._fill(time.monotonic() + 0.01, "message")
            except NatsFailure:
                return None
        return self.message()

    def operation(self, deadline: float | None = None) -> bytes:
        while (line := self.line(deadline)) == b"PING":
            self.send(b"PONG\r\n")
        return line

    def silent(self) -> None:
        """Nothing was sent to this client but what it has read."""
        self.ping()

    def expect(self, data: bytes, deadline: float | None = None) -> None:
        until = time.monotonic() + (deadline or self._deadline)
        while not self._buffer.startswith(data):
            if not data.startswith(self._buffer) or not self._fill(until, f"{data!r}"):
                raise NatsFailure(f"expected {data!r}, got {self._buffer!r}")
        self._buffer = self._buffer[len(data) :]

    def error(self, text: str) -> None:
        self.expect(f"-ERR '{text}'\r\n".encode())

    def closed(self, deadline: float | None = None) -> None:
        """The server has closed the connection and said nothing more."""
        until = time.monotonic() + (deadline or self._deadline)
        if self._buffer or self._fill(until, "the end of the connection"):
            raise NatsFailure(f"expected the end of the connection, got {self._buffer!r}")

    def rejected(self, text: str) -> None:
        self.error(text)
        self.closed()

    def read(self, size: int) -> bytes:
        """So many bytes."""
        return self._take(size, None)

    def line(self, deadline: float | None = None) -> bytes:
        until = time.monotonic() + (deadline or self._deadline)
        while b"\r\n" not in self._buffer:
            if not self._fill(until, "a line"):
                raise NatsFailure(f"the connection ended within {self._buffer!r}")
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def rest(self, deadline: float | None = None) -> bytes:
        """All that comes until the server closes."""
        until = time.monotonic() + (deadline or self._deadline)
        while self._fill(until, "the end of the connection"):
            pass
        return self._buffer

    def _take(self, count: int, deadline: float | None) -> bytes:
        until = time.monotonic() + (deadline or self._deadline)
        while len(self._buffer) < count:
            if not self._fill(until, f"{count} bytes of a message"):
                raise NatsFailure(f"the connection ended within {self._buffer!r}")
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _fill(self, until: float, what: str) -> bool:
        """Whether anything came before the connection ended."""
        self._socket.settimeout(max(0.001, until - time.monotonic()))
        try:
            data = self._socket.recv(65536)
        except TimeoutError:
            raise NatsFailure(f"no {what} in time, but {self._buffer!r}") from None
        except (ConnectionResetError, ssl.SSLEOFError):
            return False
        self._buffer += data
        return bool(data)


def headers(*pairs: tuple[str, str]) -> bytes:
    return ("NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in pairs) + "\r\n").encode()
