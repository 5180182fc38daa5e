"""TLS, WebSocket, and WebSocket over TLS, with and without compression: what each costs, in each peer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.group import Outcomes, Rows, Run, cell, cpu_per_message, figure, key, table
from bench.peers import EmqxPeers, Peer
from bench.scenarios import KIB, LARGEST, MQTT, NATS_SERVER, OURS, STANDALONE
from clients.stack import gateway_in_front_of, mosquitto, nats_server_of
from emqx.node import wait_until
from ports import HOST, free_port
from wire.servers import accepts, nats_server_config, nats_server_path
from wire.transports import server_certificate

TITLE = "Transports"
PEERS = (OURS, MQTT, STANDALONE, NATS_SERVER)
CONNECTIONS, CONNECTIONS_QUICK = 1000, 100
# The first connections grow tables that all others share.
WARM_UP = 200
# After that the standalone gateway's and nats-server's idle connections have given back what their beginning took.
SETTLE_SECONDS = 7.0
ROUNDS_SECONDS = 60.0

TRANSPORTS: dict[str, dict[str, Any]] = {
    "TCP": {"kind": "tcp"},
    "TLS": {"kind": "tls"},
    "WebSocket": {"kind": "ws"},
    "WebSocket, compressed": {"kind": "ws", "compress": True},
    "WebSocket over TLS": {"kind": "wss"},
    "WebSocket over TLS, compressed": {"kind": "wss", "compress": True},
}
WORKS: dict[str, dict[str, Any]] = {
    "publish only, 128 B": {"measure": "flow", "messages": 60_000, "payload": 128, "subscribers": 0},
    "1:1, 128 B": {"measure": "flow", "messages": 20_000, "payload": 128, "subscribers": 1},
    "1:1, 64 KiB": {"measure": "flow", "messages": 800, "payload": 64 * KIB, "subscribers": 1},
    "1:1, 1 MiB": {"measure": "flow", "messages": 50, "payload": LARGEST, "subscribers": 1},
    "round trip": {"measure": "round_trip", "requests": 1000, "warm_up": 100, "payload": 128},
}
PUBLISH, ROUND_TRIP = "publish only, 128 B", "round trip"
CONNECT = "connections"


def measure(run: Run) -> None:
    with tempfile.TemporaryDirectory(prefix="nats-gateway-bench-") as directory, ExitStack() as stack:
        peers: dict[str, dict[str, Peer]] = {}
        emqx = None
        if run.home and run.package:
            emqx = stack.enter_context(EmqxPeers(run.home, run.package, MqttListeners.settings()))
            peers |= {OURS: _plugin(emqx), MQTT: MqttListeners.peers(emqx)}
        peers[STANDALONE] = stack.enter_context(_standalone(Path(directory)))
        if nats_server_path():
            peers[NATS_SERVER] = stack.enter_context(_nats_server(Path(directory)))
        for turn in run.another_round(ROUNDS_SECONDS):
            for transport in TRANSPORTS:
                for work, specification in WORKS.items():
                    for found in peers.values():
                        run.measure(found[transport], work, run.smaller(specification), turn, transport)
        for name, found in peers.items():
            for transport, peer in found.items():
                with run.failing(f"connections {transport}"):
                    run.keep(name, CONNECT, _connections(run, peer, emqx if name in (OURS, MQTT) else None), 0, transport)


def _connections(run: Run, peer: Peer, emqx: EmqxPeers | None) -> dict[str, float]:
    """1000 connections with one subscription: how fast they come, and what each keeps when it is idle."""
    count = CONNECTIONS_QUICK if run.quick else CONNECTIONS
    with peer.connections(at_once=32) as connections:
        connections.open(WARM_UP)
    before = _memory(peer, emqx)
    with peer.connections(at_once=32) as connections:
        outcome = connections.open(count)
        after = _memory(peer, emqx)
    each = {f"{kind}_each": (after[kind] - before[kind]) / count for kind in before}
    return outcome | each | {"bytes_each": each.get("vm_each", each["resident_each"])}


def _memory(peer: Peer, emqx: EmqxPeers | None) -> dict[str, int]:
    """In a node it is the memory of the VM after a collection of all processes; resident memory keeps what it had."""
    if emqx is None:
        time.sleep(SETTLE_SECONDS)
        return {"resident": peer.resident()}
    time.sleep(1.0)
    emqx.node.eval("[erlang:garbage_collect(Process) || Process <- erlang:processes()], ok.")
    return {"vm": emqx.memory()["total"], "resident": peer.resident()}


# --- Peers -----------------------------------------------------------------------------------------------------------


def _how(transport: dict[str, Any]) -> dict[str, Any]:
    """As the load generator is told."""
    secure = transport["kind"] in ("tls", "wss")
    return transport | ({"ca": server_certificate().cafile} if secure else {})


def _peers(base: Peer, addresses: dict[str, tuple[str, int]]) -> dict[str, Peer]:
    """addresses: by the kind of transport."""
    return {
        name: Peer(base.name, base.protocol, addresses[transport["kind"]], base.sessions, _how(transport))
        for name, transport in TRANSPORTS.items()
    }


def _plugin(emqx: EmqxPeers) -> dict[str, Peer]:
    base = emqx.peer(OURS)
    own = server_certificate()
    files = zip(("certfile", "keyfile", "cacertfile"), (own.certfile, own.keyfile, own.cafile), strict=True)
    ssl_options = {name: Path(path).read_text() for name, path in files}
    fast = {"max_conn_rate": 100_000, "max_connections": 100_000}
    listen = emqx.gateway.listen
    return _peers(
        base,
        {
            "tcp": base.address,
            "tls": listen("bench", "ssl", ssl_options=ssl_options, **fast),
            "ws": listen("bench", "ws", websocket={"compress": True}, **fast),
            "wss": listen("bench", "wss", ssl_options=ssl_options, websocket={"compress": True}, **fast),
        },
    )


class MqttListeners:
    """EMQX's own, beside its TCP listener."""

    KINDS = {"tls": "ssl", "ws": "ws", "wss": "wss"}
    _ports: dict[str, int] = {}

    @classmethod
    def settings(cls) -> str:
        own = server_certificate()
        cls._ports = {kind: free_port() for kind in cls.KINDS}
        lines = []
        for kind, name in cls.KINDS.items():
            options = [f'bind = "{HOST}:{cls._ports[kind]}"']
            if kind != "ws":
                files = f'certfile = "{own.certfile}", keyfile = "{own.keyfile}", cacertfile = "{own.cafile}"'
                options.append(f"ssl_options {{ {files} }}")
            if kind != "tls":
                options.append("websocket.compress = true")
            lines.append(f"listeners.{name}.bench {{ {', '.join(options)} }}")
        return "\n".join(lines)

    @classmethod
    def peers(cls, emqx: EmqxPeers) -> dict[str, Peer]:
        base = emqx.peer(MQTT)
        return _peers(base, {"tcp": base.address} | {kind: (HOST, port) for kind, port in cls._ports.items()})


