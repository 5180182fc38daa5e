"""What nats-server tells its system account, for those whom the plugin's page names."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from emqx.gateway import BUILT_IN_DATABASE, NAMED, Gateway, file_rules
from emqx.nats import Nats
from emqx.node import wait_until
from emqx.page import Page
from emqx.test_authentication import JWT, jwt
from emqx.test_logins import ACCOUNT, BY_JWT, BY_NKEY, HASH, OPERATOR, TOKEN, USER, accepted
from nats_keys import Key, account_jwt, user_jwt
from ports import HOST, free_port
from system_requests import is_answered_nothing, nats, nats_cli, request

pytestmark = pytest.mark.plugin

PASSWORD = {"pass": "pw"}


@pytest.fixture
def operators(gateway: Gateway, page: Page) -> Iterator[Gateway]:
    """EMQX's own database knows the operator `admin`, and somebody else."""
    gateway.settings(**NAMED)
    page.change(system_users=["admin"])
    gateway.authenticate(BUILT_IN_DATABASE)
    gateway.add_user("admin", "pw")
    gateway.add_user("other", "pw")
    return gateway


def operator(gateway: Gateway, **fields: object) -> Nats:
    return gateway.nats(user="admin", **PASSWORD, **fields).subscribe("answers", sid="9")


def assert_refused_or_answered_nothing(connection: Nats) -> None:
    """It is not let in, or it is and is not an operator."""
    with connection:
        connection.login(user="admin", **PASSWORD)
        try:
            connection.ping()
        except AssertionError:
            return
        assert is_answered_nothing(connection)


def test_servers_and_clients_are_told(operators: Gateway, name: str):
    with operator(operators) as client, operators.nats(user="other", name=name, **PASSWORD) as other:
        other.subscribe(name)
        id = client.info["server_id"]
        stats = request(client, "PING")
        assert stats["server"]["id"] == id and stats["server"]["ver"] == client.info["version"]
        assert stats["statsz"]["connections"] >= 2 and stats["statsz"]["active_servers"] == 1
        varz = request(client, f"{id}.VARZ")["data"]
        assert varz["server_id"] == id and varz["port"] == operators.address[1]
        connz = request(client, "PING.CONNZ", auth=True, subscriptions=True, user="other")["data"]
        [seen] = [c for c in connz["connections"] if c["name"] == name]
        assert (seen["authorized_user"], seen["subscriptions_list"], seen["cid"]) == ("other", [name], other.info["client_id"])
        subsz = request(client, "PING.SUBSZ", subscriptions=True, test=name)["data"]
        assert [s["subject"] for s in subsz["subscriptions_list"]] == [name]
        assert request(client, "PING.HEALTHZ")["data"] == {"status": "ok", "status_code": 200}
        assert request(client, "PING.IDZ")["id"] == id
        assert request(client, f"{id}x.VARZ") is None and request(client, "PING.JSZ") is None


def test_a_kick_ends_as_that_of_emqx(operators: Gateway, name: str):
    with operator(operators) as client:
        victim = operators.nats(user="other", name=name, **PASSWORD)
        kick = f"{client.info['server_id']}.KICK"
        assert "error" not in request(client, kick, cid=victim.info["client_id"])
        victim.closed()
        wait_until(lambda: operators.client(name) is None, "EMQX knows it no more")
        log = request(client, "PING.CONNZ", state=1, cid=victim.info["client_id"])["data"]["connections"]
        assert [c["reason"] for c in log] == ["Kicked"]
        assert request(client, kick, cid=victim.info["client_id"])["error"]["description"] == "no such client or leafnode id"


def test_the_command_nats(operators: Gateway, name: str):
    port = operators.address[1]
    with operators.nats(user="other", name=name, **PASSWORD) as other:
        other.subscribe(name)
        [server] = json.loads(nats(port, "server", "list", "--json"))
        id = server["server"]["id"]
        assert id == other.info["server_id"]
        assert id in nats(port, "server", "info")
        assert name in nats(port, "server", "report", "connections")
        assert "rtt=" in nats(port, "server", "ping", "1")
        assert "OK Connection" in nats(port, "server", "check", "connection")
        assert "ok (200)" in nats(port, "server", "report", "health")
        assert "error" not in json.loads(nats(port, "server", "request", "kick", str(other.info["client_id"]), id))
        other.closed()
    refused = nats_cli(port, "server", "list", user="other")
    assert refused.returncode == 1 and "ensure the account used has system privileges" in refused.stderr


