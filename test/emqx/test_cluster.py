"""Two nodes: a NATS client on one, an MQTT or another NATS client on the other."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import kv_scenarios
import pytest

from emqx.conftest import BUILT_IN
from emqx.gateway import BUILT_IN_DATABASE, NAMED, Gateway
from emqx.nats import Nats
from emqx.node import Node, name_vsn, wait_until
from emqx.page import Page
from emqx.test_kv import has_a_store, url
from emqx.test_closed import LOGINS, barred, is_demanded, is_shut, lets_in, load_the_built_in
from nats_keys import Key, account_jwt, user_jwt
from ports import HOST, free_port
from system_requests import nats, request

NO_RESPONDERS = b"NATS/1.0 503\r\n\r\n"
pytestmark = pytest.mark.timeout(60, func_only=True)


@pytest.fixture(scope="module")
def cluster(home: Path, package: Path) -> Iterator[tuple[Gateway, Gateway]]:
    cookie = secrets.token_hex(8)
    gateways = [a_gateway(home, cookie) for _ in range(2)]
    nodes = first, second = [gateway.node for gateway in gateways]
    try:
        for node in nodes:
            node.launch()
        for node in nodes:
            node.await_ready()
        # One node has the plugin and the other gets it by joining.
        if not BUILT_IN:
            first.install(package)
            first.start_plugin(package)
        said = second.ctl("cluster", "join", first.name)
        if "Failed" in said or "error" in said.lower():
            pytest.skip(f"this EMQX cannot form a cluster: {said.strip()}")
        wait_until(lambda: len(running_nodes(first)) == 2, "both nodes are in the cluster", deadline=60)
        wait_until(second.is_ready, "the second node has a REST API again", deadline=60)
        if not BUILT_IN:
            wait_until(lambda: runs_everywhere(first), "the plugin runs on both nodes", deadline=60)
        for gateway in gateways:
            wait_until(lambda gateway=gateway: serves(gateway), "both nodes serve NATS", deadline=30)
        yield gateways[0], gateways[1]
    finally:
        for node in reversed(nodes):
            node.remove()


def a_gateway(home: Path, cookie: str, **environment: str) -> Gateway:
    """The listener is the same on all nodes of a cluster, but these share one host. More than one node needs a licence;
    `evaluation` is EMQX's own for trying it out."""
    port = free_port()
    bind = {"EMQX_GATEWAY__NATS__LISTENERS__TCP__DEFAULT__BIND": f"{HOST}:{port}"}
    return Gateway(Node(home, cookie=cookie, EMQX_LICENSE__KEY="evaluation", **bind, **environment), (HOST, port))


def running_nodes(node: Node) -> list[str]:
    return [one["node"] for one in node.rest.get("/nodes") if one["node_status"] == "running"]


def runs_everywhere(node: Node, nodes: int = 2) -> bool:
    plugins = [one for one in node.rest.get("/plugins") if one["name"] == "nats_gateway"]
    return bool(plugins) and [one["status"] for one in plugins[0]["running_status"]] == ["running"] * nodes


def serves(gateway: Gateway) -> bool:
    try:
        with Nats(gateway.address) as client:
            return BUILT_IN or "jetstream" not in client.info
    except OSError:
        return False


def subscribed(gateways: tuple[Gateway, Gateway], topic: str) -> None:
    """A route needs a moment to reach the other node."""
    for gateway in gateways:
        wait_until(lambda gateway=gateway: topic in routes(gateway), f"{topic} is routed", deadline=10)


def routes(gateway: Gateway) -> list[str]:
    return [route["topic"] for route in gateway.rest.get("/topics", limit=1000)["data"]]


def test_nats_to_nats(cluster: tuple[Gateway, Gateway], name: str):
    first, second = cluster
    with first.nats() as one, second.nats() as other:
        one.subscribe(f"{name}.>")
        subscribed(cluster, f"{name}/#")
        other.publish(f"{name}.a", b"x", reply="r")
        message = one.message()
        assert (message.subject, message.reply, message.payload) == (f"{name}.a", "r", b"x")