@contextmanager
def _standalone(directory: Path) -> Iterator[dict[str, Peer]]:
    own = server_certificate()
    broker = mosquitto(directory / "broker", "allow_anonymous true\n")
    broker.start()
    try:
        gateway = gateway_in_front_of(broker.address, directory / "gateway")
        ports = {kind: free_port() for kind in ("tls", "ws", "wss")}
        secure = f'ssl_options = {{ certfile = "{own.certfile}", keyfile = "{own.keyfile}" }}\n'
        compressed = "websocket = { compress = true }\n"
        more = {"ssl": ("tls", secure), "ws": ("ws", compressed), "wss": ("wss", secure + compressed)}
        config = directory / "gateway" / "gateway.toml"
        with config.open("a") as file:
            for name, (kind, options) in more.items():
                file.write(f'\n[listeners.{name}.bench]\nbind = "{HOST}:{ports[kind]}"\n{options}')
        # The connections of this measurement say nothing for as long as it likes.
        config.write_text('idle_timeout = "300s"\ndefault_heartbeat_interval = "300s"\n' + config.read_text())
        gateway.start()
        try:
            base = Peer(STANDALONE, "nats", gateway.address, (gateway.session, broker.session))
            addresses = {"tcp": gateway.address} | {kind: (HOST, port) for kind, port in ports.items()}
            for address in addresses.values():
                wait_until(lambda address=address: accepts(address), "the listener is there")
            yield _peers(base, addresses)
        finally:
            gateway.stop()
    finally:
        broker.stop()


