"""A request and its reply, where waking up costs nothing, and where it costs as much as it can.

If all processes share one core, no idle core has to be woken up: the time is what the server, the kernel and the
clients have to do. With the server on a core of its own, each step ends in waking up the other core, which takes
longer than the work on most machines, and depends on how deeply that core sleeps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from bench.group import Outcomes, Rows, Run, cell, figure, key, table
from bench.peers import EmqxPeers, Peer, standalone_peers
from bench.scenarios import BUILT_IN, MQTT, OURS
from emqx.node import emqx_homes

TITLE = "Round trip"
# The cores of the server, and those of the clients.
Places = dict[str, tuple[list[int], list[int]]]
ROUNDS_SECONDS = 60.0
WORK = "request and reply, 128 B, one at a time"
SPECIFICATION = {"measure": "round_trip", "requests": 3000, "warm_up": 300, "payload": 128}
TIMES = {"p50": "p50", "p99": "p99", "p999": "p99.9"}

ONE_CORE, TWO_CORES, ANY_CORE = "all on one core", "server and clients on a core each", "wherever the system puts them"


def measure(run: Run) -> None:
    cores = sorted(os.sched_getaffinity(0))
    places: Places = {ONE_CORE: (cores[:1], cores[:1]), TWO_CORES: (cores[:1], cores[1:2]), ANY_CORE: (cores, cores)}
    if len(cores) < 2:
        del places[TWO_CORES]
    with ExitStack() as stack:
        # One node at a time: two would wake up each other's cores.
        for home in sorted(emqx_homes()) if run.package else ():
            with EmqxPeers(home, run.package) as emqx:
                names = {_in(emqx.release(), name): name for name in (OURS, MQTT, BUILT_IN)}
                _rounds(run, {title: lambda name=name: emqx.peer(name) for title, name in names.items()}, places, cores)
        others = stack.enter_context(standalone_peers())
        _rounds(run, {name: lambda peer=peer: peer for name, peer in others.items()}, places, cores)


def _rounds(run: Run, peers: dict[str, Callable[[], Peer]], places: Places, cores: list[int]) -> None:
    for turn in run.another_round(ROUNDS_SECONDS):
        for title, serve in peers.items():
            peer = replace(serve(), name=title)
            for place, (server, clients) in places.items():
                with _placed(peer, server, clients, cores):
                    run.measure(peer, WORK, run.smaller(SPECIFICATION), turn, place)


@contextmanager
def _placed(peer: Peer, server: list[int], clients: list[int], cores: list[int]) -> Iterator[None]:
    """The load generator has the cores of this process."""
    _pin(peer, server)
    os.sched_setaffinity(0, clients)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        _pin(peer, cores)


def _pin(peer: Peer, cores: list[int]) -> None:
    for pid in peer.pids():
        for thread in Path(f"/proc/{pid}/task").glob("*"):
            try:
                os.sched_setaffinity(int(thread.name), cores)
            except ProcessLookupError:
                # It has ended meanwhile.
                pass


def _in(release: str, name: str) -> str:
    return f"{release}: {name}"


def ratio(results: dict[str, Any], release: str, other: str) -> float | None:
    """Of the plugin's time to that of another one in the same EMQX, all on one core."""
    found = Outcomes(results)
    ours, theirs = (found.values(key(WORK, ONE_CORE), _in(release, name), figure("p50")) for name in (OURS, other))
    return median(ours) / median(theirs) if ours and theirs else None


def tables(results: dict[str, Any]) -> list[tuple[str, Rows]]:
    found = Outcomes(results)
    places = (ONE_CORE, TWO_CORES, ANY_CORE)

    def times(peer: str, place: str) -> str:
        return " / ".join(filter(None, (cell(found.values(key(WORK, place), peer, figure(time))) for time in TIMES)))

    peers = dict.fromkeys(one["peer"] for one in results["measurements"])
    rows = table("", places, [(peer, [times(peer, place) for place in places]) for peer in peers])
    return [(f"Request and reply, {' / '.join(TIMES.values())}, µs", rows)]