def test_nats_and_mqtt(cluster: tuple[Gateway, Gateway], name: str):
    first, second = cluster
    with first.nats() as nats, second.mqtt() as mqtt:
        nats.subscribe(f"{name}.in")
        mqtt.subscribe(f"{name}/out")
        subscribed(cluster, f"{name}/in")
        subscribed(cluster, f"{name}/out")
        nats.publish(f"{name}.out", b"to MQTT")
        assert mqtt.message().payload == b"to MQTT"
        mqtt.publish(f"{name}/in", b"to NATS")
        assert nats.message().payload == b"to NATS"


@pytest.fixture
def login(cluster: tuple[Gateway, Gateway], package: Path) -> Iterator[dict[str, str]]:
    """Of an operator, on both nodes. All clients have to log in."""
    first, _ = cluster
    page = Page(first.node, name_vsn(package))
    try:
        page.change(system_users=["admin"])
        first.authenticate(BUILT_IN_DATABASE)
        first.add_user("admin", "pw")
        for gateway in cluster:
            wait_until(lambda gateway=gateway: asks_for_a_login(gateway), "both nodes ask for a login", deadline=20)
        yield {"user": "admin", "pass": "pw"}
    finally:
        first.restore()
        page.change()


@pytest.mark.skipif(BUILT_IN, reason="the built-in gateway does not know it")
def test_a_ping_goes_to_all_servers(cluster: tuple[Gateway, Gateway], login: dict[str, str], name: str):
    """Whoever may ask them asks all nodes, and kicks a client of the other one."""
    first, second = cluster
    with first.nats(**login) as client, second.nats(**login, name=name) as other:
        client.subscribe("answers", sid="9")
        ids = {client.info["server_id"], other.info["server_id"]}
        assert len(ids) == 2
        client.publish("$SYS.REQ.SERVER.PING", b"", reply="answers")
        pongs = [json.loads(client.message().payload) for _ in range(2)]
        assert {pong["server"]["id"] for pong in pongs} == ids
        assert [pong["statsz"]["active_servers"] for pong in pongs] == [2, 2]
        there = other.info["server_id"]
        [seen] = request(client, f"{there}.CONNZ", cid=other.info["client_id"])["data"]["connections"]
        assert seen["name"] == name
        servers = json.loads(nats(first.address[1], "server", "list", "--json"))
        assert {server["server"]["id"] for server in servers} == ids
        assert name in nats(first.address[1], "server", "report", "connections")
        assert "error" not in request(client, f"{there}.KICK", cid=other.info["client_id"])
        other.closed()
        client.ping()


@pytest.mark.skipif(BUILT_IN, reason="the built-in gateway does not know it")
def test_an_operator_is_told_of_the_clients_of_all_nodes(cluster: tuple[Gateway, Gateway], login: dict[str, str], name: str):
    first, second = cluster
    with first.nats(**login) as client:
        client.subscribe("$SYS.ACCOUNT.>")
        client.ping()
        watching = "length(pg:get_members(nats_gateway_servers, client_events))"
        wait_until(lambda: second.node.eval(watching) == "1", "the other node knows who watches", deadline=10)
        for gateway in (second, first):
            with gateway.nats(**login, name=name) as other:
                told = json.loads(client.message().payload)
                assert told["server"]["id"] == other.info["server_id"]
                assert (told["client"]["name"], told["client"]["id"]) == (name, other.info["client_id"])
            gone = json.loads(client.message().payload)
            assert (gone["client"]["id"], gone["reason"]) == (told["client"]["id"], "Client Closed")


def asks_for_a_login(gateway: Gateway) -> bool:
    with Nats(gateway.address) as client:
        return client.info.get("auth_required", False)


def test_headers_cross_byte_for_byte(cluster: tuple[Gateway, Gateway], name: str):
    first, second = cluster
    block = b"NATS/1.0\r\nA:b\r\nA:  c\r\n\r\n"
    with first.nats() as one, second.nats() as other:
        one.subscribe(name)
        subscribed(cluster, name)
        other.publish(name, b"x", headers=block)
        assert one.message().headers == block


