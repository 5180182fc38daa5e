"""Nobody is let in without the logins that were demanded: while the plugin does not run, or cannot read its settings."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emqx.gateway import BUILT_IN_DATABASE, Gateway, rest_change
from emqx.nats import Address, Nats, NatsFailure
from emqx.node import Node, name_vsn, wait_until
from emqx.package import release, with_version
from emqx.page import Page, installed_with

pytestmark = [pytest.mark.plugin, pytest.mark.kills, pytest.mark.timeout(240, func_only=True)]

TOKEN = "w0rd"
# of it, cost 4
HASH = "$2a$04$JUIzNcqxj1tTtswnN1a6rOwYU7ysPtDI2t2MvR0L5NgENKQzHf/9y"
LOGINS = {"internal_authn": ["token"], "token": HASH}
BAR = "bar_of_the_plugin_nats_gateway"


def lets_in(address: Address, **fields: object) -> bool:
    """Whether a PUB without CONNECT, or after one with these fields, is taken."""
    try:
        with Nats(address) as client:
            if fields:
                client.login(**fields)
            client.send("PUB open.door 1\r\nx\r\nPING\r\n")
            while (line := client.line()) != b"PONG":
                if line.startswith(b"-ERR"):
                    return False
            return True
    except (OSError, NatsFailure):
        return False


def is_shut(gateway: Gateway, address: Address | None = None) -> bool:
    attempts = ({}, {"auth_token": "wrong"}, {"user": "anne", "pass": "wrong"}, {"user": "", "pass": ""})
    return not any(lets_in(address or gateway.address, **fields) for fields in attempts)


def is_demanded(gateway: Gateway) -> bool:
    return is_shut(gateway) and lets_in(gateway.address, auth_token=TOKEN)


@contextmanager
def watched(gateway: Gateway) -> Iterator[list[str]]:
    """Tries to get in all the time, and fails at the end if it ever was let in."""
    let_in: list[str] = []
    attempts, done = [0], threading.Event()

    def knock() -> None:
        while not done.is_set():
            attempts[0] += 1
            for fields in ({}, {"auth_token": "wrong"}):
                if lets_in(gateway.address, **fields):
                    let_in.append(str(fields))
            done.wait(0.01)

    thread = threading.Thread(target=knock)
    thread.start()
    try:
        yield let_in
    finally:
        done.set()
        thread.join()
    # Dozens on a quiet machine while the port is closed; each takes longer once it is open.
    assert attempts[0] > 1
    assert let_in == []


@pytest.fixture
def demanding(ready: Gateway, page: Page) -> Iterator[Gateway]:
    page.change(**LOGINS)
    wait_until(lambda: barred(ready), "the bar is there")
    yield ready


def authenticator(gateway: Gateway) -> dict | None:
    answer = gateway.rest.call("GET", "/gateways/nats/authentication")
    return answer.body if answer.status == 200 else None


def barred(gateway: Gateway) -> bool:
    return (authenticator(gateway) or {}).get("acl_claim_name") == BAR


def alarms(node: Node) -> list[str]:
    return [alarm["name"] for alarm in node.rest.get("/alarms")["data"]]


def load_the_built_in(node: Node) -> None:
    """As EMQX does on a node without the plugin, or at a boot before plugins start."""
    node.eval("{ok, _} = emqx_gateway:load(nats, emqx_conf:get([gateway, nats])), ok.")


# --- While the plugin is stopped -------------------------------------------------------------------------------------


def test_the_built_in_is_not_loaded_in_place_of_the_plugin(demanding: Gateway, node: Node, package: Path, page: Page):
    assert is_demanded(demanding)
    begin = node.log_size
    with watched(demanding):
        node.stop_plugin(package)
        assert demanding.rest.get("/gateways/nats")["status"] == "unloaded"
        assert not demanding.listening()
    said = [line for line in node.log(begin).splitlines() if "msg: nats_is_not_served" in line]
    assert len(said) == 1 and "the logins of the plugin's page" in said[0] and "built_in_may_serve" in said[0]
    # EMQX shows no health of a stopped plugin.
    assert "nats_is_not_served" in alarms(node)
    with watched(demanding):
        node.start_plugin(package)
        wait_until(demanding.listening, "the plugin serves again")
    assert is_demanded(demanding)
    assert page.health() == "" and "nats_is_not_served" not in alarms(node)


def test_an_upgrade_opens_no_door(demanding: Gateway, node: Node, package: Path, tmp_path: Path):
    """As docs/emqx.md describes it."""
    major, minor, patch = release(package)["rel_vsn"].split(".")
    newer = with_version(package, f"{major}.{minor}.{int(patch) + 1}", tmp_path)
    with demanding.mqtt() as mqtt:
        mqtt.subscribe("open/door")
        try:
            with watched(demanding):
                node.stop_plugin(package)
                node.uninstall(package)
                node.install(newer)
                node.start_plugin(newer)
                wait_until(demanding.listening, "the newer version serves")
            mqtt.publish("open/door", b"none before this")
            assert mqtt.message().payload == b"none before this"
            assert is_demanded(demanding)
        finally:
            if node.rest.call("GET", f"/plugins/{name_vsn(newer)}").status == 200:
                node.stop_plugin(newer)
                node.uninstall(newer)
            if node.plugin("nats_gateway") is None:
                node.install(package)
                node.start_plugin(package)


def test_the_end_of_the_application_opens_no_door(demanding: Gateway, node: Node, package: Path):
    with watched(demanding):
        node.eval("exit(whereis(nats_gateway_sup), kill), ok.")
        wait_until(
            lambda: node.plugin("nats_gateway")["here"]["status"] != "running", "the application has ended"
        )
        node.eval("application:stop(nats_gateway), ok.")


def test_a_restart_of_the_node(demanding: Gateway, node: Node):
    """From 6.3 on EMQX starts gateways before plugins."""
    with watched(demanding):
        node.restart()
        wait_until(demanding.served, "the plugin serves", deadline=30)
    assert is_demanded(demanding)


def test_a_restart_of_the_node_without_the_plugin(demanding: Gateway, node: Node, package: Path):
    node.ctl("plugins", "disable", name_vsn(package))
    try:
        with watched(demanding):
            node.restart()
            wait_until(lambda: demanding.served(by_us=False), "the built-in serves", deadline=30)
        assert is_shut(demanding) and not lets_in(demanding.address, auth_token=TOKEN)
    finally:
        node.ctl("plugins", "enable", name_vsn(package))
        node.start_plugin(package)
    wait_until(demanding.served, "the plugin serves")
    assert is_demanded(demanding)


def test_wherever_the_built_in_is_loaded_it_lets_nobody_in(demanding: Gateway, node: Node, package: Path):
    with node.stopped_plugin(package):
        with watched(demanding):
            load_the_built_in(node)
            wait_until(demanding.listening, "the built-in serves")
        assert not demanding.served_by_us()
        assert is_shut(demanding) and not lets_in(demanding.address, auth_token=TOKEN)
    wait_until(demanding.served, "the plugin serves")
    assert is_demanded(demanding)


def test_without_the_logins_clients_are_let_in_at_once(demanding: Gateway, node: Node, page: Page):
    """EMQX may need a while until the bar is gone, on all nodes. Some clients give up when they are refused."""
    assert node.eval("sys:suspend(nats_gateway_emqx_takeover).") == "ok"
    try:
        page.change()
        wait_until(lambda: lets_in(demanding.address), "clients are let in", deadline=2.0)
        assert barred(demanding)
        # Whoever saves logins again means them.
        page.change(**LOGINS)
        wait_until(lambda: is_shut(demanding), "the logins hold", deadline=2.0)
        page.change()
        time.sleep(5.5)
        # Nobody has just saved the page, so its settings may be lost.
        assert barred(demanding) and is_shut(demanding)
    finally:
        assert node.eval("sys:resume(nats_gateway_emqx_takeover).") == "ok"
    wait_until(lambda: not barred(demanding), "the bar is gone")
    assert lets_in(demanding.address)


def test_the_built_in_may_serve_where_the_page_says_so(demanding: Gateway, node: Node, package: Path, page: Page):
    page.change(**LOGINS, built_in_may_serve=True)
    wait_until(lambda: authenticator(demanding) is None, "the bar is gone")
    assert is_demanded(demanding) and page.health() == ""
    with node.stopped_plugin(package):
        wait_until(lambda: demanding.served(by_us=False), "the built-in serves")
        assert lets_in(demanding.address)


def test_without_the_native_library(demanding: Gateway, node: Node, package: Path, page: Page):
    kept = {library: library.read_bytes() for library in node.plugins.glob("nats_gateway-*/*/priv/*/nats_gateway_nif.so")}
    begin = node.log_size
    node.stop_plugin(package)
    try:
        # other files: the node may have mapped one of these
        for library in kept:
            library.unlink()
            library.write_bytes(b"no library")
        with watched(demanding):
            node.start_plugin(package)
            assert "native library" in page.health()
            assert demanding.rest.get("/gateways/nats")["status"] == "unloaded"
            # EMQX loads plugins before all else at a boot
            node.restart()
            assert is_shut(demanding)
            assert "native library" in page.health()
    finally:
        for library, content in kept.items():
            library.unlink()
            library.write_bytes(content)
        node.stop_plugin(package)
        node.start_plugin(package)
    wait_until(demanding.served, "the plugin serves")
    assert is_demanded(demanding)
    assert HASH not in node.log(begin)


# --- The bar ---------------------------------------------------------------------------------------------------------


def test_the_bar_is_there_only_where_it_is_needed(ready: Gateway, page: Page):
    assert authenticator(ready) is None
    page.change(**LOGINS)
    wait_until(lambda: barred(ready), "the bar is there")
    assert "secret" not in authenticator(ready)
    assert is_demanded(ready) and page.health() == ""
    page.change()
    wait_until(lambda: authenticator(ready) is None, "the bar is gone")
    assert lets_in(ready.address)


def test_an_authenticator_of_the_operator_is_not_touched(ready: Gateway, page: Page):
    ready.authenticate(BUILT_IN_DATABASE)
    ready.add_user("anne", "secret")
    before = authenticator(ready)
    page.change(**LOGINS)
    assert page.health() == ""
    assert is_demanded(ready) and lets_in(ready.address, user="anne", **{"pass": "secret"})
    page.change()
    assert authenticator(ready) == before


def test_an_authenticator_takes_the_place_of_the_bar(demanding: Gateway, page: Page):
    demanding.authenticate_no_more()
    demanding.authenticate(BUILT_IN_DATABASE)
    demanding.add_user("anne", "secret")
    assert is_demanded(demanding) and lets_in(demanding.address, user="anne", **{"pass": "secret"})
    assert page.health() == ""


def test_authenticators_of_some_listeners_only(ready: Gateway, node: Node, package: Path, page: Page, name: str):
    """The others would be barred, too: the health says it, and a stop closes all the same."""
    closed = ready.listen(name)
    ready.authenticate(BUILT_IN_DATABASE, name)
    assert is_shut(ready, closed) and lets_in(ready.address)
    assert f"the logins of listener nats:tcp:{name}" in page.health()
    page.change()
    assert authenticator(ready) is None
    node.stop_plugin(package)
    assert not ready.listening() and is_shut(ready, closed)
    begin = node.log_size
    node.start_plugin(package)
    wait_until(ready.served, "the plugin serves")
    wait_until(lambda: is_warned(node.log(begin), name), "a warning at the start")
    # what docs/emqx.md advises
    path = "/gateways/nats/listeners/nats:tcp:default"
    with rest_change(node.rest, path, {"enable_authn": False}):
        ready.authenticate(BUILT_IN_DATABASE)
        assert page.health() == "" and is_shut(ready, closed) and lets_in(ready.address)
        begin = node.log_size
        page.change()
        with node.stopped_plugin(package):
            wait_until(lambda: ready.served(by_us=False), "the built-in serves")
            assert is_shut(ready, closed) and lets_in(ready.address)
        wait_until(ready.served, "the plugin serves")
        assert not is_warned(node.log(begin), "")


def is_warned(log: str, listener: str) -> bool:
    lines = [line for line in log.splitlines() if "nats_is_open_where_the_plugin_does_not_run" in line]
    return any(listener in line for line in lines)


# --- Settings that cannot be read ------------------------------------------------------------------------------------


def cut(text: str, key: str) -> str:
    """What is before the line of the key, in the order that EMQX writes."""
    lines = sorted(text.splitlines())
    return "".join(f"{line}\n" for line in lines if line < key)


BROKEN: dict[str, Callable[[str], str | None]] = {
    "an unknown key": lambda text: f"{text}\nkey_of_a_newer_version = 1\n",
    "no HOCON": lambda text: f"{text}\n{{{{",
    "empty": lambda _: "",
    "cut in a line": lambda text: text[: text.index("token") + 2],
}


@pytest.mark.parametrize("kind", BROKEN)
def test_settings_that_cannot_be_read(demanding: Gateway, node: Node, package: Path, page: Page, kind: str):
    with watched(demanding), installed_with(node, package, BROKEN[kind]) as installed:
        if installed:
            wait_until(demanding.served, "the plugin serves")
            assert "nobody is let in" in page.health()
        else:
            assert node.version >= (6, 3)
            assert demanding.rest.get("/gateways/nats")["status"] == "unloaded"
        assert is_shut(demanding) and not lets_in(demanding.address, auth_token=TOKEN)
    wait_until(demanding.served, "the plugin serves")
    assert is_demanded(demanding) and page.health() == ""


def test_settings_that_were_lost(demanding: Gateway, node: Node, package: Path, page: Page):
    """EMQX takes the defaults of the package then; so does a node that joins a cluster, if the others are slow."""
    with watched(demanding), installed_with(node, package, lambda _: None):
        wait_until(demanding.served, "the plugin serves")
        assert page.read()["internal_authn"] == []
        assert is_shut(demanding) and barred(demanding)
        assert "were they lost?" in page.health()
    wait_until(demanding.served, "the plugin serves")
    assert is_demanded(demanding) and page.health() == ""


@pytest.mark.parametrize("key", ["internal_authn", "peer_cert_as_username", "websocket_same_origin"])
def test_settings_that_were_cut(demanding: Gateway, node: Node, package: Path, page: Page, key: str):
    with watched(demanding), installed_with(node, package, lambda text: cut(text, key)):
        wait_until(demanding.listening, "the plugin serves")
        assert is_shut(demanding) and not lets_in(demanding.address, auth_token=TOKEN)
        assert f"nobody is let in: {key}: must be there" in page.health()
    wait_until(demanding.served, "the plugin serves")
    assert is_demanded(demanding)


def test_a_boot_with_settings_that_cannot_be_read(demanding: Gateway, node: Node, page: Page):
    file = node.data / "plugins" / "nats_gateway" / "config.hocon"
    before = file.read_text()
    file.write_text(f"{before}\nkey_of_a_newer_version = 1\n")
    try:
        begin = node.log_size
        with watched(demanding):
            node.restart()
            # EMQX 6.3 does not load the plugin then: its built-in gateway serves, behind the bar.
            by_us = node.version < (6, 3)
            wait_until(lambda: demanding.served(by_us), "somebody serves", deadline=30)
        assert is_shut(demanding) and not lets_in(demanding.address, auth_token=TOKEN)
        if by_us:
            assert "nobody is let in" in page.health()
        else:
            assert "key_of_a_newer_version" in node.log(begin)
    finally:
        file.write_text(before)
        node.restart()
    wait_until(demanding.served, "the plugin serves", deadline=30)
    assert is_demanded(demanding) and page.health() == ""


def test_a_stop_just_after_the_logins_have_changed(ready: Gateway, node: Node, package: Path, page: Page):
    """The plugin is changing EMQX's settings then, which EMQX does in the process that stops the plugin."""
    for _ in range(3):
        page.change(**LOGINS)
        began = time.monotonic()
        node.stop_plugin(package)
        assert time.monotonic() - began < 9
        node.start_plugin(package)
        wait_until(lambda: ready.served() and barred(ready), "the plugin serves, and the bar is there")
        assert is_demanded(ready)
        page.change()
        began = time.monotonic()
        node.stop_plugin(package)
        assert time.monotonic() - began < 9
        node.start_plugin(package)
        wait_until(lambda: ready.served() and authenticator(ready) is None, "the plugin serves, and the bar is gone")


