"""EMQX's authentication decides who may log in, and nothing is done for anybody before."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator

import pytest

from emqx.gateway import BUILT_IN_DATABASE, NAMED, Gateway, rest_change, unique
from emqx.http_auth import HttpAuthority
from emqx.nats import Nats
from emqx.node import wait_until

SECRET = "a secret that is long enough for HS256"
JWT = {
    "mechanism": "jwt",
    "use_jwks": False,
    "algorithm": "hmac-based",
    "secret": SECRET,
    "secret_base64_encoded": False,
    "from": "password",
    "verify_claims": {},
    "disconnect_after_expire": True,
}
VIOLATION = "Authorization Violation"


def jwt(**claims: object) -> str:
    def part(value: dict) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    signed = part({"alg": "HS256", "typ": "JWT"}) + b"." + part(claims)
    signature = hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def open_to_anybody(connection: Nats, subject: str) -> None:
    """Without CONNECT; verbose is the protocol's default."""
    assert "auth_required" not in connection.info
    connection.send(f"SUB {subject} 1\r\nPUB {subject} 1\r\nx\r\n")
    connection.expect(b"+OK\r\n+OK\r\n")
    assert connection.message().payload == b"x"


def refused(connection: Nats) -> None:
    with connection:
        connection.rejected(VIOLATION)


# --- None configured -------------------------------------------------------------------------------------------------


def test_without_authentication_anybody_may_do_anything(gateway: Gateway, name: str):
    with gateway.raw() as client, gateway.nats(user="anybody", **{"pass": "anything"}) as other:
        open_to_anybody(client, name)
        other.publish(name, b"y")
        assert client.message().payload == b"y"


# --- Of the gateway, and of one listener -----------------------------------------------------------------------------


@pytest.fixture(params=["gateway", "listener"])
def protected(request: pytest.FixtureRequest, gateway: Gateway, name: str) -> Iterator[Protected]:
    gateway.settings(**NAMED)
    if request.param == "gateway":
        yield Protected(gateway, None, gateway.address)
    else:
        yield Protected(gateway, name, gateway.listen(name))


class Protected:
    """Where an authenticator is: on the gateway or on one listener."""

    def __init__(self, gateway: Gateway, listener: str | None, address: tuple[str, int]):
        self.gateway = gateway
        self.listener = listener
        self.address = address

    def by(self, authenticator: dict) -> Protected:
        self.gateway.authenticate(authenticator, self.listener)
        return self

    def no_more(self) -> None:
        self.gateway.authenticate_no_more(self.listener)

    def add_user(self, user: str, password: str, **options: bool) -> None:
        self.gateway.add_user(user, password, self.listener, **options)

    def delete_user(self, user: str) -> None:
        self.gateway.delete_user(user, self.listener)

    def raw(self) -> Nats:
        return self.gateway.raw(self.address)

    def nats(self, **fields: object) -> Nats:
        return self.gateway.nats(self.address, **fields)

    def attempt(self, **fields: object) -> Nats:
        connection = self.raw()
        connection.login(**fields)
        return connection


def test_built_in_database(protected: Protected, name: str):
    protected.by(BUILT_IN_DATABASE).add_user("anne", "secret")
    with protected.nats(user="anne", **{"pass": "secret"}) as client:
        client.subscribe(name).publish(name, b"x")
        assert client.message().payload == b"x"
    refused(protected.attempt(user="anne", **{"pass": "wrong"}))
    refused(protected.attempt(user="bert", **{"pass": "secret"}))
    refused(protected.attempt())
    protected.delete_user("anne")
    refused(protected.attempt(user="anne", **{"pass": "secret"}))
    # none configured any more
    protected.no_more()
    with protected.raw() as client:
        open_to_anybody(client, name)


def test_info_tells_that_a_login_is_required(protected: Protected):
    protected.by(BUILT_IN_DATABASE)
    with protected.raw() as client:
        assert client.info["auth_required"] is True


