"""The `ssl` listeners of the NATS page: every way a client may begin TLS, certificates both ways, and changes over REST."""

from __future__ import annotations

import hashlib
import socket
import ssl
import struct
import time
from pathlib import Path

import pytest

from certificates import Authority, Certificate, client_context
from emqx.gateway import NAMED, Gateway
from emqx.http_auth import HttpAuthority
from emqx.nats import Address, Nats, NatsFailure
from emqx.node import Node, wait_until
from emqx.page import Page
from ports import HOST, free_port, is_free

pytestmark = pytest.mark.plugin


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def server(authority: Authority) -> Certificate:
    return authority.server()


@pytest.fixture
def trusting(server: Certificate) -> ssl.SSLContext:
    return client_context(server.cafile)


def pem(path: str) -> str:
    return Path(path).read_text()


def options(server: Certificate, **more: object) -> dict:
    """As the dashboard sends them: the text of the files."""
    return {"certfile": pem(server.certfile), "keyfile": pem(server.keyfile), "cacertfile": pem(server.cafile)} | more


def listen(gateway: Gateway, name: str, ssl_options: dict, **more: object) -> Address:
    return gateway.listen(name, "ssl", ssl_options=ssl_options, **more)


def fingerprint(certificate: bytes) -> str:
    return hashlib.sha256(certificate).hexdigest()


def shown(server: Certificate) -> str:
    return fingerprint(ssl.PEM_cert_to_DER_cert(pem(server.certfile)))


def refused(address: Address, context: ssl.SSLContext, **how: object) -> bool:
    """With TLS 1.3 a client learns after its own part of the handshake that it was refused."""
    try:
        with Nats(address, tls=context, **how) as connection:
            connection.connect()
            return False
    except (NatsFailure, OSError):
        return True


# --- Modes -----------------------------------------------------------------------------------------------------------

