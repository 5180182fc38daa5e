"""The case model and its runner: raw sockets, exact bytes.

A case is data: steps over named connections. Nothing is awaited by sleeping: a read ends as soon as the bytes are
right, can no longer become right, or the deadline has passed. "Nothing more comes" is shown by a PING whose PONG must
be the very next bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .transports import TCP, Transport

# Of a machine that does much else.
DEADLINE = 20.0
# Only spaces the pieces of a split send into separate reads; no outcome may depend on it.
SEGMENT_GAP = 0.002
# Stands for a token of its own in every run, where a subscription left over from an earlier run could take a message.
UNIQUE = b"@@"

_run_number = itertools.count(int(time.time() * 1000) % 0x80000000)


def unique() -> bytes:
    """What stands for UNIQUE in one run."""
    return b"%08x" % next(_run_number)


# --- Steps -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Connect:
    """Opens the connection; otherwise the first step that names it does.

    proven: repeated until a PING is answered, for limits on connections, where the server may not have counted the
    end of an earlier one yet.
    """

    peer: str
    proven: bool = False


# What is to be sent, if it depends on the connection's INFO.
Composed = Callable[[dict[str, Any]], bytes]


@dataclass(frozen=True)
class Send:
    peer: str
    data: bytes | Composed
    cuts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Expect:
    """The next bytes are one of the alternatives."""

    peer: str
    alternatives: tuple[bytes, ...]


@dataclass(frozen=True)
class AnyOrder:
    """The next bytes are all units, in whatever order."""

    peer: str
    units: tuple[bytes, ...]


@dataclass(frozen=True)
class Spread:
    """Message i reaches exactly one of the connections, each receives its share in order, then its fence.

    units: per connection the bytes of every message as that connection would see it.
    """

    units: dict[str, tuple[bytes, ...]]
    fence: dict[str, bytes]


@dataclass(frozen=True)
class Open:
    """The connection is open and has nothing more to say."""

    peer: str


@dataclass(frozen=True)
class Closed:
    """The server has closed the connection and said nothing more."""

    peer: str


@dataclass(frozen=True)
class HalfClose:
    """Sends FIN, keeps reading."""

    peer: str


@dataclass(frozen=True)
class Drop:
    """Closes the socket."""

    peer: str


@dataclass(frozen=True)
class As:
    """The value of the same INFO field on another connection, or (same=False) any value but that one."""

    peer: str
    same: bool = True


@dataclass(frozen=True)
class Info:
    """Checks INFO. A field's check is a type, a pattern, As(...), ABSENT, PORT or the value itself."""

    peer: str
    fields: dict[str, Any] = field(default_factory=dict)
    line: bytes | None = None


@dataclass(frozen=True)
class Update:
    """The next bytes are another INFO, which is then the connection's."""

    peer: str
    fields: dict[str, Any] = field(default_factory=dict)


ABSENT = "absent"
PORT = "the port connected to"

Step = Connect | Send | Expect | AnyOrder | Spread | Open | Closed | HalfClose | Drop | Info | Update


class Peer:
    """Writes steps for one connection."""

    def __init__(self, name: str):
        self.name = name

    def connect(self, proven: bool = False) -> Step:
        return Connect(self.name, proven)

    def send(self, data: bytes | Composed, cuts: tuple[int, ...] | range = ()) -> Step:
        return Send(self.name, data, tuple(cuts))

    def expect(self, data: bytes) -> Step:
        return Expect(self.name, (data,))

    def any_of(self, *alternatives: bytes) -> Step:
        return Expect(self.name, alternatives)

    def any_order(self, *units: bytes) -> Step:
        return AnyOrder(self.name, units)

    def open(self) -> Step:
        return Open(self.name)

    def closed(self) -> Step:
        return Closed(self.name)

    def half_close(self) -> Step:
        return HalfClose(self.name)

    def drop(self) -> Step:
        return Drop(self.name)

    def info(self, line: bytes | None = None, **fields: Any) -> Step:
        return Info(self.name, fields, line)

    def update(self, **fields: Any) -> Step:
        return Update(self.name, fields)


