"""Unmodified nats.go: the scenarios are in nats_go/main.go."""

from __future__ import annotations

import pytest

from clients.mqtt import exchange_words
from clients.program import Program
from clients.stack import DENIED, MAX_PAYLOAD, PASSWORD, USER, Stack


@pytest.mark.parametrize(
    "scenario",
    [
        "messages",
        "queue_groups",
        "requests",
        "no_responders",
        "headers",
        "drain",
        "unsubscribe_max",
        "largest_payload",
    ],
)
def test_exchange(nats_go: Program, stack: Stack, subject: str, scenario: str):
    nats_go.run(scenario, url=stack.url, subject=subject, maxPayload=MAX_PAYLOAD)


def test_login(nats_go: Program, login: Stack, subject: str):
    nats_go.run("login", url=login.url, subject=subject, user=USER, password=PASSWORD)


@pytest.mark.parametrize("user, password", [(USER, "wrong"), ("mallory", PASSWORD)])
def test_bad_login(nats_go: Program, login: Stack, subject: str, user: str, password: str):
    nats_go.run("bad_login", url=login.url, subject=subject, user=user, password=password)


def test_denied_subscribe(nats_go: Program, restricted: Stack, subject: str):
    nats_go.run("denied_subscribe", url=restricted.url, subject=subject, user=USER, password=PASSWORD, denied=DENIED)


def test_words_in_user_properties(nats_go: Program, bridge: Stack, subject: str):
    exchange_words(nats_go, bridge.url, bridge.mqtt, subject)