@contextmanager
def _nats_server(directory: Path) -> Iterator[dict[str, Peer]]:
    """Two of them, because one has either a secure WebSocket or none that is."""
    found: dict[str, Peer] = {}
    with ExitStack() as stack:
        for secure in (False, True):
            port = free_port()
            websocket = {"websocket": {"tls": secure, "compression": True}}
            # The last one of a name counts.
            text = nats_server_config(websocket, port) + (nats_server_config({"tls": {}}, 0) if secure else "")
            server = nats_server_of(
                directory / f"nats-server-{secure}", lambda port, text=text: f"{text}\nport: {port}\nping_interval: 300s\n", accepts
            )
            server.start()
            stack.callback(server.stop)
            wait_until(lambda port=port: accepts((HOST, port)), "nats-server's WebSocket is there")
            base = Peer(NATS_SERVER, "nats", server.address, (server.session,))
            kinds = ("tls", "wss") if secure else ("tcp", "ws")
            addresses = dict(zip(kinds, (server.address, (HOST, port)), strict=True))
            missing = {kind: server.address for kind in ("tcp", "tls", "ws", "wss") if kind not in addresses}
            every = _peers(base, addresses | missing)
            found |= {name: peer for name, peer in every.items() if TRANSPORTS[name]["kind"] in addresses}
        yield found


# --- Tables ----------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> list[tuple[str, Rows]]:
    found = Outcomes(results)
    flows = [work for work in WORKS if work != ROUND_TRIP]

    def rate(work: str, transport: str, peer: str) -> str:
        name = "published_per_second" if work == PUBLISH else "delivered_per_second"
        return cell(found.values(key(work, transport), peer, figure(name)), spread=True)

    def spent(work: str, transport: str, peer: str) -> str:
        return cell(found.values(key(work, transport), peer, cpu_per_message), ",.1f")

    def percentiles(transport: str, peer: str) -> str:
        both = [cell(found.values(key(ROUND_TRIP, transport), peer, figure(name))) for name in ("p50", "p99")]
        return " / ".join(both) if all(both) else ""

    def connection(name: str, transport: str, peer: str) -> str:
        return cell(found.values(key(CONNECT, transport), peer, figure(name)))

    def by_work(show) -> list[tuple[str, list[str]]]:
        return [(key(work, name), [show(work, name, peer) for peer in PEERS]) for work in flows for name in TRANSPORTS]

    return [
        ("Messages per second by transport", table("", PEERS, by_work(rate))),
        ("Processor time of the peer per message by transport, µs", table("", PEERS, by_work(spent))),
        (
            "Round trip by transport, p50 / p99, µs",
            table("", PEERS, [(name, [percentiles(name, peer) for peer in PEERS]) for name in TRANSPORTS]),
        ),
        (
            "Connections per second by transport, 32 at a time, with login and subscription",
            table("", PEERS, [(name, [connection("connected_per_second", name, peer) for peer in PEERS]) for name in TRANSPORTS]),
        ),
        (
            "Memory of an idle connection by transport, bytes",
            table("", PEERS, [(name, [connection("bytes_each", name, peer) for peer in PEERS]) for name in TRANSPORTS]),
        ),
    ]
