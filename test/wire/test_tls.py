"""TLS in every mode, against nats-server and the gateway with the same settings: who gets in, what INFO says, what is
said in clear, how long a client may wait; and what strangers leave in the gateway's log.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from certificates import Authority, Certificate, client_context

from .servers import AUTO_WAIT_MS, TARGETS, Servers, require, servers  # noqa: F401 (a fixture)
from ports import HOST
from .transports import TCP, TLS, TLS_FIRST, Address, Transport, authority, server_certificate, trusting
from .wire import DEADLINE, Connection, WireFailure

PING, PONG = b"PING\r\n", b"PONG\r\n"
CONNECT = b'CONNECT {"verbose":false,"pedantic":false}\r\n'
# What 2.10 can do and Debian's cannot.
SINCE = {"handshake_first": "2.10.4", "auto": "2.10.4"}
TIMEOUT = 1.0
# Of clients that others of the same test are told from.
OTHERS = "127.0.0.2"

MODES: dict[str, dict[str, Any]] = {
    "upgrade": {},
    "handshake_first": {"mode": "handshake_first"},
    "auto": {"mode": "auto"},
    "optional": {"allow_non_tls": True},
    "auto_optional": {"mode": "auto", "allow_non_tls": True},
}
REQUIRED = {"tls_required": True}
AVAILABLE = {"tls_available": True}
# What INFO says to a client that begins so, if it gets in.
INFO = {
    "upgrade": {"upgrade": REQUIRED},
    "handshake_first": {"first": REQUIRED},
    "auto": {"upgrade": REQUIRED, "first": REQUIRED},
    "optional": {"upgrade": AVAILABLE, "clear": AVAILABLE},
    "auto_optional": {"upgrade": AVAILABLE, "first": REQUIRED | AVAILABLE, "clear": AVAILABLE},
}
WAYS = {"upgrade": TLS, "first": TLS_FIRST, "clear": TCP}

each_target = pytest.mark.parametrize("target", TARGETS)
each_mode = pytest.mark.parametrize("mode", MODES)


def server(servers: Servers, target: str, mode: str, **settings: Any) -> Address:  # noqa: F811
    require(target, SINCE.get(MODES[mode].get("mode", "")))
    top = settings.pop("top", {})
    return servers.address(target, {"tls": MODES[mode] | {"timeout": TIMEOUT} | settings} | top)


@contextmanager
def connected(address: Address, transport: Transport, deadline: float = DEADLINE) -> Iterator[Connection]:
    connection = Connection(address, deadline, transport)
    try:
        connection.begin()
        yield connection
    finally:
        connection.close()


def proven(connection: Connection) -> None:
    connection.send(CONNECT + PING)
    connection.expect_bytes(PONG)


def tls_fields(info: dict) -> dict:
    return {name: value for name, value in info.items() if name.startswith("tls_")}


def with_context(context: ssl.SSLContext, first: bool = False) -> Transport:
    """TLS with another certificate, another version, ..."""

    def change(plain: socket.socket, address: Address) -> socket.socket:
        return context.wrap_socket(plain, server_hostname=address[0])

    return Transport("tls", before_info=change) if first else Transport("tls", after_info=change)


def refused(address: Address, transport: Transport) -> bool:
    """In TLS 1.3 a client learns after its part of the handshake that it was refused."""
    try:
        with connected(address, transport) as connection:
            proven(connection)
            return False
    except (WireFailure, OSError):
        return True


# --- Who gets in -----------------------------------------------------------------------------------------------------


@each_mode
@each_target
@pytest.mark.parametrize("way", ["upgrade", "first"])
def test_tls_clients(servers: Servers, target: str, mode: str, way: str):  # noqa: F811
    address = server(servers, target, mode)
    fields = INFO[mode].get(way)
    if fields is None:
        assert refused(address, WAYS[way])
        return
    with connected(address, WAYS[way]) as connection:
        assert tls_fields(connection.info) == fields
        # No second INFO, whatever comes.
        connection.send(CONNECT + b"SUB a.@@ 1\r\nPUB a.@@ 200000\r\n" + b"x" * 200000 + b"\r\n" + PING)
        connection.expect_bytes(b"MSG a.@@ 1 200000\r\n" + b"x" * 200000 + b"\r\n")
        connection.expect_bytes(PONG)
        # What is said last is not lost, and TLS ends in its own way.
        connection.send(b"NONSENSE\r\n")
        connection.expect_bytes(b"-ERR 'Unknown Protocol Operation'\r\n")
        connection.expect_closed(probe=False)


@each_mode
@each_target
def test_clear_clients(servers: Servers, target: str, mode: str):  # noqa: F811
    address = server(servers, target, mode)
    if mode == "handshake_first":
        # It never comes to INFO.
        with socket.create_connection(address, 5) as plain:
            plain.sendall(CONNECT + PING)
            assert rest(plain) == b""
        return
    with connected(address, TCP) as connection:
        fields = INFO[mode].get("clear")
        if fields is None:
            # Closed without a text.
            connection.send(CONNECT + PING)
            connection.expect_closed(probe=False)
        else:
            assert tls_fields(connection.info) == fields
            connection.send(CONNECT + PING)
            connection.expect_bytes(PONG)


def rest(plain: socket.socket) -> bytes:
    """All that comes until the end."""
    plain.settimeout(5)
    received = b""
    try:
        while data := plain.recv(4096):
            received += data
    except ConnectionResetError:
        pass
    return received


# --- A ClientHello in pieces -----------------------------------------------------------------------------------------


def in_pieces(sizes: Callable[[int], Iterator[int]], pause: float, first: bool) -> Transport:
    """A client whose ClientHello comes in pieces of these sizes."""

    def change(plain: socket.socket, address: Address) -> socket.socket:
        near, far = socket.socketpair()
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = client_context(server_certificate().cafile)
        tls = context.wrap_bio(incoming, outgoing, server_hostname=address[0])
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read()
        at = 0
        for size in sizes(len(hello)):
            plain.sendall(hello[at : at + size])
            at += size
            time.sleep(pause)
        plain.sendall(hello[at:])
        near.close()
        far.close()
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                if outgoing.pending:
                    plain.sendall(outgoing.read())
                data = plain.recv(65536)
                if not data:
                    raise ConnectionResetError("the end within the handshake") from None
                incoming.write(data)
        plain.sendall(outgoing.read())
        return Memory(plain, tls, incoming, outgoing)

    return Transport("tls", before_info=change) if first else Transport("tls", after_info=change)


class Memory:
    """As much of a socket as a Connection needs, over TLS without one."""

    def __init__(self, plain: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO):
        self._plain, self._tls, self._incoming, self._outgoing = plain, tls, incoming, outgoing
        self.settimeout, self.close = plain.settimeout, plain.close

    def sendall(self, data: bytes) -> None:
        self._tls.write(data)
        self._plain.sendall(self._outgoing.read())

    def recv(self, size: int) -> bytes:
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                data = self._plain.recv(65536)
                if not data:
                    return b""
                self._incoming.write(data)


SPLITS = {
    "each_byte_of_the_first_twenty": (lambda length: iter([1] * 20), 0.005),
    "the_first_byte_alone": (lambda length: iter([1]), AUTO_WAIT_MS / 1000 + 0.1),
    "all_but_the_last_byte": (lambda length: iter([length - 1]), 0.1),
    "the_record_header": (lambda length: iter([5]), 0.1),
}


@pytest.mark.parametrize("split", SPLITS)
@each_mode
@each_target
@pytest.mark.parametrize("way", ["upgrade", "first"])
def test_a_client_hello_in_pieces(servers: Servers, target: str, mode: str, way: str, split: str):  # noqa: F811
    if way not in INFO[mode]:
        pytest.skip("no client of this mode")
    address = server(servers, target, mode)
    with connected(address, in_pieces(*SPLITS[split], first=way == "first")) as connection:
        proven(connection)


# --- Certificates and versions ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def anne() -> Certificate:
    return authority().issue("anne")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Of an authority that the server does not know, by the same name."""
    return Authority(tmp_path_factory.mktemp("other")).issue("anne")


