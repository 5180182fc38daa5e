"""Who has not logged in costs little and locks nobody out."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from hostile.clients import DEADLINE, Client, Raw
from hostile.conftest import PROGRAM, STANDALONE, Hosts, size
from hostile.hosts import Host
from hostile.measure import wait_until

TOKEN = "good"
# Of cost 10, as htpasswd makes them.
HASH = "$2b$10$abcdefghijklmnopqrstuugtFn60tvZgY5pE0P5EhuBMNhtsy82cy"
# The default of authentication_timeout.
TIME_FOR_LOGIN = 2.0
GUESSERS = 60


def hashed_token(place: object) -> dict[str, object]:
    if place == PROGRAM:
        return {"auth_token": HASH}
    return {"internal_authn": ["token"], "token": HASH}


@contextmanager
def among(sockets: set[socket.socket], sock: socket.socket) -> Iterator[None]:
    sockets.add(sock)
    try:
        yield
    finally:
        sockets.discard(sock)


@contextmanager
def guessing(host: Host, source: str) -> Iterator[list[int]]:
    """Counts the guesses so far."""
    stop = threading.Event()
    counts = [0]
    connected: set[socket.socket] = set()

    def guess() -> None:
        while not stop.is_set():
            with suppress(OSError), socket.create_connection(host.address(), DEADLINE, (source, 0)) as sock, among(connected, sock):
                sock.recv(4096)
                sock.sendall(b'CONNECT {"auth_token":"wrong"}\r\n')
                sock.recv(4096)
                counts[0] += 1

    threads = [threading.Thread(target=guess, daemon=True) for _ in range(GUESSERS)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        stop.set()
        # Nobody waits for the guesses whose turn has not come.
        while any(thread.is_alive() for thread in threads):
            for sock in list(connected):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            time.sleep(0.01)


@pytest.mark.by_the_clock
@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2"], ids=["same_address", "other_address"])
def test_guessers_lock_nobody_out(hosts: Hosts, place: object, note: Callable[[object], None], source: str):
    host = hosts(**hashed_token(place))
    with Client(host.address(), auth_token=TOKEN) as connected, guessing(host, source) as guesses:
        wait_until(lambda: guesses[0] >= 5, "guesses", 30.0)
        times = []
        for _ in range(size(3, 10)):
            began = time.monotonic()
            Client(host.address(), auth_token=TOKEN).close()
            times.append(time.monotonic() - began)
        began = time.monotonic()
        connected.ping()
        round_trip = time.monotonic() - began
    note(f"logins took {max(times):.2f} s at most, {guesses[0]} guesses, a client's PING {round_trip * 1e3:.1f} ms")
    assert max(times) < TIME_FOR_LOGIN


# Of the same password, each with a salt of its own.
HASHES = (
    "$2b$10$ij0xw7/IfT8pBzIUusiDHeiOg77I/ggSOklptgrIkTM3MbvUPHzrW",
    "$2b$10$0DHXcLCV0IPau.2schJBC.8aGKCi1lZkAK9QkePZzGTfXYPy5C6PG",
    "$2b$10$PEnL8DqfAkFnt3EWSjPa1.Z9KmtiRoGggr1xHg3qsV9765UbIn/Qe",
    "$2b$10$8yPOcGojJBbZObyh7HIf9OypteTr9QQZIUIg4.UC6lxWKHN1kPuxy",
)


@STANDALONE
@pytest.mark.by_the_clock
@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2"], ids=["same_address", "other_address"])
def test_guessers_lock_nobody_out_at_the_first_login(hosts: Hosts, note: Callable[[object], None], source: str):
    """Of these users nobody has had a right password yet, so that it would be known; clients give up after two seconds."""
    users = [{"user": f"user{number}", "password": text} for number, text in enumerate(HASHES)]
    host = hosts(auth_token=HASH, users=users)
    with guessing(host, source) as guesses:
        # By now all of them wait for their turns.
        wait_until(lambda: guesses[0] >= GUESSERS // 3, "guesses", 60.0)
        times = []
        for user in users:
            began = time.monotonic()
            Client(host.address(), user=user["user"], **{"pass": TOKEN}).close()
            times.append(time.monotonic() - began)
    note(f"logins took {', '.join(f'{took:.2f}' for took in times)} s, {guesses[0]} guesses")
    assert max(times) < TIME_FOR_LOGIN


# --- Standalone: connections of the broker ----------------------------------------------------------------------------


def connections_to(port: int) -> int:
    """Established ones whose server's end has this port."""
    established, end = "01", f":{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(1 for line in lines if line.split()[1].endswith(end) and line.split()[3] == established)


@STANDALONE
@pytest.mark.parametrize("settings", [{"auth_token": TOKEN}, {}], ids=["own_login", "login_of_the_broker"])
def test_silent_clients_take_no_connections_of_the_broker(hosts: Hosts, note: Callable[[object], None], settings: dict):
    host = hosts(**settings)
    count = size(100, 300)
    with ExitStack() as stack:
        silent = [stack.enter_context(Raw(host.address())) for _ in range(count)]
        for one in silent:
            assert one.socket.recv(4096).startswith(b"INFO ")
        held = connections_to(host.mqtt[1])
    note(f"{held} connections to the broker for {count} silent clients")
    assert held <= 2


@STANDALONE
def test_silent_clients_lock_nobody_out(hosts: Hosts):
    """A broker takes a number of connections; whoever says nothing must not use them up."""
    host = hosts("allow_anonymous true\nmax_connections 30\n", auth_token=TOKEN)
    with ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(Raw(host.address())).socket.recv(4096)
        for _ in range(20):
            Client(host.address(), auth_token=TOKEN).close()


@STANDALONE
def test_refused_logins_do_not_fill_the_log(hosts: Hosts, note: Callable[[object], None]):
    host = hosts(auth_token=TOKEN)
    count = size(1000, 10_000)
    before = len(host.log())
    for _ in range(count):
        with Raw(host.address()) as client:
            client.send(b'CONNECT {"auth_token":"wrong"}\r\n')
            while client.socket.recv(4096):
                pass
    written = len(host.log()) - before
    note(f"{written} bytes in the log for {count} refused logins")
    assert 0 < written < 10 * count
