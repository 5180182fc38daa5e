"""What nats-server tells its system account, for those whom the settings name, with the command `nats`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.running import GATEWAY, Running, started_mosquitto
from emqx.nats import Nats
from nats_keys import Key, account_jwt, user_jwt
from ports import HOST
from system_requests import is_answered_nothing, nats, nats_cli, request
from wire.servers import accepts

PASSWORD = {"pass": "pw"}
USERS = [{"user": name, "password": "pw"} for name in ("admin", "other")]


@pytest.fixture
def operated(gateway: Running) -> Running:
    gateway.write(users=USERS, system={"users": ["admin"]})
    gateway.start()
    return gateway


def operator(gateway: Running, **fields: object) -> Nats:
    client = gateway.client(user="admin", **PASSWORD, **fields)
    client.subscribe("answers", sid="9")
    return client


def test_the_command_nats(operated: Running):
    port = operated.port
    with operated.client(user="other", name="orders", **PASSWORD) as other:
        other.subscribe("orders.>")
        id = other.info["server_id"]
        [server] = json.loads(nats(port, "server", "list", "--json"))
        assert server["server"]["id"] == id and server["statsz"]["connections"] == 2
        assert "nats_gateway" in nats(port, "server", "list")
        info = nats(port, "server", "info")
        assert f"Server information for nats_gateway ({id})" in info and f"{HOST}:{port}" in info
        assert f"({id})" in nats(port, "server", "info", "nats_gateway")
        assert f"({id})" in nats(port, "server", "info", id)
        assert nats_cli(port, "server", "info", "nats_gate").returncode == 1
        report = nats(port, "server", "report", "connections")
        [line] = [line for line in report.splitlines() if "orders" in line]
        assert "$G" in line and "nats_gateway" in line
        assert "orders" in nats(port, "server", "report", "connections", "--username", "other")
        of_nobody = nats_cli(port, "server", "report", "connections", "--username", "nobody")
        assert "did not get results" in of_nobody.stderr
        assert "rtt=" in nats(port, "server", "ping", "1")
        assert "OK Connection" in nats(port, "server", "check", "connection")
        assert "OK nats_gateway" in nats(port, "server", "check", "server", "--name", "nats_gateway")
        assert "ok: 1 / err: 0" in nats(port, "server", "report", "health")
        assert "nats_gateway" in nats(port, "server", "report", "mem")
        [connz] = [json.loads(answer) for answer in nats(port, "server", "request", "connections").splitlines()]
        assert {c.get("authorized_user") for c in connz["data"]["connections"]} == {"admin", "other"}
        [rest] = nats(port, "server", "request", "connections", "--offset", "1", "--limit", "1").splitlines()
        assert json.loads(rest)["data"]["num_connections"] == 1
        subsz = json.loads(nats(port, "server", "request", "subscriptions", "--detail"))
        assert "orders.>" in [s["subject"] for s in subsz["data"]["subscriptions_list"]]
        assert json.loads(nats(port, "server", "request", "variables"))["data"]["server_id"] == id
        assert set(json.loads(nats(port, "server", "request", "kick", str(other.info["client_id"]), id))) == {"server"}
        other.closed()
    operated.until(lambda: "reason=kicked" in operated.log and "client_kicked by=admin" in operated.log, "the log tells it")
    gone = nats(port, "server", "report", "connections", "--state", "closed")
    assert "Kicked" in gone and "orders" in gone


def test_the_command_nats_of_somebody_else(operated: Running):
    for command in ("list", "info", "report connections", "ping 1", "request kick 1 X"):
        done = nats_cli(operated.port, "server", *command.split(), user="other")
        assert done.returncode == 1, command
        assert "ensure the account used has system privileges" in done.stderr or "503 status" in done.stdout, command
    # It needs none.
    assert "OK Connection" in nats(operated.port, "server", "check", "connection", user="other")


def test_who_may_ask(gateway: Running):
    """Keys of users, accounts, names; and nobody who merely says so."""
    operator_key, account, tenant, listed, other = Key("operator"), Key("account"), Key("account"), Key("user"), Key("user")
    preload = [{"pubkey": key.public, "jwt": account_jwt(operator_key, key, name="main")} for key in (account, tenant)]
    gateway.write(
        internal_authn=[
            {"type": "jwt", "trusted_operators": [operator_key.public], "resolver": {"type": "memory", "resolver_preload": preload}}
        ],
        users=[*USERS, {"nkey": listed.public}, {"nkey": other.public}],
        auth_token="pw",
        no_auth_user="admin",
        system={"users": ["admin"], "nkeys": [listed.public], "accounts": [account.public]},
    )
    gateway.start()

    def client(key: Key | None = None, **fields: object) -> Nats:
        connection = Nats((HOST, gateway.port))
        signed = {"nkey": key.public, "sig": key.signature(connection.info)} if key else {}
        return connection.connect(**(signed | fields))

    def by_jwt(key: Key, issuer: Key) -> Nats:
        return client(key, nkey="", jwt=user_jwt(issuer, key, name="admin"), user="admin", **PASSWORD)

    for allowed in (
        client(user="admin", **PASSWORD), client(listed), by_jwt(other, account), by_jwt(listed, tenant),
    ):
        with allowed:
            allowed.subscribe("answers", sid="9")
            assert request(allowed, "PING")["statsz"]
    for nobody in (
        client(user="other", **PASSWORD), client(other), by_jwt(other, tenant), client(), client(auth_token="pw"),
        client(user="", **{"pass": ""}),
    ):
        with nobody:
            assert is_answered_nothing(nobody)
    for wrong in ({"user": "admin", "pass": "x"}, {"user": "admin"}):
        connection = Nats((HOST, gateway.port))
        connection.login(**wrong)
        connection.rejected("Authorization Violation")


def test_one_client_is_told_to_go_elsewhere(operated: Running):
    """It is served on."""
    with operator(operated) as client, operated.client(user="other", protocol=1, **PASSWORD) as other:
        ldm = f"{client.info['server_id']}.LDM"
        assert set(request(client, ldm, cid=other.info["client_id"])) == {"server"}
        line = other.line()
        assert line.startswith(b"INFO ") and json.loads(line[5:])["ldm"] is True
        other.ping()
        with operated.client(user="other", **PASSWORD) as old, Nats((HOST, operated.port)) as new:
            for unable in (old, new):
                error = request(client, ldm, cid=unable.info["client_id"])["error"]
                assert error["code"] == 500 and "does not support Lame Duck Mode" in error["description"]
        assert request(client, ldm, cid=999999)["error"]["description"] == "no such client id"


def test_who_has_not_logged_in_is_kicked(operated: Running):
    """It gets no text, as on a nats-server."""
    with operator(operated) as client, Nats((HOST, operated.port)) as silent:
        assert set(request(client, f"{client.info['server_id']}.KICK", cid=silent.info["client_id"])) == {"server"}
        silent.closed()
        # Nor does it get an answer to its own.
        client.publish(f"$SYS.REQ.SERVER.{client.info['server_id']}.KICK", b'{"cid":%d}' % client.info["client_id"], reply="answers")
        client.closed()


def test_permissions_hold_for_operators(gateway: Running):
    denied = {"publish": {"deny": ["$SYS.REQ.SERVER.*.KICK"]}, "subscribe": {"deny": ["private.>"]}}
    gateway.write(users=[USERS[0] | {"permissions": denied}], system={"users": ["admin"]})
    gateway.start()
    with operator(gateway) as client:
        kick = f"$SYS.REQ.SERVER.{client.info['server_id']}.KICK"
        client.publish(kick, b'{"cid":1}', reply="answers")
        client.expect(f"-ERR 'Permissions Violation for Publish to \"{kick}\"'\r\n".encode())
        assert request(client, "PING")["statsz"]
        client.send("SUB $SYS.> 7\r\nSUB private.a 8\r\n")
        client.expect(b"-ERR 'Permissions Violation for Subscription to \"private.a\"'\r\n")


def test_a_reload_gives_and_takes_it(gateway: Running):
    gateway.write(users=USERS)
    gateway.start()
    with operator(gateway) as client, gateway.client(user="other", name="early", **PASSWORD):
        assert request(client, "PING") is None
        gateway.write(users=USERS, system={"users": ["admin"]})
        gateway.reload("settings_reloaded")
        gateway.until(lambda: request(client, "PING") is not None, "it may ask")
        names = [c.get("name") for c in request(client, "PING.CONNZ")["data"]["connections"]]
        assert "early" in names
        gateway.write(users=USERS)
        gateway.reload("settings_reloaded")
        gateway.until(lambda: request(client, "PING") is None, "it may not any more")


def test_it_answers_while_it_goes(gateway: Running):
    gateway.write(users=USERS, system={"users": ["admin"]}, lame_duck_grace_period="1h")
    gateway.start()
    with operator(gateway) as client:
        gateway.process.terminate()
        gateway.until(lambda: request(client, "PING.HEALTHZ")["data"]["status"] == "unavailable", "lame duck mode")
    assert gateway.ended() == 0


@pytest.fixture
def asking_broker(tmp_path: Path) -> Iterator[int]:
    """A broker that has a file of passwords."""
    passwords = tmp_path / "passwords"
    passwords.touch()
    for user in ("admin", "other"):
        subprocess.run(["mosquitto_passwd", "-b", str(passwords), user, "pw"], check=True, timeout=10)
    settings = f"allow_anonymous true\npassword_file {passwords}\nuser root\n"
    with started_mosquitto(tmp_path, settings) as port:
        yield port


def behind(gateway: Running, broker: int, more: str = "") -> None:
    gateway.until(lambda: accepts((HOST, broker)), "the broker is there")
    gateway.file.write_text(
        f'{more}[system]\nusers = ["admin"]\n'
        f'[upstream]\nurl = "mqtt://{HOST}:{broker}"\nauthentication = true\n'
        f'[listeners.tcp.default]\nbind = "{HOST}:{gateway.port}"\n'
    )
    gateway.start()


def test_the_broker_checks_the_password(gateway: Running, asking_broker: int):
    (gateway.file.parent / "gateway.log").touch()
    behind(gateway, asking_broker)
    with operator(gateway) as client:
        assert request(client, "PING")["statsz"]
    for fields in ({"user": "other", **PASSWORD}, {}):
        with gateway.client(**fields) as client:
            assert is_answered_nothing(client), fields
    connection = Nats((HOST, gateway.port))
    connection.login(user="admin", **{"pass": "x"})
    connection.rejected("Authorization Violation")


def test_the_broker_checks_what_the_settings_say(gateway: Running, asking_broker: int):
    """With a name and a password of clientinfo_override, whoever comes is let in."""
    (gateway.file.parent / "gateway.log").touch()
    behind(gateway, asking_broker, 'clientinfo_override = { username = "admin", password = "pw" }\n')
    for fields in ({}, {"user": "admin"}, {"user": "admin", "pass": "x"}, {"user": "other", "pass": "pw"}):
        with gateway.client(**fields) as client:
            assert is_answered_nothing(client), fields


def test_a_name_that_nobody_could_prove(gateway: Running):
    gateway.write(system={"users": ["admin"]})
    ended = subprocess.run([GATEWAY, "-c", gateway.file], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 78
    assert "system.users[1]: must be one of users, or upstream.authentication must be true" in ended.stderr


def test_many_clients_fit_into_messages(gateway: Running):
    """As many as max_payload holds, and the rest by offset."""
    gateway.write(users=USERS, system={"users": ["admin"]}, max_payload_size=8192)
    gateway.start()
    clients = [gateway.client(user="other", name=f"client-{n}", **PASSWORD) for n in range(60)]
    try:
        with operator(gateway) as client:
            names, offset = set(), 0
            while True:
                data = request(client, "PING.CONNZ", offset=offset)["data"]
                assert data["total"] == 61
                if not data["connections"]:
                    break
                assert data["num_connections"] == len(data["connections"]) < 60
                assert data["limit"] == len(data["connections"]) or offset + len(data["connections"]) == 61
                names |= {c.get("name") for c in data["connections"]}
                offset += min(data["limit"], len(data["connections"]))
            assert names == {None, *(f"client-{n}" for n in range(60))}
    finally:
        for one in clients:
            one.close()
