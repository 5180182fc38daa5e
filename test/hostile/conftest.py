"""Fixtures: a host that a test can start with settings of its own, and the figures at the end.

HOSTILE=long runs the sizes of the reviews that found the faults instead of the short ones.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emqx.conftest import (  # noqa: E402, F401
    NO_EMQX,
    _gateway,
    gateway,
    home,
    nats_port,
    node,
    package,
    page,
    plugin,
)
from emqx.node import emqx_home  # noqa: E402
from hostile.awaited import item_of  # noqa: E402
from hostile.hosts import Emqx, Host, Standalone  # noqa: E402
from hostile.measure import Seen, watching  # noqa: E402

HERE = Path(__file__).resolve().parent
LONG = os.environ.get("HOSTILE") == "long"
TEST_DEADLINE = 900.0 if LONG else 120.0
HOSTS = ("standalone", "emqx")

_figures: list[str] = []


def size(short: int, long: int) -> int:
    return long if LONG else short


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "timeout: see pytest-timeout")
    config.addinivalue_line("markers", "kills: EMQX logs errors because the test kills something")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents:
            continue
        if item.get_closest_marker("timeout") is None:
            # The servers have deadlines of their own.
            item.add_marker(pytest.mark.timeout(TEST_DEADLINE, func_only=True))
        awaited = item_of(item.nodeid)
        if awaited and not os.environ.get("HOSTILE_AWAITED"):
            item.add_marker(pytest.mark.skip(reason=f"awaits the fix of item {awaited}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _figures:
        terminalreporter.section("figures")
        for line in _figures:
            terminalreporter.write_line(line)
    if emqx_home() is None:
        terminalreporter.write_line(f"test/hostile: the tests inside EMQX are skipped, {NO_EMQX}")


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[object], None]:
    """A figure to be printed at the end."""
    return lambda figure: _figures.append(f"{request.node.name}: {figure}")


Hosts = Callable[..., Host]


@pytest.fixture(params=HOSTS)
def hosts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hosts]:
    """Starts the host with settings, by the names that they have there."""
    started: list[Host] = []

    def start(**settings: Any) -> Host:
        if request.param == "standalone":
            host = Standalone(tmp_path, settings)
        else:
            host = Emqx(request.getfixturevalue("gateway"), request.getfixturevalue("page"))
            host.set(settings)
        started.append(host)
        host.start()
        return host

    if request.param == "emqx" and emqx_home() is None:
        pytest.skip(NO_EMQX)
    yield start
    for host in started:
        host.stop()


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
