"""What is measured, and what it must reach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OURS, MQTT, BUILT_IN, BARE = "plugin", "EMQX MQTT", "built-in NATS", "publish loop"
STANDALONE, MOSQUITTO, NATS_SERVER = "standalone + Mosquitto", "Mosquitto", "nats-server"

PUBLISHED, DELIVERED, ROUND_TRIP = "published_per_second", "delivered_per_second", "p50"


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    specification: dict[str, Any]
    # What of the outcome is shown and compared.
    figure: str = DELIVERED
    peers: tuple[str, ...] = (OURS, MQTT, BUILT_IN)
    quick: bool = False
    # A ratio to other peers is good when it is large; with times it is good when it is small.
    more_is_better: bool = True


def _flow(name: str, title: str, messages: int, payload: int = 128, **more: Any) -> Scenario:
    about = {key: more.pop(key) for key in ("figure", "peers", "quick") if key in more}
    specification = {"measure": "flow", "messages": messages, "payload": payload, "subscribers": 1} | more
    return Scenario(name, title, specification, **about)


KIB, MIB = 1024, 1024 * 1024

# EMQX's MQTT listener takes packets of 1 MB, topic and all; so the largest is a little below that for all.
LARGEST = MIB - 256

SCENARIOS = [
    _flow("publish", "publish only, 128 B", 150_000, subscribers=0, figure=PUBLISHED, quick=True),
    _flow("1:1", "1 publisher, 1 subscriber, 128 B", 60_000, quick=True),
    _flow("1:8", "1 publisher, 8 subscribers, 128 B", 16_000, subscribers=8, quick=True),
    _flow("8:1", "8 publishers, 1 subscriber, 128 B", 7_500, publishers=8),
    Scenario(
        "round trip",
        "request and reply, 128 B, one at a time",
        {"measure": "round_trip", "requests": 3000, "warm_up": 200, "payload": 128},
        figure=ROUND_TRIP,
        quick=True,
        more_is_better=False,
    ),
    _flow("1:1, 16 B", "1:1, 16 B", 60_000, 16),
    _flow("1:1, 4 KiB", "1:1, 4 KiB", 30_000, 4 * KIB),
    _flow("1:1, 64 KiB", "1:1, 64 KiB", 5_000, 64 * KIB, quick=True),
    _flow("1:1, 1 MiB", "1:1, 1 MiB", 350, LARGEST, quick=True),
    _flow("headers", "1:1, 128 B, two headers (user properties)", 40_000, headers=True, peers=(OURS, MQTT)),
    _flow("acknowledged", "1:1, 128 B, +OK (PUBACK) for each", 40_000, acknowledged=True),
    _flow("1000 subjects", "1:1, 128 B, 1000 subjects under one wildcard", 60_000, subjects=1000),
    _flow("1000 subscriptions", "1:1, 128 B, 1000 subscriptions", 60_000, subjects=1000, subscriptions=1000),
]

STANDALONE_SCENARIOS = [scenario for scenario in SCENARIOS if scenario.name in ("publish", "1:1", "1:8", "round trip")]
STANDALONE_PEERS = (STANDALONE, MOSQUITTO, NATS_SERVER)


@dataclass(frozen=True)
class Growth:
    """One quantity grows, everything else stays: processor time of the node per message."""

    name: str
    steps: tuple[int, ...]
    specification: dict[str, Any]
    # The fields of the specification that are the quantity.
    fields: tuple[str, ...]
    messages: dict[int, int] = field(default_factory=dict)


GROWTH = [
    Growth("payload, bytes", (16, 160, 1600, 16_000, 160_000, LARGEST), {}, ("payload",), {160_000: 2_000, LARGEST: 300}),
    Growth("subjects", (1, 10, 100, 1000), {"payload": 128}, ("subjects",)),
    Growth("subscriptions of a connection", (1, 10, 100, 1000), {"payload": 128}, ("subscriptions",)),
    Growth("publishers", (1, 10, 100), {"payload": 128}, ("publishers",)),
    Growth("subscribers (messages are deliveries)", (1, 10, 100), {"payload": 128}, ("subscribers",)),
    Growth("pipelined operations of a write", (1, 10, 100, 300), {"payload": 16}, ("per_write",)),
]
GROWTH_MESSAGES = 30_000

# Of a node without any other load; the second with the first still open.
IDLE_STEPS = (1000, 10_000)
IDLE_STEPS_QUICK = (500,)
CONNECTS = 1000

# Of the key/value store: requests of each kind, one at a time; and keys that are listed.
KV_REQUESTS, KV_KEYS = 500, 10_000


@dataclass(frozen=True)
class Budget:
    work: str
    figure: str
    # (scenario, peer) of both sides, or the name of a single value
    ours: tuple[str, str] | str
    other: tuple[str, str] | str | None
    at_least: float | None = None
    at_most: float | None = None


def _ratio(scenario: str, other: str, at_least: float, figure: str) -> Budget:
    return Budget(f"{scenario}: ratio to {other}", figure, (scenario, OURS), (scenario, other), at_least=at_least)


def _time(percentile: str, other: str) -> Budget:
    side = "round trip"
    return Budget(f"{side}, {percentile}: ratio to {other}", percentile, (side, OURS), (side, other), at_most=1.0)


BUDGETS = [
    _ratio("publish", BARE, 0.85, PUBLISHED),
    _ratio("publish", MQTT, 1.05, PUBLISHED),
    _ratio("publish", BUILT_IN, 1.9, PUBLISHED),
    _ratio("1:1", MQTT, 1.2, DELIVERED),
    _ratio("1:1", BUILT_IN, 3.0, DELIVERED),
    _ratio("1:8", MQTT, 2.0, DELIVERED),
    _ratio("1:8", BUILT_IN, 5.0, DELIVERED),
    _time("p50", MQTT),
    _time("p50", BUILT_IN),
    _time("p99", MQTT),
    _time("p99", BUILT_IN),
    Budget("1 MiB against 64 KiB: time per byte", "seconds per byte", ("1:1, 1 MiB", OURS), ("1:1, 64 KiB", OURS), at_most=1.5),
    Budget("memory per idle connection, bytes", "", "idle", None, at_most=10_000),
    Budget("longest NIF call, µs", "", "nif", None, at_most=1000),
    Budget("decode of a 128 B PUB, ns", "", "decode", None, at_most=60),
    Budget("decode of a 128 B PUB: ratio to nats-server's parser", "", "decode", "nats-server parser", at_most=1.0),
]
