"""Starts what is measured, and stops it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.scenarios import MOSQUITTO, MQTT, NATS_SERVER, OURS, STANDALONE
from clients.stack import nats_server, open_stack
from emqx.gateway import Gateway
from emqx.node import Node, wait_until
from ports import HOST, free_port
from wire.servers import REPOSITORY, accepts, nats_server_path

LOAD = REPOSITORY / "target" / "release" / "load"
DEADLINE = 120.0


class MeasurementFailed(Exception):
    pass


@dataclass
class Peer:
    name: str
    protocol: str
    address: tuple[str, int]
    # Leaders of the sessions of its processes.
    sessions: tuple[int, ...]
    # As the load generator is told; else TCP.
    transport: dict[str, Any] | None = None

    def _about(self) -> dict[str, Any]:
        about: dict[str, Any] = {"protocol": self.protocol, "address": "%s:%d" % self.address}
        return about | ({"transport": self.transport} if self.transport else {})

    def measure(self, specification: dict[str, Any]) -> dict[str, float]:
        about = self._about()
        if specification["measure"] in ("flow", "closed_loop"):
            about["pids"] = self.pids()
        done = subprocess.run(
            [str(LOAD), json.dumps(specification | about)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        if done.returncode != 0:
            raise MeasurementFailed(f"{self.name}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    @contextmanager
    def connections(self, measure: str = "connections", **specification: Any) -> Iterator[Connections]:
        about = {"measure": measure} | ({"subscribe": True} if measure == "connections" else {}) | self._about()
        with subprocess.Popen(
            [str(LOAD), json.dumps(about | specification)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            yield Connections(self.name, process)
            process.stdin.close()

    def pids(self) -> list[int]:
        return [pid for session in self.sessions for pid in processes(session)]

    def resident(self) -> int:
        """Bytes of memory that its processes have."""
        return sum(map(_resident, self.pids()))


class Connections:
    def __init__(self, name: str, process: subprocess.Popen):
        self._name = name
        self._process = process

    def open(self, count: int) -> dict[str, float]:
        """Opens more until there are so many."""
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise MeasurementFailed(f"{self._name}: no {count} connections")
        return json.loads(line)


def release(version: str) -> str:
    """As people call it: 5.10."""
    return ".".join(version.split(".")[:2])


def cpu_seconds(peer: Peer) -> float:
    """Processor time of its processes until now."""
    ticks = 0
    for pid in peer.pids():
        with suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def processes(session: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            found.append(int(stat.parent.name))
    return found


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class EmqxPeers:
    """One node, in which the plugin and the built-in gateway take turns on one port."""

    def __init__(self, home: Path, package: Path, settings: str = ""):
        self._package = package
        self._plugin_runs: bool | None = None
        port = free_port()
        # As it ships; but a subscriber of EMQX's MQTT that is behind by 1000 messages for a moment is not to be closed,
        # and connections may come as fast as to the MQTT listener.
        self.node = Node(
            home,
            f'gateway.nats.listeners.tcp.default {{ bind = "{HOST}:{port}", max_connections = 100000, max_conn_rate = 100000 }}\n'
            f"force_shutdown.enable = false\n{settings}\n",
        )
        self._address = (HOST, port)

    def __enter__(self) -> EmqxPeers:
        try:
            self.node.start()
            self.node.install(self._package)
            self._settings()
        except BaseException:
            self.node.remove()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.node.remove()

    @property
    def gateway(self) -> Gateway:
        return Gateway(self.node, self._address)

    def _settings(self) -> None:
        self.gateway.settings(default_heartbeat_interval="300s", idle_timeout="300s")

    def peer(self, name: str) -> Peer:
        sessions = (self.node.session,)
        if name == MQTT:
            return Peer(name, "mqtt", self.node.mqtt, sessions)
        self._serve(name == OURS)
        return Peer(name, "nats", self._address, sessions)

    def _serve(self, by_plugin: bool) -> None:
        if by_plugin == self._plugin_runs:
            return
        if by_plugin:
            self.node.start_plugin(self._package)
        elif self._plugin_runs:
            self.node.stop_plugin(self._package)
        self._plugin_runs = by_plugin
        wanted = "nats_gateway_emqx" if by_plugin else "emqx_gateway_nats"
        wait_until(lambda: wanted in self.node.ctl("gateway-registry", "list"), f"{wanted} serves NATS", 20.0)
        wait_until(lambda: accepts(self._address), "the listener is there", 20.0)

    def load_module(self, source: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="nats-gateway-bench-") as directory:
            subprocess.run(["erlc", "-I", REPOSITORY / "erlang_src", "-o", directory, source], check=True, timeout=DEADLINE)
            answer = self.node.eval(f'code:load_abs("{directory}/{source.stem}").')
            assert answer.startswith("{module,"), answer

    def memory(self) -> dict[str, int]:
        total, processes, count = self.node.eval(
            "erlang:garbage_collect(), io:format(\"~b ~b ~b~n\", "
            "[erlang:memory(total), erlang:memory(processes), erlang:system_info(process_count)])."
        ).split()[:3]
        return {"total": int(total), "processes": int(processes), "process_count": int(count)}

    def release(self) -> str:
        return release(self.version())

    def version(self) -> str:
        return self.node.rest.get("/nodes")[0]["version"]

    def otp(self) -> str:
        return self.node.rest.get("/nodes")[0]["otp_release"]


@contextmanager
def standalone_peers() -> Iterator[dict[str, Peer]]:
    with tempfile.TemporaryDirectory(prefix="nats-gateway-bench-") as directory:
        stack = open_stack(Path(directory))
        stack.start()
        try:
            peers = {
                STANDALONE: Peer(
                    STANDALONE, "nats", stack.gateway.address, (stack.gateway.session, stack.broker.session)
                ),
                MOSQUITTO: Peer(MOSQUITTO, "mqtt", stack.mqtt, (stack.broker.session,)),
            }
            if nats_server_path() is None:
                yield peers
                return
            server = nats_server(Path(directory) / "nats-server", "")
            server.start()
            try:
                yield peers | {NATS_SERVER: Peer(NATS_SERVER, "nats", server.address, (server.session,))}
            finally:
                server.stop()
        finally:
            stack.stop()
