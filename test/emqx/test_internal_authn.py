"""`internal_authn` of the gateway's settings, which EMQX has from 6.2 on: NATS's own logins, before the authenticators.

They run against the built-in gateway, too (EMQX_GATEWAY=builtin)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import nats
import pytest

from clients.aio import connected, subscribed, take
from emqx.gateway import BUILT_IN_DATABASE, NAMED, Gateway, rest_change
from emqx.nats import Nats
from emqx.node import Node, wait_until
from emqx.page import Page
from nats_keys import Key, account_jwt, creds, user_jwt

OPERATOR, ACCOUNT, STRANGER = Key("operator"), Key("account"), Key("account")
USER, OTHER = Key("user"), Key("user")
SECRET = "t0ken-of-the-gateway"
# `w0rd`, cost 4
BCRYPT = "$2a$04$JUIzNcqxj1tTtswnN1a6rOwYU7ysPtDI2t2MvR0L5NgENKQzHf/9y"
# what EMQX shows for a secret
HIDDEN = "******"

TOKEN = {"type": "token", "token": SECRET}
NKEY = {"type": "nkey", "nkeys": [USER.public]}


def jwt_method(operator: Key = OPERATOR, **accounts: str) -> dict:
    preload = accounts or {ACCOUNT.public: account_jwt(OPERATOR, ACCOUNT, name="main")}
    entries = [{"pubkey": public, "jwt": token} for public, token in preload.items()]
    return {
        "type": "jwt",
        "trusted_operators": [operator.public],
        "resolver": {"type": "memory", "resolver_preload": entries},
    }


JWT = jwt_method()


@pytest.fixture(autouse=True)
def _has_internal_authn(gateway: Gateway) -> None:
    answer = gateway.try_settings(internal_authn=[])
    if answer.status != 204:
        assert "internal_authn" in str(answer), answer
        pytest.skip("this EMQX has no gateway.nats.internal_authn (6.2 and newer have)")


def attempt(gateway: Gateway, key: Key | None = None, **fields: object) -> Nats:
    """A CONNECT, signed with the key if there is something to sign."""
    connection = gateway.raw()
    signed = {"sig": key.signature(connection.info)} if key and "nonce" in connection.info else {}
    connection.login(**signed, **fields)
    connection.send(b"PING\r\n")
    return connection


def is_accepted(gateway: Gateway, key: Key | None = None, **fields: object) -> bool:
    with attempt(gateway, key, **fields) as connection:
        return is_let_in(connection)


def is_let_in(connection: Nats) -> bool:
    """After CONNECT and PING."""
    answer = connection.line()
    if answer == b"PONG":
        return True
    # the other text is that of the built-in gateway
    assert answer == b"-ERR 'Authorization Violation'" or answer.startswith(b"-ERR Login Failed: "), answer
    connection.closed()
    return False


def user(name: str, password: str) -> dict:
    return {"user": name, "pass": password}


# --- Each method -----------------------------------------------------------------------------------------------------


def test_nothing_is_asked_for_by_default(gateway: Gateway):
    with gateway.raw() as client:
        assert not client.info.get("auth_required") and "nonce" not in client.info
    assert is_accepted(gateway)


def test_the_security_profile_hardened(gateway: Gateway, node: Node):
    """Nobody is let in without any authentication. EMQX takes the profile from its environment, and keeps it here."""
    node.eval("persistent_term:put({emqx_security_profile, profile}, hardened)")
    try:
        gateway.settings(server_name="hardened")
        with gateway.raw() as client:
            assert client.info["server_name"] == "hardened" and client.info["auth_required"] is True
        assert not is_accepted(gateway) and not is_accepted(gateway, auth_token=SECRET)
        gateway.settings(internal_authn=[TOKEN])
        assert is_accepted(gateway, auth_token=SECRET) and not is_accepted(gateway)
        gateway.settings()
        gateway.authenticate(BUILT_IN_DATABASE)
        gateway.add_user("anne", "secret")
        assert is_accepted(gateway, **ANNE) and not is_accepted(gateway)
    finally:
        node.eval("emqx_security_profile:clear_profile()")


@pytest.mark.parametrize(("configured", "right"), [(SECRET, SECRET), (BCRYPT, "w0rd")], ids=["plain", "bcrypt"])
def test_token(gateway: Gateway, name: str, configured: str, right: str):
    gateway.settings(internal_authn=[TOKEN | {"token": configured}], **NAMED)
    with gateway.raw() as client:
        assert client.info["auth_required"] is True and "nonce" not in client.info
    with gateway.nats(auth_token=right, name=name) as client:
        assert gateway.known(name)["username"] == "token"
        client.subscribe(name).publish(name, b"x")
        assert client.message().payload == b"x"
    for wrong in ({"auth_token": f"{right}x"}, {"auth_token": BCRYPT}, {"auth_token": ""}, user("token", right), {}):
        assert not is_accepted(gateway, **wrong), wrong


def test_nkey(gateway: Gateway, name: str):
    gateway.settings(internal_authn=[NKEY], **NAMED)
    with gateway.raw() as client, gateway.raw() as other:
        assert client.info["auth_required"] is True
        assert len(client.info["nonce"]) >= 15 and client.info["nonce"] != other.info["nonce"]
        client.connect(nkey=USER.public, sig=USER.signature(client.info), name=name)
        assert gateway.known(name)["username"] == USER.public
        # a signature is good for one connection
        other.login(nkey=USER.public, sig=USER.signature(client.info))
        other.send(b"PING\r\n")
        assert not is_let_in(other)
    for key, fields in (
        (OTHER, {"nkey": OTHER.public}),
        (OTHER, {"nkey": USER.public}),
        (USER, {"nkey": OTHER.public}),
        (USER, {}),
        (None, {"nkey": USER.public}),
        (None, {}),
    ):
        assert not is_accepted(gateway, key, **fields), fields


def test_jwt(gateway: Gateway, name: str):
    gateway.settings(internal_authn=[JWT], **NAMED)
    with gateway.raw() as client:
        assert client.info["auth_required"] is True and client.info["nonce"]
        client.connect(jwt=user_jwt(ACCOUNT, USER), sig=USER.signature(client.info), name=name)
        assert gateway.known(name)["username"] == USER.public
    expired = {"exp": int(time.time()) - 10}
    for key, fields in (
        (OTHER, {"jwt": user_jwt(ACCOUNT, USER)}),
        (USER, {"jwt": user_jwt(STRANGER, USER)}),
        (USER, {"jwt": user_jwt(ACCOUNT, USER, top=expired)}),
        (USER, {"jwt": user_jwt(ACCOUNT, USER) + "x"}),
        (USER, {"nkey": USER.public}),
        (None, {"jwt": user_jwt(ACCOUNT, USER)}),
        (None, {}),
    ):
        assert not is_accepted(gateway, key, **fields), fields


@pytest.mark.plugin
def test_a_signing_key_of_an_account(gateway: Gateway):
    """The built-in gateway looks for `issuer_account` where only version 1 of the JWTs has it."""
    signer = Key("account")
    account = account_jwt(OPERATOR, ACCOUNT, signing_keys=[signer.public])
    gateway.settings(internal_authn=[jwt_method(**{ACCOUNT.public: account})])
    assert is_accepted(gateway, USER, jwt=user_jwt(signer, USER, account=ACCOUNT))
    assert is_accepted(gateway, USER, jwt=user_jwt(ACCOUNT, USER))
    assert not is_accepted(gateway, USER, jwt=user_jwt(STRANGER, USER, account=ACCOUNT))


def test_permissions_of_a_jwt(gateway: Gateway, name: str):
    gateway.settings(internal_authn=[JWT])
    token = user_jwt(ACCOUNT, USER, pub={"allow": [f"{name}.>"]}, sub={"deny": [f"{name}.secret"]})
    with gateway.raw() as client:
        client.connect(jwt=token, sig=USER.signature(client.info))
        client.subscribe(f"{name}.open")
        client.publish(f"{name}.open", b"x")
        assert client.message().payload == b"x"
        client.publish("elsewhere")
        assert b"Permissions Violation for Publish" in client.line()
        client.send(f"SUB {name}.secret 2\r\n")
        assert b"Permissions Violation for Subscription" in client.line()


@pytest.mark.parametrize(("pub", "sub"), [("pub", "sub"), ("publish", "subscribe")])
def test_permissions_beside_nats(gateway: Gateway, name: str, pub: str, sub: str):
    """As EMQX's own gateway has them from 6.2 on; no tool of NATS writes them."""
    gateway.settings(internal_authn=[JWT])
    permissions = {
        pub: {"allow": [f"{name}.*", f"{name}.deep.>"], "deny": [f"{name}.no"]},
        sub: {"allow": [f"{name}.>"], "deny": [f"{name}.secret"]},
    }
    token = user_jwt(ACCOUNT, USER, top={"permissions": permissions})
    with gateway.raw() as client:
        client.connect(jwt=token, sig=USER.signature(client.info))
        client.subscribe(f"{name}.open").subscribe(f"{name}.deep.>", "2")
        for subject in (f"{name}.open", f"{name}.deep.er.still"):
            client.publish(subject, b"x")
            assert client.message().payload == b"x"
        for subject in (f"{name}.no", f"{name}.open.x", name, "elsewhere"):
            client.publish(subject)
            assert b"Permissions Violation for Publish" in client.line(), subject
        for subject in (f"{name}.secret", "elsewhere", ">", "*.open"):
            client.send(f"SUB {subject} 3\r\n")
            assert b"Permissions Violation for Subscription" in client.line(), subject
        client.silent()


