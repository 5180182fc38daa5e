"""Unmodified libnats, the client for C: the scenarios are in libnats_scenarios.py. It knows no WebSocket."""

from __future__ import annotations

import pytest

from clients.logins import OwnLogin
from clients.mqtt import exchange_words
from clients.program import Program
from clients.secured import Secured
from clients.stack import DENIED, MAX_PAYLOAD, PASSWORD, USER, Stack

EXCHANGES = ["messages", "queue_groups", "requests", "headers", "drain", "largest_payload"]


@pytest.mark.parametrize("scenario", [*EXCHANGES, "no_responders", "unsubscribe_max"])
def test_exchange(libnats: Program, stack: Stack, subject: str, scenario: str):
    libnats.run(scenario, url=stack.url, subject=subject, maxPayload=MAX_PAYLOAD)


@pytest.mark.parametrize("scenario", EXCHANGES)
def test_over_tls(libnats: Program, secured: Secured, subject: str, scenario: str):
    if secured.first:
        pytest.skip("the libnats of Debian 12 does not start TLS first")
    if not secured.required:
        pytest.skip("nor where it need not")
    libnats.run(scenario, url=secured.url, subject=subject, maxPayload=MAX_PAYLOAD, tls=secured.options)


def test_login(libnats: Program, login: Stack, subject: str):
    libnats.run("login", url=login.url, subject=subject, user=USER, password=PASSWORD)


@pytest.mark.parametrize("user, password", [(USER, "wrong"), ("mallory", PASSWORD)])
def test_bad_login(libnats: Program, login: Stack, subject: str, user: str, password: str):
    libnats.run("bad_login", url=login.url, subject=subject, user=user, password=password)


def test_own_login(libnats: Program, own_login: OwnLogin, subject: str):
    libnats.run("login", url=own_login.url, subject=subject, **own_login.kind.right)


def test_own_login_is_refused(libnats: Program, own_login: OwnLogin, subject: str):
    libnats.run("bad_login", url=own_login.url, subject=subject, **own_login.kind.wrong)


def test_denied_subscribe(libnats: Program, restricted: Stack, subject: str):
    libnats.run("denied_subscribe", url=restricted.url, subject=subject, user=USER, password=PASSWORD, denied=DENIED)


def test_words_in_user_properties(libnats: Program, bridge: Stack, subject: str):
    exchange_words(libnats, bridge.url, bridge.mqtt, subject)
