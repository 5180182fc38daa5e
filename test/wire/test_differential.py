"""Random sessions on a nats-server and on the gateway (differential.py): what came back is the same.

DIFFERENTIAL_SESSIONS=9000 runs so many instead of a few, DIFFERENTIAL_FIRST=1000 begins with that seed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from . import differential
from .differential import DIFFERENCES, Deviation, Maker, Message, Received, Session, Step
from .servers import TARGETS, Servers, require, servers  # noqa: F401 (a fixture)

FIRST = int(os.environ.get("DIFFERENTIAL_FIRST", "0"))
SESSIONS = int(os.environ.get("DIFFERENTIAL_SESSIONS", "500"))
# The time goes into waiting, for both servers and for the pauses between the pieces of a write.
AT_ONCE = 4


@pytest.fixture
def addresses(servers: Servers) -> dict[str, tuple[str, int]]:  # noqa: F811
    require("nats-server", None)
    return {target: servers.address(target, {}) for target in TARGETS}


def test_sessions(addresses: dict[str, tuple[str, int]]):
    def unexplained(session: Session) -> list[Deviation]:
        return differential.unexplained(session, differential.compare(addresses, session))

    with ThreadPoolExecutor(AT_ONCE) as threads:
        sessions = [Maker(seed).session() for seed in range(FIRST, FIRST + SESSIONS)]
        failed = [(session, found) for session, found in zip(sessions, threads.map(unexplained, sessions)) if found]
    if failed:
        pytest.fail("\n\n".join(report(*one, unexplained) for one in failed[:3]) + count(failed), pytrace=False)


def report(session: Session, found: list[Deviation], unexplained) -> str:
    kinds = {one.what.split()[0] for one in found}
    small = differential.shrunk(session, lambda one: bool(kinds & {d.what.split()[0] for d in unexplained(one)}))
    last = unexplained(small) or found
    return "\n".join([small.show(), *(deviation.show() for deviation in last)])


def count(failed: list[tuple[Session, list[Deviation]]]) -> str:
    seeds = ", ".join(str(session.seed) for session, _ in failed)
    return f"\n\n{len(failed)} of {SESSIONS} sessions differ, of the seeds {seeds}"


# --- The comparison can fail -----------------------------------------------------------------------------------------


def one_step(*operations: bytes) -> Session:
    return Session(0, 1, (Step(0, (b"CONNECT {}\r\n",)), Step(0, operations)))


def message(payload: bytes, sid: bytes = b"1", headers: bytes = b"") -> Message:
    return Message(b"@@.a", sid, b"", headers, payload)


NO_RESPONDERS = b"NATS/1.0 503\r\n\r\n"


def variants() -> Iterator[tuple[str, Received]]:
    yield "word", Received([b"+OK", b"+OK"], [message(b"x"), message(b"y")])
    yield "no word", Received([], [message(b"x"), message(b"y")])
    yield "lost", Received([b"+OK"], [message(b"x")])
    yield "twice", Received([b"+OK"], [message(b"x"), message(b"y"), message(b"y")])
    yield "order", Received([b"+OK"], [message(b"y"), message(b"x")])
    yield "sid", Received([b"+OK"], [message(b"x"), message(b"y", b"2")])
    yield "headers", Received([b"+OK"], [message(b"x"), message(b"y", headers=b"NATS/1.0\r\n\r\n")])
    yield "503", Received([b"+OK"], [message(b"x"), message(b"y"), message(b"", headers=NO_RESPONDERS)])
    yield "end", Received([b"+OK"], [message(b"x"), message(b"y")], closed=True)


@pytest.mark.parametrize("received", [one for _, one in variants()], ids=[name for name, _ in variants()])
def test_a_deviation_is_found(received: Received):
    right = Received([b"+OK"], [message(b"x"), message(b"y")])
    session = one_step(b"PUB @@.a 1\r\nx\r\n")
    assert differential.deviations(1, [right], [right]) == []
    for pair in ([right], [received]), ([received], [right]):
        assert differential.unexplained(session, differential.deviations(1, *pair))


def test_a_lost_fence_is_found():
    assert differential.deviations(1, [Received()], None)


def test_members_of_a_queue_group_share():
    x, y = message(b"x", b"q1-1"), message(b"y", b"q1-2")
    one, other = [Received([], [x]), Received([], [y])], [Received([], [y]), Received([], [x])]
    assert differential.deviations(1, one, other) == []
    assert differential.deviations(1, one, [Received([], [x]), Received()])


def test_seeds_make_the_same_sessions():
    assert Maker(7).session() == Maker(7).session() != Maker(8).session()


def test_sessions_meet_what_they_are_for():
    steps = [step for seed in range(200) for step in Maker(seed).session().steps]
    names = {line.split()[0].upper() for step in steps for line in step.operations if line.strip()}
    assert {b"SUB", b"UNSUB", b"PUB", b"HPUB", b"CONNECT", b"PING", b"BAD"} <= names


def test_sessions_get_smaller():
    session = next(one for one in (Maker(seed).session() for seed in range(100)) if len(one.steps) > 8)
    wanted = session.steps[-1].operations[-1]

    def fails(one: Session) -> bool:
        return any(wanted in step.operations for step in one.steps[one.peers :])

    small = differential.shrunk(session, fails)
    assert [step.operations for step in small.steps[small.peers :]] == [(wanted,)]
    assert repr(wanted) in small.show()


def test_differences_are_named_once():
    names = [difference.name for difference in DIFFERENCES]
    assert sorted(set(names)) == sorted(names)
