"""What a server costs while somebody works on it: memory and CPU of its process, and the round trips of a neighbour.

As a program it is that neighbour: a client that does nothing wrong, in a process of its own so that it does not wait
for the hostile clients of this one.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

Address = tuple[str, int]

MB = 1 << 20
# Between two round trips of the neighbour.
PAUSE = 0.002
# Enough of them to speak of a 99th percentile.
QUIET_SAMPLES = 200
# Below these a machine that is busy with something else decides.
P50_FLOOR, P99_FLOOR = 0.002, 0.010
IDLE_TIME = 0.5
# How many times its quiet value a neighbour's round trip may take.
NEIGHBOUR_FACTOR = 5


def wait_until(condition: Callable[[], bool], what: str, deadline: float = 10.0) -> None:
    until = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < until, f"not within {deadline} s: {what}"
        time.sleep(0.01)


class Usage:
    """Of one process, as the kernel counts it."""

    def __init__(self, pid: int):
        self._proc = Path("/proc") / str(pid)

    @classmethod
    def of_session(cls, session: int) -> Usage:
        """Of the Erlang VM among its processes."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, _, rest = stat.read_text().partition(") ")
            except OSError:
                continue
            if int(rest.split()[3]) == session and name.partition("(")[2].startswith("beam"):
                return cls(int(stat.parent.name))
        raise AssertionError(f"no Erlang VM in session {session}")

    def rss(self) -> int:
        return self._memory("VmRSS")

    def peak(self) -> int:
        """Since the last begin_peak."""
        return self._memory("VmHWM")

    def begin_peak(self) -> None:
        (self._proc / "clear_refs").write_text("5")

    def _memory(self, name: str) -> int:
        status = (self._proc / "status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:")) * 1024

    def cpu(self) -> float:
        """Seconds of all its threads, finer than the clock ticks of utime and stime."""
        return sum(int(one.read_text().split()[0]) for one in self._proc.glob("task/*/schedstat")) / 1e9

    def spent_in(self, duration: float) -> float:
        """CPU seconds within so many seconds."""
        before = self.cpu()
        time.sleep(duration)
        return self.cpu() - before

    def is_idle(self) -> bool:
        """Less than half a core has work for half a second."""
        return self.spent_in(IDLE_TIME) < IDLE_TIME / 2


@dataclass(frozen=True)
class Latency:
    p50: float
    p99: float

    @classmethod
    def of(cls, samples: list[float]) -> Latency:
        ordered = sorted(samples)
        return cls(statistics.median(ordered), ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))])

    def __str__(self) -> str:
        return f"p50 {self.p50 * 1e3:.1f} ms, p99 {self.p99 * 1e3:.1f} ms"


class Neighbour:
    def __init__(self, address: Address):
        self._process = subprocess.Popen(
            [sys.executable, __file__, *map(str, address)], stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
        )
        self._samples: list[float] = []
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        for line in self._process.stdout:
            self._last = time.monotonic()
            self._samples.append(float(line))

    def take(self, at_least: int = 1) -> list[float]:
        """The round trips since the last call, the one under way among them if it takes long."""
        wait_until(lambda: len(self._samples) >= at_least or not self._thread.is_alive(), "round trips", 60.0)
        assert self._thread.is_alive(), "the neighbour was cut off"
        taken, self._samples = self._samples, []
        under_way = time.monotonic() - self._last
        return [*taken, under_way] if under_way > max(taken, default=-1.0) else taken

    def quiet(self) -> Latency:
        self.take()
        return Latency.of(self.take(QUIET_SAMPLES))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        self._process.stdout.close()


@dataclass
class Seen:
    """What somebody's work has cost; bytes and seconds."""

    idle: int
    quiet: Latency
    peak: int = 0
    cpu: float = 0.0
    wall: float = 0.0
    busy: Latency | None = None
    notes: dict[str, object] = field(default_factory=dict)

    @property
    def memory(self) -> int:
        """Peak over idle."""
        return self.peak - self.idle

    def __str__(self) -> str:
        notes = "".join(f", {name} {value}" for name, value in self.notes.items())
        return (
            f"memory {self.idle / MB:.0f} MB and {self.memory / MB:.0f} MB more at its peak, CPU {self.cpu:.2f} s of "
            f"{self.wall:.2f} s, neighbour {self.quiet} alone and {self.busy} beside it{notes}"
        )

    def stays_below(self, memory: int) -> None:
        assert self.memory < memory, f"{self.memory / MB:.0f} MB, allowed are {memory / MB:.0f} MB: {self}"

    def neighbour_is_well(self) -> None:
        assert self.busy.p50 <= NEIGHBOUR_FACTOR * max(self.quiet.p50, P50_FLOOR), str(self)
        assert self.busy.p99 <= NEIGHBOUR_FACTOR * max(self.quiet.p99, P99_FLOOR), str(self)


@contextmanager
def watching(usage: Usage, neighbour: Neighbour, idle: int | None = None) -> Iterator[Seen]:
    """idle: if it was less before than it is now."""
    seen = Seen(min(usage.rss(), idle or 1 << 62), neighbour.quiet())
    usage.begin_peak()
    cpu, began = usage.cpu(), time.monotonic()
    neighbour.take()
    yield seen
    seen.wall = time.monotonic() - began
    seen.busy = Latency.of(neighbour.take())
    seen.cpu = usage.cpu() - cpu
    seen.peak = usage.peak()


def round_trips(address: Address) -> None:
    """Publishes to itself, and prints how long each message took."""
    subject = f"neighbour.{os.getpid()}"
    with socket.create_connection(address, timeout=60.0) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = sock.makefile("rb")
        json.loads(stream.readline()[5:])
        sock.sendall(f'CONNECT {{"verbose":false}}\r\nSUB {subject} 1\r\nPING\r\n'.encode())
        assert stream.readline() == b"PONG\r\n"
        while True:
            began = time.perf_counter()
            sock.sendall(f"PUB {subject} 2\r\nhi\r\n".encode())
            while (line := stream.readline()) == b"PING\r\n":
                sock.sendall(b"PONG\r\n")
            assert line.startswith(b"MSG ") and stream.readline() == b"hi\r\n", line
            print(time.perf_counter() - began, flush=True)
            time.sleep(PAUSE)


if __name__ == "__main__":
    round_trips((sys.argv[1], int(sys.argv[2])))
