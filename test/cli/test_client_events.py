"""Events when clients come and go, for those who may ask what a system account may: the same test for a nats-server."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.running import Running
from emqx.mqtt import Mqtt
from emqx.nats import Nats, NatsFailure
from ports import HOST, free_port
from system_requests import TOOLS
from wire.servers import TARGETS, accepts, nats_server_path

PASSWORD = {"pass": "pw"}
USERS = [{"user": name, "password": "pw"} for name in ("admin", "other", "second")]
CONNECT, DISCONNECT = "$SYS.ACCOUNT.$G.CONNECT", "$SYS.ACCOUNT.$G.DISCONNECT"


@pytest.fixture
def operated(gateway: Running) -> Running:
    gateway.write(users=USERS, system={"users": ["admin"]})
    gateway.start()
    return gateway


@pytest.fixture(params=TARGETS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Nats]]:
    """Connects a client."""
    if request.param == "gateway":
        port = request.getfixturevalue("operated").port
    else:
        port = free_port()
        (tmp_path / "nats.conf").write_text(
            f"host: {HOST}\nport: {port}\nsystem_account: SYS\n"
            "accounts { SYS { users: [{user: admin, password: pw}] }\n"
            "APP { users: [{user: other, password: pw}, {user: second, password: pw}] } }\n"
        )
        program = nats_server_path() or pytest.skip("no nats-server")
        process = subprocess.Popen([program, "-c", tmp_path / "nats.conf"], stderr=subprocess.DEVNULL)
        request.addfinalizer(lambda: (process.kill(), process.wait()))
        end = time.monotonic() + 10
        while not accepts((HOST, port)):
            assert time.monotonic() < end
            time.sleep(0.02)

    def connect(user: str = "other", **fields: object) -> Nats:
        client = Nats((HOST, port))
        client.connect(user=user, **PASSWORD, **fields)
        client.ping()
        return client

    yield connect


def operator(connect: Callable[..., Nats], *subjects: str) -> Nats:
    client = connect("admin")
    for sid, subject in enumerate(subjects or ("$SYS.ACCOUNT.*.CONNECT", "$SYS.ACCOUNT.*.DISCONNECT"), start=1):
        client.send(f"SUB {subject} {sid}\r\n")
    client.send("PING\r\n")
    # A nats-server tells it of its own CONNECT, some time after it.
    while (operation := client.operation()) != b"PONG":
        client.read(int(operation.split(b" ")[-1]) + len(b"\r\n"))
    return client


def event(client: Nats, name: str) -> dict:
    """Of a client of the one account that has any; a nats-server may tell the operator of its own CONNECT, too."""
    while (told := json.loads((message := client.message()).payload))["client"]["acc"] == "SYS":
        pass
    assert told["client"]["acc"] in ("$G", "APP")
    assert (message.subject, message.headers) == (f"$SYS.ACCOUNT.{told['client']['acc']}.{name}", None)
    assert not message.reply
    return told


TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def checked(told: dict, kind: str, fields: set[str], client: set[str]) -> None:
    """Every field and its type."""
    assert set(told) == {"type", "id", "timestamp", "server", "client"} | fields
    assert told["type"] == f"io.nats.server.advisory.v1.client_{kind}"
    assert re.fullmatch("[0-9A-Za-z]{22}", told["id"]) and TIME.fullmatch(told["timestamp"])
    server = told["server"]
    assert set(server) == {"name", "host", "id", "ver", "jetstream", "flags", "seq", "time"}
    assert server["host"] == HOST and server["jetstream"] is False and type(server["seq"]) is type(server["flags"]) is int
    assert TIME.fullmatch(server["time"])
    seen = told["client"]
    assert set(seen) == {"start", "host", "id", "acc", "kind", "client_type"} | client
    assert (seen["host"], seen["kind"], seen["client_type"]) == (HOST, "Client", "nats")
    assert TIME.fullmatch(seen["start"]) and type(seen["id"]) is int


def test_it_comes_and_goes(server: Callable[..., Nats]):
    with operator(server) as watcher:
        with server(name="orders", lang="python", version="1.2") as other:
            told = event(watcher, "CONNECT")
            checked(told, "connect", set(), {"user", "name", "lang", "ver"})
            seen = told["client"]
            assert [seen[key] for key in ("user", "name", "lang", "ver")] == ["other", "orders", "python", "1.2"]
            assert seen["id"] == other.info["client_id"] and told["server"]["id"] == other.info["server_id"]
            other.subscribe("a")
            other.publish("a", b"12345")
            other.message()
            other.publish("b", b"1")
            other.ping()
        gone = event(watcher, "DISCONNECT")
        gone["client"].pop("rtt", None)
        checked(gone, "disconnect", {"sent", "received", "reason"}, {"user", "name", "lang", "ver", "stop"})
        assert gone["reason"] == "Client Closed" and gone["client"]["id"] == seen["id"]
        assert gone["client"]["start"] == seen["start"] and TIME.fullmatch(gone["client"]["stop"])
        assert set(gone["sent"]) == set(gone["received"]) == {"msgs", "bytes"}
        # What the client has sent, and what it has received.
        assert (gone["sent"]["msgs"], gone["received"]["msgs"]) == (2, 1)
        assert gone["sent"]["bytes"] >= 6 and gone["received"]["bytes"] >= 5


def test_a_client_without_names(server: Callable[..., Nats]):
    with operator(server, "$SYS.ACCOUNT.*.CONNECT") as watcher, server():
        checked(event(watcher, "CONNECT"), "connect", set(), {"user"})


def test_reasons(server: Callable[..., Nats]):
    with operator(server, "$SYS.ACCOUNT.*.DISCONNECT") as watcher:
        with server() as wrong:
            wrong.send("BAD STUFF\r\n")
            assert event(watcher, "DISCONNECT")["reason"] == "Protocol Violation"
        with server() as large:
            large.send(f"PUB a {large.info['max_payload'] + 1}\r\n")
            assert event(watcher, "DISCONNECT")["reason"] == "Maximum Message Payload Exceeded"
        with server() as victim:
            watcher.subscribe("answers", sid="9")
            body = json.dumps({"cid": victim.info["client_id"]}).encode()
            watcher.publish(f"$SYS.REQ.SERVER.{victim.info['server_id']}.KICK", body, reply="answers")
            seen = [watcher.message(), watcher.message()]
            [told] = [json.loads(message.payload) for message in seen if message.subject.endswith(".DISCONNECT")]
            assert told["reason"] == "Kicked"


def test_another_login_on_the_same_connection(server: Callable[..., Nats]):
    """It is told, and the end of the one before is not."""
    with operator(server) as watcher, server() as other:
        assert event(watcher, "CONNECT")["client"]["user"] == "other"
        other.login(user="second", **PASSWORD)
        told = event(watcher, "CONNECT")
        assert told["client"]["user"] == "second" and told["client"]["id"] == other.info["client_id"]
        other.close()
        assert event(watcher, "DISCONNECT")["client"]["user"] == "second"


def test_who_is_refused_has_not_come(server: Callable[..., Nats]):
    with operator(server) as watcher:
        with pytest.raises((NatsFailure, ConnectionError, AssertionError)):
            server("nobody")
        with server(name="next"):
            assert event(watcher, "CONNECT")["client"]["name"] == "next"


@pytest.mark.parametrize("subject", ["$SYS.ACCOUNT.>", "$SYS.ACCOUNT.*.*", "$SYS.ACCOUNT.$G.>", CONNECT])
def test_subscriptions(operated: Running, subject: str):
    """Several sids, an UNSUB with a number, and one at once."""
    def connect(user: str = "other") -> Nats:
        return operated.client(user=user, **PASSWORD)

    with operator(connect, subject, subject, "$SYS.ACCOUNT.X.CONNECT") as watcher:
        watcher.send("UNSUB 2 1\r\n")
        with connect():
            assert {watcher.message().sid for _ in range(2)} == {"1", "2"}
            watcher.send("UNSUB 1\r\n")
            watcher.ping()
        with connect():
            watcher.silent()
            watcher.subscribe(subject, sid="5")
            watcher.ping()
        with connect():
            # Those of before may still end.
            while (seen := watcher.message()).subject != CONNECT:
                assert seen.sid == "5"
            assert seen.sid == "5"


def test_nobody_else_gets_them(operated: Running, mosquitto: int):
    """Others have their subscription at the broker, as before, and nobody can send an operator a false event."""
    with (
        operated.client(user="admin", **PASSWORD) as admin,
        operated.client(user="other", **PASSWORD) as other,
        Mqtt((HOST, mosquitto)) as mqtt,
    ):
        for client in (admin, other):
            client.subscribe("$SYS.ACCOUNT.>")
            client.ping()
        mqtt.subscribe("$SYS/ACCOUNT/#")
        with operated.client(user="second", **PASSWORD):
            assert admin.message().subject == CONNECT
        assert admin.message().subject == DISCONNECT
        other.silent()
        assert mqtt.waiting == 0
        mqtt.publish("$SYS/ACCOUNT/$G/CONNECT", b"false")
        admin.silent()


def test_access_that_is_taken_and_given(operated: Running):
    """A reload holds at once, and a login of somebody else on the same connection does."""
    with operated.client(user="admin", **PASSWORD) as admin:
        admin.subscribe("$SYS.ACCOUNT.>")
        admin.ping()
        operated.write(users=USERS, system={"users": ["second"]})
        operated.reload("settings_reloaded")
        with operated.client(user="other", **PASSWORD):
            admin.silent()
            admin.login(user="second", **PASSWORD)
            admin.ping()
        assert admin.message().subject == DISCONNECT
        admin.login(user="other", **PASSWORD)
        admin.ping()
        with operated.client(user="other", **PASSWORD):
            admin.silent()


def test_the_mountpoint_does_not_hide_them(gateway: Running):
    gateway.write(users=USERS, system={"users": ["admin"]}, mountpoint="site/${username}/")
    gateway.start()
    with gateway.client(user="admin", **PASSWORD) as admin:
        admin.subscribe("$SYS.ACCOUNT.*.CONNECT")
        admin.ping()
        with gateway.client(user="other", **PASSWORD):
            assert event(admin, "CONNECT")["client"]["user"] == "other"


def test_permissions_hold(gateway: Running):
    admin = {"user": "admin", "password": "pw", "permissions": {"subscribe": {"deny": ["$SYS.ACCOUNT.*.DISCONNECT"]}}}
    gateway.write(users=[admin, *USERS[1:]], system={"users": ["admin"]})
    gateway.start()
    with gateway.client(user="admin", **PASSWORD) as client:
        client.subscribe("$SYS.ACCOUNT.>")
        client.ping()
        for _ in range(2):
            with gateway.client(user="other", **PASSWORD):
                assert client.message().subject == CONNECT
        client.silent()


def test_many_come_at_once(operated: Running):
    """Every one of them is told, and none of them waits for an operator who does not read."""
    with operated.client(user="admin", **PASSWORD) as reads, operated.client(user="admin", **PASSWORD) as deaf:
        for client in (reads, deaf):
            client.subscribe("$SYS.ACCOUNT.*.CONNECT")
            client.ping()
        clients = []
        begin = time.monotonic()
        for _ in range(500):
            client = Nats((HOST, operated.port))
            client.login(user="other", verbose=False, **PASSWORD)
            clients.append(client)
        for client in clients:
            client.ping()
        assert time.monotonic() - begin < 30
        told = {event(reads, "CONNECT")["client"]["id"] for _ in clients}
        assert told == {client.info["client_id"] for client in clients}
        for client in clients:
            client.close()


def test_the_command_nats(operated: Running, tmp_path: Path):
    shown = tmp_path / "shown"
    command = [TOOLS / "nats", "--server", f"nats://admin:pw@{HOST}:{operated.port}", "events", "--short"]

    def is_shown(*words: str) -> bool:
        with operated.client(user="other", name="orders", **PASSWORD):
            time.sleep(0.1)
        return all(word in shown.read_text() for word in words)

    with shown.open("w") as file:
        listener = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            operated.until(lambda: is_shown("[Connection]", "[Disconnection]", "Client Closed"), "it shows both", 10)
        finally:
            listener.kill()
            listener.wait()
    assert "Event error" not in shown.read_text()
