"""The monitoring port of the plugin."""

from __future__ import annotations

import socket

import pytest

from emqx.gateway import Gateway
from emqx.node import wait_until
from emqx.page import Page
from monitoring import answers, connections, get, get_json, metrics
from ports import HOST, free_port
from wire.servers import accepts

pytestmark = pytest.mark.plugin


@pytest.fixture
def page(gateway: Gateway, page: Page):
    yield page
    page.change()


def watched(page: Page, **settings: object) -> int:
    port = free_port()
    page.change(monitor_bind=f"{HOST}:{port}", **settings)
    wait_until(lambda: answers(port), "it is monitored")
    return port


def one(port: int, name: str) -> dict | None:
    return next((c for c in connections(port, "?subs=1&auth=1&limit=10000") if c.get("name") == name), None)


def test_what_clients_do_is_seen(gateway: Gateway, page: Page, name: str):
    with gateway.nats(name="early") as early:
        early.ping()
        port = watched(page)
        before = get_json(port, "/varz")
        with gateway.nats(name="orders", lang="python", user="u") as client:
            client.subscribe(name)
            client.publish(name, b"hi")
            assert client.message().payload == b"hi"
            seen = one(port, "orders")
            assert (seen["in_msgs"], seen["out_msgs"], seen["subscriptions_list"]) == (1, 1, [name])
            assert (seen["ip"], seen["lang"]) == (HOST, "python")
            wait_until(lambda: get_json(port, "/varz")["in_msgs"] > before["in_msgs"], "it is in the totals")
            # Who was there before is seen as soon as it does something.
            early.publish(name, b"x")
            wait_until(lambda: one(port, "early") is not None, "the one that was there")
            assert get_json(port, "/varz")["server_id"] == client.info["server_id"]
            listeners = [sample for sample in metrics(port) if sample.startswith("nats_gateway_connections{")]
            assert 'nats_gateway_connections{listener="nats:tcp:default"}' in listeners
        wait_until(lambda: one(port, "orders") is None, "it has gone")
        assert "orders" in [c.get("name") for c in connections(port, "?state=closed&sort=stop&limit=5")]


def test_health(gateway: Gateway, page: Page):
    port = watched(page)
    assert get(port, "/healthz") == (200, '{"status":"ok"}\n')
    assert "<title>NATS gateway</title>" in get(port, "/")[1]


def test_it_is_opened_moved_and_closed(gateway: Gateway, page: Page):
    port = watched(page)
    other = watched(page)
    wait_until(lambda: not accepts((HOST, port)), "it is moved")
    with gateway.nats() as client:
        page.change()
        wait_until(lambda: not accepts((HOST, other)), "it is closed")
        client.ping()


@pytest.mark.kills
def test_a_port_in_use_hurts_nobody(gateway: Gateway, page: Page):
    begin = gateway.node.log_size
    with socket.create_server((HOST, 0)) as taken, gateway.nats() as client:
        page.change(monitor_bind=f"{HOST}:{taken.getsockname()[1]}")
        wait_until(
            lambda: any("monitor_is_not_open" in line for line in gateway.node.errors(begin)), "the log says so"
        )
        client.ping()
        assert page.health() == ""


@pytest.mark.parametrize("value", ["somewhere", "127.0.0.1", "127.0.0.1:65536", "127.0.0.1:0x1"])
def test_what_is_no_address_is_refused(page: Page, value: str):
    answer = page.try_change(monitor_bind=value)
    assert answer.status == 400 and "monitor_bind" in str(answer.body)
