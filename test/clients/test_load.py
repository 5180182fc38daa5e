"""The standalone gateway under load, or a nats-server, to prove the tests."""

from __future__ import annotations

import pytest

from clients import load
from clients.stack import Stack

pytestmark = pytest.mark.timeout(3 * load.DEADLINE, func_only=True)


def test_burst_to_one_reader(stack: Stack, subject: str):
    load.burst_to_one_reader(stack.gateway.address, subject)


def test_flood_and_listen(stack: Stack, subject: str):
    load.flood_and_listen(stack.gateway.address, subject)
