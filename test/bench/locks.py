"""Which locks of the runtime processes wait for, in an EMQX whose runtime counts them (lcnt).

Erlang/OTP has such a runtime when it is configured with `--enable-lock-counter` (`beam.lcnt.smp`).
"""

from __future__ import annotations

import re
from statistics import median
from typing import Any

from bench.group import Outcomes, Rows, Run, cell, figure, table
from bench.peers import EmqxPeers, Peer
from bench.scenarios import BUILT_IN, MQTT, OURS
from wire.servers import REPOSITORY

TITLE = "Locks"
PEERS = (OURS, MQTT, BUILT_IN)
ROUNDS_SECONDS = 60.0
BUILT_IN_SHARE = 4
# A kind of which a lock was held by somebody else so often in a thousand messages is shown.
SHOWN_COLLISIONS = 1.0

WORKS: dict[str, dict[str, Any]] = {
    "8 publishers": {"measure": "flow", "messages": 80_000, "publishers": 8, "subscribers": 0},
    "1:1": {"measure": "flow", "messages": 40_000, "subscribers": 1},
    "1:8": {"measure": "flow", "messages": 10_000, "subscribers": 8},
    "100 publishers, each with a subscriber": {"measure": "closed_loop", "pairs": 100, "messages": 400, "under_way": 4},
}


def measure(run: Run) -> None:
    if not (run.home and run.package):
        return
    with EmqxPeers(run.home, run.package) as emqx:
        emqx.load_module(REPOSITORY / "native" / "bench" / "locks.erl")
        if emqx.node.eval("locks:are_counted().") != "true":
            run.say("  skipped: the runtime of this EMQX does not count locks (lcnt)")
            return
        for turn in run.another_round(ROUNDS_SECONDS):
            for name in PEERS:
                peer = emqx.peer(name)
                for work, specification in WORKS.items():
                    _measure(run, emqx, peer, work, run.smaller(specification), turn)


def _measure(run: Run, emqx: EmqxPeers, peer: Peer, work: str, specification: dict[str, Any], turn: int) -> None:
    if peer.name == BUILT_IN:
        specification = specification | {"messages": specification["messages"] // BUILT_IN_SHARE}
    with run.failing(work):
        # Caches are filled, and what is only done at the beginning is done.
        peer.measure({"payload": 128} | specification | {"messages": max(1, specification["messages"] // 4)})
        assert emqx.node.eval("locks:start().") == "ok"
        outcome = peer.measure({"payload": 128} | specification)
        counted = emqx.node.eval('[io:format("~s ~b ~b ~b~n", tuple_to_list(Lock)) || Lock <- locks:stop()], ok.')
        # Per message that was delivered, or published if nobody subscribes.
        messages = outcome.get("delivered") or outcome["published"]
        kinds = {
            name: [int(one) / messages for one in figures.split()]
            for name, figures in re.findall(r"^(\w+) (\d+ \d+ \d+)$", counted, re.M)
        }
        tries, collisions, waited = (sum(one[index] for one in kinds.values()) for index in range(3))
        run.keep(peer.name, work, {"tries": tries, "collisions": collisions, "waited_ns": waited, "kinds": kinds}, turn)


def tables(results: dict[str, Any]) -> list[tuple[str, Rows]]:
    found = Outcomes(results)
    figures = {"taken": (figure("tries"), ".1f"), "held by another": (figure("collisions"), ".3f"), "waited, µs": (figure("waited_ns", 1e-3), ".2f")}
    columns = [(peer, what) for peer in PEERS for what in figures]
    return [
        (
            "Locks of the runtime per message (delivery)",
            table("", [f"{peer}: {what}" for peer, what in columns], [
                (work, [cell(found.values(work, peer, figures[what][0]), figures[what][1]) for peer, what in columns]) for work in WORKS
            ]),
        ),
        (
            "Locks that another thread held, by kind, in a thousand messages (deliveries)",
            table("", PEERS, [(work, [_worst(found.values(work, peer, lambda outcome: outcome["kinds"])) for peer in PEERS]) for work in WORKS]),
        ),
    ]


def _worst(rounds: list[dict[str, list[float]]]) -> str:
    names = {name for kinds in rounds for name in kinds}
    held = {name: 1000 * median(kinds.get(name, (0, 0, 0))[1] for kinds in rounds) for name in names}
    worst = sorted(((name, value) for name, value in held.items() if value >= SHOWN_COLLISIONS), key=lambda one: (-one[1], one[0]))[:4]
    return ", ".join(f"{name} {value:.0f}" for name, value in worst) or ("none" if rounds else "")