def test_operators_are_told_who_comes_and_goes(operators: Gateway, name: str):
    """Whatever EMQX's rules say of $SYS/#: these subscriptions are not at the broker."""
    rules = ('{deny, all, all, ["$SYS/#"]}',)
    with file_rules(operators, *rules), operator(operators) as client, operators.nats(user="other", **PASSWORD) as nobody:
        client.subscribe("$SYS.ACCOUNT.*.CONNECT", sid="1").subscribe("$SYS.ACCOUNT.$G.DISCONNECT", sid="2")
        client.ping()
        nobody.send("SUB $SYS.ACCOUNT.> 1\r\n")
        nobody.expect(b"-ERR 'Permissions Violation for Subscription to \"$SYS.ACCOUNT.>\"'\r\n")
        with operators.nats(user="other", name=name, **PASSWORD) as other:
            message = client.message()
            told = json.loads(message.payload)
            assert message.subject == "$SYS.ACCOUNT.$G.CONNECT" and told["server"]["id"] == other.info["server_id"]
            assert (told["client"]["id"], told["client"]["user"], told["client"]["name"]) == (other.info["client_id"], "other", name)
            wait_until(lambda: operators.client(name) is not None, "EMQX knows it")
            operators.kick(name)
            other.closed()
        message = client.message()
        gone = json.loads(message.payload)
        assert (message.subject, gone["reason"]) == ("$SYS.ACCOUNT.$G.DISCONNECT", "Kicked")
        client.send("UNSUB 1\r\nUNSUB 2\r\n")
        client.ping()
        with operators.nats(user="other", **PASSWORD):
            client.silent()
        nobody.silent()


def test_nobody_else_is_answered(operators: Gateway):
    with operators.nats(user="other", **PASSWORD) as client:
        assert is_answered_nothing(client)


def test_a_name_that_nobody_checks_is_worth_nothing(gateway: Gateway, page: Page):
    """Without an authenticator EMQX lets everybody in, whatever they say."""
    page.change(system_users=["admin", ""])
    for claim in ({"user": "admin"}, {"user": "admin", "pass": "pw"}, {}, {"user": "admin", "auth_token": "pw"}):
        with gateway.nats(**claim) as client:
            assert is_answered_nothing(client), claim


def test_a_name_of_clientinfo_override_is_worth_nothing(operators: Gateway):
    """EMQX has checked the credentials that the settings put in place of the client's."""
    for override in (
        {"username": "admin", "password": "pw"},
        {"username": "admin", "password": "${Packet.pass}"},
        {"username": "${Packet.user}", "password": "pw"},
        {"username": "${Packet.name}", "password": "${Packet.pass}"},
    ):
        operators.settings(clientinfo_override=override)
        for claim in ({"name": "admin", "pass": "pw"}, {"name": "admin", "user": "admin", "pass": "x"}, {"user": "admin", "name": "admin"}):
            connection = operators.raw()
            connection.login(**claim)
            try:
                connection.ping()
            except AssertionError:
                connection.close()
                continue
            with connection:
                assert is_answered_nothing(connection), (override, claim)


def test_a_listener_without_authentication(operators: Gateway, name: str):
    """It does not matter that other listeners ask for a password."""
    address = operators.listen(name, enable_authn=False)
    with Nats(address) as client:
        client.connect(user="admin", **PASSWORD)
        assert is_answered_nothing(client)


def test_authenticators_that_ask_nobody(operators: Gateway, name: str):
    """One that is disabled, one that is for others, and a listener's own chain in which there is none."""
    operators.authenticate(BUILT_IN_DATABASE | {"enable": False})
    with operators.nats(user="admin", **PASSWORD) as client:
        assert is_answered_nothing(client)
    operators.authenticate(BUILT_IN_DATABASE | {"precondition": "str_eq(username, 'somebody')"})
    assert_refused_or_answered_nothing(operators.raw())