@pytest.mark.plugin
def test_permissions_beside_nats_allow_no_more_than_those_within(gateway: Gateway, node: Node, name: str):
    """The built-in gateway looks at those within alone then, and ignores what it cannot read."""
    gateway.settings(internal_authn=[JWT])
    outer = {"pub": {"allow": [f"{name}.a.>"]}, "sub": {"deny": [f"{name}.a.secret"]}}
    inner = {"pub": {"allow": [f"{name}.*.x"]}, "sub": {"allow": [f"{name}.a.*"]}}
    with gateway.raw() as client:
        token = user_jwt(ACCOUNT, USER, top={"permissions": outer}, **inner)
        client.connect(jwt=token, sig=USER.signature(client.info))
        client.subscribe(f"{name}.a.*").publish(f"{name}.a.x", b"x")
        assert client.message().payload == b"x"
        for subject in (f"{name}.a.y", f"{name}.b.x"):
            client.publish(subject)
            client.error(f'Permissions Violation for Publish to "{subject}"')
        for subject in (f"{name}.a.secret", f"{name}.b.x"):
            client.send(f"SUB {subject} 2\r\n")
            client.error(f'Permissions Violation for Subscription to "{subject}"')
        # nor is what is denied delivered to a wildcard subscription
        with gateway.mqtt() as mqtt:
            mqtt.publish(f"{name}/a/secret", b"secret")
            mqtt.publish(f"{name}/a/open", b"open")
            assert client.message().payload == b"open"
    for unreadable in (["a"], {"publish": ["a"]}, {"publish": {"allow": "a"}}, {"resp": {}}):
        token = user_jwt(ACCOUNT, USER, top={"permissions": unreadable})
        assert not is_accepted(gateway, USER, jwt=token), unreadable
    await_refusal(gateway, node, token, "the claim permissions may have pub and sub")