@each_mode
@each_target
def test_a_required_certificate(
    servers: Servers, target: str, mode: str, anne: Certificate, stranger: Certificate  # noqa: F811
):
    address = server(servers, target, mode, verify=True)
    cafile = server_certificate().cafile
    for way in INFO[mode]:
        if way == "clear":
            with connected(address, TCP) as connection:
                proven(connection)
            continue
        first = way == "first"
        with connected(address, with_context(client_context(cafile, anne), first)) as connection:
            assert tls_fields(connection.info) == INFO[mode][way] | {"tls_verify": True}
            proven(connection)
        assert refused(address, with_context(client_context(cafile), first))
        assert refused(address, with_context(client_context(cafile, stranger), first))


@each_target
@pytest.mark.parametrize("min_version", ["1.2", "1.3"])
def test_versions(servers: Servers, target: str, min_version: str):  # noqa: F811
    require(target, "2.10.0")
    address = server(servers, target, "upgrade", min_version=min_version)
    versions = {"1.1": ssl.TLSVersion.TLSv1_1, "1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
    for version, number in versions.items():
        context = client_context(server_certificate().cafile)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = number
        assert refused(address, with_context(context)) == (version < min_version), version


# --- Time ------------------------------------------------------------------------------------------------------------


@each_mode
@each_target
@pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
def test_a_client_that_stalls(servers: Servers, target: str, mode: str, sent: bytes):  # noqa: F811
    """Closed silently when its time is up; where it may stay without TLS and has said nothing, it is in."""
    address = server(servers, target, mode)
    with socket.create_connection(address, 5) as plain:
        plain.settimeout(5)
        clear = b""
        if mode in ("upgrade", "optional") or (not sent and "auto" in mode):
            while not clear.endswith(b"\r\n"):
                clear += plain.recv(4096)
        began = time.monotonic()
        plain.sendall(sent)
        if not sent and "optional" in mode:
            time.sleep(TIMEOUT + 0.2)
            plain.sendall(CONNECT + PING)
            assert plain.recv(len(PONG)) == PONG
        else:
            assert rest(plain) == b""
            # It may have begun before INFO was read here.
            assert TIMEOUT - 0.2 < time.monotonic() - began < TIMEOUT + 2


@each_target
@pytest.mark.parametrize("mode", ["upgrade", "handshake_first"])
def test_the_time_for_connect_begins_after_the_handshake(servers: Servers, target: str, mode: str):  # noqa: F811
    login = {"user": "anne", "password": "secret", "timeout": 1}
    address = server(servers, target, mode, timeout=3, top={"login": login})

    def late(plain: socket.socket, address: Address) -> socket.socket:
        time.sleep(1.5)
        return TLS.after_info(plain, address)

    first = mode == "handshake_first"
    with connected(address, Transport("tls", **{"before_info" if first else "after_info": late})) as connection:
        began = time.monotonic()
        connection.expect_bytes(b"-ERR 'Authentication Timeout'\r\n")
        connection.expect_closed(probe=False)
        assert 0.7 < time.monotonic() - began < 3


# --- openssl ---------------------------------------------------------------------------------------------------------


@each_target
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_s_client(servers: Servers, target: str, version: str):  # noqa: F811
    host, port = server(servers, target, "handshake_first")
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"{host}:{port}", version, "-CAfile", server_certificate().cafile,
         "-verify_return_error", "-verify_ip", host, "-quiet"],
        input=CONNECT + PING + b"NONSENSE\r\n",
        capture_output=True,
        timeout=20,
    )  # fmt: skip
    assert re.fullmatch(rb"INFO \{.*\} \r\nPONG\r\n-ERR 'Unknown Protocol Operation'\r\n", done.stdout), done


