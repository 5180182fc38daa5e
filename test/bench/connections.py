"""Connections: how fast they come, ten thousand at once, and very many that only answer heartbeats."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.group import Outcomes, Rows, Run, cell, figure, table
from bench.peers import EmqxPeers, Peer, cpu_seconds
from bench.scenarios import MQTT, NATS_SERVER, OURS, STANDALONE
from clients.stack import gateway_in_front_of, mosquitto, nats_server
from wire.servers import nats_server_path

TITLE = "Connections"
PEERS = (OURS, MQTT, STANDALONE, NATS_SERVER)

RATE, RATE_AT_ONCE = 2000, 50
STORM = 10_000
IDLE = 50_000
QUICK_SHARE = 0.02
HEARTBEAT_SECONDS = 30
# Of each client one heartbeat comes in this time.
CPU_SECONDS = 30.0
SETTLE_SECONDS = 10.0
# Each has ports of its own.
SOURCES = 4
# What a server and the generator need for themselves.
SPARE_FILES = 1000
# Sockets that a connection takes in the process that has the most.
SOCKETS = {STANDALONE: 2}
ROUNDS_SECONDS = 20.0
# A client whose first packets were dropped tries again after 1, 3, 7, 15, 31 and 63 seconds.
PATIENCE_SECONDS = 120

CONNECT, AT_ONCE, HELD = "rate", "storm", "idle"


def measure(run: Run) -> None:
    files = _raise_limit()
    share = QUICK_SHARE if run.quick else 1.0
    with tempfile.TemporaryDirectory(prefix="nats-gateway-bench-") as directory, ExitStack() as stack:
        peers: list[Peer] = []
        emqx = None
        if run.home and run.package:
            emqx = stack.enter_context(EmqxPeers(run.home, run.package))
            emqx.gateway.settings(default_heartbeat_interval=f"{HEARTBEAT_SECONDS}s", idle_timeout="300s")
            peers += [emqx.peer(OURS), emqx.peer(MQTT)]
        peers += stack.enter_context(_others(Path(directory)))
        for turn in run.another_round(ROUNDS_SECONDS):
            for peer in peers:
                with run.failing(f"{CONNECT} of connections"), _crowd(peer, RATE_AT_ONCE) as crowd:
                    run.keep(peer.name, CONNECT, crowd.open(int(RATE * share)), turn)
        for peer in peers:
            with run.failing(f"{AT_ONCE} of connections"):
                _storm_and_idle(run, peer, emqx if peer.name in (OURS, MQTT) else None, files, share)


def _storm_and_idle(run: Run, peer: Peer, emqx: EmqxPeers | None, files: int, share: float) -> None:
    possible = (files - SPARE_FILES) // SOCKETS.get(peer.name, 1)
    storm, idle = (int(min(wanted * share, possible)) for wanted in (STORM, IDLE))
    before = _memory(peer, emqx)
    with _crowd(peer, at_once=STORM, watch=True) as crowd:
        run.keep(peer.name, AT_ONCE, crowd.open(storm))
        crowd.open(idle)
        time.sleep(SETTLE_SECONDS)
        seconds = CPU_SECONDS * (0.2 if run.quick else 1.0)
        began, spent = time.monotonic(), cpu_seconds(peer)
        time.sleep(seconds)
        percent = 100 * (cpu_seconds(peer) - spent) / (time.monotonic() - began)
        # A step to what is there already: its report has the heartbeats.
        heartbeats = crowd.open(idle)["heartbeats"]
        each = {f"{kind}_each": (value - before[kind]) / idle for kind, value in _memory(peer, emqx).items()}
    outcome = {"connections": idle, "cpu_percent": percent, "heartbeats": heartbeats}
    run.keep(peer.name, HELD, outcome | each | {"bytes_each": each.get("vm_each", each["resident_each"])})


def _memory(peer: Peer, emqx: EmqxPeers | None) -> dict[str, int]:
    resident = {"resident": peer.resident()}
    return resident | ({"vm": emqx.memory()["total"]} if emqx else {})


def _crowd(peer: Peer, at_once: int, watch: bool = False):
    how = {"at_once": at_once, "sources": SOURCES, "watch": watch, "patience_ms": 1000 * PATIENCE_SECONDS}
    if peer.protocol == "mqtt":
        how["keep_alive"] = HEARTBEAT_SECONDS
    return peer.connections("crowd", **how)


def _raise_limit() -> int:
    """Open files of a process, from now on."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 2 * IDLE + 2 * SPARE_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


@contextmanager
def _others(directory: Path) -> Iterator[list[Peer]]:
    heartbeat = f"{HEARTBEAT_SECONDS}s"
    with ExitStack() as stack:
        broker = mosquitto(directory / "broker", "allow_anonymous true\n")
        broker.start()
        stack.callback(broker.stop)
        gateway = gateway_in_front_of(broker.address, directory / "gateway", {"heartbeat": heartbeat})
        gateway.start()
        stack.callback(gateway.stop)
        found = [Peer(STANDALONE, "nats", gateway.address, (gateway.session, broker.session))]
        if nats_server_path():
            server = nats_server(directory / "nats-server", f"ping_interval: {heartbeat}\n")
            server.start()
            stack.callback(server.stop)
            found.append(Peer(NATS_SERVER, "nats", server.address, (server.session,)))
        yield found


def tables(results: dict[str, Any]) -> list[tuple[str, Rows]]:
    found = Outcomes(results)

    def line(title: str, work: str, name: str, form: str = ",.0f", spread: bool = False) -> tuple[str, list[str]]:
        return title, [cell(found.values(work, peer, figure(name)), form, spread) for peer in PEERS]

    return [
        (
            f"Connections, with login and subscription, and heartbeats every {HEARTBEAT_SECONDS} s",
            table("", PEERS, [
                line(f"per second, {RATE_AT_ONCE} at a time", CONNECT, "connected_per_second", spread=True),
                line("all at once: connections", AT_ONCE, "connections"),
                line("seconds until all are served", AT_ONCE, "served_seconds", ",.1f"),
                line("clients that were refused or cut off, and began again", AT_ONCE, "retries"),
                line("longest wait of a client that was there before, ms", AT_ONCE, "longest_pause_ms"),
                line("idle: connections", HELD, "connections"),
                line("memory of each (VM), bytes", HELD, "vm_each"),
                line("memory of each (resident), bytes", HELD, "resident_each"),
                line("processor time, % of one core", HELD, "cpu_percent", ",.1f"),
            ]),
        ),
    ]
