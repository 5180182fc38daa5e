"""A client's certificate says which user it is: whose permissions it has, and who is refused."""

from __future__ import annotations

import json

import pytest

from certificates import client_context

from .servers import TARGETS, Servers, require, servers  # noqa: F401 (a fixture)
from .transports import Transport, authority, server_certificate
from .wire import DEADLINE, Connection

USERS = [
    {"user": "anne.test", "permissions": {"publish": "anne.>"}},
    {"user": "bert.test", "password": "secret", "permissions": {"publish": "bert.>"}},
    {"user": "anne@test", "permissions": {"publish": "mail.>"}},
]
NAMES = {"san_dns": "DNS:{}.test", "san_email": "email:{}@test"}
VIOLATION = b"-ERR 'Authorization Violation'\r\n"
PONG = b"PONG\r\n"

each_target = pytest.mark.parametrize("target", TARGETS)


def login(servers: Servers, target: str, which: str, name: str, **fields: str) -> Connection:  # noqa: F811
    require(target, None)
    own = authority().issue(f"{which}-{name}", san=(NAMES[which].format(name),))
    context = client_context(server_certificate().cafile, own)
    transport = Transport("own", after_info=lambda plain, address: context.wrap_socket(plain, server_hostname=address[0]))
    address = servers.address(target, {"tls": {"verify": True, "user": which}, "users": USERS})
    connection = Connection(address, DEADLINE, transport)
    connection.begin()
    connection.send(b"CONNECT " + json.dumps({"verbose": False, "pedantic": False} | fields).encode() + b"\r\n")
    return connection


def may_publish(connection: Connection, allowed: bytes, denied: bytes) -> None:
    connection.send(b"PUB %s 0\r\n\r\nPUB %s 0\r\n\r\nPING\r\n" % (allowed, denied))
    connection.expect_bytes(b"-ERR 'Permissions Violation for Publish to \"%s\"'\r\n" % denied + PONG)


@each_target
@pytest.mark.parametrize("which, allowed", [("san_dns", b"anne.x"), ("san_email", b"mail.x")])
def test_the_name_of_the_certificate_is_the_user(servers: Servers, target: str, which: str, allowed: bytes):  # noqa: F811
    may_publish(login(servers, target, which, "anne"), allowed, b"bert.x")


@each_target
def test_who_has_a_password_needs_both(servers: Servers, target: str):  # noqa: F811
    may_publish(login(servers, target, "san_dns", "bert", **{"pass": "secret"}), b"bert.x", b"anne.x")
    for fields in ({}, {"pass": "wrong"}, {"user": "bert.test"}):
        connection = login(servers, target, "san_dns", "bert", **fields)
        connection.expect_bytes(VIOLATION)
        connection.expect_closed(probe=False)


@each_target
def test_the_user_of_connect_is_ignored(servers: Servers, target: str):  # noqa: F811
    may_publish(login(servers, target, "san_dns", "anne", user="bert.test"), b"anne.x", b"bert.x")


@each_target
def test_an_unknown_name_is_refused(servers: Servers, target: str):  # noqa: F811
    for fields in ({}, {"user": "bert.test", "pass": "secret"}):
        connection = login(servers, target, "san_dns", "carl", **fields)
        connection.expect_bytes(VIOLATION)
        connection.expect_closed(probe=False)
