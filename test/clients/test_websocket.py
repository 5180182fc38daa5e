"""Every client over WebSocket, in clear and over TLS; and one as a browser is."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect

from certificates import client_context
from clients.aio import Lifeline, barrier, connected, exchanged, subscribed, take
from clients.command import exchange
from clients.program import Program
from clients.stack import MAX_PAYLOAD, Stack
from wire.transports import server_certificate

RECONNECT_DEADLINE = 15.0


def trusting(stack: Stack) -> ssl.SSLContext | None:
    return client_context(server_certificate().cafile) if stack.scheme == "wss" else None


# --- Client libraries ------------------------------------------------------------------------------------------------


async def test_nats_py(websocket: Stack, subject: str):
    tls = {"tls": context} if (context := trusting(websocket)) else {}
    async with connected(websocket.url, **tls) as publisher, connected(websocket.url, verbose=True, **tls) as receiver:
        await exchanged(publisher, receiver, subject, headers={"a": "b"})


async def test_nats_py_reconnects(websocket: Stack, subject: str):
    tls = {"tls": context} if (context := trusting(websocket)) else {}
    lifeline = Lifeline()
    async with connected(websocket.url, **lifeline.options(), **tls) as nc:
        sub = await subscribed(nc, subject)
        websocket.gateway.stop()
        await lifeline.was_lost()
        websocket.gateway.start()
        await lifeline.came_back()
        await barrier(nc)
        await nc.publish(subject, b"again")
        assert [message.data for message in await take(sub, 1)] == [b"again"]


@pytest.mark.parametrize(
    "scenario",
    ["messages", "wildcards", "queueGroups", "requests", "noResponders", "headers", "drain", "noEcho", "largestPayload"],
)
def test_nats_js(nats_js_ws: Program, websocket: Stack, subject: str, scenario: str):
    nats_js_ws.run(scenario, url=websocket.url, subject=subject, maxPayload=MAX_PAYLOAD)


def test_nats_js_reconnects(nats_js_ws: Program, websocket: Stack, subject: str):
    with nats_js_ws.start("reconnect", url=websocket.url, subject=subject) as talk:
        talk.expect("ready")
        websocket.gateway.stop()
        talk.expect("lost", RECONNECT_DEADLINE)
        websocket.gateway.start()
        talk.expect("back", RECONNECT_DEADLINE)
        talk.finished()


@pytest.mark.parametrize(
    "scenario",
    ["messages", "wildcards", "queue_groups", "requests", "no_responders", "headers", "drain", "no_echo", "largest_payload"],
)
def test_async_nats(async_nats: Program, websocket: Stack, subject: str, scenario: str):
    tls = {"cafile": server_certificate().cafile} if websocket.scheme == "wss" else None
    async_nats.run(scenario, url=websocket.url, subject=subject, maxPayload=MAX_PAYLOAD, tls=tls)


@pytest.mark.parametrize("scenario", ["messages", "queue_groups", "requests", "headers", "drain", "largest_payload"])
def test_nats_go(nats_go: Program, websocket: Stack, subject: str, scenario: str):
    """Without compression: nats.go loses its place between compressed frames that come together, of nats-server's, too."""
    tls = {"cafile": server_certificate().cafile} if websocket.scheme == "wss" else {}
    nats_go.run(scenario, url=websocket.url, subject=subject, maxPayload=MAX_PAYLOAD, tls=tls)


def test_nats_cli(nats_cli: Path, websocket: Stack, subject: str, tmp_path: Path):
    trusted = ["--tlsca", server_certificate().cafile] if websocket.scheme == "wss" else []
    exchange(nats_cli, tmp_path, ["--server", websocket.url, *trusted], subject)


# --- As a browser ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def page(stack: Stack, origin: str | None = None, **options: object) -> AsyncIterator[ClientConnection]:
    """It says where it is from, offers compression, and takes nothing that RFC 6455 does not allow."""
    url = stack.url
    browser = {"origin": origin or url.replace("ws", "http", 1), "user_agent_header": "Mozilla/5.0"} | options
    async with connect(url, ssl=trusting(stack), max_size=None, **browser) as socket:
        yield socket


async def test_page(websocket: Stack, subject: str):
    async with page(websocket) as socket:
        (deflate,) = socket.protocol.extensions
        assert deflate.name == "permessage-deflate"
        info = await socket.recv()
        assert isinstance(info, bytes) and json.loads(info[5:])["max_payload"] == MAX_PAYLOAD
        await socket.send('CONNECT {"verbose":false}\r\nPING\r\n')
        assert await socket.recv() == b"PONG\r\n"
        text = "grüezi " * 1000
        payload = text.encode()
        # text, in pieces
        await socket.send([f"SUB {subject} 1\r\n", f"PUB {subject} ", f"{len(payload)}\r\n", text, "\r\n"])
        expected = b"MSG %b 1 %d\r\n%b\r\n" % (subject.encode(), len(payload), payload)
        received = b""
        while len(received) < len(expected):
            received += await socket.recv()
        assert received == expected
        await (await socket.ping(b"are you there"))
    assert (socket.close_code, socket.close_reason) == (1000, "")


async def test_page_without_compression(websocket: Stack):
    async with page(websocket, compression=None) as socket:
        assert socket.protocol.extensions == []
        assert (await socket.recv()).startswith(b"INFO ")


async def test_page_from_elsewhere(websocket: Stack):
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with page(websocket, origin="https://evil.example"):
            pass
    assert refused.value.response.status_code == 403


async def test_page_that_makes_a_mistake(websocket: Stack):
    async with page(websocket) as socket:
        await socket.recv()
        await socket.send("nonsense\r\n")
        assert await socket.recv() == b"-ERR 'Unknown Protocol Operation'\r\n"
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            await socket.recv()
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1002, "Protocol Violation")
