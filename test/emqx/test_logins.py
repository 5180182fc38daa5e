"""Logins of NATS's own on the plugin's page: before EMQX's authentication, and with EMQX's authorization behind them."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from emqx.gateway import BUILT_IN_DATABASE, NAMED, Gateway, auto_subscribe, file_rules, rest_change
from emqx.nats import Nats
from emqx.node import Node
from emqx.page import Page
from emqx.rest import quoted
from nats_keys import Key, account_jwt, user_jwt

pytestmark = pytest.mark.plugin

VIOLATION = "Authorization Violation"
OPERATOR, ACCOUNT, USER, OTHER = Key("operator"), Key("account"), Key("user"), Key("user")
TOKEN = "w0rd"
# cost 4
HASH = "$2a$04$JUIzNcqxj1tTtswnN1a6rOwYU7ysPtDI2t2MvR0L5NgENKQzHf/9y"
OTHER_TOKEN = "0ther"
OTHER_HASH = "$2b$04$y1BZGvLu7HygwRy6DZHRk.2DFiJn750NN5J/tCu9tcip3O5ZuWhyi"
BY_TOKEN = {"internal_authn": ["token"], "token": HASH}
BY_NKEY = {"internal_authn": ["nkey"], "nkeys": [USER.public]}
BY_JWT = {
    "internal_authn": ["jwt"],
    "trusted_operators": [OPERATOR.public],
    "resolver_preload": [account_jwt(OPERATOR, ACCOUNT, name="main")],
}


def attempt(gateway: Gateway, key: Key | None = None, **fields: object) -> Nats:
    """A CONNECT, signed with the key."""
    connection = gateway.raw()
    signed = {"sig": key.signature(connection.info)} if key else {}
    connection.login(**signed, **fields)
    return connection


def accepted(gateway: Gateway, key: Key | None = None, **fields: object) -> Nats:
    connection = attempt(gateway, key, **fields)
    connection.ping()
    return connection


def refused(gateway: Gateway, key: Key | None = None, **fields: object) -> None:
    with attempt(gateway, key, **fields) as connection:
        connection.rejected(VIOLATION)


def by_jwt(gateway: Gateway, connection_name: str = "", top: dict | None = None, **nats: object) -> Nats:
    return accepted(gateway, USER, jwt=user_jwt(ACCOUNT, USER, name="ann", top=top, **nats), name=connection_name)


def test_nothing_is_asked_for_by_default(gateway: Gateway):
    with gateway.raw() as client:
        assert "auth_required" not in client.info and "nonce" not in client.info


def test_token(gateway: Gateway, page: Page, name: str):
    gateway.settings(**NAMED)
    page.change(**BY_TOKEN)
    with gateway.raw() as client:
        assert client.info["auth_required"] is True and "nonce" not in client.info
    with accepted(gateway, auth_token=TOKEN, name=name) as client:
        assert gateway.known(name)["username"] == "token"
        client.subscribe(name).publish(name, b"x")
        assert client.message().payload == b"x"
    refused(gateway, auth_token="x")
    refused(gateway, user="u", **{"pass": TOKEN})
    refused(gateway, auth_token=HASH)
    refused(gateway)


def test_token_in_a_file(gateway: Gateway, page: Page, tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("t0ken-of-the-file\n")
    page.change(**BY_TOKEN | {"token": f"file://{file}"})
    accepted(gateway, auth_token="t0ken-of-the-file").close()
    refused(gateway, auth_token=f"file://{file}")
    # read again when the page is saved, changed or not
    file.write_text(HASH)
    page.change(**BY_TOKEN | {"token": f"file://{file}"})
    accepted(gateway, auth_token=TOKEN).close()
    refused(gateway, auth_token="t0ken-of-the-file")
    file.unlink()
    answer = page.try_change(**BY_TOKEN | {"token": f"file://{file}"})
    assert answer.status == 400 and "token: cannot be read from its file" in str(answer.body)
    accepted(gateway, auth_token=TOKEN).close()


@pytest.mark.parametrize("path", ["config", "config/download", ""])
def test_no_answer_of_rest_shows_a_token(node: Node, gateway: Gateway, page: Page, plugin: str, path: str):
    """EMQX gives away what it stored, so a plain token is not stored, and no answer has its hash."""
    token = "t0ken-as-it-is"
    before = page.read()
    answer = page.try_change(**BY_TOKEN | {"token": token})
    assert answer.status == 400 and "token: must be a bcrypt hash" in str(answer.body)
    assert token not in str(answer.body)
    assert page.read() == before
    with gateway.raw() as client:
        assert "auth_required" not in client.info
    assert "$2" not in str(answer.body)
    page.change(**BY_TOKEN)
    accepted(gateway, auth_token=TOKEN).close()
    shown = node.rest.call("GET", f"/plugins/{plugin}/{path}".rstrip("/"))
    assert shown.status == 200 and token not in str(shown.body)


def test_nkey(gateway: Gateway, page: Page, name: str):
    gateway.settings(**NAMED)
    page.change(**BY_NKEY)
    with accepted(gateway, USER, nkey=USER.public, name=name) as client:
        assert len(client.info["nonce"]) == 15
        assert gateway.known(name)["username"] == USER.public
    refused(gateway, OTHER, nkey=OTHER.public)
    refused(gateway, OTHER, nkey=USER.public)
    refused(gateway, nkey=USER.public)
    refused(gateway)


def test_jwt(gateway: Gateway, page: Page, name: str):
    gateway.settings(**NAMED)
    page.change(**BY_JWT)
    with by_jwt(gateway, name):
        assert gateway.known(name)["username"] == USER.public
    refused(gateway, OTHER, jwt=user_jwt(ACCOUNT, USER))
    refused(gateway, USER, jwt=user_jwt(Key("account"), USER))
    refused(gateway, USER, jwt=user_jwt(ACCOUNT, USER, top={"exp": int(time.time()) - 10}))
    refused(gateway, USER, nkey=USER.public)


def test_permissions_of_a_jwt(gateway: Gateway, page: Page, name: str):
    page.change(**BY_JWT)
    permissions = {"pub": {"allow": [f"{name}.>"], "deny": [f"{name}.no"]}, "sub": {"deny": [f"{name}.secret"]}}
    with by_jwt(gateway, **permissions) as client, by_jwt(gateway) as other:
        client.subscribe(f"{name}.*")
        client.publish(f"{name}.no")
        client.error(f'Permissions Violation for Publish to "{name}.no"')
        client.publish(f"$delayed.1.{name}.no")
        client.error(f'Permissions Violation for Publish to "$delayed.1.{name}.no"')
        client.publish("elsewhere")
        client.error('Permissions Violation for Publish to "elsewhere"')
        client.send(f"SUB {name}.secret 2\r\n")
        client.error(f'Permissions Violation for Subscription to "{name}.secret"')
        other.publish(f"{name}.secret", b"x")
        other.publish(f"{name}.open", b"y")
        assert client.message().payload == b"y"


def test_limits_of_a_jwt(gateway: Gateway, page: Page):
    page.change(**BY_JWT)
    with by_jwt(gateway, payload=10, subs=1) as client:
        client.subscribe("a")
        client.send("SUB b 2\r\n")
        client.error("maximum subscriptions exceeded")
        client.publish("a", b"0123456789")
        assert client.message().payload == b"0123456789"
        client.publish("a", b"0123456789A")
        client.rejected("Maximum Payload Violation")


def test_emqx_authorization_comes_after_the_permissions(gateway: Gateway, page: Page, name: str):
    """EMQX knows the client by the key of its user."""
    page.change(**BY_JWT)
    rule = f'{{deny, {{username, "{USER.public}"}}, publish, ["{name}/by/emqx"]}}'
    with file_rules(gateway, rule), by_jwt(gateway, pub={"allow": [f"{name}.>"]}) as client:
        client.publish(f"{name}.by.emqx")
        client.error(f'Permissions Violation for Publish to "{name}.by.emqx"')
        client.publish(f"{name}.allowed")
        client.publish("x")
        client.error('Permissions Violation for Publish to "x"')
        client.silent()


def test_a_jwt_that_expires_while_connected(gateway: Gateway, page: Page, name: str):
    gateway.settings(**NAMED)
    page.change(**BY_JWT)
    with by_jwt(gateway, name, top={"exp": int(time.time()) + 2}) as client:
        gateway.known(name)
        client.expect(b"-ERR 'User Authentication Expired'\r\n")
        client.closed()
    gateway.forgotten(name)


def test_what_is_not_brought_falls_through_to_the_authenticators(gateway: Gateway, page: Page):
    page.change(internal_authn=["nkey", "token"], token=HASH, nkeys=[USER.public])
    refused(gateway, user="anne", **{"pass": "secret"})
    gateway.authenticate(BUILT_IN_DATABASE)
    gateway.add_user("anne", "secret")
    accepted(gateway, user="anne", **{"pass": "secret"}).close()
    refused(gateway, user="anne", **{"pass": "wrong"})
    refused(gateway)
    # what is brought is decided on
    accepted(gateway, USER, nkey=USER.public).close()
    accepted(gateway, auth_token=TOKEN).close()
    refused(gateway, user="anne", auth_token="x", **{"pass": "secret"})
    refused(gateway, OTHER, user="anne", nkey=OTHER.public, **{"pass": "secret"})


def test_a_listener_without_authentication_has_no_logins(gateway: Gateway, page: Page, name: str):
    page.change(**BY_TOKEN)
    address = gateway.listen(name, enable_authn=False)
    with gateway.raw(address) as client:
        assert "auth_required" not in client.info
        client.connect()
    refused(gateway)


def test_the_account_is_there_for_mountpoints(gateway: Gateway, page: Page, name: str):
    """Accounts are isolated from each other by it."""
    stranger, theirs = Key("account"), Key("user")
    preload = [account_jwt(OPERATOR, ACCOUNT, name="main"), account_jwt(OPERATOR, stranger, name="theirs")]
    page.change(**BY_JWT | {"resolver_preload": preload})
    gateway.settings(mountpoint="${client_attrs.nats_account_name}/")
    with by_jwt(gateway) as client, accepted(gateway, theirs, jwt=user_jwt(stranger, theirs)) as other, gateway.mqtt() as mqtt:
        mqtt.subscribe("main/#")
        client.subscribe(name)
        other.publish(name, b"theirs")
        other.ping()
        client.publish(name, b"ours")
        assert client.message().payload == b"ours"
        assert mqtt.message().topic == f"main/{name}"


def test_who_is_connected_logs_in_under_the_present_settings(gateway: Gateway, page: Page, name: str):
    """Whenever they were saved: before the first CONNECT of a connection, or before another one."""
    early = gateway.raw()
    page.change(**BY_TOKEN)
    # told of no login
    early.closed()
    idle, live = gateway.raw(), accepted(gateway, auth_token=TOKEN)
    page.change(**BY_TOKEN | {"token": OTHER_HASH})
    idle.login(auth_token=TOKEN)
    idle.rejected(VIOLATION)
    live.login(auth_token="x")
    live.rejected(VIOLATION)
    # told of nothing to sign
    idle, live = gateway.raw(), accepted(gateway, auth_token=OTHER_TOKEN)
    page.change(**BY_NKEY)
    idle.closed()
    live.subscribe(name).publish(name, b"still there")
    assert live.message().payload == b"still there"
    live.login(auth_token=TOKEN)
    live.rejected(VIOLATION)


def test_what_the_page_refuses(gateway: Gateway, page: Page):
    for reason, changes in {
        "nkeys[1]: must be the public NKey of a user": BY_NKEY | {"nkeys": ["secret-key"]},
        "resolver_preload[1]: not a NATS JWT": BY_JWT | {"resolver_preload": ["secret-key"]},
        "resolver_preload[1]: must be signed by a trusted operator": BY_JWT | {"trusted_operators": [Key("operator").public]},
        "token: must not be empty": BY_TOKEN | {"token": ""},
        "token: begins like a bcrypt hash, but is none": BY_TOKEN | {"token": "$2a$secret-key"},
        "is not used without token": BY_NKEY | {"token": HASH},
    }.items():
        answer = page.try_change(**changes)
        assert answer.status == 400 and reason in str(answer.body), answer
        assert "secret-key" not in str(answer.body)
    with gateway.raw() as client:
        assert "auth_required" not in client.info


@pytest.mark.kills
def test_no_secret_in_the_log(gateway: Gateway, node: Node, page: Page, name: str, tmp_path: Path):
    """Whatever happens: logins, refusals, a trace, and crashes right after the login."""
    begin = node.log_size
    gateway.settings(**NAMED)
    token = "s3cr3t-t0ken"
    secrets = [token, "s3cr3t-passw0rd"]
    file = tmp_path / "token"
    file.write_text(token)
    with rest_change(node.rest, "/configs/log", {"console": node.rest.get("/configs/log")["console"] | {"level": "debug"}}):
        page.change(**BY_JWT | BY_NKEY | {"internal_authn": ["token", "nkey", "jwt"], "token": f"file://{file}"})
        assert page.try_change(**BY_TOKEN | {"token": token}).status == 400
        gateway.authenticate(BUILT_IN_DATABASE)
        gateway.add_user("anne", "s3cr3t-passw0rd")
        bearer = user_jwt(ACCOUNT, USER, bearer_token=True)
        logins: list[tuple[Key | None, dict]] = [
            (None, {"auth_token": token}),
            (None, {"auth_token": token + "-wrong"}),
            (USER, {"nkey": USER.public}),
            (OTHER, {"nkey": USER.public}),
            (None, {"jwt": bearer}),
            (None, {"jwt": bearer + "x"}),
            (None, {"user": "anne", "pass": "s3cr3t-passw0rd"}),
            (None, {"user": "anne", "pass": "s3cr3t-passw0rd-wrong"}),
        ]
        secrets += [bearer, "s3cr3t"]
        for number, (key, fields) in enumerate(logins):
            client_name = f"{name}x{number}"
            with gateway.raw() as connection:
                if key:
                    fields = fields | {"sig": key.signature(connection.info)}
                    secrets.append(fields["sig"])
                connection.login(**fields, name=client_name)
                connection.send(b"PING\r\n")
                if connection.operation() == b"PONG":
                    gateway.known(client_name)
                    crash(node, client_name, token, deliberately=number % 2 == 0)
                    gateway.forgotten(client_name)
    log = node.log(begin)
    # the test saw what it looks for
    assert "login_refused" in log and "[debug]" in log
    assert re.search(r"nats_gateway_guard.*", log) and "hidden" in log
    for secret in secrets:
        lines = [line for line in log.splitlines() if secret in line]
        assert lines == [], lines[:3]


def crash(node: Node, client: str, secret: str, deliberately: bool) -> None:
    """With a message that is none, or somebody's exit reason, and something behind it in the mailbox."""
    message = f'P ! {{deliver, <<"a">>, <<"{secret}">>}}' if deliberately else f'exit(P, {{oops, <<"{secret}">>}})'
    pids = f'emqx_gateway_cm:lookup_by_clientid(nats, <<"{client}">>)'
    done = node.eval(f'[begin {message}, P ! {{tcp, x, <<"{secret}">>}} end || P <- {pids}], length({pids}).')
    assert done.strip().isdigit(), done