# INFO's fields, and who gets in: upgrades after INFO, TLS first, stays in clear.
MODES = {
    # Long enough for a slow machine, which the default wait is not.
    "default": ({"handshake_first_wait": "1s"}, {"tls_required": True}, (True, True, False)),
    "upgrade": ({"tls_mode": "upgrade"}, {"tls_required": True}, (True, False, False)),
    "handshake_first": ({"tls_mode": "handshake_first"}, {"tls_required": True}, (False, True, False)),
    "auto": ({"tls_mode": "auto", "handshake_first_wait": "200ms"}, {"tls_required": True}, (True, True, False)),
    "optional": ({"tls_mode": "upgrade", "allow_non_tls": True}, {"tls_available": True}, (True, False, True)),
    "all": (
        {"tls_mode": "auto", "allow_non_tls": True, "handshake_first_wait": "200ms"},
        {"tls_available": True},
        (True, True, True),
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes(gateway: Gateway, page: Page, name: str, server: Certificate, trusting: ssl.SSLContext, mode: str):
    changes, info, (upgrade, first, clear) = MODES[mode]
    page.change(**changes)
    address = listen(gateway, name, options(server, handshake_timeout="1s"))
    assert gateway.listener(name)["status"]["running"] is True
    if upgrade:
        with gateway.nats(address, trusting) as client:
            assert {key: client.info[key] for key in client.info if key.startswith("tls_")} == info
            exchange(client, name)
    else:
        assert refused(address, trusting)
    if first:
        with gateway.nats(address, trusting, tls_first=True) as client:
            assert client.info["tls_required"] is True
            exchange(client, name)
    else:
        assert refused(address, trusting, tls_first=True)
    if clear:
        with gateway.nats(address) as client:
            exchange(client, name)
    elif upgrade:
        with gateway.raw(address) as client:
            client.login()
            client.closed()


def test_clients_of_the_built_in_are_served_on(
    gateway: Gateway, node: Node, package: Path, name: str, server: Certificate, trusting: ssl.SSLContext
):
    """They shake hands first; nothing of the page is changed."""
    address = listen(gateway, name, options(server))
    with node.stopped_plugin(package):
        wait_until(lambda: gateway.served(by_us=False), "the built-in serves")
        with gateway.nats(address, trusting, tls_first=True) as client:
            exchange(client, name)
        assert refused(address, trusting)
    wait_until(gateway.served, "the plugin serves again")
    # On a busy machine somebody who shakes hands first may come too late once.
    wait_until(lambda: not refused(address, trusting, tls_first=True), "who shakes hands first is served")
    with gateway.nats(address, trusting) as client:
        exchange(client, name)


def exchange(client: Nats, name: str) -> None:
    client.subscribe(f"{name}.>")
    payload = bytes(range(256)) * 800
    client.publish(f"{name}.big", payload)
    assert client.message().payload == payload


def test_counts_and_the_row_of_a_client(gateway: Gateway, name: str, server: Certificate, trusting: ssl.SSLContext):
    gateway.settings(**NAMED)
    address = listen(gateway, name, options(server))
    with gateway.nats(address, trusting, name=name) as client:
        row = gateway.known(name)
        assert row["connected"] is True and row["ip_address"] == HOST
        status = gateway.listener(name)["status"]
        assert (status["running"], status["current_connections"]) == (True, 1)
        overview = next(one for one in gateway.rest.get("/gateways") if one["name"] == "nats")
        assert {"id": f"nats:ssl:{name}", "name": name, "running": True, "type": "ssl"} in overview["listeners"]
        exchange(client, name)
        gateway.kick(name)
        client.closed()
    wait_until(lambda: gateway.listener(name)["status"]["current_connections"] == 0, "no connection is counted")


def test_messages_to_and_from_mqtt(gateway: Gateway, name: str, server: Certificate, trusting: ssl.SSLContext):
    address = listen(gateway, name, options(server))
    with gateway.nats(address, trusting) as client, gateway.mqtt() as mqtt:
        client.subscribe(f"{name}.down")
        mqtt.subscribe(f"{name}/up")
        mqtt.publish(f"{name}/down", b"1")
        assert client.message().payload == b"1"
        client.publish(f"{name}.up", b"2")
        assert mqtt.message().payload == b"2"


@pytest.mark.parametrize("version", ["tlsv1.2", "tlsv1.3"])
def test_versions(gateway: Gateway, name: str, server: Certificate, version: str):
    address = listen(gateway, name, options(server, versions=[version]))
    spoken = {"tlsv1.2": ssl.TLSVersion.TLSv1_2, "tlsv1.3": ssl.TLSVersion.TLSv1_3}
    for other, number in spoken.items():
        context = client_context(server.cafile)
        context.minimum_version = context.maximum_version = number
        assert refused(address, context) == (other != version)


# --- Behind a proxy --------------------------------------------------------------------------------------------------


def test_proxy_protocol_comes_before_tls(gateway: Gateway, page: Page, name: str, server: Certificate,
                                         trusting: ssl.SSLContext):
    gateway.settings(**NAMED)
    header = b"PROXY TCP4 192.0.2.7 127.0.0.1 5555 4222\r\n"
    for mode in ("upgrade", "auto"):
        page.change(tls_mode=mode)
        address = listen(gateway, f"{name}{mode}", options(server), proxy_protocol=True)
        for first in (False, True) if mode == "auto" else (False,):
            with gateway.nats(address, trusting, tls_first=first, proxy=header, name=name) as client:
                assert client.info["client_ip"] == "192.0.2.7"
                row = gateway.known(name)
                assert (row["ip_address"], row["port"]) == ("192.0.2.7", 5555)
                exchange(client, name)
            gateway.forgotten(name)


# What the proxy says of the certificate: TLS, shown on this connection, shown in this session; and 0 is verified.
@pytest.mark.parametrize(
    ("client", "verify", "user"),
    [(7, 0, "alice"), (3, 0, "alice"), (5, 0, "alice"), (1, 0, "mallory"), (7, 1, "mallory")],
)
def test_a_certificate_that_a_proxy_has_verified(
    gateway: Gateway, page: Page, name: str, client: int, verify: int, user: str
):
    """TLS ends at the proxy, which tells the name (PROXY protocol 2): on a tcp listener."""
    gateway.settings(**NAMED)
    page.change(peer_cert_as_username="cn")
    address = gateway.listen(name, proxy_protocol=True)
    fields = bytes((client,)) + struct.pack(">I", verify) + b"\x22" + struct.pack(">H", 5) + b"alice"
    extra = b"\x20" + struct.pack(">H", len(fields)) + fields
    places = socket.inet_aton("192.0.2.7") + socket.inet_aton(HOST) + struct.pack(">HH", 5555, 4222)
    header = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11" + struct.pack(">H", len(places + extra)) + places + extra
    with gateway.nats(address, proxy=header, name=name, user="mallory"):
        assert gateway.known(name)["username"] == user


# --- Certificates of clients -----------------------------------------------------------------------------------------


def test_a_required_certificate(gateway: Gateway, name: str, authority: Authority, server: Certificate, tmp_path: Path):
    address = listen(gateway, name, options(server, verify="verify_peer", fail_if_no_peer_cert=True))
    own = authority.issue("anne")
    stranger = Authority(tmp_path).issue("anne")
    with gateway.nats(address, client_context(server.cafile, own)) as client:
        assert client.info["tls_verify"] is True
        exchange(client, name)
    assert refused(address, client_context(server.cafile))
    assert refused(address, client_context(server.cafile, stranger))


def test_an_optional_certificate(gateway: Gateway, name: str, authority: Authority, server: Certificate, tmp_path: Path):
    address = listen(gateway, name, options(server, verify="verify_peer", fail_if_no_peer_cert=False))
    stranger = Authority(tmp_path).issue("anne")
    with gateway.nats(address, client_context(server.cafile, authority.issue("anne"))) as client:
        exchange(client, name)
    with gateway.nats(address, client_context(server.cafile)) as client:
        exchange(client, name)
    assert refused(address, client_context(server.cafile, stranger))


SUBJECT = "/C=DE/O=A, B/OU=Field\\+Office/CN=anne"
SAN = ("email:anne@example.org", "DNS:anne.example.org", "URI:spiffe://example.org/anne")


@pytest.mark.parametrize(
    ("which", "username"),
    [
        ("disabled", "mallory"),
        ("cn", "anne"),
        ("dn", "CN=anne,OU=Field\\+Office,O=A\\, B,C=DE"),
        ("san_email", "anne@example.org"),
        ("san_dns", "anne.example.org"),
        ("san_uri", "spiffe://example.org/anne"),
    ],
)
def test_a_certificate_as_user_name(gateway: Gateway, page: Page, name: str, authority: Authority,
                                    server: Certificate, which: str, username: str):
    gateway.settings(**NAMED)
    page.change(peer_cert_as_username=which)
    own = authority.issue("named", SUBJECT, SAN)
    address = listen(gateway, name, options(server, verify="verify_peer"))
    with gateway.nats(address, client_context(server.cafile, own), name=name, user="mallory"):
        assert gateway.known(name)["username"] == username
    # without a certificate it is what CONNECT says
    with gateway.nats(address, client_context(server.cafile), name=f"{name}b", user="bert"):
        assert gateway.known(f"{name}b")["username"] == "bert"


def test_authentication_sees_the_certificate(gateway: Gateway, page: Page, name: str, authority: Authority,
                                             server: Certificate):
    """${cert_subject} and ${cert_common_name} are EMQX's; ours is the same name."""
    page.change(peer_cert_as_username="dn")
    own = authority.issue("named", SUBJECT, SAN)
    address = listen(gateway, name, options(server, verify="verify_peer"))
    dn = "CN=anne,OU=Field\\+Office,O=A\\, B,C=DE"
    with HttpAuthority() as service:
        service.answers[dn] = {"result": "allow"}
        body = {"username": "${username}", "subject": "${cert_subject}", "cn": "${cert_common_name}"}
        gateway.authenticate(service.authenticator | {"body": body})
        with gateway.nats(address, client_context(server.cafile, own), name=name):
            assert service.requests[-1] == {"username": dn, "subject": dn, "cn": "anne"}
        assert refused(address, client_context(server.cafile))


# --- Changes over REST -----------------------------------------------------------------------------------------------


def test_another_certificate_while_clients_are_connected(gateway: Gateway, name: str, authority: Authority,
                                                         server: Certificate, trusting: ssl.SSLContext):
    address = listen(gateway, name, options(server))
    with gateway.nats(address, trusting) as before:
        assert fingerprint(before.server_certificate) == shown(server)
        other = authority.server("other", key="rsa")
        answer = gateway.change_listener(name, address, "ssl", ssl_options=options(other))
        assert answer.status == 200, answer
        with gateway.nats(address, trusting) as after:
            assert fingerprint(after.server_certificate) == shown(other)
            before.subscribe(name)
            after.publish(name, b"x")
            assert before.message().payload == b"x"
        # another option
        answer = gateway.change_listener(
            name, address, "ssl", ssl_options=options(other, verify="verify_peer", fail_if_no_peer_cert=True)
        )
        assert answer.status == 200, answer
        assert refused(address, trusting)
        with gateway.nats(address, client_context(server.cafile, authority.issue("anne"))):
            before.ping()


def test_files_that_change_in_place(gateway: Gateway, name: str, authority: Authority, trusting: ssl.SSLContext):
    """Paths instead of texts: EMQX leaves the files where they are. New handshakes have what is in them."""
    mine = authority.server(name)
    paths = {"certfile": mine.certfile, "keyfile": mine.keyfile, "cacertfile": mine.cafile}
    address = listen(gateway, name, paths)
    with gateway.nats(address, trusting) as before:
        assert fingerprint(before.server_certificate) == shown(mine)
        assert authority.server(name) == mine
        with gateway.nats(address, trusting) as after:
            assert fingerprint(after.server_certificate) == shown(mine)
            assert after.server_certificate != before.server_certificate
        before.ping()


def test_a_password_of_the_key(gateway: Gateway, name: str, authority: Authority, trusting: ssl.SSLContext):
    locked = authority.server("locked", password="open sesame")
    address = listen(gateway, name, options(locked, password="open sesame"))
    with gateway.nats(address, trusting) as client:
        exchange(client, name)


def test_a_wrong_file_is_refused_with_a_clear_error(gateway: Gateway, name: str, authority: Authority,
                                                    server: Certificate, trusting: ssl.SSLContext):
    other = authority.server("other")
    missing = "/nowhere/certificate.pem"
    for wrong, texts in (
        (options(server, keyfile=pem(other.keyfile)), ("keyfile", "is not the key of the certificate in")),
        (options(server) | {"certfile": missing}, ("certfile",)),
        (options(authority.server("locked", password="a")), ("password",)),
        (options(authority.server("locked", password="a"), password="b"), ("password",)),
    ):
        answer = gateway.try_listen(name, (HOST, free_port()), "ssl", ssl_options=wrong)
        assert answer.status == 400, answer
        assert all(text in str(answer) for text in texts), answer
        assert gateway.listener(name) is None
    # A listener that is there stays as it was.
    address = listen(gateway, name, options(server))
    answer = gateway.change_listener(name, address, "ssl", ssl_options=options(server, keyfile=pem(other.keyfile)))
    assert answer.status == 400, answer
    with gateway.nats(address, trusting) as client:
        assert fingerprint(client.server_certificate) == shown(server)


def test_a_removed_listener(gateway: Gateway, name: str, server: Certificate, trusting: ssl.SSLContext):
    address = listen(gateway, name, options(server))
    with gateway.nats(address, trusting, protocol=1) as client, gateway.raw(address) as half_way:
        gateway.remove_listener(name, "ssl")
        assert b'"ldm":true' in client.line()
        client.closed()
        half_way.closed()
    wait_until(lambda: is_free(address[1]), "the port is free")
    assert gateway.listener(name) is None


# --- Noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("noticing")
def test_noise_is_one_line_in_the_log(gateway: Gateway, page: Page, name: str, server: Certificate):
    """Closed without a word; no alert of OTP's TLS, no crash."""
    old = client_context(server.cafile)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    for mode in ("upgrade", "handshake_first", "auto"):
        page.change(tls_mode=mode)
        address = listen(gateway, f"{name}{mode}", options(server, handshake_timeout="1s"))
        for noise in (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x00" * 40, b"\x16\x03\x01\x00\x05hello", b"CONNECT {}\r\nPING\r\n"):
            begin = gateway.node.log_size
            with socket.create_connection(address, 5) as plain:
                if mode != "handshake_first":
                    time.sleep(0.1)
                plain.sendall(noise)
                read_to_the_end(plain)
            line = one_line(gateway, begin, f"nats:ssl:{name}{mode}")
            assert "[notice]" in line, line
        begin = gateway.node.log_size
        assert refused(address, old, tls_first=mode == "handshake_first")
        assert "[notice]" in one_line(gateway, begin, f"nats:ssl:{name}{mode}")


def read_to_the_end(plain: socket.socket) -> None:
    plain.settimeout(5)
    try:
        while plain.recv(4096):
            pass
    except ConnectionResetError:
        pass


def one_line(gateway: Gateway, begin: int, listener: str) -> str:
    """What the log says of it, and that it says nothing else."""
    def lines() -> list[str]:
        return [line for line in gateway.node.log(begin).splitlines() if line.strip()]

    wait_until(lambda: any(listener in line for line in lines()), f"a line of {listener}")
    found = [line for line in lines() if listener in line or "TLS" in line or "crash" in line.lower() or "[error]" in line]
    assert len(found) == 1, found
    return found[0]


def test_a_client_that_stalls_is_closed_silently(gateway: Gateway, name: str, server: Certificate):
    address = listen(gateway, name, options(server, handshake_timeout="1s"))
    for piece in (b"", b"\x16", b"\x16\x03\x01\x01\x00"):
        with gateway.raw(address) as client:
            began = time.monotonic()
            client.send(piece)
            client.closed(deadline=5)
            assert 0.9 < time.monotonic() - began < 3
