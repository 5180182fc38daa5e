"""The key/value store over the retained messages of EMQX: unmodified clients on one side, MQTT on the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator

import kv_scenarios
import pytest

from emqx.gateway import NAMED, Gateway, file_rules, rest_change
from emqx.nats import Nats, NatsFailure
from emqx.node import wait_until
from emqx.page import Page
from hostile.measure import Usage

pytestmark = pytest.mark.plugin

BUCKET, TOPIC = "devices", "site/state"
NO_RESPONDERS = b"NATS/1.0 503\r\n\r\n"


@pytest.fixture
def store(gateway: Gateway, page: Page) -> Iterator[Gateway]:
    page.change(kv_enable=True, kv_buckets=[f"{BUCKET}={TOPIC}", "plain", ""])
    wait_until(lambda: has_a_store(gateway), "the store is on")
    return gateway


def has_a_store(gateway: Gateway) -> bool:
    with gateway.nats() as client:
        return request(client, "$JS.API.INFO") is not None


def request(client: Nats, subject: str, payload: bytes = b"", headers: bytes | None = None) -> dict | None:
    client.subscribe("answers", sid="9")
    client.publish(subject, payload, reply="answers", headers=headers)
    message = client.message()
    return None if message.headers == NO_RESPONDERS else json.loads(message.payload)


def url(gateway: Gateway) -> str:
    return "nats://{}:{}".format(*gateway.address)


def test_nats_py(store: Gateway):
    asyncio.run(kv_scenarios.everything(url(store), BUCKET))
    asyncio.run(kv_scenarios.everything(url(store), "plain"))


def test_command(store: Gateway):
    kv_scenarios.with_the_command(url(store), BUCKET)


def test_values_of_mqtt_clients(store: Gateway):
    asyncio.run(kv_scenarios.bridge(url(store), BUCKET, TOPIC, store.mqtt))


def test_refusals(store: Gateway):
    asyncio.run(kv_scenarios.refusals(url(store), BUCKET))


def test_expiry(store: Gateway):
    asyncio.run(kv_scenarios.expiry(url(store), BUCKET))


def test_writers(store: Gateway):
    asyncio.run(kv_scenarios.writers([url(store)], BUCKET))


def test_no_gap_and_nothing_twice(store: Gateway):
    asyncio.run(kv_scenarios.no_gap(url(store), BUCKET, TOPIC, store.mqtt))


def test_watcher_after_a_lost_connection(store: Gateway):
    asyncio.run(kv_scenarios.reconnect(url(store), BUCKET))


def watch(client: Nats, subject: str) -> None:
    """Watches the bucket with a subject that the client has chosen."""
    watcher = {"config": {"ack_policy": "none", "deliver_policy": "new", "inactive_threshold": 20_000_000_000}}
    watcher["config"]["deliver_subject"] = subject
    client.subscribe(subject, sid="1")
    answer = request(client, f"$JS.API.CONSUMER.CREATE.KV_{BUCKET}", json.dumps(watcher).encode())
    assert "error" not in answer


def lose_a_watcher(store: Gateway, subject: str, user: str) -> None:
    """A client that watches, and loses its connection."""
    with store.nats(user=user) as client:
        watch(client, subject)


def values_after(store: Gateway, subject: str, user: str, key: str) -> list[bytes]:
    """What a client gets that subscribes to this subject, until it has written a key and asked something else."""
    with store.nats(user=user) as client, store.nats(user="seeing") as writer:
        client.send(f"SUB {subject} 1\r\n")
        assert request(writer, f"$KV.{BUCKET}.{key}", b"2")["seq"] > 0
        values = []
        with contextlib.suppress(NatsFailure):
            while True:
                message = client.message(1.0)
                values += [message.payload] if message.subject.startswith("$KV.") else []
        return values


def test_who_gets_the_watcher_of_a_lost_connection(store: Gateway):
    """It is the same user with the same rights who gets what has changed meanwhile, and nobody else."""
    store.settings(**NAMED)
    lose_a_watcher(store, "same", "seeing")
    lose_a_watcher(store, "others", "seeing")
    lose_a_watcher(store, "denied", "blind")
    lose_a_watcher(store, "restricted", "blind")
    assert values_after(store, "others", "somebody", "k") == []
    assert values_after(store, "same", "seeing", "k") == [b"2", b"2"]
    with file_rules(store, f'{{deny, {{username, "blind"}}, subscribe, ["{TOPIC}/#"]}}'):
        assert values_after(store, "denied", "blind", "k") == []
    assert b"2" in values_after(store, "restricted", "blind", "k")
    with store.mqtt() as mqtt:
        mqtt.publish(f"{TOPIC}/k", b"", retain=True)


def test_a_busy_watcher_holds_up_nobody(store: Gateway):
    """Who subscribes to its subject goes on at once, and gets it when the earlier connection has ended."""
    watchers = 'pg:get_local_members(nats_gateway_kv_kept, {topic, <<"busy">>})'
    with store.nats(user="seeing") as earlier, store.nats(user="seeing") as client, store.nats() as writer:
        watch(earlier, "busy")
        assert store.node.eval(f"[sys:suspend(Pid) || Pid <- {watchers}]") == "[ok]"
        began = time.monotonic()
        client.subscribe("busy")
        assert "error" not in request(client, f"$JS.API.STREAM.INFO.KV_{BUCKET}")
        assert time.monotonic() - began < 2.0
        assert store.node.eval(f"[sys:resume(Pid) || Pid <- {watchers}]") == "[ok]"
        earlier.close()
        assert request(writer, f"$KV.{BUCKET}.k", b"2")["seq"] > 0
        message = client.message()
        assert (message.subject, message.payload) == (f"$KV.{BUCKET}.k", b"2")
    with store.mqtt() as mqtt:
        mqtt.publish(f"{TOPIC}/k", b"", retain=True)


@pytest.fixture
def fast_retainer(store: Gateway) -> Iterator[None]:
    """It retains as fast as it can."""
    with rest_change(store.rest, "/mqtt/retainer", {"max_publish_rate": "1000000/s"}):
        # EMQX 5.10 takes the rate that held before the change.
        store.node.eval("emqx_retainer_limiter:update().")
        yield
    store.node.eval("emqx_retainer_limiter:update().")


@pytest.mark.timeout(240, func_only=True)
def test_a_large_bucket(store: Gateway, fast_retainer: None):
    """The number of 100 000 keys is exact, and the node never has their values, 100 MB, once more."""
    count, size, more_megabytes = 100_000, 1024, 150
    kv_scenarios.retain(store.node.mqtt, (f"plain/{number % 100}/k{number}" for number in range(count)), bytes(size))
    try:
        usage = Usage.of_session(store.node.session)
        before = usage.rss()
        usage.begin_peak()
        asyncio.run(kv_scenarios.large(url(store), "plain", count, size, watch=True))
        assert usage.peak() < before + more_megabytes * 1_000_000
    finally:
        store.node.eval("emqx_retainer:clean().")


def test_off(gateway: Gateway, page: Page):
    """The answers of a nats-server without JetStream; and the same again when the store is switched off."""
    for change in ({}, {"kv_enable": True, "kv_buckets": ["b"]}, {"kv_enable": False, "kv_buckets": ["b"]}):
        page.change(**change)
        is_on = change.get("kv_enable", False)
        wait_until(lambda is_on=is_on: has_a_store(gateway) is is_on, "the store is as set")
        with gateway.nats() as client:
            assert (request(client, "$JS.API.STREAM.INFO.KV_b") is not None) is is_on
            assert (request(client, "$KV.b.k", b"x") is not None) is is_on
    with gateway.mqtt() as mqtt:
        mqtt.publish("b/k", b"", retain=True)


@pytest.mark.parametrize(
    "buckets, text",
    [
        ([], "must name at least one bucket"),
        (["b", "b=x"], "must not name a bucket twice"),
        (["b/c"], "must be the name of a bucket"),
        (["b=x/+"], "must be the name of a bucket"),
        (["b="], "must be the name of a bucket"),
        (["b=/x"], "must be the name of a bucket"),
    ],
)
def test_settings_that_are_refused(page: Page, buckets: list[str], text: str):
    answer = page.try_change(kv_enable=True, kv_buckets=buckets)
    assert answer.status == 400 and "kv_buckets" in str(answer) and text in str(answer)


def test_authorization(store: Gateway):
    """A value needs the right to publish retained messages, and reading the right to subscribe."""
    store.settings(**NAMED)
    rules = (
        f'{{deny, all, publish, ["{TOPIC}/read/only"]}}',
        f'{{deny, all, {{publish, [{{retain, true}}]}}, ["{TOPIC}/no/retain"]}}',
        f'{{deny, {{username, "blind"}}, subscribe, ["{TOPIC}/#"]}}',
    )
    with store.mqtt() as mqtt:
        mqtt.publish(f"{TOPIC}/read/only", b"1", retain=True)
    with file_rules(store, *rules), store.nats(user="seeing") as client, store.nats(user="blind") as blind:
        refused = request(client, f"$KV.{BUCKET}.read.only", b"2")
        assert refused["error"]["code"] == 403 and f"{TOPIC}/read/only" in refused["error"]["description"]
        got = request(client, f"$JS.API.STREAM.MSG.GET.KV_{BUCKET}", b'{"last_by_subj":"$KV.devices.read.only"}')
        assert got["message"]["data"] == "MQ=="
        assert request(client, f"$KV.{BUCKET}.no.retain", b"2")["error"]["code"] == 403
        assert request(client, f"$KV.{BUCKET}.other", b"2")["seq"] > 0
        for subject, payload in (
            (f"STREAM.MSG.GET.KV_{BUCKET}", b'{"last_by_subj":"$KV.devices.read.only"}'),
            (f"CONSUMER.CREATE.KV_{BUCKET}", b'{"config":{"ack_policy":"none","deliver_subject":"d"}}'),
        ):
            assert request(blind, f"$JS.API.{subject}", payload)["error"]["code"] == 403, subject
        # Clients ask for the stream before they do anything else. It does not say how many keys there are.
        assert request(client, f"$JS.API.STREAM.INFO.KV_{BUCKET}")["state"]["messages"] == 2
        assert request(blind, f"$JS.API.STREAM.INFO.KV_{BUCKET}")["state"]["messages"] == 0
        blind.publish(f"$JS.API.DIRECT.GET.KV_{BUCKET}.$KV.{BUCKET}.read.only", reply="answers")
        assert blind.message().headers.startswith(b"NATS/1.0 403 ")
    with store.mqtt() as mqtt:
        mqtt.publish(f"{TOPIC}/read/only", b"", retain=True)
        mqtt.publish(f"{TOPIC}/other", b"", retain=True)


def test_largest_value(store: Gateway):
    with (
        rest_change(store.rest, "/mqtt/retainer", {"max_payload_size": "1KB"}),
        store.nats() as client,
        store.mqtt() as mqtt,
    ):
        assert request(client, f"$KV.{BUCKET}.big", b"x" * 1024)["seq"] > 0
        refused = request(client, f"$KV.{BUCKET}.big", b"y" * 1025)
        assert refused["error"]["code"] == 503 and "max_payload_size" in refused["error"]["description"]
        mqtt.subscribe(f"{TOPIC}/big")
        assert mqtt.message().payload == b"x" * 1024
        mqtt.publish(f"{TOPIC}/big", b"", retain=True)
