"""The key/value store over the retained messages of Mosquitto, with unmodified clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import kv_scenarios
import pytest

from clients.program import Program
from clients.stack import (
    AGAINST_NATS_SERVER,
    DENIED,
    PASSWORD,
    USER,
    Stack,
    gateway_in_front_of,
    mosquitto,
    restricted_stack,
)
from emqx.mqtt import Mqtt
from hostile.measure import Usage

BUCKET, TOPIC = "devices", "site/state"
PROGRAMS = ("go", "js", "rust", "java")
SETTINGS = {"kv": {"enable": True, "buckets": [f"{BUCKET}={TOPIC}", "plain", *PROGRAMS]}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if AGAINST_NATS_SERVER:
        pytest.skip("a nats-server has no MQTT broker behind it")
    directory = tmp_path_factory.mktemp("kv")
    broker = mosquitto(directory, "allow_anonymous true\n")
    with Stack(gateway_in_front_of(broker.address, directory, SETTINGS), broker) as stack:
        yield stack


@pytest.fixture
def mqtt(store: Stack) -> Callable[[], Mqtt]:
    return lambda: Mqtt(store.mqtt)


def test_nats_py(store: Stack):
    asyncio.run(kv_scenarios.everything(store.url, BUCKET))
    asyncio.run(kv_scenarios.everything(store.url, "plain"))


def test_nats_go(nats_go: Program, store: Stack):
    nats_go.run("kv", url=store.url, bucket="go")


def test_nats_js(nats_js: Program, store: Stack, subject: str):
    nats_js.run("kv", url=store.url, subject=subject, bucket="js")


def test_async_nats(async_nats: Program, store: Stack, subject: str):
    async_nats.run("kv", url=store.url, subject=subject, bucket="rust")


def test_jnats(jnats: Program, store: Stack, subject: str):
    jnats.run("kv", 10.0, url=store.url, subject=subject, bucket="java")


def test_command(store: Stack):
    kv_scenarios.with_the_command(store.url, BUCKET)


def test_values_of_mqtt_clients(store: Stack, mqtt: Callable[[], Mqtt]):
    asyncio.run(kv_scenarios.bridge(store.url, BUCKET, TOPIC, mqtt))


def test_refusals(store: Stack):
    asyncio.run(kv_scenarios.refusals(store.url, BUCKET))


def test_expiry(store: Stack):
    asyncio.run(kv_scenarios.expiry(store.url, BUCKET))


def test_watcher_after_a_lost_connection(store: Stack):
    asyncio.run(kv_scenarios.reconnect(store.url, BUCKET))


def test_watcher_of_nats_go_after_a_lost_connection(nats_go: Program, store: Stack):
    nats_go.run("kv-reconnect", url=store.url, bucket="go")


def test_what_the_broker_refuses(tmp_path: Path):
    """The broker checks the rights of the client's own login."""
    settings = {"kv": {"enable": True, "buckets": [f"closed={DENIED}/state", "open"]}}
    with restricted_stack(tmp_path, settings) as stack:
        asyncio.run(kv_scenarios.denied(stack.url, {"user": USER, "password": PASSWORD}))


def test_writers(store: Stack):
    asyncio.run(kv_scenarios.writers([store.url], BUCKET))


def test_no_gap_and_nothing_twice(store: Stack, mqtt: Callable[[], Mqtt]):
    asyncio.run(kv_scenarios.no_gap(store.url, BUCKET, TOPIC, mqtt))


@pytest.mark.timeout(180, func_only=True)
@pytest.mark.parametrize("count, size, watch, more_megabytes", [(100_000, 1024, False, 300), (5000, 65536, True, 200)])
def test_a_large_bucket(tmp_path: Path, count: int, size: int, watch: bool, more_megabytes: int):
    """The number of keys is exact, and the values, 100 and 328 MB of them, never are in the gateway together."""
    broker = mosquitto(tmp_path, "allow_anonymous true\n")
    with Stack(gateway_in_front_of(broker.address, tmp_path, {"kv": {"enable": True, "buckets": ["large"]}}), broker) as stack:
        usage = Usage.of_session(stack.gateway.session)
        before = usage.rss()
        kv_scenarios.retain(stack.mqtt, (f"large/{number % 100}/k{number}" for number in range(count)), bytes(size))
        usage.begin_peak()
        asyncio.run(kv_scenarios.large(stack.url, "large", count, size, watch))
        assert usage.peak() < before + more_megabytes * 1_000_000