def await_refusal(gateway: Gateway, node: Node, token: str, why: str) -> None:
    """A line in the log with the reason. Of many refusals the log has not a line of each, so there are more of them."""
    begin = node.log_size

    def is_told() -> bool:
        with attempt(gateway, USER, jwt=token) as client:
            assert client.line().startswith(b"-ERR")
        return why in node.log(begin)

    wait_until(is_told, f"the log says {why}", deadline=30)


@pytest.mark.plugin
def test_limits_that_are_missing(gateway: Gateway, node: Node):
    """The built-in gateway knows no limits, so its JWTs may lack them. A nats-server takes them for 0."""
    bare = account_jwt(OPERATOR, ACCOUNT, limits={"conn": None})
    gateway.settings(internal_authn=[jwt_method(**{ACCOUNT.public: bare})])
    token = user_jwt(ACCOUNT, USER)
    with attempt(gateway, USER, jwt=token) as client:
        client.rejected("maximum account active connections exceeded")
    await_refusal(gateway, node, token, 'zero_or_missing: <<"nats.limits.conn of the account">>')
    gateway.settings(internal_authn=[JWT])
    token = user_jwt(ACCOUNT, USER, subs=None)
    with attempt(gateway, USER, jwt=token) as client:
        client.rejected("maximum subscriptions exceeded")
    await_refusal(gateway, node, token, 'zero_or_missing: <<"nats.subs of the user">>')


