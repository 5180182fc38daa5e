"""What a server costs while somebody works on it: memory and CPU of its process, and the round trips of a neighbour.

As a program it is that neighbour: a client that does nothing wrong, in a process of its own so that it does not wait
for the hostile clients of this one. After each of its round trips it makes another one past the gateway: through the
broker of the standalone gateway, or, where the gateway is in the broker, through a process that does nothing else.
What that takes is the doing of the broker or of the machine.
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
# Enough of them to speak of a 99th percentile; work that takes less time is followed by some that are quiet.
QUIET_SAMPLES = 200
BUSY_SAMPLES = 300
# Below these a machine that is busy with something else decides.
P50_FLOOR, P99_FLOOR = 0.002, 0.010
# Processes for each core that want to run while nothing is done to the gateway: beyond, the latest of many round trips says nothing of the gateway.
BUSY_MACHINE = 2.5
IDLE_TIME = 0.5
# How many times its quiet value a neighbour's round trip may take.
NEIGHBOUR_FACTOR = 5


def wait_until(condition: Callable[[], bool], what: str, deadline: float = 10.0) -> None:
    until = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < until, f"not within {deadline} s: {what}"
        time.sleep(0.01)


def want_to_run() -> int:
    """Threads of the whole machine that run or wait for a core, without this one."""
    return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0]) - 1


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

    def files(self) -> int:
        """File descriptors."""
        return len(os.listdir(self._proc / "fd"))

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

    def is_at_rest(self) -> bool:
        """Next to nothing: also a server that waits for others most of the time is not."""
        return self.spent_in(IDLE_TIME) < IDLE_TIME / 20


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


@dataclass(frozen=True)
class RoundTrips:
    """Of the neighbour, and past the gateway."""

    own: Latency
    past: Latency

    def __str__(self) -> str:
        return f"{self.own} (past the gateway {self.past})"


class Neighbour:
    def __init__(self, address: Address, mqtt: Address | None = None):
        """mqtt: of the broker behind the gateway."""
        command = [sys.executable, __file__, *map(str, (*address, *(mqtt or ())))]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
        self._samples: list[tuple[float, float]] = []
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        for line in self._process.stdout:
            own, past = map(float, line.split())
            self._last = time.monotonic()
            self._samples.append((own, past))

    def take(self, at_least: int = 1) -> RoundTrips:
        """Since the last call, with the one under way if it takes long."""
        wait_until(lambda: len(self._samples) >= at_least or not self._thread.is_alive(), "round trips", 60.0)
        assert self._thread.is_alive(), "the neighbour was cut off"
        taken, self._samples = self._samples, []
        own, past = [one for one, _ in taken], [one for _, one in taken]
        under_way = time.monotonic() - self._last
        if under_way > max(own, default=-1.0):
            own.append(under_way)
        return RoundTrips(Latency.of(own), Latency.of(past or [0.0]))

    def quiet(self) -> tuple[RoundTrips, float]:
        """And how many want to run meanwhile, for each core; the load average is still that of a minute before."""
        self.take()
        counts: list[int] = []

        def enough() -> bool:
            counts.append(want_to_run())
            return len(self._samples) >= QUIET_SAMPLES or not self._thread.is_alive()

        wait_until(enough, "round trips", 60.0)
        return self.take(QUIET_SAMPLES), statistics.mean(counts) / (os.cpu_count() or 1)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        self._process.stdout.close()


@dataclass
class Seen:
    """What somebody's work has cost; bytes and seconds."""

    idle: int
    quiet: RoundTrips
    peak: int = 0
    cpu: float = 0.0
    wall: float = 0.0
    busy: RoundTrips | None = None
    load: float = 0.0
    notes: dict[str, object] = field(default_factory=dict)

    @property
    def memory(self) -> int:
        """Peak over idle."""
        return self.peak - self.idle

    def __str__(self) -> str:
        notes = "".join(f", {name} {value}" for name, value in self.notes.items())
        return (
            f"memory {self.idle / MB:.0f} MB and {self.memory / MB:.0f} MB more at its peak, CPU {self.cpu:.2f} s of "
            f"{self.wall:.2f} s, neighbour {self.quiet} alone and {self.busy} beside it, {self.load:.1f} processes for a core"
            f"{notes}"
        )

    def stays_below(self, memory: int) -> None:
        assert self.memory < memory, f"{self.memory / MB:.0f} MB, allowed are {memory / MB:.0f} MB: {self}"

    def neighbour_is_well(self) -> None:
        for name, floor in (("p50", P50_FLOOR), ("p99", P99_FLOOR))[: 1 if self.load > BUSY_MACHINE else 2]:
            quiet, busy = getattr(self.quiet.own, name), getattr(self.busy.own, name)
            assert busy <= NEIGHBOUR_FACTOR * max(quiet, floor, getattr(self.busy.past, name)), f"{name}: {self}"


