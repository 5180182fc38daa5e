"""Every client over TLS: started after INFO, started first, and with a certificate of the client's own."""

from __future__ import annotations

import ssl
from pathlib import Path

import nats
import pytest

from certificates import client_context
from clients.aio import connected, exchanged
from clients.command import exchange
from clients.program import Program
from clients.secured import Secured
from clients.stack import MAX_PAYLOAD


async def test_nats_py(secured: Secured, subject: str):
    # A tls:// URL is what nats-py wants where TLS comes first; otherwise it follows INFO.
    url = secured.url.replace("nats://", "tls://") if secured.first else secured.url
    async with connected(url, **secured.nats_py()) as publisher, connected(url, **secured.nats_py()) as receiver:
        await exchanged(publisher, receiver, subject)


async def test_nats_py_that_trusts_somebody_else(secured: Secured):
    if not secured.required:
        pytest.skip("nats-py does not start TLS where it need not")
    context = client_context()
    context.verify_mode = ssl.CERT_REQUIRED
    url = secured.url.replace("nats://", "tls://") if secured.first else secured.url
    with pytest.raises(Exception, match="(?i)certificate verify failed|no servers available"):
        await nats.connect(
            url, **secured.nats_py() | {"tls": context, "allow_reconnect": False, "connect_timeout": 5}
        )


@pytest.mark.parametrize("scenario", ["messages", "queueGroups", "requests", "headers", "drain", "largestPayload"])
def test_nats_js(nats_js: Program, secured: Secured, subject: str, scenario: str):
    nats_js.run(scenario, url=secured.url, subject=subject, maxPayload=MAX_PAYLOAD, tls=secured.options)


@pytest.mark.parametrize("scenario", ["messages", "queue_groups", "requests", "headers", "drain", "largest_payload"])
def test_async_nats(async_nats: Program, secured: Secured, subject: str, scenario: str):
    async_nats.run(scenario, url=secured.url, subject=subject, maxPayload=MAX_PAYLOAD, tls=secured.options)


@pytest.mark.parametrize("scenario", ["messages", "queue_groups", "requests", "headers", "drain", "largest_payload"])
def test_nats_go(nats_go: Program, secured: Secured, subject: str, scenario: str):
    nats_go.run(scenario, url=secured.url, subject=subject, maxPayload=MAX_PAYLOAD, tls=secured.options)


def test_nats_cli(nats_cli: Path, secured: Secured, subject: str, tmp_path: Path):
    options = ["--server", secured.url, "--tlsca", secured.options["cafile"]]
    if secured.first:
        options.append("--tlsfirst")
    if secured.own:
        options += ["--tlscert", secured.own.certfile, "--tlskey", secured.own.keyfile]
    exchange(nats_cli, tmp_path, options, subject)
