"""Fixtures: a host that a test can start with settings of its own, and the figures at the end.

HOSTILE=long runs the sizes of the reviews that found the faults instead of the short ones.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emqx.conftest import (  # noqa: F401
    HOMES,
    NO_EMQX,
    _gateway,
    gateway,
    nats_port,
    node,
    package,
    page,
    plugin,
)
from hostile.hosts import Emqx, Host, Standalone
from hostile.measure import Address, Seen, watching

HERE = Path(__file__).resolve().parent
LONG = os.environ.get("HOSTILE") == "long"
TEST_DEADLINE = 900.0 if LONG else 120.0
# Where the gateway runs: the standalone program, or one of these EMQXs.
PROGRAM = "standalone"
EMQXS = HOMES or [None]

_figures: list[str] = []


def size(short: int, long: int) -> int:
    return long if LONG else short


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "timeout: see pytest-timeout")
    config.addinivalue_line("markers", "by_the_clock: says nothing on a machine that does anything else; so is what has a neighbour")
    config.addinivalue_line("markers", "kills: EMQX logs errors because the test kills something")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents:
            continue
        if item.get_closest_marker("timeout") is None:
            # The servers have deadlines of their own.
            item.add_marker(pytest.mark.timeout(TEST_DEADLINE, func_only=True))
        if "watch" in item.fixturenames:
            item.add_marker(pytest.mark.by_the_clock)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _figures:
        terminalreporter.section("figures")
        for line in _figures:
            terminalreporter.write_line(line)
    if not HOMES:
        terminalreporter.write_line(f"test/hostile: nothing was tested in EMQX, {NO_EMQX}", yellow=True, bold=True)


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[object], None]:
    """A figure to be printed at the end."""
    return lambda figure: _figures.append(f"{request.node.name}: {figure}")


Hosts = Callable[..., Host]


def _name(place: str | Path | None) -> str:
    return place if place == PROGRAM else place.name if place else "no-emqx"


@pytest.fixture(scope="session", params=[PROGRAM, *EMQXS], ids=_name)
def place(request: pytest.FixtureRequest) -> str | Path:
    """Every test is run with each: all with one, then all with the next."""
    if request.param is None:
        pytest.skip(NO_EMQX)
    return request.param


# For a test that means something in one of the hosts only.
STANDALONE = pytest.mark.parametrize("place", [PROGRAM], indirect=True, ids=_name)
EMQX = pytest.mark.parametrize("place", EMQXS, indirect=True, ids=_name)


@pytest.fixture(scope="session")
def home(place: str | Path) -> Path:
    """Of the node that test/emqx starts."""
    return place


@pytest.fixture
def hosts(place: str | Path, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hosts]:
    """Starts the host with settings, by the names that they have there; access: lines for Mosquitto."""
    started: list[Host] = []

    def start(access: str = "", **settings: Any) -> Host:
        if place == PROGRAM:
            host = Standalone(tmp_path, settings, access=access)
        else:
            host = Emqx(request.getfixturevalue("gateway"), request.getfixturevalue("page"))
            host.set(settings)
        started.append(host)
        host.start()
        return host

    yield start
    for host in started:
        host.stop()


@pytest.fixture
def in_front_of(place: str | Path, tmp_path: Path) -> Iterator[Callable[[Address], Standalone]]:
    """The standalone program with a broker that is there."""
    with ExitStack() as stack:

        def start(mqtt: Address) -> Standalone:
            host = Standalone(tmp_path, {}, mqtt)
            stack.callback(host.stop)
            host.start()
            return host

        yield start


Watch = Callable[[Host], Any]


@pytest.fixture
def watch(note: Callable[[object], None]) -> Watch:
    """A context in which a host is watched; what was seen is printed at the end."""

    @contextmanager
    def watched(host: Host) -> Iterator[Seen]:
        with watching(host.usage, host.neighbour, host.idle) as seen:
            yield seen
        note(seen)

    return watched