@contextmanager
def watching(usage: Usage, neighbour: Neighbour, idle: int | None = None) -> Iterator[Seen]:
    """idle: if it was less before than it is now."""
    quiet, load = neighbour.quiet()
    seen = Seen(min(usage.rss(), idle or 1 << 62), quiet, load=load)
    usage.begin_peak()
    cpu, began = usage.cpu(), time.monotonic()
    neighbour.take()
    yield seen
    seen.wall = time.monotonic() - began
    seen.cpu = usage.cpu() - cpu
    seen.busy = neighbour.take(BUSY_SAMPLES)
    seen.peak = usage.peak()


RoundTrip = Callable[[], None]


def through_nats(address: Address) -> RoundTrip:
    """Publishes to itself."""
    subject = f"neighbour.{os.getpid()}"
    sock = _connected(address)
    stream = sock.makefile("rb")
    json.loads(stream.readline()[5:])
    sock.sendall(f'CONNECT {{"verbose":false}}\r\nSUB {subject} 1\r\nPING\r\n'.encode())
    assert stream.readline() == b"PONG\r\n"

    def round_trip() -> None:
        sock.sendall(f"PUB {subject} 2\r\nhi\r\n".encode())
        while (line := stream.readline()) == b"PING\r\n":
            sock.sendall(b"PONG\r\n")
        assert line.startswith(b"MSG ") and stream.readline() == b"hi\r\n", line

    return round_trip


def through_mqtt(address: Address) -> RoundTrip:
    """The same in MQTT 3.1.1, without keep alive."""
    topic = _string(f"past/{os.getpid()}")
    sock = _connected(address)
    stream = sock.makefile("rb")
    sock.sendall(_packet(0x10, _string("MQTT") + b"\x04\x02\x00\x00" + _string(f"past{os.getpid()}")))
    assert stream.read(4) == b"\x20\x02\x00\x00"
    sock.sendall(_packet(0x82, b"\x00\x01" + topic + b"\x00"))
    assert stream.read(5) == b"\x90\x03\x00\x01\x00"
    publish = _packet(0x30, topic + b"hi")

    def round_trip() -> None:
        sock.sendall(publish)
        assert stream.read(len(publish)) == publish

    return round_trip


def through_another_process() -> RoundTrip:
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        while data := theirs.recv(16):
            theirs.send(data)
        os._exit(0)
    theirs.close()

    def round_trip() -> None:
        ours.send(b"hi")
        assert ours.recv(16) == b"hi"

    return round_trip


def _connected(address: Address) -> socket.socket:
    sock = socket.create_connection(address, timeout=60.0)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _string(text: str) -> bytes:
    return len(text).to_bytes(2, "big") + text.encode()


def _packet(first: int, body: bytes) -> bytes:
    return bytes([first, len(body)]) + body


def timed(round_trip: RoundTrip) -> float:
    began = time.perf_counter()
    round_trip()
    return time.perf_counter() - began


def main(host: str, port: str, *broker: str) -> None:
    past = through_mqtt((broker[0], int(broker[1]))) if broker else through_another_process()
    own = through_nats((host, int(port)))
    while True:
        print(timed(own), timed(past), flush=True)
        time.sleep(PAUSE)


if __name__ == "__main__":
    main(*sys.argv[1:])
