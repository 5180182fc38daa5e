"""An account's limit of connections: of all its users together, over all transports and for a second CONNECT, too."""

from __future__ import annotations

import time

import pytest

from nats_keys import Key, account_jwt, operator_jwt, user_jwt

from .logins import TOO_MANY_OF_THE_ACCOUNT, by_jwt
from .servers import TARGETS, Servers, require, servers  # noqa: F401 (a fixture)
from .transports import TCP, TLS, WS, Transport
from .wire import Connection

OPERATOR, SMALL, OTHER, USER, COLLEAGUE = (Key(role) for role in ("operator", "account", "account", "user", "user"))
SETTINGS = {"jwt": {
    "operator": operator_jwt(OPERATOR),
    "accounts": {
        SMALL.public: account_jwt(OPERATOR, SMALL, limits={"conn": 2}),
        OTHER.public: account_jwt(OPERATOR, OTHER, limits={"conn": 1}),
    },
}}
PONG = b"PONG\r\n"
DEADLINE = 20.0

each_target = pytest.mark.parametrize("target", TARGETS)


class Client:
    def __init__(self, servers: Servers, target: str, account: Key = SMALL, user: Key = USER, transport: Transport = TCP):  # noqa: F811
        self.connection = Connection(servers.address(target, SETTINGS, transport), DEADLINE, transport)
        self.connection.begin()
        self.log_in(account, user)

    def log_in(self, account: Key, user: Key) -> None:
        self.connection.send(by_jwt(user_jwt(account, user), user)(self.connection.info) + b"PING\r\n")

    def accepted(self) -> Client:
        self.connection.expect_bytes(PONG)
        return self

    def refused(self) -> None:
        self.connection.expect_bytes(TOO_MANY_OF_THE_ACCOUNT)
        self.connection.expect_closed(probe=False)

    def close(self) -> None:
        self.connection.close()


def accepted_at_last(servers: Servers, target: str, account: Key, transport: Transport = TCP) -> Client:  # noqa: F811
    """A server notices the end of a connection some time after the client."""
    until = time.monotonic() + DEADLINE
    while True:
        client = Client(servers, target, account, transport=transport)
        try:
            return client.accepted()
        except AssertionError:
            client.close()
            if time.monotonic() > until:
                raise


@each_target
def test_the_users_of_an_account_share_its_limit(servers: Servers, target: str):  # noqa: F811
    require(target, None)
    first = accepted_at_last(servers, target, SMALL)
    second = Client(servers, target, user=COLLEAGUE).accepted()
    for user in (USER, COLLEAGUE):
        Client(servers, target, user=user).refused()
    # another account has its own
    other = accepted_at_last(servers, target, OTHER)
    Client(servers, target, OTHER).refused()
    first.close()
    third = accepted_at_last(servers, target, SMALL)
    Client(servers, target).refused()
    for client in (second, third, other):
        client.close()


@pytest.mark.parametrize("transport", [TLS, WS], ids=lambda transport: transport.name)
def test_over_another_transport(servers: Servers, transport: Transport):  # noqa: F811
    first = accepted_at_last(servers, "gateway", OTHER, transport)
    Client(servers, "gateway", OTHER, transport=transport).refused()
    first.close()
    accepted_at_last(servers, "gateway", OTHER, transport).close()


def test_a_second_connect_changes_the_account(servers: Servers):  # noqa: F811
    """Of the gateway: nats-server does not look at the credentials of a second CONNECT."""
    client = accepted_at_last(servers, "gateway", OTHER)
    client.log_in(OTHER, COLLEAGUE)
    client.accepted()
    client.log_in(SMALL, USER)
    client.accepted()
    other = Client(servers, "gateway", OTHER).accepted()
    client.log_in(OTHER, USER)
    client.refused()
    for one in (client, other):
        one.close()
