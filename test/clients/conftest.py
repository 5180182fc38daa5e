"""Fixtures: servers started once and stopped at the end, clients built once, coroutines as tests."""

from __future__ import annotations

import asyncio
import fcntl
import inspect
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clients.broker import ScriptedBroker
from clients.logins import LOGINS, OwnLogin
from clients.program import Program
from clients.secured import WAYS, Secured
from clients.stack import (
    AGAINST_NATS_SERVER,
    REPOSITORY,
    Stack,
    gateway_in_front_of,
    login_stack,
    logins_stack,
    open_stack,
    restricted_stack,
    running_stack,
    tls_stack,
    websocket_stack,
)
from rust_programs import rust_program
from wire.transports import authority, server_certificate

HERE = Path(__file__).resolve().parent
TEST_DEADLINE = 60.0
BUILD_DEADLINE = 900.0
# The package was renamed for its third generation; both are in use.
NATS_JS = {"nats.js 2": "nats", "nats.js 3": "@nats-io/transport-node"}
# For browsers there was a package of its own.
NATS_JS_WS = {"nats.js 2": "nats.ws", "nats.js 3": "@nats-io/transport-node"}
_run = f"{os.getpid()}"
_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            # The fixtures' servers and builds have deadlines of their own.
            item.add_marker(pytest.mark.timeout(TEST_DEADLINE, func_only=True))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(pyfuncitem.obj(**arguments))
    return True


@pytest.fixture
def subject() -> str:
    """A first token that no other test uses."""
    return f"t{_run}n{next(_numbers)}"


# --- Servers ---------------------------------------------------------------------------------------------------------


def _running(stack: Stack) -> Iterator[Stack]:
    with stack:
        yield stack


def _started_here(what: str) -> None:
    if running_stack():
        pytest.skip(f"{what} needs servers of its own, GATEWAY_ADDRESS names running ones")


def _has_mqtt() -> None:
    if AGAINST_NATS_SERVER:
        pytest.skip("a nats-server has no MQTT broker behind it")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    yield from _running(running_stack() or open_stack(tmp_path_factory.mktemp("open")))


@pytest.fixture(scope="session")
def bridge(stack: Stack) -> Stack:
    """The stack, for tests that also talk to its broker."""
    _has_mqtt()
    if stack.broker is None:
        pytest.skip("MQTT_ADDRESS does not say where the broker of GATEWAY_ADDRESS is")
    return stack


@pytest.fixture(scope="session")
def login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    _started_here("authentication")
    yield from _running(login_stack(tmp_path_factory.mktemp("login")))


@pytest.fixture(scope="session", params=LOGINS)
def own_login(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, nats_cli: Path) -> Iterator[OwnLogin]:
    """A stack where the gateway itself knows who may log in."""
    _started_here("logins")
    directory = tmp_path_factory.mktemp("own_login")
    kind = LOGINS[request.param](directory, nats_cli)
    for stack in _running(logins_stack(directory, kind.settings)):
        yield OwnLogin(stack, kind)


@pytest.fixture(scope="session")
def restricted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    _started_here("authorization")
    yield from _running(restricted_stack(tmp_path_factory.mktemp("restricted")))


@pytest.fixture(scope="session")
def _fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    _started_here("a restart")
    yield from _running(open_stack(tmp_path_factory.mktemp("fragile")))


@pytest.fixture
def fragile(_fragile: Stack) -> Iterator[Stack]:
    """A stack that the test may stop and start; it finds it running."""
    try:
        yield _fragile
    finally:
        _fragile.stop()
        _fragile.start()


@pytest.fixture
def fragile_bridge(fragile: Stack) -> Stack:
    _has_mqtt()
    return fragile


@pytest.fixture(scope="session")
def _scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ScriptedBroker, Stack]]:
    _has_mqtt()
    _started_here("a broker that takes any name")
    with ScriptedBroker() as broker:
        gateway = gateway_in_front_of(broker.address, tmp_path_factory.mktemp("scripted"))
        gateway.start()
        try:
            yield broker, Stack(gateway, None)
        finally:
            gateway.stop()


@pytest.fixture
def scripted(_scripted: tuple[ScriptedBroker, Stack]) -> tuple[ScriptedBroker, Stack]:
    """A broker that delivers what Mosquitto refuses to pass on, and the gateway before it."""
    return _scripted


