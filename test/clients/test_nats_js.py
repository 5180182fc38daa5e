"""Unmodified nats.js, both generations of its package: the scenarios are in nats_js/scenarios.js."""

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
        "queueGroups",
        "requests",
        "requestMany",
        "noResponders",
        "context",
        "headers",
        "drain",
        "drainSubscription",
        "unsubscribeMax",
        "noEcho",
        "largestPayload",
        "payloadOverTheLimit",
    ],
)
def test_exchange(nats_js: Program, stack: Stack, subject: str, scenario: str):
    nats_js.run(scenario, url=stack.url, subject=subject, maxPayload=MAX_PAYLOAD)


def test_reconnect_after_gateway_restart(nats_js: Program, fragile: Stack, subject: str):
    with nats_js.start("reconnect", url=fragile.url, subject=subject) as talk:
        talk.expect("ready")
        fragile.gateway.stop()
        talk.expect("lost", RECONNECT_DEADLINE)
        fragile.gateway.start()
        talk.expect("back", RECONNECT_DEADLINE)
        talk.finished()


def test_reconnect_after_broker_loss(nats_js: Program, fragile_bridge: Stack, subject: str):
    with nats_js.start("reconnect", url=fragile_bridge.url, subject=subject) as talk:
        talk.expect("ready")
        fragile_bridge.broker.stop()
        talk.expect("lost", RECONNECT_DEADLINE)
        fragile_bridge.broker.start()
        talk.expect("back", RECONNECT_DEADLINE)
        talk.finished()


def test_login(nats_js: Program, login: Stack, subject: str):
    nats_js.run("login", url=login.url, subject=subject, user=USER, password=PASSWORD)


@pytest.mark.parametrize("user, password", [(USER, "wrong"), ("mallory", PASSWORD)])
def test_bad_login(nats_js: Program, login: Stack, subject: str, user: str, password: str):
    nats_js.run("badLogin", url=login.url, subject=subject, user=user, password=password)


def test_denied_subscribe(nats_js: Program, restricted: Stack, subject: str):
    nats_js.run("deniedSubscribe", url=restricted.url, subject=subject, user=USER, password=PASSWORD, denied=DENIED)


def test_denied_publish(nats_js: Program, restricted: Stack, subject: str):
    nats_js.run("deniedPublish", url=restricted.url, subject=subject, user=USER, password=PASSWORD, denied=DENIED)
