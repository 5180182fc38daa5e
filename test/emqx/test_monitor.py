"""The monitoring port of the plugin."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest

from emqx.gateway import BUILT_IN_DATABASE, Gateway
from emqx.node import wait_until
from emqx.page import Page
from monitoring import answers, connections, get, get_json, metrics, samples
from nats_keys import Key, account_jwt, user_jwt
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
            assert re.fullmatch("[0-9.]+(µs|ms)", seen["rtt"])
            wait_until(lambda: get_json(port, "/varz")["in_msgs"] > before["in_msgs"], "it is in the totals")
            # Who was there before is seen as soon as it does something.
            early.publish(name, b"x")
            wait_until(lambda: one(port, "early") is not None, "the one that was there")
            assert get_json(port, "/varz")["server_id"] == client.info["server_id"]
            listeners = [sample for sample in metrics(port) if sample.startswith("nats_gateway_connections{")]
            assert 'nats_gateway_connections{listener="nats:tcp:default"}' in listeners
        wait_until(lambda: one(port, "orders") is None, "it has gone")
        assert "orders" in [c.get("name") for c in connections(port, "?state=closed&sort=stop&limit=5")]


def test_accounts_of_the_page(gateway: Gateway, page: Page):
    operator, account, user = Key("operator"), Key("account"), Key("user")
    token = user_jwt(account, user, name="ann", tags=["t:1"])
    port = watched(
        page,
        internal_authn=["jwt"],
        trusted_operators=[operator.public],
        resolver_preload=[account_jwt(operator, account, name="Acme")],
    )
    assert set(get_json(port, "/accountz")["accounts"]) == {"$G", account.public}
    with gateway.raw() as client:
        client.login(jwt=token, sig=user.signature(client.info), name="by jwt")
        client.ping()
        seen = one(port, "by jwt")
        assert (seen["account"], seen["issuer_key"], seen["jwt"]) == (account.public, account.public, token)
        assert (seen["name_tag"], seen["tags"]) == ("ann", ["t:1"])

        def counted() -> bool:
            detail = get_json(port, f"/accountz?acc={account.public}")["account_detail"]
            return (detail["name_tag"], detail["client_connections"]) == ("Acme", 1)

        wait_until(counted, "the account has a client")
        listed = get_json(port, "/accstatz")["account_statz"]
        assert [a["conns"] for a in listed if a["acc"] == account.public] == [1]
    with gateway.raw() as client:
        client.login(jwt=token, sig=Key("user").signature(client.info))
        client.rejected("Authorization Violation")
    sample = 'nats_gateway_logins_refused_total{method="jwt",reason="bad_signature"}'
    wait_until(lambda: metrics(port).get(sample, 0) >= 1, "it is counted")


def test_whom_emqx_does_not_let_in_is_counted(gateway: Gateway, page: Page):
    port = watched(page)
    gateway.authenticate(BUILT_IN_DATABASE)
    with gateway.raw() as client:
        client.login(user="nobody", **{"pass": "x"})
        client.rejected("Authorization Violation")

    def counted() -> float:
        return sum(n for name, n in metrics(port).items() if name.startswith("nats_gateway_logins_refused_total{method=\"broker\""))

    wait_until(lambda: counted() >= 1, "it is counted")


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


# --- EMQX's own endpoint for Prometheus ------------------------------------------------------------------------------


def of_emqx(gateway: Gateway) -> dict[str, float]:
    return samples(gateway.node.rest.get("/prometheus/stats"))


def ours(gateway: Gateway) -> set[str]:
    return {name for name in of_emqx(gateway) if name.startswith("nats_gateway_")}


def test_emqx_tells_prometheus_of_the_gateway(gateway: Gateway, page: Page, name: str):
    assert ours(gateway) == set()
    port = watched(page, emqx_prometheus=True)
    with gateway.nats(name="orders") as client:
        client.subscribe(name)

        def published() -> bool:
            client.publish(name, b"hi")
            client.message()
            return of_emqx(gateway)["nats_gateway_publish_seconds_count"] >= 1

        wait_until(published, "a publish is timed")
        told, own = of_emqx(gateway), metrics(port)
        # Each formats numbers in its own way.
        assert {n for n in told if n.startswith("nats_gateway_") and "le=" not in n} == {n for n in own if "le=" not in n}
        assert told["nats_gateway_up"] == 1 and told['nats_gateway_connections{listener="nats:tcp:default"}'] >= 1
        buckets = [n for n in told if n.startswith("nats_gateway_publish_seconds_bucket")]
        assert told['nats_gateway_publish_seconds_bucket{le="+Inf"}'] >= 1 and len(buckets) == 16
        assert told["emqx_connections_count"] >= 0
        # Any change of EMQX's settings for Prometheus takes away what these do not name.
        settings = gateway.node.rest.get("/prometheus")
        gateway.node.rest.put("/prometheus", settings)
        wait_until(lambda: ours(gateway) != set(), "it is there again")
    page.change()
    assert ours(gateway) == set()


def test_it_needs_no_monitoring_address(gateway: Gateway, page: Page, name: str):
    page.change(emqx_prometheus=True)
    with gateway.nats() as client:
        client.ping()
        wait_until(lambda: of_emqx(gateway).get("nats_gateway_connections_total", 0) >= 1, "the client is counted")


def test_nothing_is_left_in_emqx_where_the_plugin_does_not_run(gateway: Gateway, page: Page, package: Path):
    port = watched(page, emqx_prometheus=True)
    begin = time.monotonic()
    gateway.node.stop_plugin(package)
    took = time.monotonic() - begin
    try:
        assert not accepts((HOST, port)) and ours(gateway) == set()
        # drain_time is 1 s, and nobody waits for anybody
        assert took < 8
    finally:
        gateway.node.start_plugin(package)
        wait_until(gateway.served, "the plugin serves")
    wait_until(lambda: ours(gateway) != set(), "and is told of again")
