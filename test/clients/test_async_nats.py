"""Unmodified async-nats: the scenarios are in async_nats/src/main.rs."""

from __future__ import annotations

import pytest

from clients.program import Program
from clients.stack import DENIED, MAX_PAYLOAD, PASSWORD, USER, Stack

RECONNECT_DEADLINE = 15.0


@pytest.mark.parametrize(
    "scenario",
    [
        "messages",
        "wildcards",
        "queue_groups",
        "requests",
        "no_responders",
        "headers",
        "drain",
        "drain_subscription",
        "unsubscribe_max",
        "no_echo",
        "largest_payload",
    ],
)
def test_exchange(async_nats: Program, stack: Stack, subject: str, scenario: str):
    async_nats.run(scenario, url=stack.url, subject=subject, maxPayload=MAX_PAYLOAD)


def test_reconnect_after_gateway_restart(async_nats: Program, fragile: Stack, subject: str):
    with async_nats.start("reconnect", url=fragile.url, subject=subject) as talk:
        talk.expect("ready")
        fragile.gateway.stop()
        talk.expect("lost", RECONNECT_DEADLINE)
        fragile.gateway.start()
        talk.expect("back", RECONNECT_DEADLINE)
        talk.finished()


def test_reconnect_after_broker_loss(async_nats: Program, fragile_bridge: Stack, subject: str):
    with async_nats.start("reconnect", url=fragile_bridge.url, subject=subject) as talk:
        talk.expect("ready")
        fragile_bridge.broker.stop()
        talk.expect("lost", RECONNECT_DEADLINE)
        fragile_bridge.broker.start()
        talk.expect("back", RECONNECT_DEADLINE)
        talk.finished()


def test_login(async_nats: Program, login: Stack, subject: str):
    async_nats.run("login", url=login.url, subject=subject, user=USER, password=PASSWORD)


@pytest.mark.parametrize("user, password", [(USER, "wrong"), ("mallory", PASSWORD)])
def test_bad_login(async_nats: Program, login: Stack, subject: str, user: str, password: str):
    async_nats.run("bad_login", url=login.url, subject=subject, user=user, password=password)


def test_denied_subscribe(async_nats: Program, restricted: Stack, subject: str):
    options = {"user": USER, "password": PASSWORD, "denied": DENIED}
    async_nats.run("denied_subscribe", url=restricted.url, subject=subject, **options)