# --- Several of them, and the authenticators behind them -------------------------------------------------------------

ANNE = user("anne", "secret")
ATTEMPTS: dict[str, Callable[[], tuple[Key | None, dict]]] = {
    "nothing": lambda: (None, {}),
    "token": lambda: (None, {"auth_token": SECRET}),
    "wrong token": lambda: (None, {"auth_token": "x"}),
    "nkey": lambda: (USER, {"nkey": USER.public}),
    "unknown nkey": lambda: (OTHER, {"nkey": OTHER.public}),
    "unsigned nkey": lambda: (None, {"nkey": USER.public}),
    "jwt": lambda: (USER, {"jwt": user_jwt(ACCOUNT, USER)}),
    "jwt of a stranger": lambda: (USER, {"jwt": user_jwt(STRANGER, USER)}),
    "user": lambda: (None, ANNE),
    "wrong password": lambda: (None, user("anne", "x")),
    "token and wrong password": lambda: (None, {"auth_token": SECRET} | user("anne", "x")),
    "wrong token and user": lambda: (None, {"auth_token": "x"} | ANNE),
    "unknown nkey and user": lambda: (OTHER, {"nkey": OTHER.public} | ANNE),
    "jwt of a stranger and user": lambda: (USER, {"jwt": user_jwt(STRANGER, USER)} | ANNE),
    "token and unknown nkey": lambda: (OTHER, {"auth_token": SECRET, "nkey": OTHER.public}),
    "wrong token and nkey": lambda: (USER, {"auth_token": "x", "nkey": USER.public}),
    "wrong token and jwt": lambda: (USER, {"auth_token": "x", "jwt": user_jwt(ACCOUNT, USER)}),
    "token and jwt of a stranger": lambda: (USER, {"auth_token": SECRET, "jwt": user_jwt(STRANGER, USER)}),
}
TOKEN_FIRST = [TOKEN, NKEY, JWT]
TOKEN_LAST = [JWT, NKEY, TOKEN]
# Whoever is first and finds its credentials decides.
ALONE = {"token", "nkey", "jwt", "token and wrong password"}
DECIDED = {
    "token first": ALONE | {"token and unknown nkey", "token and jwt of a stranger"},
    "token last": ALONE | {"wrong token and nkey", "wrong token and jwt"},
}
ORDERS = {"token first": TOKEN_FIRST, "token last": TOKEN_LAST}


def outcomes(gateway: Gateway) -> set[str]:
    """Who is let in."""
    return {name for name, made in ATTEMPTS.items() for key, fields in [made()] if is_accepted(gateway, key, **fields)}


@pytest.mark.parametrize("order", ORDERS)
def test_the_order(gateway: Gateway, order: str):
    gateway.settings(internal_authn=ORDERS[order])
    assert outcomes(gateway) == DECIDED[order]


@pytest.mark.parametrize("order", ORDERS)
def test_who_brings_nothing_for_them_falls_through_to_the_authenticators(gateway: Gateway, order: str):
    gateway.settings(internal_authn=ORDERS[order])
    gateway.authenticate(BUILT_IN_DATABASE)
    gateway.add_user("anne", "secret")
    assert outcomes(gateway) == DECIDED[order] | {"user"}