# --- The page of a stopped plugin ------------------------------------------------------------------------------------


def test_the_page_can_be_changed_while_the_plugin_is_stopped(ready: Gateway, node: Node, package: Path, page: Page):
    begin = node.log_size
    with node.stopped_plugin(package):
        page.change(**LOGINS)
        assert page.read()["internal_authn"] == ["token"]
        answer = page.try_change(**LOGINS | {"token": "$2a$04$no-hash"})
        assert answer.status == 400 and "token: begins like a bcrypt hash, but is none" in str(answer)
        answer = page.try_change(**LOGINS | {"token": "plain-t0ken"})
        assert answer.status == 400 and "plain-t0ken" not in str(answer) and "$2" not in str(answer)
        assert node.eval("code:is_loaded(nats_gateway_nif)") == "false"
    wait_until(ready.served, "the plugin serves")
    assert is_demanded(ready)
    log = node.log(begin)
    for secret in (HASH, HASH[:20], "$2a$04$no-hash", "plain-t0ken"):
        assert secret not in log


def test_logins_that_are_given_up_while_the_plugin_is_stopped(
    demanding: Gateway, node: Node, package: Path, page: Page
):
    with node.stopped_plugin(package):
        page.change()
    wait_until(demanding.served, "the plugin serves")
    wait_until(lambda: authenticator(demanding) is None, "the bar is gone")
    assert lets_in(demanding.address) and page.health() == ""
