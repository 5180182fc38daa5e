"""The standalone gateway in front of a broker that is reached over TLS."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import Authority, Certificate
from clients.aio import Lifeline, connected, subscribed, within
from clients.conftest import _has_mqtt, _started_here
from clients.stack import REPOSITORY, Server, Stack, mosquitto, speaks_nats
from ports import HOST, free_port

GATEWAY = str(REPOSITORY / "bin" / "nats_gateway")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    _has_mqtt()
    _started_here("a broker behind TLS")
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return authority.server()


def tls_listener(certificate: Certificate, *lines: str) -> str:
    files = {"certfile": certificate.certfile, "keyfile": certificate.keyfile, "cafile": certificate.cafile}
    return "".join(f"{line}\n" for line in ("allow_anonymous true", *(f"{k} {v}" for k, v in files.items()), *lines))


def settings(directory: Path, port: int, broker: Server, host: str, ssl_options: dict) -> str:
    config = directory / "gateway.toml"
    options = "".join(f"{name} = {json.dumps(value)}\n" for name, value in ssl_options.items())
    config.write_text(
        f'[upstream]\nurl = "mqtts://{host}:{broker.address[1]}"\n\n[upstream.ssl_options]\n{options}\n'
        f'[listeners.tcp.default]\nbind = "{HOST}:{port}"\n'
    )
    return str(config)


@contextmanager
def broker_with(directory: Path, access: str) -> Iterator[Server]:
    broker = mosquitto(directory, access)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


@contextmanager
def gateway_with(directory: Path, broker: Server, host: str = "localhost", **ssl_options) -> Iterator[Stack]:
    port = free_port()
    config = settings(directory, port, broker, host, ssl_options)
    gateway = Server("gateway", [GATEWAY, "-c", config], (HOST, port), speaks_nats, directory / "gateway.log")
    gateway.start()
    try:
        yield Stack(gateway, broker)
    finally:
        gateway.stop()


def refused(directory: Path, broker: Server, host: str = "localhost", **ssl_options) -> tuple[int, str]:
    """Its exit status, and the one line that says why it does not start."""
    config = settings(directory, free_port(), broker, host, ssl_options)
    done = subprocess.run([GATEWAY, "-c", config], capture_output=True, text=True, timeout=30)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return done.returncode, lines[0]


async def exchange(stack: Stack) -> None:
    """A request and its answer, with a payload of many TLS records."""
    payload = bytes(range(256)) * 2000
    async with connected(stack.url) as service, connected(stack.url) as client:

        async def answer(message) -> None:
            await message.respond(message.data[::-1])

        await subscribed(service, "svc", cb=answer)
        reply = await within("the answer", client.request("svc", payload, timeout=10))
        assert reply.data == payload[::-1]


@pytest.mark.parametrize("host", ["localhost", HOST])
@pytest.mark.parametrize("version", ["tlsv1.2", "tlsv1.3"])
async def test_messages_cross(tmp_path: Path, certificate: Certificate, version: str, host: str):
    with broker_with(tmp_path, tls_listener(certificate, f"tls_version {version}")) as broker:
        options = {"cacertfile": certificate.cafile, "versions": [version]}
        with gateway_with(tmp_path, broker, host, **options) as stack:
            await exchange(stack)


async def test_the_gateway_shows_a_certificate_to_the_broker(
    tmp_path: Path, authority: Authority, certificate: Certificate
):
    own = authority.issue("gateway", key="rsa", password="not to be shown")
    access = tls_listener(certificate, "require_certificate true")
    with broker_with(tmp_path, access) as broker:
        options = {
            "cacertfile": certificate.cafile, "certfile": own.certfile, "keyfile": own.keyfile, "password": own.password
        }
        with gateway_with(tmp_path, broker, **options) as stack:
            await exchange(stack)
            assert own.password not in stack.gateway.log()


async def test_clients_are_closed_and_come_back_when_the_broker_does(tmp_path: Path, certificate: Certificate):
    with broker_with(tmp_path, tls_listener(certificate)) as broker:
        with gateway_with(tmp_path, broker, cacertfile=certificate.cafile) as stack:
            lifeline = Lifeline()
            async with connected(stack.url, **lifeline.options()):
                broker.kill()
                await lifeline.was_lost()
                broker.start()
                await lifeline.came_back()
            await exchange(stack)


def test_a_broker_that_is_not_to_be_trusted(tmp_path: Path, certificate: Certificate):
    other = Authority(tmp_path / "other", "other")
    with broker_with(tmp_path, tls_listener(certificate)) as broker:
        status, line = refused(tmp_path, broker, cacertfile=other.certfile)
        assert status == 69 and "no MQTT broker at localhost" in line and "TLS: Unknown CA" in line, line


async def test_a_broker_that_is_not_verified(tmp_path: Path, certificate: Certificate):
    with broker_with(tmp_path, tls_listener(certificate)) as broker:
        with gateway_with(tmp_path, broker, verify="verify_none") as stack:
            await exchange(stack)


async def test_the_name_in_the_certificate(tmp_path: Path, authority: Authority):
    named = authority.issue("named", san=("DNS:broker.example",))
    with broker_with(tmp_path, tls_listener(named)) as broker:
        status, line = refused(tmp_path, broker, cacertfile=named.cafile)
        assert status == 69 and "ostname" in line, line
        options = {"cacertfile": named.cafile, "server_name_indication": "broker.example"}
        with gateway_with(tmp_path, broker, **options) as stack:
            await exchange(stack)


@pytest.mark.parametrize("name", ["cacertfile", "certfile"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, certificate: Certificate, name: str):
    options = {"cacertfile": certificate.cafile} | {name: str(tmp_path / "none.pem")}
    with broker_with(tmp_path, tls_listener(certificate)) as broker:
        status, line = refused(tmp_path, broker, **options)
    assert status == 78 and f"upstream.ssl_options.{name}: " in line and "none.pem: no such file" in line, line


def test_a_broker_without_tls(tmp_path: Path, certificate: Certificate):
    with broker_with(tmp_path, "allow_anonymous true\n") as broker:
        status, line = refused(tmp_path, broker, cacertfile=certificate.cafile)
    assert status == 69 and "no MQTT broker at localhost" in line and "TLS" in line, line
