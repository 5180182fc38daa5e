"""Random sessions of several connections, the same on a nats-server and on the gateway, and what came of each step.

A session is made from its seed: steps of one connection each, of one or more operations that are sent in random
pieces. After every step a fence shows that all of it has arrived everywhere: a message that every connection
subscribes to, and a PING. So what each connection got in a step is known, and is compared by connection and sid.

Not made, because on both servers either outcome is right: UNSUB with a max for a member of a queue group, and one
queue name over several filters (see cases.DIFFERENCES). Which member of a group gets a message is not compared, but
that one does.
"""

from __future__ import annotations

import json
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from .wire import SEGMENT_GAP, UNIQUE, unique

DEADLINE = 15.0
# No pattern of a session matches it.
FENCE_SUBJECT = b"fence.@@"
FENCE_SID = b"fence"
# What makes some payloads long.
FILLER = re.compile(rb"\.{9,}")

Address = tuple[str, int]


# --- Sessions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """What one connection sends. cuts: where its bytes are sent in pieces."""

    peer: int
    operations: tuple[bytes, ...]
    cuts: tuple[int, ...] = ()

    @property
    def data(self) -> bytes:
        return b"".join(self.operations)


@dataclass(frozen=True)
class Session:
    seed: int
    peers: int
    steps: tuple[Step, ...]

    def show(self) -> str:
        lines = [f"session {self.seed}, {self.peers} connections"]
        for number, step in enumerate(self.steps):
            lines.append(f"  {number}: connection {step.peer} sends" + (f", cut at {step.cuts}" if step.cuts else ""))
            lines += [f"       {FILLER.sub(b'...', operation)!r}" for operation in step.operations]
        return "\n".join(lines)


OPTIONS: tuple[dict[str, Any], ...] = (
    {"verbose": False, "pedantic": False, "headers": True, "no_responders": True},
    {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "echo": False},
    {"verbose": True, "pedantic": False, "headers": True, "no_responders": True},
    {"verbose": False, "pedantic": True, "headers": True, "no_responders": True},
    {"verbose": False},
    {"headers": True},
    {"verbose": False, "echo": False},
    {"verbose": False, "user": "someone", "pass": "else"},
    {"verbose": False, "headers": True, "user": "a\x00b", "name": "\ud83d"},
    {},
)
# Each closes the connection.
FATAL = (
    b"BAD\r\n", b"\r\n", b"SUB\r\n", b"SUB a\r\n", b"SUB a b c d\r\n", b"UNSUB\r\n", b"UNSUB a b c\r\n",
    b"PUB @@.a\r\n", b"PUB @@.a -1\r\n", b"PUB @@.a x\r\n", b"PUB @@.a 2000000\r\n", b"PUB @@.a 2\r\nhiho\r\n",
    b"PUB @@.a.* 2\r\nhiho\r\n", b"HPUB @@.a 9 4\r\n", b"HPUB @@.a 1\r\n", b"-ERR 'x'\r\n", b"MSG a 1 0\r\n\r\n",
    b"CONNECT {\r\n", b"INFO x\r\n",
    b'CONNECT {"protocol":7}\r\n', b"PUB  a b c 0\r\n\r\n", b"PINX\r\n", b"PUB @@.a 1234567890\r\n",
)  # fmt: skip
HARMLESS = (
    b"PONG\r\n", b"+OK\r\n", b"INFO {}\r\n", b"ping\r\n", b"PING  \r\n", b"UNSUB nothing\r\n", b"pInG extra\r\n",
)  # fmt: skip
SUBJECTS = (b"@@.a", b"@@.a.b", b"@@.a.b.c", b"@@.b", b"@@.a/b", b"@@.\xc3\xa4.b", b"@@.a%2Fb.+")
FILTERS = (*SUBJECTS, b"@@.*", b"@@.a.*", b"@@.*.b", b"@@.a.>", b"@@.a.*.c", b"@@.*.*", b"@@.a.b.>")
SERVICES = (b"@@.svc.x", b"@@.svc.y")
REPLIES = (b"@@.r.1", b"@@.r.2")
INVALID_FILTERS = (b"@@..a", b".@@", b"@@.a.", b"@@.>.a", b"@@.a..b")
INVALID_SUBJECTS = (b"@@.a.*", b"@@.>", b"@@..a", b"@@.a.")
BLOCKS = (b"NATS/1.0\r\n\r\n", b"NATS/1.0\r\nA: b\r\nA:  c\r\n\r\n", b"NATS/1.0 503\r\n\r\n", b"NATS/1.0\r\nX:\r\n\r\n")