@pytest.mark.parametrize("what", ["PUB", "SUB", "PING", "HPUB", "UNSUB"])
def test_nothing_before_the_login(protected: Protected, name: str, what: str):
    protected.by(BUILT_IN_DATABASE).add_user("anne", "secret")
    operations = {
        "PUB": f"PUB {name} 1\r\nx\r\n",
        "HPUB": f"HPUB {name} 12 13\r\nNATS/1.0\r\n\r\nx\r\n",
        "SUB": f"SUB {name} 1\r\n",
        "UNSUB": "UNSUB 1\r\n",
        "PING": "PING\r\n",
    }
    with protected.gateway.mqtt() as mqtt, protected.raw() as client:
        mqtt.subscribe(name)
        client.send(operations[what])
        client.rejected(VIOLATION)
        mqtt.publish(name, b"the only one")
        assert mqtt.message().payload == b"the only one"


def test_what_comes_with_a_refused_login_is_not_done(protected: Protected, name: str):
    """One chunk: CONNECT, and a message behind it."""
    protected.by(BUILT_IN_DATABASE)
    with protected.gateway.mqtt() as mqtt, protected.raw() as client:
        mqtt.subscribe(name)
        client.send(f'CONNECT {{"user":"x","pass":"y","verbose":false}}\r\nPUB {name} 1\r\nx\r\n')
        client.rejected(VIOLATION)
        mqtt.publish(name, b"the only one")
        assert mqtt.message().payload == b"the only one"


def test_a_client_that_does_not_log_in_is_not_listed(protected: Protected):
    protected.by(BUILT_IN_DATABASE)
    with protected.raw() as client:
        port = int(client.peername.rpartition(":")[2])
        assert not [one for one in protected.gateway.clients() if one["port"] == port]


@pytest.mark.plugin
def test_authentication_timeout(protected: Protected):
    """2 seconds, unless the plugin's page says something else."""
    protected.by(BUILT_IN_DATABASE)
    with protected.raw() as client:
        began = time.monotonic()
        client.expect(b"-ERR 'Authentication Timeout'\r\n", deadline=6)
        client.closed()
        assert time.monotonic() - began > 1


def test_http(protected: Protected):
    with HttpAuthority() as authority:
        protected.by(authority.authenticator)
        authority.answers["anne"] = {"result": "allow"}
        fields = {"user": "anne", "pass": "secret", "name": unique()}
        with protected.nats(**fields):
            assert authority.requests[-1] == {
                "username": "anne",
                "password": "secret",
                "clientid": fields["name"],
                "peerhost": "127.0.0.1",
            }
        refused(protected.attempt(user="bert", **{"pass": "secret"}))
        # a service that does not answer lets nobody in; EMQX 6 remembers its answers for the same client
        authority.answers["anne"] = {"result": "ignore"}
        refused(protected.attempt(**fields | {"name": unique()}))


def test_jwt(protected: Protected):
    protected.by(JWT)
    later = int(time.time()) + 600
    with protected.nats(user="anne", **{"pass": jwt(exp=later)}):
        pass
    good = jwt(exp=later)
    refused(protected.attempt(user="anne", **{"pass": good[:-4] + "AAAA"}))
    refused(protected.attempt(user="anne", **{"pass": jwt(exp=int(time.time()) - 10)}))
    refused(protected.attempt(user="anne"))


def test_jwt_claims_are_compared_with_the_client(protected: Protected):
    protected.by(JWT | {"verify_claims": {"sub": "${username}"}})
    later = int(time.time()) + 600
    with protected.nats(user="anne", **{"pass": jwt(exp=later, sub="anne")}):
        pass
    refused(protected.attempt(user="bert", **{"pass": jwt(exp=later, sub="anne")}))


def test_an_expired_login_ends_the_connection(protected: Protected):
    protected.by(JWT)
    began = time.monotonic()
    with protected.nats(user="anne", **{"pass": jwt(exp=int(time.time()) + 2)}) as client:
        client.expect(b"-ERR 'User Authentication Expired'\r\n", deadline=6)
        client.closed()
        assert time.monotonic() - began > 0.5


# --- Where it is, and where not --------------------------------------------------------------------------------------


def test_an_authenticator_of_one_listener_is_none_of_the_others(gateway: Gateway, name: str):
    address = gateway.listen(name)
    gateway.authenticate(BUILT_IN_DATABASE, name)
    with gateway.raw() as other:
        open_to_anybody(other, name)
    with gateway.raw(address) as client:
        client.send(f"PUB {name} 0\r\n\r\n")
        client.rejected(VIOLATION)