def test_the_chain_of_a_listener_decides(gateway: Gateway, page: Page, name: str):
    """Where it has authenticators and the gateway has none, and the other way round."""
    page.change(system_users=["admin"])
    address = gateway.listen(name)
    gateway.authenticate(BUILT_IN_DATABASE, name)
    gateway.add_user("admin", "pw", name)
    with Nats(address) as client:
        client.connect(user="admin", **PASSWORD).subscribe("answers", sid="9")
        assert request(client, "PING")["statsz"]
    with gateway.nats(user="admin", **PASSWORD) as client:
        assert is_answered_nothing(client)
    gateway.authenticate(BUILT_IN_DATABASE | {"enable": False}, name)
    gateway.authenticate(BUILT_IN_DATABASE)
    gateway.add_user("admin", "pw")
    with operator(gateway) as client:
        assert request(client, "PING")["statsz"]
    assert_refused_or_answered_nothing(Nats(address))


def test_an_authenticator_of_another_kind(gateway: Gateway, page: Page):
    """A JWT in place of the password: EMQX has checked it."""
    page.change(system_users=["admin"])
    gateway.authenticate(JWT | {"verify_claims": {"sub": "${username}"}})
    with gateway.nats(user="admin", **{"pass": jwt(sub="admin")}) as client:
        client.subscribe("answers")
        assert request(client, "PING")["statsz"]
    with gateway.nats(user="other", **{"pass": jwt(sub="other")}) as client:
        assert is_answered_nothing(client)


def test_keys_of_users_and_accounts(gateway: Gateway, page: Page):
    page.change(**BY_NKEY, system_nkeys=[USER.public])
    with accepted(gateway, USER, nkey=USER.public) as client:
        client.subscribe("answers")
        assert request(client, "PING")["statsz"]
    other, tenant = Key("user"), Key("account")
    both = [account_jwt(OPERATOR, ACCOUNT, name="main"), account_jwt(OPERATOR, tenant, name="main")]
    page.change(**BY_JWT | {"resolver_preload": both}, system_accounts=[ACCOUNT.public], system_users=["admin"])
    with accepted(gateway, other, jwt=user_jwt(ACCOUNT, other, name="ann")) as client:
        client.subscribe("answers")
        assert request(client, "PING")["statsz"]
    # Whatever the account calls its users, and itself.
    with accepted(gateway, other, jwt=user_jwt(tenant, other, name="admin"), user="admin", **PASSWORD) as client:
        assert is_answered_nothing(client)


def test_a_token_is_nobodys_name(gateway: Gateway, page: Page):
    page.change(internal_authn=["token"], token=HASH, system_users=["token", "admin"])
    with accepted(gateway, auth_token=TOKEN, user="admin") as client:
        assert is_answered_nothing(client)


def test_the_page_takes_it_back_at_once(operators: Gateway, page: Page):
    with operator(operators) as client:
        assert request(client, "PING")["statsz"]
        page.change()
        wait_until(lambda: request(client, "PING") is None, "nobody may ask any more")
        page.change(system_users=["admin"])
        wait_until(lambda: request(client, "PING") is not None or operator_anew(operators), "again")


def operator_anew(gateway: Gateway) -> bool:
    """Who has logged in while nobody was listed was not observed."""
    with operator(gateway) as client:
        return request(client, "PING") is not None


def test_the_plugin_stops_soon(operators: Gateway, page: Page, plugin: str):
    """What answers is a part of the application whose end it must not hold up."""
    node = operators.node
    page.change(system_users=["admin"], monitor_bind=f"{HOST}:{free_port()}")
    with operator(operators) as client:
        assert request(client, "PING")["statsz"]
    begin = node.eval("erlang:monotonic_time(millisecond)")
    node.rest.put(f"/plugins/{plugin}/stop")
    took = int(node.eval("erlang:monotonic_time(millisecond)")) - int(begin)
    node.rest.put(f"/plugins/{plugin}/start")
    assert took < 6000


@pytest.mark.parametrize("setting", [{"system_nkeys": [ACCOUNT.public]}, {"system_accounts": [USER.public]}])
def test_what_is_no_name_or_key_is_refused(page: Page, setting: dict):
    answer = page.try_change(**setting)
    assert answer.status == 400 and next(iter(setting)) in str(answer.body)