@pytest.mark.plugin
def test_the_built_in_gateway_decides_the_same(gateway: Gateway, node: Node, package: Path, page: Page):
    """On this node, with the same settings. It does not know what a JWT limits, so the page has to let it serve."""
    page.change(built_in_may_serve=True)
    gateway.authenticate(BUILT_IN_DATABASE)
    gateway.add_user("anne", "secret")
    decisions = []
    for methods in ([TOKEN], [NKEY], [JWT], [NKEY, TOKEN], TOKEN_FIRST, TOKEN_LAST):
        gateway.settings(internal_authn=methods)
        decisions.append((methods, outcomes(gateway)))
    with node.stopped_plugin(package):
        # It is loaded a moment after the plugin has stopped; to load it twice is refused.
        wait_until(lambda: gateway.served(by_us=False), "the built-in serves")
        for methods, decided in decisions:
            gateway.settings(internal_authn=methods)
            assert outcomes(gateway) == decided, [method["type"] for method in methods]


def test_a_listener_without_authentication_has_no_logins(gateway: Gateway, name: str):
    gateway.settings(internal_authn=TOKEN_FIRST)
    address = gateway.listen(name, enable_authn=False)
    with gateway.raw(address) as client:
        assert not client.info.get("auth_required")
        client.connect()
    assert not is_accepted(gateway)


