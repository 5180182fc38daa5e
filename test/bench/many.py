"""Many clients, many subscriptions, many requests: messages per second, in each peer."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from bench.group import Outcomes, Rows, Run, cell, cpu_per_message, figure, table
from bench.peers import EmqxPeers, Peer, standalone_peers
from bench.scenarios import MOSQUITTO, MQTT, NATS_SERVER, OURS, STANDALONE

TITLE = "Many"
PEERS = (OURS, MQTT, STANDALONE, MOSQUITTO, NATS_SERVER)
ROUNDS_SECONDS = 60.0



def pairs(count: int, messages: int) -> dict[str, dict[str, Any]]:
    """`messages` of each publisher."""
    title = f"{count} publisher{'s, each' if count > 1 else ''} with a subscriber, 4 messages of each under way"
    return {title: {"measure": "closed_loop", "pairs": count, "messages": messages, "under_way": 4}}


WORKS: dict[str, dict[str, Any]] = {
    **pairs(1000, 30),
    **pairs(1, 20_000),
    **pairs(10, 2000),
    **pairs(100, 200),
    "1 publisher, 1000 subscribers": {"measure": "flow", "messages": 100, "subscribers": 1000},
    "1:1, the subscriber has 10,000 subscriptions with a wildcard": {
        "measure": "flow", "messages": 20_000, "subscribers": 1, "subjects": 1000, "subscriptions": 10_000, "wildcards": True,
    },
    "1 publisher, queue group of 8": {"measure": "flow", "messages": 30_000, "subscribers": 8, "queue": True},
    "requests and replies, 1 under way": {
        "measure": "closed_loop", "pairs": 1, "messages": 1000, "under_way": 1, "requests": True,
    },
    "requests and replies, 100 under way": {
        "measure": "closed_loop", "pairs": 1, "messages": 10_000, "under_way": 100, "requests": True,
    },
}


def measure(run: Run) -> None:
    with ExitStack() as stack:
        peers: list[Peer] = []
        if run.home and run.package:
            emqx = stack.enter_context(EmqxPeers(run.home, run.package))
            peers += [emqx.peer(OURS), emqx.peer(MQTT)]
        peers += stack.enter_context(standalone_peers()).values()
        for turn in run.another_round(ROUNDS_SECONDS):
            for work, specification in WORKS.items():
                for peer in peers:
                    run.measure(peer, work, {"payload": 128} | run.smaller(specification), turn)


def tables(results: dict[str, Any]) -> list[tuple[str, Rows]]:
    found = Outcomes(results)
    rate, spent = figure("delivered_per_second"), cpu_per_message

    return [
        (
            "Deliveries (replies) of 128 B per second",
            table("", PEERS, [(work, [cell(found.values(work, peer, rate), spread=True) for peer in PEERS]) for work in WORKS]),
        ),
        (
            "Processor time of the peer per delivery (reply), µs",
            table("", PEERS, [(work, [cell(found.values(work, peer, spent), ",.1f") for peer in PEERS]) for work in WORKS]),
        ),
    ]