def test_enable_authn_false(gateway: Gateway, name: str):
    address = gateway.listen(name, enable_authn=False)
    gateway.authenticate(BUILT_IN_DATABASE)
    with gateway.raw(address) as client:
        open_to_anybody(client, name)
    with gateway.nats(address, user="nobody", **{"pass": "nothing"}):
        pass
    refused_by_the_gateway = gateway.raw()
    refused_by_the_gateway.login(user="nobody", **{"pass": "nothing"})
    refused(refused_by_the_gateway)


def test_an_authenticator_that_comes_later_leaves_clients_alone(gateway: Gateway, name: str):
    """As with MQTT: who is in, is in; who comes, must log in."""
    with gateway.nats() as before:
        before.subscribe(name)
        gateway.authenticate(BUILT_IN_DATABASE)
        gateway.add_user("anne", "secret")
        with gateway.nats(user="anne", **{"pass": "secret"}) as after:
            after.publish(name, b"x")
            assert before.message().payload == b"x"
        with gateway.raw() as client:
            client.send("PING\r\n")
            client.rejected(VIOLATION)


def test_a_changed_authenticator_holds_at_once(gateway: Gateway):
    later = int(time.time()) + 600
    gateway.authenticate(JWT)
    gateway.rest.put("/gateways/nats/authentication", JWT | {"secret": "another secret that is long enough"})
    refused_now = gateway.raw()
    refused_now.login(user="anne", **{"pass": jwt(exp=later)})
    refused(refused_now)
    gateway.rest.put("/gateways/nats/authentication", JWT)
    with gateway.nats(user="anne", **{"pass": jwt(exp=later)}):
        pass


def test_a_disabled_authenticator_asks_for_nothing(gateway: Gateway, name: str):
    gateway.authenticate(BUILT_IN_DATABASE | {"enable": False})
    with gateway.raw() as client:
        open_to_anybody(client, name)


def test_a_second_login_is_checked_too(gateway: Gateway):
    gateway.authenticate(BUILT_IN_DATABASE)
    gateway.add_user("anne", "secret")
    with gateway.nats(user="anne", **{"pass": "secret"}) as client:
        client.login(user="anne", **{"pass": "wrong"})
        client.rejected(VIOLATION)


# --- Banned and flapping ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["clientid", "username", "peerhost"])
def test_banned(gateway: Gateway, name: str, what: str):
    gateway.settings(**NAMED)
    who = "127.0.0.9" if what == "peerhost" else name
    source = "127.0.0.9" if what == "peerhost" else None
    gateway.undo("DELETE", f"/banned/{what}/{who}")
    with Nats(gateway.address, source=source) as before:
        before.connect(name=name, user=name)
    gateway.rest.post("/banned", {"as": what, "who": who, "reason": "test"})
    with Nats(gateway.address, source=source) as client:
        client.login(name=name, user=name)
        client.send(f"PUB {name} 0\r\n\r\nPING\r\n")
        assert client.rest() in (b"", f"-ERR '{VIOLATION}'\r\n".encode())
    # others are not
    with gateway.nats(name=unique(), user=unique()):
        pass
    gateway.rest.delete(f"/banned/{what}/{who}")
    with Nats(gateway.address, source=source) as after:
        after.connect(name=name, user=name)


def test_flapping(gateway: Gateway, name: str):
    """A client that comes and goes all the time is banned."""
    gateway.settings(**NAMED)
    gateway.undo("DELETE", f"/banned/clientid/{name}")
    flapping = {"enable": True, "window_time": "1m", "max_count": 3, "ban_time": "1m"}
    with rest_change(gateway.rest, "/configs/global_zone", {"flapping_detect": flapping}):
        for _ in range(3):
            gateway.nats(name=name).close()
            gateway.forgotten(name)

        def banned() -> list[dict]:
            return [one for one in gateway.rest.get("/banned")["data"] if one["who"] == name]

        assert wait_until(banned, "the client is banned")[0]["as"] == "clientid"
        with gateway.raw() as client:
            client.login(name=name)
            assert client.rest() in (b"", f"-ERR '{VIOLATION}'\r\n".encode())