class Maker:
    """Makes one session, and knows so much of its connections as it takes to make plausible operations."""

    def __init__(self, seed: int):
        self.seed = seed
        self.random = random.Random(seed)
        self.peers = self.random.randint(1, 3)
        self.options: list[dict[str, Any]] = [{} for _ in range(self.peers)]
        self.sids: list[dict[bytes, bool]] = [{} for _ in range(self.peers)]
        self.open = set(range(self.peers))
        self.payloads = 0

    def session(self) -> Session:
        steps = [self.first(peer) for peer in range(self.peers)]
        for _ in range(self.random.randint(3, 12)):
            if self.open:
                steps.append(self.step(self.random.choice(sorted(self.open))))
        return Session(self.seed, self.peers, tuple(steps))

    def first(self, peer: int) -> Step:
        connect = self.connect(peer) if self.random.random() < 0.9 else ()
        return Step(peer, (*connect, b"SUB " + FENCE_SUBJECT + b" " + FENCE_SID + b"\r\n"))

    def step(self, peer: int) -> Step:
        operations: list[bytes] = []
        for _ in range(self.random.choice((1, 1, 2, 3, 5, 8))):
            operations += self.operation(peer)
        if self.random.random() < 0.06:
            operations.append(self.random.choice(FATAL))
            self.open.discard(peer)
        operations = operations or [b"PONG\r\n"]
        length = len(b"".join(operations))
        cuts = sorted(self.random.sample(range(1, length), min(length - 1, self.random.choice((0, 0, 0, 1, 3)))))
        return Step(peer, tuple(operations), tuple(cuts))

    def operation(self, peer: int) -> list[bytes]:
        kind = self.random.choices(
            ("sub", "unsub", "publish", "request", "connect", "harmless", "invalid_sub", "invalid_publish"),
            (24, 10, 40, 10, 3, 5, 2, 3),
        )[0]  # fmt: skip
        return getattr(self, kind)(peer)

    def connect(self, peer: int) -> list[bytes]:
        options = dict(self.random.choice(OPTIONS))
        if self.sids[peer]:
            # A member of a queue group must not lose its echo, see cases.DIFFERENCES.
            options.pop("echo", None)
        self.options[peer] |= options
        return [b"CONNECT " + json.dumps(options).encode() + b"\r\n"]

    def sub(self, peer: int) -> list[bytes]:
        sid = self.random.choice((b"1", b"2", b"3", b"x", b"sid-9"))
        queue = b""
        if self.random.random() < 0.2 and self.options[peer].get("echo", True):
            # One filter for each queue name, and sids of their own.
            index = self.random.randrange(len(FILTERS))
            subject, queue, sid = FILTERS[index], b"q%d" % index, b"q%d-%d" % (index, self.random.randint(1, 2))
        else:
            subject = self.random.choice((*FILTERS, *SERVICES, *REPLIES, b"@@.r.*"))
        self.sids[peer][sid] = bool(queue)
        return [self.line(b"SUB", *filter(None, (subject, queue, sid)))]

    def unsub(self, peer: int) -> list[bytes]:
        if not self.sids[peer]:
            return []
        sid = self.random.choice(sorted(self.sids[peer]))
        if not self.sids[peer][sid] and self.random.random() < 0.6:
            return [self.line(b"UNSUB", sid, self.random.choice((b"1", b"2", b"3", b"5", b"0", b"-1", b"x")))]
        return [self.line(b"UNSUB", sid)]

    def publish(self, peer: int) -> list[bytes]:
        reply = self.random.choice((b"", b"", b"", b"@@.r.1", b"some.where"))
        # Without a 503 for it.
        reply = b"" if self.options[peer].get("no_responders") else reply
        return [self.message(peer, self.random.choice(SUBJECTS), reply)]

    def request(self, peer: int) -> list[bytes]:
        return [self.message(peer, self.random.choice(SERVICES), self.random.choice(REPLIES))]

    def invalid_publish(self, peer: int) -> list[bytes]:
        return [self.message(peer, self.random.choice(INVALID_SUBJECTS), b"")]

    def harmless(self, peer: int) -> list[bytes]:
        return [self.random.choice(HARMLESS)]

    def invalid_sub(self, peer: int) -> list[bytes]:
        return [self.line(b"SUB", self.random.choice(INVALID_FILTERS), b"bad")]

    def message(self, peer: int, subject: bytes, reply: bytes) -> bytes:
        self.payloads += 1
        payload = b"p%d" % self.payloads + b"." * self.random.choice((0, 0, 0, 1, 100, 5000))
        names = tuple(filter(None, (subject, reply)))
        if self.options[peer].get("headers") and self.random.random() < 0.3:
            block = self.random.choice(BLOCKS)
            line = self.line(b"HPUB", *names, b"%d" % len(block), self.size(len(block) + len(payload)))
            return line + block + payload + b"\r\n"
        return self.line(b"PUB", *names, self.size(len(payload))) + payload + b"\r\n"

    def size(self, size: int) -> bytes:
        return b"0" * (self.random.random() < 0.05) + b"%d" % size

    def line(self, name: bytes, *arguments: bytes) -> bytes:
        """As clients write it, or legal but odd."""
        if self.random.random() < 0.85:
            return b" ".join((name, *arguments)) + b"\r\n"
        spelling = self.random.choice((name.lower(), name.title(), name))
        blanks = [self.random.choice((b" ", b"  ", b"\t", b" \t ")) for _ in arguments]
        text = spelling + b"".join(blank + argument for blank, argument in zip(blanks, arguments, strict=True))
        return text + self.random.choice((b"", b" ", b"\t")) + self.random.choice((b"\r\n", b"\n"))


