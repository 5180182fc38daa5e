"""Unmodified jnats: the scenarios are in jnats/Scenarios.java."""

from __future__ import annotations

import threading

import pytest

from clients.logins import OwnLogin
from clients.mqtt import Mqtt
from clients.program import Program
from clients.secured import Secured
from clients.stack import DENIED, MAX_PAYLOAD, PASSWORD, USER, Stack
from wire.transports import server_certificate

DEADLINE = 40.0
EXCHANGES = ["messages", "queue_groups", "requests", "headers", "drain", "largest_payload"]


@pytest.mark.parametrize("scenario", [*EXCHANGES, "no_responders", "unsubscribe_max"])
def test_exchange(jnats: Program, stack: Stack, subject: str, scenario: str):
    jnats.run(scenario, url=stack.url, subject=subject, maxPayload=MAX_PAYLOAD)


def test_over_tls(jnats: Program, secured: Secured, subject: str):
    jnats.run(",".join(EXCHANGES), DEADLINE, url=secured.url, subject=subject, maxPayload=MAX_PAYLOAD, tls=secured.options)


def test_over_websocket(jnats: Program, websocket: Stack, subject: str):
    tls = {"cafile": server_certificate().cafile} if websocket.scheme == "wss" else None
    jnats.run(",".join(EXCHANGES), DEADLINE, url=websocket.url, subject=subject, maxPayload=MAX_PAYLOAD, tls=tls)


def test_login(jnats: Program, login: Stack, subject: str):
    jnats.run("login", url=login.url, subject=subject, user=USER, password=PASSWORD)


@pytest.mark.parametrize("user, password", [(USER, "wrong"), ("mallory", PASSWORD)])
def test_bad_login(jnats: Program, login: Stack, subject: str, user: str, password: str):
    jnats.run("bad_login", url=login.url, subject=subject, user=user, password=password)


def test_own_login(jnats: Program, own_login: OwnLogin, subject: str):
    jnats.run("login", url=own_login.url, subject=subject, **own_login.kind.right)


def test_own_login_is_refused(jnats: Program, own_login: OwnLogin, subject: str):
    jnats.run("bad_login", url=own_login.url, subject=subject, **own_login.kind.wrong)


def test_denied_subscribe(jnats: Program, restricted: Stack, subject: str):
    jnats.run("denied_subscribe", url=restricted.url, subject=subject, user=USER, password=PASSWORD, denied=DENIED)


def test_words_in_user_properties(jnats: Program, bridge: Stack, subject: str):
    """MQTT clients say them again and again, until jnats has had enough of them."""
    with Mqtt(bridge.mqtt) as mqtt, jnats.start("words", url=bridge.url, subject=subject, maxPayload=MAX_PAYLOAD) as talk:
        done = threading.Event()

        def publish() -> None:
            while not done.wait(0.1):
                mqtt.publish(f"{subject}words", b"words", UserProperty=[("City", "Z\u00fcrich"), ("Plain", "x")])

        publisher = threading.Thread(target=publish)
        publisher.start()
        try:
            talk.finished(DEADLINE)
        finally:
            done.set()
            publisher.join()