@pytest.mark.plugin
def test_the_page_of_the_plugin_gives_way(gateway: Gateway, page: Page, tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("of-the-page")
    page.change(internal_authn=["token"], token=f"file://{file}")
    assert is_accepted(gateway, auth_token="of-the-page")
    gateway.settings(internal_authn=[TOKEN])
    assert is_accepted(gateway, auth_token=SECRET) and not is_accepted(gateway, auth_token="of-the-page")
    gateway.settings()
    assert is_accepted(gateway, auth_token="of-the-page") and not is_accepted(gateway, auth_token=SECRET)


# --- Changes ---------------------------------------------------------------------------------------------------------


def test_a_change_is_for_new_logins(gateway: Gateway, name: str):
    gateway.settings(internal_authn=[TOKEN])
    with gateway.nats(auth_token=SECRET) as before:
        before.subscribe(name)
        gateway.settings(internal_authn=[TOKEN | {"token": "other"}])
        assert not is_accepted(gateway, auth_token=SECRET)
        with gateway.nats(auth_token="other") as after:
            after.publish(name, b"still there")
            assert before.message().payload == b"still there"
        gateway.settings(internal_authn=[NKEY])
        assert not is_accepted(gateway, auth_token="other")
        assert is_accepted(gateway, USER, nkey=USER.public)
        gateway.settings(internal_authn=[])
        assert is_accepted(gateway)
        before.ping()


def test_logins_outlive_a_pause_of_the_gateway(gateway: Gateway):
    gateway.settings(internal_authn=[TOKEN, NKEY])
    gateway.rest.put("/gateways/nats/enable/false")
    gateway.rest.put("/gateways/nats/enable/true")
    assert is_accepted(gateway, auth_token=SECRET) and is_accepted(gateway, USER, nkey=USER.public)
    assert not is_accepted(gateway) and not is_accepted(gateway, auth_token=HIDDEN)


def test_wrong_settings_are_refused_and_change_nothing(gateway: Gateway):
    gateway.settings(internal_authn=[TOKEN])
    for wrong in (
        {"type": "token"},
        {"type": "token", "token": ""},
        {"type": "nkey", "nkeys": []},
        {"type": "nkey", "nkeys": [ACCOUNT.public]},
        {"type": "nkey", "nkeys": [USER.public[:-1]]},
        JWT | {"trusted_operators": []},
        JWT | {"trusted_operators": [ACCOUNT.public]},
        JWT | {"resolver": {"type": "memory", "resolver_preload": []}},
        {"type": "password"},
    ):
        answer = gateway.try_settings(internal_authn=[TOKEN, wrong])
        assert answer.status == 400 and "internal_authn" in str(answer), (wrong, answer)
    assert is_accepted(gateway, auth_token=SECRET) and not is_accepted(gateway)


@pytest.mark.plugin
def test_what_emqx_shows_for_a_token_is_none(gateway: Gateway):
    """Who changes something else of what is shown writes that back, and with EMQX's own gateway logs in with it."""
    gateway.settings(internal_authn=[TOKEN])
    shown = gateway.rest.get("/gateways/nats")
    back = {key: value for key, value in shown.items() if key not in ("status", "created_at", "started_at")}
    answer = gateway.rest.call("PUT", "/gateways/nats", back | {"server_name": "changed"})
    assert answer.status == 400, answer
    assert "internal_authn[1].token: must be the token itself" in str(answer)
    assert is_accepted(gateway, auth_token=SECRET) and not is_accepted(gateway, auth_token=HIDDEN)


@pytest.mark.plugin
def test_a_jwt_that_could_let_nobody_in_is_refused(gateway: Gateway):
    """The built-in gateway takes it, and refuses the logins."""
    gateway.settings(internal_authn=[TOKEN])
    theirs = account_jwt(Key("operator"), ACCOUNT)
    for reason, account in {"not a NATS JWT": "secret-key", "must be signed by a trusted operator": theirs}.items():
        answer = gateway.try_settings(internal_authn=[jwt_method(**{ACCOUNT.public: account})])
        assert answer.status == 400 and reason in str(answer), answer
        assert "secret-key" not in str(answer)
    assert is_accepted(gateway, auth_token=SECRET) and not is_accepted(gateway)


# --- Secrets ---------------------------------------------------------------------------------------------------------


def test_no_secret_is_shown(gateway: Gateway, node: Node):
    begin = node.log_size
    debug = {"console": node.rest.get("/configs/log")["console"] | {"level": "debug"}}
    with rest_change(node.rest, "/configs/log", debug):
        gateway.settings(internal_authn=[TOKEN, TOKEN | {"token": BCRYPT}, NKEY])
        shown = gateway.rest.get("/gateways/nats")
        assert shown["internal_authn"] == [TOKEN | {"token": HIDDEN}] * 2 + [NKEY]
        for path in ("/gateways", "/plugins", "/gateways/nats/listeners"):
            assert SECRET not in str(gateway.rest.get(path)), path
        for fields in ({"auth_token": SECRET}, {"auth_token": "s3cret-guess"}, {}):
            is_accepted(gateway, **fields)
        # ours and that of the built-in gateway
        wait_until(lambda: any(text in node.log(begin) for text in ("no_nkey", "nkey_required")), "the last refusal is logged")
    lines = [line for line in node.log(begin).splitlines() if SECRET in line or BCRYPT in line or "s3cret-guess" in line]
    assert lines == [], lines[:3]


# --- Clients ---------------------------------------------------------------------------------------------------------


def with_seed(key: Key, directory: Path) -> dict:
    file = directory / f"{key.public}.nk"
    file.write_text(key.seed)
    return {"nkeys_seed": str(file)}


def with_creds(issuer: Key, key: Key, directory: Path) -> dict:
    file = directory / f"{issuer.public}.creds"
    file.write_text(creds(user_jwt(issuer, key), key))
    return {"user_credentials": str(file)}


def test_nats_py(gateway: Gateway, name: str, tmp_path: Path):
    gateway.settings(internal_authn=TOKEN_FIRST)
    asyncio.run(nats_py("nats://{}:{}".format(*gateway.address), name, tmp_path))


async def nats_py(url: str, name: str, tmp_path: Path) -> None:
    for options in ({"token": SECRET}, with_seed(USER, tmp_path), with_creds(ACCOUNT, OTHER, tmp_path)):
        async with connected(url, **options) as client:
            subscription = await subscribed(client, name)
            await client.publish(name, b"welcome")
            assert [message.data for message in await take(subscription, 1)] == [b"welcome"]
    for options in ({"token": "x"}, with_seed(OTHER, tmp_path), with_creds(STRANGER, OTHER, tmp_path), {}):
        with pytest.raises(nats.errors.Error, match="(?i)authorization violation|login failed"):
            async with connected(url, **options):
                pass
