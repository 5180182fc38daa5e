"""The measures see what they are for, or the other tests could not fail."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from hostile.measure import MB, Neighbour, Seen, Usage, wait_until
from ports import HOST

CHILD = """
import sys, time
for line in sys.stdin:
    what, amount = line.split()
    if what == "memory":
        bytes(int(amount))[0:1] + b"x" * int(amount)
    else:
        until = time.process_time() + float(amount)
        while time.process_time() < until: pass
    print("done", flush=True)
"""


@pytest.fixture
def child():
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )

    def do(what: str, amount: float) -> None:
        process.stdin.write(f"{what} {amount}\n")
        assert process.stdout.readline() == "done\n"

    do("cpu", 0)
    yield Usage(process.pid), do
    process.stdin.close()
    process.wait()
    process.stdout.close()


def test_a_peak_is_seen_after_it_is_over(child):
    usage, do = child
    for _ in range(2):
        usage.begin_peak()
        idle = usage.rss()
        assert usage.peak() - idle < 10 * MB
        do("memory", 100 * MB)
        assert usage.rss() - idle < 50 * MB
        assert 90 * MB < usage.peak() - idle < 250 * MB


def test_cpu_time(child):
    usage, do = child
    before = usage.cpu()
    do("cpu", 0.3)
    assert 0.3 <= usage.cpu() - before < 0.4


class Slow(threading.Thread):
    """Passes on what one client publishes to itself, as late as it is told."""

    def __init__(self):
        super().__init__(daemon=True)
        self._listener = socket.create_server((HOST, 0))
        self.address = self._listener.getsockname()
        self.delay = 0.0
        self.start()

    def run(self) -> None:
        connection, _ = self._listener.accept()
        with self._listener, connection, connection.makefile("rb") as stream:
            connection.sendall(b"INFO {}\r\n")
            for line in stream:
                if line.startswith(b"PING"):
                    connection.sendall(b"PONG\r\n")
                elif line.startswith(b"PUB"):
                    time.sleep(self.delay)
                    connection.sendall(b"MSG n 1 2\r\n" + stream.readline())


@pytest.fixture
def slow():
    server = Slow()
    neighbour = Neighbour(server.address)
    yield server, neighbour
    neighbour.stop()


@pytest.mark.by_the_clock
def test_a_neighbour_that_waits_is_not_well(slow):
    server, neighbour = slow
    seen = Seen(0, neighbour.quiet()[0])
    seen.busy = neighbour.take(20)
    seen.neighbour_is_well()
    server.delay = 0.1
    neighbour.take(2)
    seen.busy = neighbour.take(5)
    with pytest.raises(AssertionError):
        seen.neighbour_is_well()


@pytest.mark.by_the_clock
def test_a_neighbour_that_gets_no_answer_is_not_well(slow):
    server, neighbour = slow
    seen = Seen(0, neighbour.quiet()[0])
    server.delay = 3600.0
    wait_until(lambda: neighbour.take(0).own.p99 > 0.1, "it waits")
    seen.busy = neighbour.take(0)
    with pytest.raises(AssertionError):
        seen.neighbour_is_well()


def test_a_vm_is_found_by_its_session():
    with pytest.raises(AssertionError):
        Usage.of_session(os.getsid(0))
    with pytest.raises(AssertionError, match="not within"):
        wait_until(lambda: False, "never", 0.1)