# --- What comes back -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    subject: bytes
    sid: bytes
    reply: bytes
    headers: bytes
    payload: bytes


@dataclass
class Received:
    """Of one connection in one step. words: everything but messages; reset: so it was closed, which loses bytes."""

    words: list[bytes] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    closed: bool = False
    reset: bool = False


class Reader:
    """One connection, whose bytes are taken apart as they come."""

    LINE = re.compile(rb"([^\n]*?)\r\n")

    def __init__(self, address: Address):
        self.socket = socket.create_connection(address, timeout=DEADLINE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.received = Received()
        self.fence = -1
        self.pongs = 0
        self.wait(lambda: b"INFO" in self.received.words)
        self.received = Received()

    def send(self, data: bytes, cuts: tuple[int, ...] = ()) -> None:
        try:
            for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
                if start:
                    time.sleep(SEGMENT_GAP)
                self.socket.sendall(data[start:end])
        except OSError:
            pass  # Closed meanwhile, which the next read tells.

    def wait(self, until: Callable[[], bool]) -> bool:
        """Reads until it holds, or the end; False after the deadline."""
        end = time.monotonic() + DEADLINE
        while not self.received.closed and not until():
            self.socket.settimeout(max(0.001, end - time.monotonic()))
            try:
                data = self.socket.recv(1 << 18)
            except TimeoutError:
                return False
            except ConnectionResetError:
                data = b""
                self.received.reset = True
            self.received.closed = not data
            self.buffer += data
            while self._unit():
                pass
        return True

    def take(self) -> Received:
        received = self.received
        self.received = Received(closed=received.closed, reset=received.reset)
        return received

    def _unit(self) -> bool:
        line = self.LINE.match(self.buffer)
        if not line:
            return False
        fields = line[1].split(b" ")
        if fields[0] in (b"MSG", b"HMSG"):
            return self._message(fields, line.end())
        self.buffer = self.buffer[line.end() :]
        word = b"INFO" if fields[0] == b"INFO" else line[1]
        if word == b"PONG":
            self.pongs += 1
        if word != b"PING":  # A server's own question.
            self.received.words.append(word)
        return True

    def _message(self, fields: list[bytes], start: int) -> bool:
        header_size = int(fields.pop(-2)) if fields[0] == b"HMSG" else 0
        end = start + int(fields[-1])
        if len(self.buffer) < end + 2:
            return False
        assert self.buffer[end : end + 2] == b"\r\n", self.buffer
        headers, payload = self.buffer[start : start + header_size], self.buffer[start + header_size : end]
        reply = fields[3] if len(fields) == 5 else b""
        message = Message(fields[1], fields[2], reply, headers, payload)
        self.buffer = self.buffer[end + 2 :]
        if message.sid == FENCE_SID:
            self.fence = int(message.payload)
        else:
            self.received.messages.append(message)
        return True


class Run:
    """One session on one server. A result of each step: what each connection received, None if the fence got lost."""

    def __init__(self, address: Address, session: Session):
        self.unique = unique()
        self.session = session
        self.peers = [Reader(address) for _ in range(session.peers)]
        self.helper = Reader(address)
        self.helper.send(b'CONNECT {"verbose":false}\r\n')
        self.echo = [True] * session.peers

    def steps(self) -> Iterator[list[Received] | None]:
        try:
            for number, step in enumerate(self.session.steps):
                arrived = self._step(number, step)
                yield [self._named(peer.take()) for peer in self.peers] if arrived else None
                if not arrived:
                    return
        finally:
            for reader in (*self.peers, self.helper):
                reader.socket.close()

    def _step(self, number: int, step: Step) -> bool:
        actor = self.peers[step.peer]
        if actor.received.closed:
            return True
        for option in re.findall(rb'CONNECT .*?"echo": (true|false)', step.data):
            self.echo[step.peer] = option == b"true"
        pongs = actor.pongs + len(re.findall(rb"(?im)^ping[ \t\r\n]", step.data)) + 1
        actor.send(self._bytes(step.data), step.cuts)
        actor.send(self._fence(number))
        done = [actor.wait(lambda: actor.pongs >= pongs and (actor.fence == number or not self.echo[step.peer]))]
        if actor.received.closed:
            # What it has published is with the broker; the fence of another comes after it.
            self.helper.send(self._fence(number))
            pongs = self.helper.pongs + 1
            done.append(self.helper.wait(lambda: self.helper.pongs >= pongs))
        # At first the others do not subscribe to it yet.
        if number >= len(self.peers):
            done += [self._sees(peer, number) for peer in self.peers if peer is not actor]
        return all(done)

    def _sees(self, peer: Reader, number: int) -> bool:
        if peer.received.closed or not peer.wait(lambda: peer.fence == number):
            return peer.received.closed
        pongs = peer.pongs + 1
        peer.send(b"PING\r\n")
        return peer.wait(lambda: peer.pongs >= pongs)

    def _fence(self, number: int) -> bytes:
        return self._bytes(b"PUB " + FENCE_SUBJECT + b" %d\r\n%d\r\nPING\r\n" % (len(b"%d" % number), number))

    def _bytes(self, data: bytes) -> bytes:
        return data.replace(UNIQUE, self.unique)

    def _named(self, received: Received) -> Received:
        """With the stand-in for what is unique."""

        def name(data: bytes) -> bytes:
            return data.replace(self.unique, UNIQUE)

        messages = [replace(m, subject=name(m.subject), reply=name(m.reply)) for m in received.messages]
        return Received([name(word) for word in received.words], messages, received.closed, received.reset)


# --- What differs ----------------------------------------------------------------------------------------------------

QUEUE_SID = re.compile(rb"q(\d+)-")


@dataclass(frozen=True)
class Deviation:
    """One of a step. peer: None for a queue group, which is everybody's, and for the fence."""

    step: int
    peer: int | None
    what: str
    of_nats_server: Any
    of_gateway: Any
    reset: bool

    def show(self) -> str:
        return (
            f"step {self.step}, {'all' if self.peer is None else f'connection {self.peer}'}, {self.what}:\n"
            f"  nats-server: {self.of_nats_server!r}\n"
            f"  gateway:     {self.of_gateway!r}"
        )


def is_503(message: Message) -> bool:
    return message.headers == b"NATS/1.0 503\r\n\r\n" and not message.payload


Parts = dict[tuple[int | None, str], Any]


def parts(received: list[Received]) -> Parts:
    """What is compared. Any sid that matches may get a 503, so those go by their subject."""
    found: Parts = {}
    for peer, of_peer in enumerate(received):
        found[peer, "end"] = of_peer.closed
        found[peer, "words"] = once(of_peer.words)
        for message in of_peer.messages:
            queue = QUEUE_SID.match(message.sid)
            what = replace(message, sid=b"")
            if queue:
                # Not every member has asked for headers.
                group = found.setdefault((None, f"queue group {queue[1].decode()}"), Counter())
                group[replace(what, headers=b"")] += 1
            elif is_503(message):
                found.setdefault((peer, f"503 {message.subject.decode()}"), []).append(what)
            else:
                found.setdefault((peer, f"sid {message.sid.decode()}"), []).append(what)
    return found


def once(words: list[bytes]) -> list[bytes]:
    """nats-server parses a line again if the payload comes later, and repeats what is wrong with its subject."""
    twice = b"-ERR 'Invalid Publish Subject'"
    return [word for at, word in enumerate(words) if word != twice or at == 0 or words[at - 1] != twice]


def deviations(step: int, nats_server: list[Received] | None, gateway: list[Received] | None) -> list[Deviation]:
    if nats_server is None or gateway is None:
        return [Deviation(step, None, "fence", nats_server is not None, gateway is not None, False)]
    theirs, ours = parts(nats_server), parts(gateway)
    return [
        Deviation(step, peer, what, theirs.get((peer, what)), ours.get((peer, what)), any(r.reset for r in nats_server))
        for peer, what in dict.fromkeys((*theirs, *ours))
        if theirs.get((peer, what)) != ours.get((peer, what))
    ]


def compare(addresses: dict[str, Address], session: Session) -> list[Deviation]:
    """Those of the first step that has any: what comes later may follow from them."""
    runs = (Run(addresses[target], session).steps() for target in ("nats-server", "gateway"))
    for number, (nats_server, gateway) in enumerate(zip(*runs, strict=True)):
        found = deviations(number, nats_server, gateway)
        if found:
            return found
    return []


@dataclass(frozen=True)
class Difference:
    """One that is there by design: where, and why. More of them in cases.DIFFERENCES, which no session meets."""

    name: str
    reason: str
    explains: Callable[[Session, Deviation], bool]


def matches(pattern: bytes, subject: bytes) -> bool:
    expression = re.escape(pattern).replace(rb"\*", rb"[^.]+").replace(rb"\.>", rb"\..+")
    return re.fullmatch(expression, subject) is not None


def is_503_deviation(deviation: Deviation, more_of: str) -> bool:
    if not deviation.what.startswith("503 "):
        return False
    of_gateway, of_nats_server = len(deviation.of_gateway or ()), len(deviation.of_nats_server or ())
    return of_gateway < of_nats_server if more_of == "nats-server" else of_nats_server < of_gateway


def words_of(operations: tuple[bytes, ...]) -> list[list[bytes]]:
    return [operation.partition(b"\n")[0].split() or [b""] for operation in operations]


def is_late_503(session: Session, deviation: Deviation) -> bool:
    """After the request, in what was sent at once, comes what changes who gets it."""
    reply = deviation.what.partition(" ")[2].encode()
    lines = words_of(session.steps[deviation.step].operations)
    request = next((at for at, line in enumerate(lines) if reply in line[2:3]), len(lines))
    later = lines[request:]
    if is_503_deviation(deviation, "gateway"):
        return any(line[0].upper() == b"SUB" and matches(line[1], reply) for line in later if len(line) > 2)
    return is_503_deviation(deviation, "nats-server") and any(line[0].upper() in (b"SUB", b"UNSUB") for line in later)


def is_503_after_unsub(session: Session, deviation: Deviation) -> bool:
    """Before the request, in what was sent at once, comes an UNSUB."""
    reply = deviation.what.partition(" ")[2].encode()
    lines = words_of(session.steps[deviation.step].operations)
    request = max((at for at, line in enumerate(lines) if reply in line[2:3]), default=0)
    return is_503_deviation(deviation, "nats-server") and any(line[0].upper() == b"UNSUB" for line in lines[:request])


def is_503_of_own_service(session: Session, deviation: Deviation) -> bool:
    sent = [line for step in session.steps if step.peer == deviation.peer for line in words_of(step.operations)]
    filters = [line[1] for line in sent if line[0].upper() == b"SUB" and len(line) > 2]
    own = any(matches(pattern, service) for pattern in filters for service in SERVICES)
    echo = any(b'"echo": false' in b" ".join(line) for line in sent)
    return is_503_deviation(deviation, "nats-server") and own and echo


def is_lost_in_reset(session: Session, deviation: Deviation) -> bool:
    """nats-server closes the socket before it has read everything, and the reset takes what it has just written."""
    if not deviation.reset or session.steps[deviation.step].peer != deviation.peer:
        return False
    missing, whole = deviation.of_nats_server, deviation.of_gateway
    if isinstance(whole, Counter):
        return not missing - whole
    return isinstance(whole, list) and (missing or []) == whole[: len(missing or [])]


DIFFERENCES = (
    Difference(
        "late_503",
        "the broker says later that nobody took a request: who has subscribed to its reply by then gets the 503",
        is_late_503,
    ),
    Difference(
        "503_after_unsub",
        "EMQX takes a subscriber out some time after its UNSUB, and counts it as one that takes the message until then",
        is_503_after_unsub,
    ),
    Difference(
        "503_of_own_service",
        "the broker counts a No Local subscription as one that takes the message",
        is_503_of_own_service,
    ),
    Difference(
        "lost_in_reset",
        "the gateway reads on until the client has what was written, and the text arrives",
        is_lost_in_reset,
    ),
)


def unexplained(session: Session, found: list[Deviation]) -> list[Deviation]:
    return [one for one in found if not any(difference.explains(session, one) for difference in DIFFERENCES)]


# --- Smaller ---------------------------------------------------------------------------------------------------------


def smaller(session: Session) -> Iterator[Session]:
    """With one thing less, large things first. The first steps of the connections stay."""
    steps = session.steps
    for at in reversed(range(session.peers, len(steps))):
        yield replace(session, steps=steps[:at] + steps[at + 1 :])
    for at, step in enumerate(steps):
        if step.cuts:
            yield replace(session, steps=(*steps[:at], replace(step, cuts=()), *steps[at + 1 :]))
        for index in reversed(range(len(step.operations) if at >= session.peers else 0)):
            operations = step.operations[:index] + step.operations[index + 1 :]
            if operations:
                yield replace(session, steps=(*steps[:at], Step(step.peer, operations), *steps[at + 1 :]))


def shrunk(session: Session, fails: Callable[[Session], bool], seconds: float = 30.0) -> Session:
    until = time.monotonic() + seconds
    while True:
        found = next((one for one in smaller(session) if time.monotonic() < until and fails(one)), None)
        if found is None:
            return session
        session = found
