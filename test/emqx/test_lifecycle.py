"""Installed, stopped, started, upgraded, removed, and over restarts of the node: without a trace in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emqx.gateway import BUILT_IN_DATABASE, NAMED, Gateway
from emqx.nats import Nats
from emqx.node import Node, name_vsn, wait_until
from emqx.package import release, with_version
from websocket_client import request

pytestmark = [pytest.mark.plugin, pytest.mark.timeout(180, func_only=True)]


def test_stop_gives_the_built_in_back_with_the_same_configuration(ready: Gateway, node: Node, package: Path, name: str):
    other = ready.listen(name, mountpoint=f"{name}/")
    ready.settings(server_name="kept", **NAMED)
    ready.authenticate(BUILT_IN_DATABASE)
    ready.add_user("anne", "secret")
    before = ready.rest.get("/gateways/nats")

    def served(by_us: bool) -> bool:
        try:
            return all(ready.served_by_us(address) is by_us for address in (ready.address, other))
        except OSError:
            return False

    node.stop_plugin(package)
    wait_until(lambda: served(False), "the built-in serves")
    after = ready.rest.get("/gateways/nats")
    assert without_times(after) == without_times(before)
    for address in (ready.address, other):
        with Nats(address) as client:
            assert client.info["server_name"] == "kept"
            client.connect(user="anne", **{"pass": "secret"})
    node.start_plugin(package)
    wait_until(lambda: served(True), "the plugin serves")
    assert without_times(ready.rest.get("/gateways/nats")) == without_times(before)
    for address in (ready.address, other):
        with ready.nats(address, user="anne", **{"pass": "secret"}) as client:
            assert client.info["server_name"] == "kept"
        with Nats(address) as client:
            client.login(user="anne", **{"pass": "wrong"})
            client.rejected("Authorization Violation")


def without_times(gateway: dict) -> dict:
    return {key: value for key, value in gateway.items() if not key.endswith("_at")}


def test_stop_tells_the_clients_and_leaves_no_row(ready: Gateway, node: Node, package: Path):
    over_ws = ready.listen("drained", "ws")
    clients = [ready.nats(protocol=1) for _ in range(10)]
    clients += [ready.nats(over_ws, websocket=request(), protocol=1) for _ in range(10)]
    wait_until(lambda: len(ready.clients()) == 20, "all are listed")
    node.stop_plugin(package)
    try:
        for client in clients:
            line = client.line()
            assert line.startswith(b"INFO ") and json.loads(line[5:])["ldm"] is True
            client.closed()
        wait_until(lambda: ready.clients() == [], "no client is listed")
        assert node.eval("mnesia:table_info(emqx_gateway_nats_channel_registry, size)") == "0"
        assert node.eval("code:is_loaded(nats_gateway_nif)") == "false"
        assert node.eval("lists:keymember(nats_gateway, 1, application:which_applications())") == "false"
    finally:
        for client in clients:
            client.close()
        node.start_plugin(package)


def test_stop_and_start_many_times(ready: Gateway, node: Node, package: Path, name: str):
    """Nothing of the gateway before may be in the way of the next, however soon it comes."""
    over_ws = ready.listen(name, "ws")

    def served(by_us: bool) -> bool:
        """By all listeners: one may be open before the other is."""
        try:
            return ready.served(by_us) and ready.served_by_us(over_ws, websocket=request()) is by_us
        except OSError:
            return False

    for _ in range(8):
        with node.stopped_plugin(package):
            wait_until(lambda: served(by_us=False), "the built-in serves")
        wait_until(lambda: served(by_us=True), "the plugin serves")
        with ready.nats() as client, ready.nats(over_ws, websocket=request()) as other:
            assert "jetstream" not in other.info
            client.subscribe(name)
            other.publish(name, b"x")
            assert client.message().payload == b"x"


def test_without_a_gateway_configured_nothing_is_served(ready: Gateway, node: Node, package: Path):
    """The plugin starts all the same, and serves what is configured later."""
    before = ready.rest.get("/gateways/nats")
    node.ctl("gateway", "unload", "nats")
    try:
        assert ready.rest.get("/gateways/nats")["status"] == "unloaded"
        with node.stopped_plugin(package):
            pass
        assert node.plugin("nats_gateway")["here"]["status"] == "running"
        assert ready.rest.get("/gateways/nats")["status"] == "unloaded"
        assert not ready.listening()
    finally:
        settings = {key: value for key, value in before.items() if key not in ("status", "created_at", "started_at")}
        ready.rest.put("/gateways/nats", settings)
    wait_until(ready.served, "the plugin serves")


@pytest.mark.kills  # ranch logs an error for the listener
def test_uninstall_leaves_nothing(ready: Gateway, node: Node, package: Path):
    for kind in ("tcp", "ws"):
        assert ready.try_listen("refused", node.mqtt, kind).status == 400
    node.stop_plugin(package)
    node.uninstall(package)
    wait_until(lambda: ready.served(by_us=False), "the built-in serves")
    assert node.plugin("nats_gateway") is None
    assert [path.name for path in node.plugins.iterdir() if path.name.startswith("nats_gateway")] == []
    left = node.eval(
        "{[K || {K, _} <- persistent_term:get(), (is_atom(K) andalso lists:prefix(\"nats_gateway\", atom_to_list(K)))"
        " orelse (is_tuple(K) andalso tuple_size(K) > 0 andalso is_atom(element(1, K)) andalso"
        " lists:prefix(\"nats_gateway\", atom_to_list(element(1, K))))],"
        " [N || N <- registered(), lists:prefix(\"nats_gateway\", atom_to_list(N))],"
        " lists:keymember(nats_gateway, 1, application:loaded_applications()),"
        " code:is_loaded(nats_gateway_nif),"
        " [T || T <- ets:all(), N <- [ets:info(T, name)], lists:prefix(\"nats_gateway\", atom_to_list(N))],"
        " [M || {M, _} <- maps:to_list(maps:from_list([{D, 1} || #{callback_module := D} <-"
        " element(2, persistent_term:get(emqx_gateways))])), lists:prefix(\"nats_gateway\", atom_to_list(M))]}"
    )
    assert "".join(left.split()) == "{[],[],false,false,[],[]}"
    # and it can be installed again
    node.install(package)
    node.start_plugin(package)
    wait_until(ready.served, "the plugin serves")


def test_an_upgrade_needs_no_restart_of_the_node(ready: Gateway, node: Node, package: Path, tmp_path: Path, name: str):
    version = release(package)["rel_vsn"]
    major, minor, patch = version.split(".")
    newer = with_version(package, f"{major}.{minor}.{int(patch) + 1}", tmp_path)
    stored = ready.rest.get(f"/plugins/{name_vsn(package)}/config")
    ready.rest.put(f"/plugins/{name_vsn(package)}/config", stored | {"max_subscriptions": 1})
    try:
        node.stop_plugin(package)
        node.uninstall(package)
        # EMQX's own rule, which docs/emqx.md must name
        refused = node.upload(newer)
        assert refused.status == 403 and "plugins allow" in str(refused), refused
        node.install(newer)
        node.start_plugin(newer)
        wait_until(ready.served, "the newer version serves")
        # the NIF is that of the new version, and works
        node.eval("nats_gateway_nif:quote(<<1>>)")
        loaded = node.eval("[code:which(M) || M <- [nats_gateway_nif, nats_gateway_app]]")
        assert loaded.count(f"/{name_vsn(newer)}/ebin/") == 2, loaded
        assert ready.rest.get(f"/plugins/{name_vsn(newer)}")["running_status"][0]["status"] == "running"
        # the settings of the plugin's page are those of the version before
        with ready.nats() as client:
            client.subscribe(name)
            client.send("SUB b 2\r\n")
            client.error("maximum subscriptions exceeded")
    finally:
        for one in (newer, package):
            if node.rest.call("GET", f"/plugins/{name_vsn(one)}").status == 200:
                node.rest.put(f"/plugins/{name_vsn(one)}/config", stored)
                node.stop_plugin(one)
                node.uninstall(one)
        node.install(package)
        node.start_plugin(package)


def test_a_restart_of_the_node(ready: Gateway, node: Node, name: str):
    address = ready.listen(name)
    ready.settings(server_name="restarted", **NAMED)
    before = without_times(ready.rest.get("/gateways/nats"))
    node.restart()
    wait_until(ready.served, "the plugin serves", deadline=20)
    assert without_times(ready.rest.get("/gateways/nats")) == before
    with ready.nats(address, name=name) as client:
        assert client.info["server_name"] == "restarted"
        client.subscribe(name).publish(name, b"x")
        assert client.message().payload == b"x"
        assert ready.known(name)["connected"] is True


@pytest.mark.kills
def test_a_refused_start_says_why_each_time(ready: Gateway, node: Node, package: Path):
    """As where EMQX has no gateway `nats`. Some versions load all modules again at each start."""
    path = f"/plugins/{name_vsn(package)}/start"
    node.stop_plugin(package)
    node.eval("[code:purge(emqx_gateway_nats), code:delete(emqx_gateway_nats), code:purge(emqx_gateway_nats)], ok.")
    try:
        for _ in range(3):
            begin = node.log_size
            answer = node.rest.call("PUT", path)
            assert "is not supported: 5.10 and newer are" in f"{answer} {node.log(begin)}"
            assert "on_load" not in f"{answer} {node.log(begin)}"
            node.eval("code:purge(nats_gateway_nif), {module, _} = code:load_file(nats_gateway_nif), ok.")
    finally:
        node.eval("{module, _} = code:load_file(emqx_gateway_nats), ok.")
    node.start_plugin(package)
    wait_until(ready.served, "the plugin serves")
    with ready.nats() as client:
        client.ping()


@pytest.mark.kills
def test_kill_of_the_plugins_processes(ready: Gateway, node: Node, name: str):
    """What fails is started again, with everything that was configured."""
    for registered in ("nats_gateway_emqx", "nats_gateway_emqx_takeover"):
        node.eval(f"catch exit(whereis({registered}), kill)")
        wait_until(ready.served, f"served again after {registered} was killed")
        with ready.nats() as client:
            client.subscribe(name).publish(name, b"x")
            assert client.message().payload == b"x"


def test_no_error_is_logged_at_start_and_stop(ready: Gateway, node: Node, package: Path):
    begin = node.log_size
    with node.stopped_plugin(package):
        pass
    wait_until(ready.served, "the plugin serves")
    assert node.errors(begin) == []
