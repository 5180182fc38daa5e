"""How often processes run for a message, and on another scheduler than before: what more cores would have to move."""

from __future__ import annotations

import re
from typing import Any

from bench.group import Outcomes, Rows, Run, cell, figure, table
from bench.many import pairs
from bench.peers import EmqxPeers, Peer
from bench.scenarios import BUILT_IN, MQTT, OURS
from wire.servers import REPOSITORY

TITLE = "Schedulers"
PEERS = (OURS, MQTT, BUILT_IN)
ROUNDS_SECONDS = 40.0

# 2, 20 and 200 busy connections.
WORKS: dict[str, dict[str, Any]] = {
    "1:1": {"measure": "flow", "messages": 20_000, "subscribers": 1},
    "1:8": {"measure": "flow", "messages": 5000, "subscribers": 8},
    **pairs(1, 10_000),
    **pairs(10, 1000),
    **pairs(100, 100),
    "requests and replies, 1 under way": {"measure": "closed_loop", "pairs": 1, "messages": 2000, "under_way": 1, "requests": True},
}
RUNS, MOVES = "scheduled", "moved"


def measure(run: Run) -> None:
    if not (run.home and run.package):
        return
    with EmqxPeers(run.home, run.package) as emqx:
        emqx.load_module(REPOSITORY / "native" / "bench" / "schedulings.erl")
        for turn in run.another_round(ROUNDS_SECONDS):
            for name in PEERS:
                peer = emqx.peer(name)
                for work, specification in WORKS.items():
                    _measure(run, emqx, peer, work, {"payload": 128} | run.smaller(specification), turn)


def _measure(run: Run, emqx: EmqxPeers, peer: Peer, work: str, specification: dict[str, Any], turn: int) -> None:
    with run.failing(work):
        peer.measure(specification | {"messages": max(1, specification["messages"] // 4)})
        assert emqx.node.eval("schedulings:start().") == "ok"
        delivered = peer.measure(specification)["delivered"]
        scheduled, moved = map(int, re.findall(r"\d+", emqx.node.eval("schedulings:stop().")))
        run.keep(peer.name, work, {RUNS: scheduled / delivered, MOVES: moved / delivered}, turn)


def tables(results: dict[str, Any]) -> list[tuple[str, Rows]]:
    found = Outcomes(results)

    def rows(name: str) -> Rows:
        return table("", PEERS, [(work, [cell(found.values(work, peer, figure(name)), ".2f") for peer in PEERS]) for work in WORKS])

    return [
        ("Runs of a process per message (delivery, reply)", rows(RUNS)),
        ("Of these, on another scheduler than the one before", rows(MOVES)),
    ]