def test_a_queue_group_over_both_nodes(cluster: tuple[Gateway, Gateway], name: str):
    first, second = cluster
    count = 30
    with first.nats() as one, second.nats() as other, second.mqtt() as mqtt, first.nats() as sender:
        one.subscribe(name, group="workers")
        other.subscribe(name, group="workers")
        mqtt.subscribe(f"$share/workers/{name}")
        members = f'length([1 || {{_, _, T, _}} <- ets:tab2list(emqx_shared_subscription), T =:= <<"{name}">>])'
        wait_until(lambda: first.node.eval(members) == "3", "all members are known", deadline=20)
        for number in range(count):
            sender.publish(name, b"%d" % number)
        sender.ping()
        received: list[int] = []

        def take() -> bool:
            for member in (one, other):
                while (message := member.available()) is not None:
                    received.append(int(message.payload))
            received.extend(int(mqtt.message().payload) for _ in range(mqtt.waiting))
            return len(received) >= count

        wait_until(take, f"{count} messages arrive", deadline=10)
        assert sorted(received) == list(range(count)), "each message goes to one member"


def test_request_and_reply(cluster: tuple[Gateway, Gateway], name: str):
    first, second = cluster
    with first.nats() as client, second.nats() as service:
        client.subscribe(f"_INBOX.{name}.*")
        service.subscribe(name, group="workers")
        subscribed(cluster, f"_INBOX/{name}/+")
        wait_until(lambda: asked(client, service, name), "the request crosses", deadline=10)


def asked(client: Nats, service: Nats, name: str) -> bool:
    client.publish(name, b"?", reply=f"_INBOX.{name}.1")
    answer = None
    while answer is None:
        request = service.available()
        if request is not None:
            service.publish(request.reply, b"!")
        answer = client.available()
    return answer.payload == b"!"


def test_no_responders(cluster: tuple[Gateway, Gateway], name: str):
    first, second = cluster
    with first.nats() as client:
        client.subscribe(f"_INBOX.{name}.*")
        client.publish(name, b"?", reply=f"_INBOX.{name}.1")
        assert client.message().headers == NO_RESPONDERS
        with second.nats() as service:
            service.subscribe(name)
            subscribed(cluster, name)
            client.publish(name, b"?", reply=f"_INBOX.{name}.2")
            assert service.message().payload == b"?"
            client.silent()


def test_settings_reach_both_nodes(cluster: tuple[Gateway, Gateway], name: str):
    first, second = cluster
    second.settings(server_name=name, **NAMED)
    try:
        for gateway in cluster:
            with gateway.raw() as client:
                assert client.info["server_name"] == name
        with first.nats(name=name) as client:
            # listed on the other node, and kicked from there
            assert second.known(name)["node"] == first.node.name
            second.kick(name)
            client.closed()
    finally:
        second.settings()


@pytest.mark.plugin
def test_the_page_of_the_plugin_reaches_both_nodes(cluster: tuple[Gateway, Gateway], plugin: str):
    first, second = cluster
    path = f"/plugins/{plugin}/config"
    before = first.rest.get(path)
    first.rest.put(path, before | {"max_subscriptions": 1})
    try:
        assert second.rest.get(path)["max_subscriptions"] == 1
        for gateway in cluster:
            with gateway.nats() as client:
                client.subscribe("a")
                client.send("SUB b 2\r\n")
                client.error("maximum subscriptions exceeded")
        lacking = {key: value for key, value in before.items() if key != "nkeys"}
        answer = first.rest.call("PUT", path, lacking | {"max_subscriptions": 2})
        assert answer.status == 400 and "nkeys: must be there" in str(answer), answer
        for gateway in cluster:
            assert gateway.rest.get(path) == before | {"max_subscriptions": 1}
    finally:
        first.rest.put(path, before)


@pytest.mark.plugin
def test_an_account_has_its_connections_on_both_nodes(cluster: tuple[Gateway, Gateway], plugin: str):
    first, second = cluster
    operator, account, user = Key("operator"), Key("account"), Key("user")
    path = f"/plugins/{plugin}/config"
    before = first.rest.get(path)
    first.rest.put(path, before | {
        "internal_authn": ["jwt"],
        "trusted_operators": [operator.public],
        "resolver_preload": [account_jwt(operator, account, limits={"conn": 2})],
    })  # fmt: skip

    def logged_in(gateway: Gateway) -> Nats:
        connection = gateway.raw()
        connection.login(jwt=user_jwt(account, user), sig=user.signature(connection.info))
        return connection

    def is_full(gateway: Gateway) -> bool:
        with logged_in(gateway) as connection:
            connection.send(b"PING\r\n")
            return b"maximum account active connections exceeded" in connection.operation()

    try:
        with logged_in(first) as one, logged_in(second) as other:
            one.ping()
            other.ping()
            for gateway in cluster:
                wait_until(lambda gateway=gateway: is_full(gateway), "the other node's connection is counted")
        for gateway in cluster:
            wait_until(lambda gateway=gateway: not is_full(gateway), "ended connections are not counted any more")
    finally:
        first.rest.put(path, before)


