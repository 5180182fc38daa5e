"""One throw-away EMQX node for all tests, with the packaged plugin installed over REST.

EMQX_GATEWAY=builtin runs the tests against the built-in gateway of that node instead: a test that fails there for a
reason of its own is wrong.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emqx.gateway import Gateway, unique
from emqx.node import Node, emqx_homes, name_vsn, wait_until
from emqx.package import release
from emqx.page import Page
from ports import HOST, free_port

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
TEST_DEADLINE = 60.0
BUILT_IN = os.environ.get("EMQX_GATEWAY") == "builtin"
NO_EMQX = "there is no EMQX: set EMQX_HOME to an unpacked EMQX 5.10 or newer (or put one at /opt/emqx-*)"
HOMES = emqx_homes()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents:
            continue
        if item.get_closest_marker("timeout") is None:
            # The node has deadlines of its own.
            item.add_marker(pytest.mark.timeout(TEST_DEADLINE, func_only=True))
        if BUILT_IN and item.get_closest_marker("plugin"):
            item.add_marker(pytest.mark.skip(reason="tests the plugin, not a gateway"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "plugin: means nothing for the built-in gateway")
    config.addinivalue_line("markers", "kills: EMQX logs errors because the test kills something")
    config.addinivalue_line("markers", "timeout: see pytest-timeout")


def pytest_report_header() -> str:
    return f"EMQX: {', '.join(map(str, HOMES)) or 'none'}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not HOMES:
        terminalreporter.write_line(f"test/emqx: nothing was tested in EMQX, {NO_EMQX}", yellow=True, bold=True)


@pytest.fixture(scope="session", params=HOMES or [None], ids=lambda home: home.name if home else "no-emqx")
def home(request: pytest.FixtureRequest) -> Path:
    """Every test is run with each: all with one, then all with the next."""
    if request.param is None:
        pytest.skip(NO_EMQX)
    return request.param


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: the package may be built anew while the tests run."""
    packages = sorted((REPOSITORY / "_build" / "package").glob("nats_gateway-*.tar.gz"))
    if not packages:
        pytest.fail("no package: run `make package-here`", pytrace=False)
    directory = tmp_path_factory.mktemp("package")
    shutil.copy(f"{packages[-1]}.sha256", directory)
    return Path(shutil.copy(packages[-1], directory))


@pytest.fixture(scope="session")
def nats_port() -> int:
    return free_port()


@pytest.fixture(scope="session")
def node(home: Path, package: Path, nats_port: int) -> Iterator[Node]:
    # The gateway is configured before the plugin is there: it must take over what it finds.
    node = Node(home, f'gateway.nats.listeners.tcp.default.bind = "{HOST}:{nats_port}"')
    try:
        node.start()
        if not BUILT_IN:
            node.install(package)
            node.start_plugin(package)
        wait_until(lambda: served_by(node) is not None, "the gateway nats is registered")
        yield node
    finally:
        if os.environ.get("EMQX_LOG"):
            print(node.log(), file=sys.stderr)
        node.remove()


def served_by(node: Node) -> str | None:
    gateways = {one["name"]: one for one in node.rest.get("/gateways")}
    return gateways["nats"]["status"] if gateways["nats"]["status"] == "running" else None


@pytest.fixture(scope="session")
def _gateway(node: Node, nats_port: int) -> Gateway:
    gateway = Gateway(node, (HOST, nats_port))
    gateway.settings()
    gateway.restore()
    return gateway


@pytest.fixture
def gateway(_gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """The gateway with its usual settings, which it has again after the test. Nothing of it may have failed."""
    begin = _gateway.node.log_size
    yield _gateway
    _gateway.restore()
    errors = [line for line in _gateway.node.errors(begin) if "nats_gateway" in line]
    if not BUILT_IN and not request.node.get_closest_marker("kills"):
        assert errors == [], "\n".join(errors)


@pytest.fixture
def ready(gateway: Gateway, node: Node, package: Path) -> Iterator[Gateway]:
    """The plugin is installed and running, before and after."""
    yield gateway
    for installed in node.rest.get("/plugins"):
        if installed["name"] == "nats_gateway" and installed["rel_vsn"] != release(package)["rel_vsn"]:
            node.rest.delete(f"/plugins/nats_gateway-{installed['rel_vsn']}")
    if node.plugin("nats_gateway") is None:
        node.install(package)
    if node.plugin("nats_gateway")["here"]["status"] != "running":
        node.start_plugin(package)
    wait_until(gateway.served, "the plugin serves again")


@pytest.fixture
def plugin(package: Path) -> str:
    return name_vsn(package)


@pytest.fixture
def page(gateway: Gateway, plugin: str) -> Iterator[Page]:
    """The plugin's own settings, which are the defaults again after the test."""
    page = Page(gateway.node, plugin)
    yield page
    page.change()


@pytest.fixture
def rule(gateway: Gateway) -> Callable[[str], str]:
    """Creates a rule that publishes what it selects, and gives the topic."""

    def create(sql: str) -> str:
        topic = unique("rule")
        republish = {"function": "republish", "args": {"topic": topic, "qos": 1, "payload": "${.}"}}
        made = gateway.rest.post("/rules", {"name": topic, "sql": sql, "actions": [republish]})
        gateway.undo("DELETE", f"/rules/{made['id']}")
        return topic

    return create


@pytest.fixture
def noticing(gateway: Gateway) -> Iterator[None]:
    """EMQX's usual level is warning."""
    gateway.node.ctl("log", "set-level", "notice")
    yield
    gateway.node.ctl("log", "set-level", "warning")


@pytest.fixture
def name() -> str:
    """A name that no other test uses: as a subject's first token, a client id, a listener."""
    return unique()
