"""EMQX as its environment makes it: the security profile `hardened`, and without some of its features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from emqx.conftest import BUILT_IN
from emqx.gateway import BUILT_IN_DATABASE, NAMED, Gateway, file_rules, rest_change
from emqx.http_auth import HttpAuthority
from emqx.nats import Address, Nats
from emqx.node import Node, wait_until
from emqx.page import Page
from ports import HOST, free_port, is_free

# A hardened EMQX takes no password that everybody knows.
PASSWORD = "n0t-the-usual-one"
SECRET = "t0ken-of-the-gateway"
ANNE = {"user": "anne", "pass": "secret"}
START_DEADLINE = 180

StartNode = Callable[..., Gateway]


@pytest.fixture(scope="module")
def start_node(home: Path, package: Path) -> Iterator[StartNode]:
    """A node of its own, with the plugin."""
    nodes: list[Node] = []

    def start(module: str, **environment: str) -> Gateway:
        if not list(home.glob(f"lib/*/ebin/{module}.beam")):
            pytest.skip(f"this EMQX has no {module}")
        address = (HOST, free_port())
        bind = f'gateway.nats.listeners.tcp.default.bind = "{address[0]}:{address[1]}"'
        node = Node(home, bind, **environment)
        nodes.append(node)
        node.start()
        if not BUILT_IN:
            node.install(package)
            node.start_plugin(package)
        return Gateway(node, address)

    try:
        yield start
    finally:
        for node in nodes:
            node.remove()


@pytest.fixture(scope="module")
def hardened_node(start_node: StartNode) -> Gateway:
    profile = {"EMQX_SECURITY_PROFILE": "hardened", "EMQX_DASHBOARD__DEFAULT_PASSWORD": PASSWORD}
    gateway = start_node("emqx_security_profile", **profile)
    assert gateway.node.eval("emqx_security_profile:profile()") == "hardened"
    wait_until(gateway.listening, "NATS is served", deadline=30)
    gateway.settings()
    gateway.restore()
    return gateway


@pytest.fixture
def hardened(hardened_node: Gateway) -> Iterator[Gateway]:
    begin = hardened_node.node.log_size
    yield hardened_node
    hardened_node.restore()
    assert [line for line in hardened_node.node.errors(begin) if "nats_gateway" in line] == []


def is_let_in(gateway: Gateway, address: Address | None = None, **fields: object) -> bool:
    with gateway.raw(address) as client:
        client.login(**fields)
        client.send(b"PING\r\n")
        return client.line() == b"PONG"


def exchange(one: Nats, other: Nats, name: str) -> None:
    one.subscribe(f"{name}.*")
    other.publish(f"{name}.a", b"x")
    assert one.message().payload == b"x"


# --- The security profile --------------------------------------------------------------------------------------------


def test_hardened_without_authentication_nobody_is_let_in(hardened: Gateway):
    with hardened.raw() as client:
        assert client.info["auth_required"] is True
        client.send(b"PUB a 1\r\nx\r\nPING\r\n")
        assert client.line().startswith(b"-ERR")
        if not BUILT_IN:
            client.closed()
    assert not is_let_in(hardened) and not is_let_in(hardened, **ANNE)


def test_hardened_a_listener_may_be_open(hardened: Gateway, name: str):
    address = hardened.listen(name, enable_authn=False)
    with hardened.nats(address) as one, hardened.nats(address) as other:
        assert not one.info.get("auth_required")
        exchange(one, other, name)
    assert not is_let_in(hardened)


def test_hardened_with_an_authenticator(hardened: Gateway, name: str):
    hardened.settings(**NAMED)
    hardened.authenticate(BUILT_IN_DATABASE)
    hardened.add_user("anne", "secret")
    with hardened.nats(name=name, **ANNE) as one, hardened.nats(name=f"{name}b", **ANNE) as other:
        assert hardened.known(name)["username"] == "anne"
        exchange(one, other, name)
    assert not is_let_in(hardened) and not is_let_in(hardened, user="anne", **{"pass": "x"})


def test_hardened_with_a_login_of_the_gateway(hardened: Gateway, name: str):
    hardened.settings(internal_authn=[{"type": "token", "token": SECRET}])
    with hardened.nats(auth_token=SECRET) as one, hardened.nats(auth_token=SECRET) as other:
        exchange(one, other, name)
    assert not is_let_in(hardened) and not is_let_in(hardened, auth_token="x")


def test_hardened_nobody_is_let_in_by_an_authenticator_that_does_not_answer(hardened: Gateway):
    with HttpAuthority() as service:
        service.answers["anne"] = {"result": "allow"}
        hardened.authenticate(service.authenticator)
        assert is_let_in(hardened, **ANNE)
        hardened.authenticate(service.authenticator | {"url": f"http://{HOST}:{free_port()}/ask"})
        assert not is_let_in(hardened, **ANNE)


def test_hardened_what_no_rule_allows_is_denied(hardened: Gateway, name: str):
    address = hardened.listen(name, enable_authn=False)
    allowed = f'{{allow, all, all, ["{name}/#"]}}'
    with ExitStack() as stack:
        stack.enter_context(rest_change(hardened.rest, "/authorization/settings", {"no_match": "deny"}))
        stack.enter_context(file_rules(hardened, allowed, "{deny, all}"))
        one, other = (stack.enter_context(hardened.nats(address)) for _ in range(2))
        exchange(one, other, name)
        other.publish(f"{name}x.a")
        assert b"Permissions Violation for Publish" in other.line()
        other.send(f"SUB {name}x.a 2\r\n")
        assert b"Permissions Violation for Subscription" in other.line()


# --- Features --------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(START_DEADLINE, func_only=True)
def test_with_no_more_features_than_it_takes(start_node: StartNode, name: str):
    gateway = start_node("emqx_machine_features", EMQX_FEATURES="dashboard,plugins,gateways")
    wait_until(gateway.listening, "NATS is served", deadline=30)
    gateway.settings(**NAMED)
    with gateway.nats(name=name) as one, gateway.nats() as other, gateway.mqtt() as mqtt:
        exchange(one, other, name)
        mqtt.subscribe(f"{name}/up")
        mqtt.publish(f"{name}/down", b"down")
        assert one.message().payload == b"down"
        one.publish(f"{name}.up", b"up")
        assert mqtt.message().payload == b"up"
        assert [row["topic"] for row in gateway.subscriptions(gateway.known(name)["clientid"])] == [f"{name}/+"]
        gateway.kick(name)
        gateway.forgotten(name)
    gateway.authenticate(BUILT_IN_DATABASE)
    gateway.add_user("anne", "secret")
    assert is_let_in(gateway, **ANNE) and not is_let_in(gateway)
    assert [line for line in gateway.node.errors(0) if "nats_gateway" in line] == []


@pytest.mark.plugin
@pytest.mark.timeout(START_DEADLINE, func_only=True)
def test_without_gateways_nothing_is_open_and_the_health_says_so(start_node: StartNode, plugin: str, package: Path):
    gateway = start_node("emqx_machine_features", EMQX_FEATURES="dashboard,plugins")
    node, page = gateway.node, Page(gateway.node, plugin)
    assert node.plugin("nats_gateway")["here"]["status"] == "running"
    assert page.health() == "the gateway application of EMQX is not running: NATS is not served"
    assert not gateway.listening() and is_free(gateway.address[1])
    # its settings are kept for the day that there are gateways
    page.change(max_subscriptions=7)
    assert page.read()["max_subscriptions"] == 7
    node.stop_plugin(package)
    node.start_plugin(package)
    assert "not running" in page.health()
    node.stop_plugin(package)
    node.uninstall(package)
    assert node.plugin("nats_gateway") is None and not gateway.listening()
    assert [line for line in node.errors(0) if "nats_gateway" in line] == []