@pytest.mark.plugin
def test_writers_of_a_key_on_both_nodes(cluster: tuple[Gateway, Gateway], package: Path):
    """Create and update by revision are atomic in the whole cluster."""
    page = Page(cluster[0].node, name_vsn(package))
    page.change(kv_enable=True, kv_buckets=["shared"])
    try:
        urls = [url(gateway) for gateway in cluster]
        for gateway in cluster:
            wait_until(lambda gateway=gateway: has_a_store(gateway), "both nodes have the store")
        asyncio.run(kv_scenarios.writers(urls, "shared"))
    finally:
        page.change()


@pytest.mark.plugin
@pytest.mark.kills
@pytest.mark.timeout(120, func_only=True)
def test_a_node_without_the_plugin_lets_nobody_in(cluster: tuple[Gateway, Gateway], package: Path):
    """Its built-in gateway does not know the logins of the plugin's page. What bars it is in EMQX's settings."""
    first, second = cluster
    page = Page(first.node, name_vsn(package))
    page.change(**LOGINS)
    try:
        for gateway in cluster:
            wait_until(lambda gateway=gateway: barred(gateway), "the bar is on both nodes")
            assert is_demanded(gateway)
        second.node.ctl("plugins", "stop", name_vsn(package))
        assert not second.listening()
        load_the_built_in(second.node)
        wait_until(second.listening, "the built-in serves")
        assert not second.served_by_us() and is_shut(second)
        assert is_demanded(first)
        second.node.ctl("plugins", "start", name_vsn(package))
        wait_until(lambda: serves(second), "the plugin serves", deadline=30)
        assert is_demanded(second)
    finally:
        page.change()
    for gateway in cluster:
        wait_until(lambda gateway=gateway: not barred(gateway), "the bar is gone")
        assert lets_in(gateway.address)


@pytest.mark.plugin
@pytest.mark.kills
@pytest.mark.timeout(240, func_only=True)
def test_presence_of_the_clients_of_a_node_that_dies(cluster: tuple[Gateway, Gateway], package: Path, name: str):
    """Killed, it can say nothing: the node that is left does. Stopped, it does so itself, and once."""
    first, second = cluster
    page = Page(first.node, name_vsn(package))
    page.change(presence_topic=f"presence/{name}/${{name}}")
    watchers = "length(pg:get_members(nats_gateway_emqx_presence, watchers))"

    def told() -> tuple[str, str]:
        message = mqtt.message(30)
        return message.topic.rpartition("/")[2], message.payload.decode()

    try:
        with first.mqtt() as mqtt:
            mqtt.subscribe(f"presence/{name}/#")
            wait_until(lambda: {g.node.eval(watchers) for g in cluster} == {"2"}, "the nodes watch", deadline=20)
            with second.nats(name="killed"), second.nats(name="moved"), first.nats(name="stays"):
                assert {told() for _ in range(3)} == {("killed", "online"), ("moved", "online"), ("stays", "online")}
                held = "length(pg:which_groups(nats_gateway_emqx_presence))"
                wait_until(lambda: first.node.eval(held) == "4", "the first node knows them")
                with first.nats(name="moved"):
                    assert told() == ("moved", "online")
                    second.node.kill()
                    # Nothing of the one that has come back on the other node.
                    assert told() == ("killed", "offline")
                    with pytest.raises(AssertionError):
                        mqtt.message(3)
                assert told() == ("moved", "offline")
            assert told() == ("stays", "offline")
            with first.mqtt() as late:
                late.subscribe(f"presence/{name}/killed")
                message = late.message()
                assert message.retain and message.payload == b"offline"
            second.node.launch()
            second.node.await_ready()
            wait_until(lambda: len(running_nodes(first.node)) == 2, "the node is back", deadline=60)
            wait_until(lambda: runs_everywhere(first.node), "the plugin runs on both nodes", deadline=60)
            wait_until(lambda: serves(second), "it serves", deadline=30)
            wait_until(lambda: {g.node.eval(watchers) for g in cluster} == {"2"}, "the nodes watch", deadline=20)
            with second.nats(name="stopped"):
                while (seen := told()) != ("stopped", "online"):
                    # those that asked whether it serves have no name
                    assert seen[0] == ""
                second.node.stop()
                assert told() == ("stopped", "offline")
                with pytest.raises(AssertionError):
                    mqtt.message(3)
    finally:
        page.change()
        second.node.launch()
        second.node.await_ready()
        wait_until(lambda: len(running_nodes(first.node)) == 2, "the node is back", deadline=60)
        wait_until(lambda: serves(second), "it serves", deadline=30)