@pytest.fixture(scope="session", params=WAYS)
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    _started_here("TLS")
    tls = WAYS[request.param]
    own = authority().issue("client") if "verify" in tls else None
    for stack in _running(tls_stack(tmp_path_factory.mktemp("tls"), tls)):
        yield Secured(stack, tls.get("mode") == "handshake_first", own, not tls.get("allow_non_tls"))


@pytest.fixture(scope="session", params=["ws", "wss"])
def websocket(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    _started_here("WebSocket")
    options = {"same_origin": True, "compression": True}
    yield from _running(websocket_stack(tmp_path_factory.mktemp(request.param), request.param, options))


# --- Client programs -------------------------------------------------------------------------------------------------


@contextmanager
def _by_nobody_else(directory: Path) -> Iterator[None]:
    """Of the workers that run tests side by side, one builds; neither npm nor Maven looks after that."""
    locks = REPOSITORY / "target" / "clients"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / f"{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(
    command: list[str], directory: Path, unless: Callable[[], bool] = lambda: False, **environment: str
) -> None:
    """unless: somebody else has done it meanwhile."""
    with _by_nobody_else(directory):
        if unless():
            return
        done = subprocess.run(
            command,
            cwd=directory,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=BUILD_DEADLINE,
        )
    if done.returncode:
        pytest.fail(
            f"{' '.join(command)} in {directory.name}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}", pytrace=False
        )


@pytest.fixture(scope="session")
def nats_js_packages() -> Path:
    directory = HERE / "nats_js"
    installed = directory / "node_modules" / ".package-lock.json"

    def is_installed() -> bool:
        return installed.exists() and installed.stat().st_mtime >= (directory / "package-lock.json").stat().st_mtime

    _build(["npm", "ci", "--no-audit", "--no-fund"], directory, unless=is_installed)
    return directory


def _nats_js(package: str, directory: Path) -> Program:
    return Program([os.environ.get("NODE", "node"), "scenarios.js", package], directory)


@pytest.fixture(scope="session", params=NATS_JS)
def nats_js(request: pytest.FixtureRequest, nats_js_packages: Path) -> Program:
    return _nats_js(NATS_JS[request.param], nats_js_packages)


@pytest.fixture(params=NATS_JS_WS)
def nats_js_ws(
    request: pytest.FixtureRequest, nats_js_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> Program:
    monkeypatch.setenv("NODE_EXTRA_CA_CERTS", server_certificate().cafile)
    return _nats_js(NATS_JS_WS[request.param], nats_js_packages)


@pytest.fixture(scope="session")
def async_nats() -> Program:
    return Program([str(rust_program("async-nats-clients"))], HERE / "async_nats")


@pytest.fixture(scope="session")
def nats_go() -> Program:
    directory = HERE / "nats_go"
    target = REPOSITORY / "target" / "clients" / "nats-go-clients"
    target.parent.mkdir(parents=True, exist_ok=True)
    _build(["go", "build", "-o", str(target), "."], directory, GOTOOLCHAIN="local", GOFLAGS="-mod=readonly")
    return Program([str(target)], directory)


@pytest.fixture(scope="session")
def jnats() -> Program:
    directory = HERE / "jnats"
    _build(["mvn", "--quiet", "--batch-mode", "compile", "dependency:copy-dependencies"], directory)
    target = REPOSITORY / "target" / "clients" / "jnats"
    return Program(["java", "-cp", f"{target}/classes:{target}/dependency/*", "Scenarios"], directory)


@pytest.fixture(scope="session")
def libnats() -> Program:
    return Program([sys.executable, "libnats_scenarios.py"], HERE)


@pytest.fixture(scope="session")
def nats_cli() -> Path:
    """The command `nats`, which bin/install-missing builds."""
    found = os.environ.get("NATS_CLI") or shutil.which("nats", path=str(REPOSITORY / ".tools" / "bin")) or shutil.which("nats")
    if found is None:
        pytest.fail("no command `nats`: run bin/install-missing test", pytrace=False)
    return Path(found)


@pytest.fixture(scope="session")
def nats_py() -> Program:
    return Program([sys.executable, "nats_py_tap.py"], HERE)


@pytest.fixture(params=["nats-py", *NATS_JS, "async-nats"])
def tap(request: pytest.FixtureRequest) -> Program:
    """The `tap` scenario in each client: it reports what arrives and publishes what it is told to."""
    match request.param:
        case "nats-py":
            return request.getfixturevalue("nats_py")
        case "async-nats":
            return request.getfixturevalue("async_nats")
        case version:
            return _nats_js(NATS_JS[version], request.getfixturevalue("nats_js_packages"))