@each_target
def test_no_second_handshake(servers: Servers, target: str):  # noqa: F811
    """TLS 1.2 lets a client ask for one."""
    host, port = server(servers, target, "handshake_first")
    client = subprocess.Popen(
        ["openssl", "s_client", "-connect", f"{host}:{port}", "-tls1_2"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        while not client.stdout.readline().startswith(b"INFO "):
            pass
        client.stdin.write(b"R\n")
        client.stdin.flush()
        # What is written before it has done that would be a part of the command.
        while not client.stdout.readline().startswith(b"RENEGOTIATING"):
            pass
        client.stdin.write(PING)
        client.stdin.flush()
        said = []
        while PONG not in said and (line := client.stdout.readline()):
            said.append(line)
    finally:
        client.kill()
        client.wait()
    assert re.search("no renegotiation|alert unexpected message", b"".join(said).decode()), said


# --- Clients that leave ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["upgrade", "optional", "handshake_first"])
def test_clients_that_leave_right_after_the_handshake(servers: Servers, mode: str):  # noqa: F811
    """Nothing of them stays: there is room for others."""
    address = server(servers, "gateway", mode, top={"max_connections": 2})
    way = WAYS["first" if mode == "handshake_first" else "upgrade"]
    for _ in range(10):
        with connected_when_there_is_room(address, way):
            pass
    with connected_when_there_is_room(address, way) as one, connected_when_there_is_room(address, way) as other:
        proven(one)
        proven(other)


@pytest.mark.parametrize("mode", ["tcp", "upgrade", "handshake_first", "auto"])
def test_clients_that_leave_are_clients_that_leave(servers: Servers, mode: str):  # noqa: F811
    """Wherever it is found out, and in whatever words: one line each, at level info."""
    top = {"log_level": "info"}
    address = servers.address("gateway", top) if mode == "tcp" else server(servers, "gateway", mode, top=top)

    def lines() -> list[str]:
        """Without those of whoever has looked whether the server is there."""
        return [line for line in servers.log(address)[begin:].splitlines() if f"peername={address[0]}:" not in line]

    wait_for(lambda: "connection_closed" in servers.log(address))
    begin = len(servers.log(address))

    def come_and_go(_: int) -> None:
        with socket.create_connection(address, DEADLINE, (OTHERS, 0)) as plain:
            if mode == "upgrade":
                plain.recv(4096)
            secured = plain if mode == "tcp" else trusting().wrap_socket(plain, server_hostname=address[0])
            # A reset: what was sent to it is thrown away.
            secured.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            secured.close()

    with ThreadPoolExecutor(8) as pool:
        # Fewer than a second's worth for the log of OTP.
        list(pool.map(come_and_go, range(200)))
    wait_for(lambda: "".join(lines()).count("connection_closed") >= 200)
    found = lines()
    wrong = [line for line in found if not re.search(r" info connection_closed .* reason=client_closed", line)]
    assert wrong == [] and len(found) == 200, (len(found), wrong)


@contextmanager
def connected_when_there_is_room(address: Address, transport: Transport) -> Iterator[Connection]:
    until = time.monotonic() + DEADLINE
    while True:
        connection = Connection(address, DEADLINE, transport)
        try:
            connection.begin()
            break
        except WireFailure:
            connection.close()
            if time.monotonic() > until:
                raise
    try:
        yield connection
    finally:
        connection.close()


@each_target
@pytest.mark.parametrize("mode", ["upgrade", "handshake_first"])
def test_what_a_client_sent_before_its_fin_counts(servers: Servers, target: str, mode: str):  # noqa: F811
    """A FIN without an alert of TLS before it, after which nobody takes the answers; and nothing of the client stays."""
    address = server(servers, target, mode, top={"max_connections": 2})
    way = WAYS["first" if mode == "handshake_first" else "upgrade"]
    messages = b"MSG fin 1 200\r\n%b\r\n" % (b"x" * 200) * 5000

    def all_messages(buffer: bytes) -> int | None:
        """Between them a PING: nats-server sends one two seconds after the CONNECT."""
        return len(buffer) if buffer.replace(PING, b"") == messages else None

    with connected_when_there_is_room(address, way) as reader:
        reader.send(CONNECT + b"SUB fin 1\r\n" + PING)
        reader.expect_bytes(PONG)
        for _ in range(2):
            with connected_when_there_is_room(address, way) as leaver:
                leaver.send(b'CONNECT {"verbose":true}\r\n' + b"PUB fin 200\r\n%b\r\nPING\r\n" % (b"x" * 200) * 5000)
                # Of an SSLSocket it ends TCP alone.
                leaver.socket.shutdown(socket.SHUT_WR)
                reader.expect(all_messages, [messages])


# --- Certificates that change ----------------------------------------------------------------------------------------


def test_a_certificate_that_changes_on_disk(servers: Servers, tmp_path: Path):  # noqa: F811
    """New handshakes have the new one; a connection that is there stays; what is wrong is not used."""
    own = Authority(tmp_path)
    before = own.server()
    address = servers.address("gateway", {"tls": {"certificate": (before.certfile, before.keyfile, before.cafile)}})
    transport = with_context(client_context(own.certfile))

    def shown() -> bytes:
        with connected(address, transport) as connection:
            proven(connection)
            return connection.socket.getpeercert(binary_form=True)

    def on_disk() -> bytes:
        return ssl.PEM_cert_to_DER_cert(Path(before.certfile).read_text())

    with connected(address, transport) as client:
        old = shown()
        assert old == on_disk()
        own.server()
        assert shown() == on_disk() != old
        good, key = on_disk(), Path(before.keyfile).read_text()
        Path(before.keyfile).write_text("no key any more")
        assert shown() == good
        wait_for(lambda: "certificates_not_reloaded" in servers.log(address))
        Path(before.keyfile).write_text(key)
        assert shown() == good
        proven(client)


# --- Strangers -------------------------------------------------------------------------------------------------------

HELLO = bytes.fromhex(
    "16030100c0010000bc0303" + "11" * 32 + "20" + "22" * 32 + "0002130101000071" + "00" * 113
)
STRANGERS = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "zeros": b"\0" * 64,
    "random": bytes(range(128, 256)) + bytes(range(128)),
    "a_client_hello": HELLO,
    "half_a_client_hello": HELLO[:20],
    "no_client_hello": b"\x16\x03\x01\x00\x05hello",
    "a_client_in_clear": CONNECT + PING,
    "nothing": b"",
}


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("mode", ["tcp", *MODES])
def test_strangers_leave_one_line_in_the_log(servers: Servers, mode: str, stranger: str):  # noqa: F811
    """At most a notice: neither a crash nor an alert of TLS."""
    if stranger == "a_client_in_clear" and (mode == "tcp" or "optional" in mode):
        pytest.skip("no stranger there")
    # A server that no other test has had refuse anybody: the lines of refused clients are limited in rate.
    own = {"server_name": f"strangers-{mode}"}
    address = servers.address("gateway", own) if mode == "tcp" else server(servers, "gateway", mode, top=own)
    with socket.create_connection(address, 5) as plain:
        peer = "{}:{}".format(*plain.getsockname())
        if mode != "handshake_first" and not (mode.startswith("auto") and stranger == "a_client_hello"):
            while not plain.recv(4096).endswith(b"\n"):
                pass
        begin = len(servers.log(address))
        plain.sendall(STRANGERS[stranger])
        # Who waits longer than a handshake may take, or is waited for by nobody, leaves.
        if stranger in ("nothing", "half_a_client_hello"):
            plain.shutdown(socket.SHUT_WR)
        rest(plain)
    if stranger == "nothing":
        # No line at all: it only looked whether somebody is there. Another one shows that it was dealt with.
        with socket.create_connection(address, 5) as plain:
            peer = "{}:{}".format(*plain.getsockname())
            if mode != "handshake_first":
                while not plain.recv(4096).endswith(b"\n"):
                    pass
            plain.sendall(STRANGERS["zeros"])
            rest(plain)
    # Its own end within the handshake is told at level info, which is not shown.
    silent = stranger == "half_a_client_hello" and mode != "tcp"
    wait_for(lambda: silent or peer in servers.log(address)[begin:])
    # A listener takes clients before its own line is written.
    lines = [line for line in servers.log(address)[begin:].splitlines() if "listening on" not in line]
    assert len(lines) == (0 if silent else 1), lines
    assert all(re.search(r" (notice|info) connection_closed ", line) and peer in line for line in lines), lines


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < until, f"not within {DEADLINE} s"
        time.sleep(0.02)


# --- Settings --------------------------------------------------------------------------------------------------------


def test_handshakes_take_nothing_from_others(servers: Servers):  # noqa: F811
    """A hundred that stall: everybody else is served as ever, and they are gone after their time."""
    address = server(servers, "gateway", "upgrade", timeout=3)
    stalled = [socket.create_connection((HOST, address[1]), 5) for _ in range(100)]
    try:
        for one in stalled:
            one.recv(4096)
            one.sendall(b"\x16\x03\x01")
        began = time.monotonic()
        with connected(address, TLS) as connection:
            proven(connection)
        assert time.monotonic() - began < 2
        for one in stalled:
            assert rest(one) == b""
    finally:
        for one in stalled:
            one.close()


def test_a_slow_consumer(servers: Servers):  # noqa: F811
    """Who takes nothing is closed after send_timeout, as over TCP."""
    address = servers.address("gateway", {"tls": {}, "send_timeout": "500ms"})
    with connected(address, TLS) as slow, connected(address, TLS) as sender:
        peer = "{}:{}".format(*slow.socket.getsockname())
        slow.send(CONNECT + b"SUB slow 1\r\n" + PING)
        slow.expect_bytes(PONG)
        sender.send(CONNECT)
        until = time.monotonic() + 20
        while f"peername={peer} reason=slow_consumer" not in servers.log(address):
            assert time.monotonic() < until, servers.log(address)[-2000:]
            sender.send(b"PUB slow 500000\r\n" + b"x" * 500000 + b"\r\n" + PING)
            sender.expect_bytes(PONG)