def test_a_cookie_that_any_page_could_use_is_refused(gateway: Gateway, page: Page, name: str):
    """A bearer token needs no signature, so a page of somebody else would log in as its visitor."""
    address = gateway.listen(name, "ws")
    cookie = BY_JWT | {"websocket_jwt_cookie": "session"}
    answer = page.try_change(**cookie)
    assert answer.status == 400 and f"websocket_jwt_cookie (nats:ws:{name}): needs websocket_same_origin" in str(answer.body)
    page.change(**cookie | {"websocket_same_origin": True})
    checked = {"check_origin_enable": True, "check_origins": "https://a.example"}
    assert gateway.change_listener(name, address, "ws", websocket=checked).status == 200
    page.change(**cookie)
    answer = gateway.change_listener(name, address, "ws", websocket={"check_origin_enable": False})
    assert answer.status == 400 and "websocket_jwt_cookie" in str(answer.body), answer
    without_bearers = [account_jwt(OPERATOR, ACCOUNT, limits={"disallow_bearer": True})]
    page.change(**cookie | {"resolver_preload": without_bearers})
    assert gateway.change_listener(name, address, "ws", websocket={"check_origin_enable": False}).status == 200


def test_what_others_subscribe_needs_the_permission_of_the_login(gateway: Gateway, page: Page, name: str):
    """Automatic subscriptions, and those over REST."""
    gateway.settings(**NAMED)
    page.change(auto_subscribe=True, **BY_JWT)
    path = f"/gateways/nats/clients/{quoted(name)}/subscriptions"
    with (
        auto_subscribe(gateway, f"{name}/no", f"{name}/yes/a"),
        by_jwt(gateway, name, sub={"allow": [f"{name}.yes.>"]}) as client,
    ):
        gateway.known(name)
        client.ping()
        assert [one["topic"] for one in gateway.subscriptions(name)] == [f"{name}/yes/a"]
        answer = gateway.rest.call("POST", path, {"topic": f"{name}/no"})
        assert answer.status == 400 and answer.body["message"] == "not_authorized", answer
        assert gateway.rest.call("POST", path, {"topic": f"{name}/yes/b"}).status == 201
