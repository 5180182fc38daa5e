"""Clients that do not read: closed alone and in time, bounded in memory, and nobody else loses a message."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.conftest import _has_mqtt, _started_here
from clients.stack import Stack, open_stack

PAYLOAD = b"x" * 100_000
MESSAGE = len(f"MSG s 1 {len(PAYLOAD)}\r\n") + len(PAYLOAD) + 2
# Far more than the buffers of both sides of a connection hold.
COUNT = 400
# Messages that may be under way to who reads: less than max_pending.
LEAD = 5
DEADLINE = 30.0


def slow_stack(directory: Path, **settings: str) -> Stack:
    stack = open_stack(directory)
    config = directory / "gateway.toml"
    config.write_text("".join(f'{key} = "{value}"\n' for key, value in settings.items()) + config.read_text())
    return stack


@pytest.fixture
def started(tmp_path: Path) -> Iterator:
    _has_mqtt()
    _started_here("a slow consumer")
    stacks = []

    def start(**settings: str) -> Stack:
        stacks.append(slow_stack(tmp_path, **settings))
        stacks[-1].start()
        return stacks[-1]

    yield start
    for stack in stacks:
        stack.stop()


def client(stack: Stack, *lines: str, receive_buffer: int | None = None) -> socket.socket:
    """Connected, and its operations have been taken."""
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(DEADLINE)
    sock.connect(stack.gateway.address)
    connect = 'CONNECT {"verbose":false,"pedantic":false}'
    sock.sendall("".join(f"{line}\r\n" for line in (connect, *lines, "PING")).encode())
    received = b""
    while not received.endswith(b"PONG\r\n"):
        received += sock.recv(65536)
    return sock


def barrier(sock: socket.socket) -> None:
    sock.sendall(b"PING\r\n")
    received = b""
    while not received.endswith(b"PONG\r\n"):
        data = sock.recv(65536)
        assert data, "closed before PONG"
        received += data


def read(sock: socket.socket, size: int) -> int:
    """How many of so many bytes come before the connection ends."""
    received = 0
    while received < size:
        try:
            data = sock.recv(min(1 << 20, size - received))
        except ConnectionResetError:
            break
        if not data:
            break
        received += len(data)
    return received


class Reader(threading.Thread):
    """Reads all that was published, as fast as it can or with pauses."""

    def __init__(self, sock: socket.socket, pause: float = 0.0, step: int = 1 << 20):
        super().__init__(daemon=True)
        self._sock, self._pause, self._step = sock, pause, step
        self.received = 0
        self.start()

    def run(self) -> None:
        while self.received < COUNT * MESSAGE:
            data = self._sock.recv(min(self._step, COUNT * MESSAGE - self.received))
            if not data:
                return
            self.received += len(data)
            time.sleep(self._pause)

    def has(self, size: int) -> None:
        until = time.monotonic() + DEADLINE
        while self.received < size:
            assert self.is_alive() and time.monotonic() < until, f"{self.received} of {size} bytes were received"
            time.sleep(0.001)

    def all_of_it(self) -> None:
        self.join(DEADLINE)
        assert self.received == COUNT * MESSAGE


def publish(sock: socket.socket, reader: Reader | None = None) -> None:
    """Not faster than the reader reads, on a busy machine, too: it is not to fall behind."""
    for number in range(COUNT):
        if reader:
            reader.has((number - LEAD) * MESSAGE)
        sock.sendall(b"PUB s %d\r\n%s\r\n" % (len(PAYLOAD), PAYLOAD))
    barrier(sock)


def slow_consumers(stack: Stack) -> list[str]:
    return re.findall(r".*slow_consumer.*", stack.gateway.log())


def closed_as_slow(stack: Stack) -> None:
    until = time.monotonic() + DEADLINE
    while not slow_consumers(stack):
        assert time.monotonic() < until, "nobody was closed as a slow consumer"
        time.sleep(0.05)


def test_a_client_that_falls_behind_is_closed_alone(started):
    stack = started(max_pending="1MB", send_timeout="1h")
    slow = client(stack, "SUB s 1")
    reader = Reader(client(stack, "SUB s 1"))
    sender = client(stack)
    publish(sender, reader)
    closed_as_slow(stack)
    reader.all_of_it()
    assert read(slow, COUNT * MESSAGE) < COUNT * MESSAGE
    barrier(sender)
    lines = slow_consumers(stack)
    assert len(lines) == 1 and " notice " in lines[0], lines


def test_a_client_that_takes_nothing_is_closed_in_time(started):
    stack = started(max_pending="1GB", send_timeout="1s")
    slow = client(stack, "SUB s 1")
    reader = Reader(client(stack, "SUB s 1"))
    # takes more than a second for what waits for it, but takes some of it all the time
    steady = Reader(client(stack, "SUB s 1", receive_buffer=65536), pause=0.01, step=200_000)
    sender = client(stack)
    publish(sender)
    began = time.monotonic()
    closed_as_slow(stack)
    assert time.monotonic() - began < 10
    reader.all_of_it()
    steady.all_of_it()
    assert read(slow, COUNT * MESSAGE) < COUNT * MESSAGE
    assert len(slow_consumers(stack)) == 1


def test_who_is_slow_but_not_too_slow_gets_everything(started):
    stack = started(max_pending="64MB", send_timeout="10s")
    slow = client(stack, "SUB s 1")
    sender = client(stack)
    publish(sender)
    time.sleep(1)
    assert read(slow, COUNT * MESSAGE) == COUNT * MESSAGE
    barrier(slow)
    assert slow_consumers(stack) == []
