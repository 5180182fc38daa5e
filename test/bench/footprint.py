"""What the gateway takes when nobody uses it: time to start, the pause of an upgrade, memory, and the size of the packages."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.group import Outcomes, Rows, Run, cell, figure, table
from bench.peers import EmqxPeers, Peer
from bench.scenarios import NATS_SERVER, OURS, STANDALONE
from clients.stack import Server, gateway_in_front_of, mosquitto, nats_server
from emqx.nats import NatsFailure
from emqx.node import name_vsn, wait_until
from emqx.package import release, with_version
from wire.servers import REPOSITORY, nats_server_path, speaks_nats

TITLE = "Footprint"
PEERS = (OURS, STANDALONE, NATS_SERVER)
ROUNDS_SECONDS = 40.0
# After that the VM has given back what its start took.
SETTLE_SECONDS = 5.0
POLL_SECONDS = 0.005

START, UPGRADE, MEMORY, SIZE = "start", "upgrade", "memory", "size"


def measure(run: Run) -> None:
    with tempfile.TemporaryDirectory(prefix="nats-gateway-bench-") as directory, ExitStack() as stack:
        if run.home and run.package:
            _plugin(run, stack.enter_context(EmqxPeers(run.home, run.package)), Path(directory))
        broker = mosquitto(Path(directory) / "broker", "allow_anonymous true\n")
        broker.start()
        stack.callback(broker.stop)
        # As a client sees it: with the default time that those who are connected get to leave, but nobody is.
        servers = {STANDALONE: gateway_in_front_of(broker.address, Path(directory) / "gateway")}
        if nats_server_path():
            servers[NATS_SERVER] = nats_server(Path(directory) / "nats-server", "")
        for turn in run.another_round(ROUNDS_SECONDS):
            for name, server in servers.items():
                _server(run, name, server, turn)
    _sizes(run)


def _server(run: Run, name: str, server: Server, turn: int) -> None:
    began = time.monotonic()
    server.start()
    run.keep(name, START, {"milliseconds": _milliseconds(began)}, turn)
    try:
        time.sleep(SETTLE_SECONDS)
        resident = Peer(name, "nats", server.address, (server.session,)).resident()
        run.keep(name, MEMORY, {"bytes": resident}, turn)
        with _pause(lambda: speaks_nats(server.address)) as pause:
            server.restart()
        run.keep(name, UPGRADE, pause, turn)
    finally:
        server.stop()


def _plugin(run: Run, emqx: EmqxPeers, directory: Path) -> None:
    node, package = emqx.node, run.package
    newer = with_version(package, _next(release(package)["rel_vsn"]), directory)
    # The first start loads what others of EMQX need, too.
    emqx.peer(OURS)
    for turn in run.another_round(ROUNDS_SECONDS):
        node.stop_plugin(package)
        wait_until(lambda: not _serves(emqx), "the plugin does not serve any more")
        began = time.monotonic()
        node.start_plugin(package)
        wait_until(lambda: _serves(emqx), "the plugin serves")
        run.keep(OURS, START, {"milliseconds": _milliseconds(began)}, turn)
        for old, new in ((package, newer), (newer, package)):
            # It holds for one upload.
            node.ctl("plugins", "allow", name_vsn(new))
            with _pause(lambda: _serves(emqx)) as pause:
                node.stop_plugin(old)
                node.uninstall(old)
                answer = node.upload(new)
                assert answer.status == 204, answer
                node.start_plugin(new)
            run.keep(OURS, UPGRADE, pause, turn)


def _serves(emqx: EmqxPeers) -> bool:
    """The plugin itself: while it is stopped, EMQX's built-in gateway serves the same port."""
    try:
        return emqx.gateway.served_by_us()
    except (OSError, NatsFailure):
        return False


def _next(version: str) -> str:
    major, minor, patch = version.split(".")
    return f"{major}.{minor}.{int(patch) + 1}"


def _milliseconds(began: float) -> float:
    return 1000 * (time.monotonic() - began)


@contextmanager
def _pause(greets: Callable[[], bool]) -> Iterator[dict[str, float]]:
    """The longest time between two moments at which a new client was greeted."""
    outcome: dict[str, float] = {}
    done = threading.Event()
    greeted = [time.monotonic()]

    def ask() -> None:
        last = False
        while not last:
            # Once more after the end, when the server is there again.
            last = done.is_set()
            if greets():
                greeted.append(time.monotonic())
            time.sleep(POLL_SECONDS)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield outcome
    finally:
        done.set()
        thread.join()
    outcome["milliseconds"] = 1000 * max(after - before for before, after in zip(greeted, greeted[1:]))


# Of `make package-here`, `make package` and `make release`, as far as they were made.
PACKAGES = {
    "plugin": "_build/package/*.tar.gz",
    "standalone, with its own Erlang": "_build/release/*.tar.gz",
    "Debian package": "_build/release/*.deb",
}


def _sizes(run: Run) -> None:
    for name, pattern in PACKAGES.items():
        for package in sorted(REPOSITORY.glob(pattern))[-1:]:
            run.keep(name, SIZE, {"bytes": package.stat().st_size})


def tables(results: dict[str, Any]) -> list[tuple[str, Rows]]:
    found = Outcomes(results)

    def line(title: str, work: str, name: str, factor: float = 1.0, form: str = ",.0f") -> tuple[str, list[str]]:
        return title, [cell(found.values(work, peer, figure(name, factor)), form) for peer in PEERS]

    sizes = [(name, [cell(found.values(SIZE, name, figure("bytes", 1e-6)), ",.1f")]) for name in PACKAGES]
    return [
        (
            "Start, upgrade, memory",
            table("", PEERS, [
                line("start, ms", START, "milliseconds"),
                line("upgrade (restart): longest time in which no new client is greeted, ms", UPGRADE, "milliseconds"),
                line("memory without a client, MB", MEMORY, "bytes", 1e-6, ",.1f"),
            ]),
        ),
        ("Size of the packages", table("", ("MB",), sizes)),
    ]