@pytest.mark.plugin
def test_a_node_that_leaves_takes_its_clients_with_it(cluster: tuple[Gateway, Gateway], name: str):
    """Last of this file: afterwards there is one node."""
    first, second = cluster
    with second.nats(user=name):
        wait_until(lambda: first.clients(username=name), "the client of the other node is listed")
        second.node.stop()
        wait_until(lambda: len(running_nodes(first.node)) == 1, "the node has left", deadline=30)
        assert first.clients(username=name) == []
    with first.nats() as client:
        client.subscribe(name).publish(name, b"x")
        assert client.message().payload == b"x"


@pytest.fixture
def replicant(cluster: tuple[Gateway, Gateway], home: Path) -> Iterator[Gateway]:
    """A third node, without tables of its own, as long as the test takes: the last of this file."""
    first, second = cluster
    seeds = f"[{first.node.name},{second.node.name}]"
    settings = {"NODE__ROLE": "replicant", "CLUSTER__DISCOVERY_STRATEGY": "static", "CLUSTER__STATIC__SEEDS": seeds}
    third = a_gateway(home, first.node.cookie, **{f"EMQX_{name}": value for name, value in settings.items()})
    try:
        try:
            third.node.start()
        except RuntimeError as error:
            pytest.skip(f"this EMQX cannot run replicants: {str(error)[-300:]}")
        wait_until(lambda: runs_everywhere(first.node, 3), "the plugin runs on all three nodes", deadline=120)
        wait_until(lambda: serves(third), "the replicant serves NATS", deadline=30)
        yield third
    finally:
        third.node.remove()


@contextmanager
def copy_behind(replicant: Gateway) -> Iterator[None]:
    """The replicant's copy of the retained messages stays as it is. What copies it says in its log which table it is for."""
    processes = (
        "[Pid || Pid <- processes(), {dictionary, Words} <- [process_info(Pid, dictionary)],"
        " proplists:get_value('$initial_call', Words) =:= {mria_rlog_replica, init, 1},"
        " maps:get(shard, proplists:get_value('$logger_metadata$', Words, #{}), none) =:= emqx_retainer_shard]"
    )
    assert replicant.node.eval(f"[sys:suspend(Pid) || Pid <- {processes}]") == "[ok]"
    try:
        yield
    finally:
        replicant.node.eval(f"[sys:resume(Pid) || Pid <- {processes}]")


@pytest.mark.plugin
@pytest.mark.timeout(240, func_only=True)
def test_the_store_on_a_replicant(cluster: tuple[Gateway, Gateway], replicant: Gateway, package: Path):
    """It has what the core nodes have, at once, however late its own copy is."""
    first, _ = cluster
    page = Page(first.node, name_vsn(package))
    page.change(kv_enable=True, kv_buckets=["shared", "devices=site/state"])
    try:
        for gateway in (*cluster, replicant):
            wait_until(lambda gateway=gateway: has_a_store(gateway), "all nodes have the store")
        urls = [url(gateway) for gateway in (first, replicant)]
        asyncio.run(kv_scenarios.everything(urls[1], "shared"))
        with copy_behind(replicant):
            asyncio.run(kv_scenarios.written_elsewhere(*urls, "shared"))
        asyncio.run(kv_scenarios.writers(urls, "shared"))
        asyncio.run(kv_scenarios.no_gap(urls[1], "devices", "site/state", first.mqtt))
    finally:
        page.change()