@dataclass(frozen=True)
class Case:
    id: str
    section: str
    steps: tuple[Step, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    since: str | None = None
    # of plain TCP alone
    tcp: bool = False
    # of WebSocket, too
    websocket: bool = True

    def __post_init__(self):
        """Every connection not seen to end is shown to be open and silent at the end."""
        ended, seen = set(), {}
        for step in self.steps:
            for name in peers_of(step):
                seen[name] = True
                if isinstance(step, (Closed, Drop)):
                    ended.add(name)
        missing = [Open(name) for name in seen if name not in ended and not self._ends_open(name)]
        object.__setattr__(self, "steps", self.steps + tuple(missing))

    def suits(self, transport: Transport) -> bool:
        """Of TLS neither server answers what came before the client's half-close."""
        if transport is TCP:
            return True
        if "websocket" in transport.settings and not self.websocket:
            return False
        return not self.tcp and (transport.is_plain or not any(isinstance(step, HalfClose) for step in self.steps))

    def _ends_open(self, name: str) -> bool:
        return isinstance([step for step in self.steps if name in peers_of(step)][-1], Open)


@dataclass(frozen=True)
class Difference:
    """Where a gateway in front of a broker differs by design: the same actions, two expectations."""

    id: str
    section: str
    reason: str
    nats_server: tuple[Step, ...]
    gateway: tuple[Step, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    since: str | None = None

    def case(self, target: str) -> Case:
        steps = self.gateway if target == "gateway" else self.nats_server
        return Case(self.id, self.section, steps, self.settings, self.since)


def peers_of(step: Step) -> tuple[str, ...]:
    return tuple(step.units) if isinstance(step, Spread) else (step.peer,)


# --- Failures --------------------------------------------------------------------------------------------------------


class WireFailure(AssertionError):
    """What came is not what the case expects; `step` is the index of the step that found out."""

    step: int | None = None


def _show(data: bytes, around: int = 0) -> str:
    start = max(0, around - 60)
    piece = data[start : start + 160]
    return ("..." if start else "") + repr(piece)[1:] + ("..." if start + 160 < len(data) else f" ({len(data)} bytes)")


def _mismatch(expected: list[bytes], got: bytes, what: str) -> WireFailure:
    lines = [what]
    for alternative in expected:
        common = next(
            (i for i, (x, y) in enumerate(zip(alternative, got, strict=False)) if x != y),
            min(len(alternative), len(got)),
        )
        lines.append(f"  expected {_show(alternative, common)}")
        lines.append(f"  got      {_show(got, common)}")
        lines.append(f"  first difference at byte {common}")
    return WireFailure("\n".join(lines))


# --- Matchers: the number of bytes matched, None while more bytes may still complete the match -----------------------


class _Impossible(Exception):
    pass


def _match_one_of(alternatives: tuple[bytes, ...], buffer: bytes) -> int | None:
    for alternative in alternatives:
        if buffer.startswith(alternative):
            return len(alternative)
    if any(alternative.startswith(buffer) for alternative in alternatives):
        return None
    raise _Impossible


def _match_any_order(units: tuple[bytes, ...], buffer: bytes) -> int | None:
    left, at = list(units), 0
    while left:
        length = _match_one_of(tuple(left), buffer[at : at + max(map(len, left))])
        if length is None:
            return None
        left.remove(buffer[at : at + length])
        at += length
    return at


def _match_share(units: tuple[bytes, ...], fence: bytes, buffer: bytes) -> tuple[int | None, list[int]]:
    """The indices of the messages up to the fence."""
    at, indices = 0, []
    while True:
        length = _match_one_of((*units, fence), buffer[at:])
        if length is None:
            return None, indices
        unit = buffer[at : at + length]
        at += length
        if unit == fence:
            return at, indices
        indices.append(units.index(unit))


# --- Connections -----------------------------------------------------------------------------------------------------


class Connection:
    def __init__(self, address: tuple[str, int], deadline: float, transport: Transport = TCP):
        self.deadline = deadline
        self.address = address
        self.transport = transport
        self.buffer = b""
        self.ended = False
        self.socket = socket.create_connection(address, timeout=deadline)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.info_line = b""
        self.info: dict[str, Any] = {}

    def begin(self) -> None:
        """Reads the first INFO, in the way of the transport."""
        self._become(self.transport.before_info)
        self.read_info()
        if self.transport.after_info and self.buffer:
            raise _mismatch([b""], self.buffer, "bytes in clear after INFO")
        self._become(self.transport.after_info)

    def _become(self, change) -> None:
        if change:
            self.socket.settimeout(self.deadline)
            try:
                self.socket = change(self.socket, self.address)
            except OSError as error:
                raise WireFailure(f"no {self.transport.name} connection: {error}") from None

    def read_info(self) -> None:
        until = time.monotonic() + self.deadline
        while b"\n" not in self.buffer:
            if self.buffer and not b"INFO ".startswith(self.buffer[:5]):
                break
            self._receive(until, [b"INFO {...} \r\n"])
        self.info_line, _, self.buffer = self.buffer.partition(b"\n")
        self.info_line += b"\n"
        if not self.info_line.startswith(b"INFO "):
            raise _mismatch([b"INFO {...} \r\n"], self.info_line, "not an INFO")
        self.info = json.loads(self.info_line[len(b"INFO ") :])

    def send(self, data: bytes, cuts: tuple[int, ...] = ()) -> None:
        bounds = [0, *cuts, len(data)]
        self.socket.settimeout(self.deadline)
        try:
            for start, end in itertools.pairwise(bounds):
                if start:
                    time.sleep(SEGMENT_GAP)
                self.socket.sendall(data[start:end])
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            pass  # The server has closed in the meantime; the next expectation says whether it should have.
        except TimeoutError:
            raise WireFailure(
                f"the server does not read: {len(data)} bytes not sent within {self.deadline} s"
            ) from None

    def expect(self, match, expected: list[bytes]) -> None:
        until = time.monotonic() + self.deadline
        while True:
            try:
                length = match(self.buffer)
            except _Impossible:
                raise _mismatch(expected, self.buffer, "unexpected bytes") from None
            if length is not None:
                self.buffer = self.buffer[length:]
                return
            self._receive(until, expected)

    def expect_bytes(self, *alternatives: bytes) -> None:
        self.expect(lambda buffer: _match_one_of(alternatives, buffer), list(alternatives))

    def expect_open(self) -> None:
        self.send(b"PING\r\n")
        self.expect_bytes(b"PONG\r\n")

    def expect_closed(self, probe: bool) -> None:
        """probe: find out at once that the connection is still open, at the price of sending a PING."""
        until = time.monotonic() + self.deadline
        if probe:
            self.send(b"PING\r\n")
        while not self.ended and not self.buffer:
            self._receive(until, [], closing=True)
        if self.buffer:
            raise _mismatch([b""], self.buffer, "bytes where the connection should have been closed")

    def half_close(self) -> None:
        with contextlib.suppress(OSError):  # The server may have closed first.
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    def _receive(self, until: float, expected: list[bytes], closing: bool = False) -> None:
        if self.ended:
            raise _mismatch(expected, self.buffer, "the connection was closed too early")
        self.socket.settimeout(max(0.001, until - time.monotonic()))
        try:
            data = self.socket.recv(1 << 18)
        except TimeoutError:
            what = "the connection is still open" if closing else "no more bytes came"
            raise _mismatch(expected, self.buffer, f"{what} within {self.deadline} s") from None
        except (ConnectionResetError, ssl.SSLEOFError):
            data = b""
        if data:
            self.buffer += data
        else:
            self.ended = True


# --- Running ---------------------------------------------------------------------------------------------------------


def run(
    case: Case,
    address: tuple[str, int],
    deadline: float = DEADLINE,
    probe_close: bool = False,
    transport: Transport = TCP,
) -> dict[str, Connection]:
    """Raises WireFailure unless the server at the address does what the case says. The connections are closed then."""
    played = _Run(address, deadline, probe_close, transport)
    played.play(case)
    return played.connections


class _Run:
    def __init__(self, address: tuple[str, int], deadline: float, probe_close: bool, transport: Transport):
        self.transport = transport
        self.address = address
        self.deadline = deadline
        self.probe_close = probe_close
        self.connections: dict[str, Connection] = {}
        self.unique = unique()

    def play(self, case: Case) -> None:
        try:
            for index, step in enumerate(case.steps):
                try:
                    self._play_step(step)
                except WireFailure as failure:
                    failure.step = index
                    peer = "/".join(peers_of(step))
                    message = f"{case.id}, step {index} ({type(step).__name__} on {peer}): {failure}"
                    failure.args = (message,)
                    raise
        finally:
            for connection in self.connections.values():
                connection.close()

    def _play_step(self, step: Step) -> None:
        match step:
            case Connect(peer, True):
                self._connect_proven(peer)
            case Connect(peer):
                self._connect(peer)
            case Send(peer, data, cuts):
                connection = self._connection(peer)
                composed = data(connection.info) if callable(data) else data
                connection.send(self._bytes(composed), cuts)
            case Expect(peer, alternatives):
                self._connection(peer).expect_bytes(*map(self._bytes, alternatives))
            case AnyOrder(peer, units):
                units = tuple(map(self._bytes, units))
                self._connection(peer).expect(lambda buffer: _match_any_order(units, buffer), [b"".join(units)])
            case Spread():
                self._spread(step)
            case Open(peer):
                self._connection(peer).expect_open()
            case Closed(peer):
                self._connection(peer).expect_closed(self.probe_close)
            case HalfClose(peer):
                self._connection(peer).half_close()
            case Drop(peer):
                self._connection(peer).close()
            case Info(peer, fields, line):
                self._check_info(peer, fields, line)
            case Update(peer, fields):
                self._connection(peer).read_info()
                self._check_info(peer, fields, None)

    def _bytes(self, data: bytes) -> bytes:
        return data.replace(UNIQUE, self.unique)

    def _connection(self, peer: str) -> Connection:
        return self.connections.get(peer) or self._connect(peer)

    def _connect(self, peer: str) -> Connection:
        connection = self.connections[peer] = Connection(self.address, self.deadline, self.transport)
        connection.begin()
        return connection

    def _connect_proven(self, peer: str) -> None:
        until = time.monotonic() + self.deadline
        while True:
            try:
                self._connect(peer).expect_open()
                return
            except WireFailure:
                self.connections.pop(peer).close()
                if time.monotonic() > until:
                    raise
                time.sleep(SEGMENT_GAP)

    def _spread(self, step: Spread) -> None:
        taken: dict[int, str] = {}
        for peer, units in step.units.items():
            share = self._read_share(peer, tuple(map(self._bytes, units)), self._bytes(step.fence[peer]))
            if share != sorted(share):
                raise WireFailure(f"{peer} received its messages out of order: {share}")
            for index in share:
                if index in taken:
                    raise WireFailure(f"message {index} reached both {taken[index]} and {peer}")
                taken[index] = peer
        lost = set(range(len(next(iter(step.units.values()))))) - set(taken)
        if lost:
            raise WireFailure(f"messages {sorted(lost)} reached nobody")

    def _read_share(self, peer: str, units: tuple[bytes, ...], fence: bytes) -> list[int]:
        share: list[int] = []

        def match(buffer: bytes) -> int | None:
            length, share[:] = _match_share(units, fence, buffer)
            return length

        self._connection(peer).expect(match, [b"".join(units) + fence])
        return share

    def _check_info(self, peer: str, fields: dict[str, Any], line: bytes | None) -> None:
        connection = self._connection(peer)
        if line is not None and not re.fullmatch(line, connection.info_line):
            raise WireFailure(f"INFO line {connection.info_line!r} is not {line!r}")
        for name, value in connection.info.items():
            if value is None:
                raise WireFailure(f"INFO field {name} is null")
        for name, check in fields.items():
            value = connection.info.get(name, ABSENT)
            if not self._info_field_is(name, value, check):
                raise WireFailure(f"INFO field {name} is {value!r}, expected {check!r}")

    def _info_field_is(self, name: str, value: Any, check: Any) -> bool:
        match check:
            case type():
                return type(value) is check and value not in ("", ABSENT)
            case re.Pattern():
                return isinstance(value, str) and bool(check.search(value))
            case As(peer, same):
                return (value == self._connection(peer).info.get(name, ABSENT)) == same
            case _ if check is PORT:
                return value == self.address[1]
            case _:
                return type(value) is type(check) and value == check


# --- Mutants ---------------------------------------------------------------------------------------------------------


def mutants(case: Case) -> Iterator[tuple[int, str, Case]]:
    """Every expectation of the case falsified, one at a time: (index of the step, what was done, case)."""
    for index, step in enumerate(case.steps):
        for what, false_step in _false_steps(case, step):
            steps = (*case.steps[:index], false_step, *case.steps[index + 1 :])
            yield index, what, dataclasses.replace(case, steps=steps)


def _false_steps(case: Case, step: Step) -> Iterator[tuple[str, Step]]:
    seed = zlib.crc32(case.id.encode())
    match step:
        case Expect(peer, alternatives):
            yield "a byte changed", Expect(peer, _change_byte(alternatives, seed))
        case AnyOrder(peer, units):
            victim = seed % len(units)
            changed = _change_byte(units, seed)[victim]
            yield "a byte of one unit changed", AnyOrder(peer, (*units[:victim], changed, *units[victim + 1 :]))
        case Spread(units, fence):
            victim = seed % len(next(iter(units.values())))
            false_units = {}
            for peer, own in units.items():
                changed = _change_byte(own, seed)[victim]
                false_units[peer] = (*own[:victim], changed, *own[victim + 1 :])
            yield "a byte of one message changed", Spread(false_units, fence)
        case Open(peer):
            yield "closed instead of open", Closed(peer)
        case Closed(peer):
            yield "open instead of closed", Open(peer)
        case Update(peer, fields):
            for name, check in fields.items():
                yield f"check of {name} reversed", Update(peer, {**fields, name: _reverse(check)})
        case Info(peer, fields, line):
            for name, check in fields.items():
                yield f"check of {name} reversed", Info(peer, {**fields, name: _reverse(check)}, line)
            if line is not None:
                yield "line pattern reversed", Info(peer, fields, rb"(?s)(?!" + line + rb"\Z).*")


def _reverse(check: Any) -> Any:
    match check:
        case As(peer, same):
            return As(peer, not same)
        case _:
            return str if check == ABSENT else ABSENT


def _change_byte(strings: tuple[bytes, ...], seed: int) -> tuple[bytes, ...]:
    """One byte of each string replaced by a byte that none of them holds."""
    used = set(b"".join(strings))
    other = bytes([next(byte for byte in range(0x7F, -1, -1) if byte not in used or byte == 0)])
    changed = []
    for string in strings:
        at = seed % len(string)
        byte = other if string[at : at + 1] != other else b"\xff"
        changed.append(string[:at] + byte + string[at + 1 :])
    return tuple(changed)
