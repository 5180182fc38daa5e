"""Clients in the dashboard: listed, searched, shown, kicked; and none left that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from emqx.conftest import BUILT_IN
from emqx.gateway import BUILT_IN_DATABASE, NAMED, Gateway, file_rules, unique
from emqx.nats import Nats
from emqx.node import Node, wait_until
from emqx.rest import quoted

GONE = 1000
SHARED = 50


@pytest.fixture(autouse=True)
def named(gateway: Gateway) -> None:
    """Client ids are the CONNECT field `name`."""
    gateway.settings(**NAMED)


def test_detail(gateway: Gateway, name: str):
    before = datetime.now(UTC)
    with gateway.nats(name=name, user="anne") as client:
        client.subscribe("a.>")
        shown = gateway.known(name)
        assert shown["clientid"] == name
        assert shown["username"] == "anne"
        assert shown["proto_name"] == "NATS"
        assert shown["proto_ver"]
        assert shown["connected"] is True
        assert shown["clean_start"] is True
        assert shown["node"] == gateway.node.name
        assert f"{shown['ip_address']}:{shown['port']}" == client.peername
        connected_at = datetime.fromisoformat(shown["connected_at"])
        assert before - timedelta(seconds=1) <= connected_at <= datetime.now(UTC) + timedelta(seconds=1)
        assert datetime.fromisoformat(shown["created_at"])
    gateway.forgotten(name)


def test_list_and_search(gateway: Gateway, name: str):
    ids = sorted(f"{name}-{number}" for number in range(3))
    clients = [gateway.nats(name=one, user=f"u-{one}") for one in ids]
    try:

        def found(**query: object) -> list[str]:
            return sorted(client["clientid"] for client in gateway.clients(**query))

        wait_until(lambda: found(like_clientid=name) == ids, "all are listed")
        assert set(ids) <= set(found())
        assert found(clientid=ids[0]) == [ids[0]]
        assert found(username=f"u-{ids[1]}") == [ids[1]]
        assert found(like_username=name) == ids
        assert found(like_clientid=name, ip_address="127.0.0.1") == ids
        assert found(like_clientid=name, ip_address="192.0.2.1") == []
        assert found(like_clientid=name, conn_state="connected") == ids
        assert found(like_clientid=name, conn_state="disconnected") == []
        assert found(like_clientid=name, clean_start="true") == ids
        assert found(like_clientid=name, node=gateway.node.name) == ids
        assert found(like_clientid=name, gte_connected_at="2020-01-01T00:00:00Z") == ids
        assert found(like_clientid=name, lte_connected_at="2020-01-01T00:00:00Z") == []
        assert len(gateway.clients(like_clientid=name, limit=2, page=1)) == 2
        assert len(gateway.clients(like_clientid=name, limit=2, page=2)) == 1
    finally:
        for client in clients:
            client.close()


def test_kick(gateway: Gateway, name: str):
    with gateway.nats(name=name) as client, gateway.nats(name=f"{name}b") as other:
        gateway.known(name)
        gateway.kick(name)
        client.closed()
        gateway.forgotten(name)
        assert gateway.rest.call("DELETE", f"/gateways/nats/clients/{name}").status in (204, 404)
        other.ping()


def test_a_kicked_client_gets_nothing_any_more(gateway: Gateway, name: str):
    """Though its socket is open until it has read that it is closed."""
    with gateway.nats(name=name) as kicked, gateway.nats() as other, gateway.nats() as publisher:
        gateway.known(name)
        kicked.subscribe(f"{name}.alone").subscribe(f"{name}.shared", sid="2", group="workers")
        other.subscribe(f"{name}.shared", group="workers")
        publisher.subscribe(f"{name}.inbox")
        gateway.kick(name)
        publisher.publish(f"{name}.alone", b"x", reply=f"{name}.inbox")
        assert publisher.message().headers == b"NATS/1.0 503\r\n\r\n"
        for number in range(SHARED):
            publisher.publish(f"{name}.shared", b"%d" % number)
        assert [int(other.message().payload) for _ in range(SHARED)] == list(range(SHARED))
        other.silent()
        kicked.closed()


@pytest.mark.plugin
def test_what_waits_for_a_client_that_ends_goes_to_another_member(gateway: Gateway, node: Node, name: str):
    """Of its queue groups: messages that it has not been sent."""
    with gateway.nats(name=name) as ended, gateway.nats() as other, gateway.nats() as publisher:
        gateway.known(name)
        ended.subscribe(f"{name}.shared", group="workers").subscribe(f"{name}.plain", sid="2")
        other.subscribe(f"{name}.shared", group="workers")
        process = f'[P || {{_, P}} <- ets:lookup(emqx_gateway_nats_channel, <<"{name}">>)]'
        assert node.eval(f"[sys:suspend(P) || P <- {process}]") == "[ok]"
        for number in range(SHARED):
            publisher.publish(f"{name}.shared", b"%d" % number)
            publisher.publish(f"{name}.plain", b"x")
        publisher.ping()
        waiting = node.eval(f"lists:sum([element(2, process_info(P, message_queue_len)) || P <- {process}])")
        assert int(waiting) > SHARED, "the broker gave all of the group to the other member"
        assert node.eval(f"[sys:terminate(P, {{shutdown, kicked}}) || P <- {process}]") == "[ok]"
        assert sorted(int(other.message().payload) for _ in range(SHARED)) == list(range(SHARED))
        other.silent()
        ended.closed()


def test_an_unknown_client(gateway: Gateway, name: str):
    assert gateway.rest.call("GET", f"/gateways/nats/clients/{name}").status == 404


@pytest.mark.parametrize("first", ["SUB a 1\r\n", "PUB a 0\r\n\r\n"])
def test_a_client_without_connect_is_listed_and_can_be_kicked(gateway: Gateway, first: str):
    with gateway.raw() as client:
        client.send(first)
        # verbose is the protocol's default
        client.expect(b"+OK\r\n")
        port = int(client.peername.rpartition(":")[2])

        def found() -> dict | None:
            return next((one for one in gateway.clients() if one["port"] == port), None)

        shown = wait_until(found, "the client is listed")
        assert shown["connected"] is True and shown["clientid"]
        gateway.kick(shown["clientid"])
        client.closed()
        wait_until(lambda: found() is None, "the client is not listed any more")


# --- Subscriptions ---------------------------------------------------------------------------------------------------


def topics(gateway: Gateway, client_id: str) -> list[str]:
    return sorted(one["topic"] for one in gateway.subscriptions(client_id))


def test_subscriptions_are_listed(gateway: Gateway, name: str):
    with gateway.nats(name=name) as client:
        gateway.known(name)
        client.subscribe("a.*.>", sid="1").subscribe("b", sid="2", group="workers")
        wait_until(
            lambda: topics(gateway, name) == ["$share/workers/b", "a/+/#"], "both are listed", deadline=5
        )
        listed = {one["topic"]: one["sub_props"] for one in gateway.subscriptions(name)}
        assert listed == {"a/+/#": {"sid": "1"}, "$share/workers/b": {"sid": "2"}}
        client.send("UNSUB 1\r\n")
        client.ping()
        assert topics(gateway, name) == ["$share/workers/b"]


def test_a_subscription_is_added_and_removed(gateway: Gateway, name: str):
    """NATS has no subscription without a sid of the client, so one of the gateway's own is delivered."""
    path = f"/gateways/nats/clients/{quoted(name)}/subscriptions"
    with gateway.nats(name=name) as client, gateway.mqtt() as mqtt:
        gateway.known(name)
        answer = gateway.rest.call("POST", path, {"topic": f"{name}/added", "qos": 0})
        assert answer.status == 201 and answer.body["topic"] == f"{name}/added", answer
        assert topics(gateway, name) == [f"{name}/added"]
        mqtt.publish(f"{name}/added", b"x")
        message = client.message()
        assert (message.subject, message.payload) == (f"{name}.added", b"x")
        [listed] = gateway.subscriptions(name)
        assert listed["sub_props"] == {"sid": message.sid}
        gateway.rest.delete(f"{path}/{quoted(f'{name}/added')}")
        assert topics(gateway, name) == []
        mqtt.publish(f"{name}/added", b"y")
        client.silent()


def test_a_subscription_that_exists_is_not_added(gateway: Gateway, name: str):
    """The built-in adds none at all, and answers with the same status."""
    path = f"/gateways/nats/clients/{quoted(name)}/subscriptions"
    with gateway.nats(name=name) as client:
        gateway.known(name)
        client.subscribe(f"{name}.a").subscribe(f"{name}.b", sid="2", group="workers")
        for topic in (f"{name}/a", f"$share/workers/{name}/b"):
            answer = gateway.rest.call("POST", path, {"topic": topic, "qos": 1})
            assert answer.status == 400 and answer.body["code"] == "BAD_REQUEST", answer
        listed = {one["topic"]: (one["qos"], one["sub_props"]["sid"]) for one in gateway.subscriptions(name)}
        assert listed == {f"{name}/a": (0, "1"), f"$share/workers/{name}/b": (0, "2")}
        client.publish(f"{name}.a", b"x")
        assert client.message().sid == "1"
        client.silent()


@pytest.mark.plugin
@pytest.mark.parametrize("topic", ["secret", "secret/#", "#", "$share/workers/secret", "a/#/b", "$share/x", ""])
def test_a_subscription_that_is_not_allowed_is_not_added(gateway: Gateway, name: str, topic: str):
    path = f"/gateways/nats/clients/{quoted(name)}/subscriptions"
    rules = (f'{{deny, {{username, "{name}"}}, subscribe, ["secret/#", {{eq, "#"}}]}}',)
    with file_rules(gateway, *rules), gateway.nats(name=name, user=name) as client:
        gateway.known(name)
        answer = gateway.rest.call("POST", path, {"topic": topic})
        assert answer.status == 400 and answer.body["code"] == "BAD_REQUEST", answer
        assert topics(gateway, name) == []
        client.publish("secret", b"x")
        client.silent()


def test_a_subscription_of_the_client_is_removed(gateway: Gateway, name: str):
    """The client is told, in words that every client library knows."""
    path = f"/gateways/nats/clients/{quoted(name)}/subscriptions"
    with gateway.nats(name=name) as client:
        gateway.known(name)
        client.subscribe(f"{name}.a").subscribe(f"{name}.b", sid="2")
        gateway.rest.delete(f"{path}/{quoted(f'{name}/a')}")
        client.error(f'Permissions Violation for Subscription to "{name}.a"')
        client.publish(f"{name}.a", b"x")
        client.publish(f"{name}.b", b"y")
        assert client.message().subject == f"{name}.b"
        assert gateway.rest.call("DELETE", f"{path}/{quoted(f'{name}/a')}").status == 404


# --- Command line ----------------------------------------------------------------------------------------------------


def test_command_line(gateway: Gateway, node: Node, name: str):
    assert "nats" in node.ctl("gateway", "list")
    with gateway.nats(name=name, user="anne") as client:
        gateway.known(name)
        assert name in node.ctl("gateway-clients", "list", "nats")
        shown = node.ctl("gateway-clients", "lookup", "nats", name)
        assert name in shown and "anne" in shown
        assert node.ctl("gateway-clients", "kick", "nats", name).strip() == "ok"
        client.closed()


def metrics(node: Node) -> dict[str, int]:
    lines = [line.split(":", 1) for line in node.ctl("gateway-metrics", "nats").splitlines() if ":" in line]
    return {key.strip(): int(value) for key, value in lines}


def grown(node: Node, before: dict[str, int], names: Iterable[str]) -> dict[str, int]:
    """By how much."""
    now = metrics(node)
    return {name: now.get(name, 0) - before.get(name, 0) for name in names}


def test_metrics(gateway: Gateway, node: Node, name: str):
    names = {"client.connected", "messages.received", "messages.delivered", "bytes.received", "bytes.sent"}
    before = metrics(node)
    with gateway.nats(name=name) as client:
        client.subscribe(name)
        for _ in range(5):
            client.publish(name, b"x")
            client.message()
    wait_until(lambda: all(grown(node, before, names).values()), f"all of {sorted(names)} grow", deadline=20)


@pytest.mark.parametrize("named", [False, True])
def test_sessions_are_counted(gateway: Gateway, node: Node, name: str, named: bool):
    """Also those of clients whose id is generated."""
    gateway.settings(**NAMED if named else {})
    before = metrics(node)
    with gateway.nats(name=name):
        one = {"session.created": 1, "client.connected": 1}
        wait_until(lambda: grown(node, before, one) == one, "the session is counted")


# What of each kind the client of the next test sends and gets. The built-in delivers no headers.
OPERATIONS = {
    "packets.connect.received": 1,
    "packets.ping.received": 2,
    "packets.pong.received": 1,
    "packets.sub.received": 2,
    "packets.pub.received": 1,
    "packets.hpub.received": 1,
    "packets.unsub.received": 1,
    "packets.info.sent": 1,
    "packets.err.sent": 1,
    "packets.ok.sent": 0,
    "packets.pong.sent": 2,
    "packets.msg.sent": 2 if BUILT_IN else 1,
    "packets.hmsg.sent": 0 if BUILT_IN else 1,
}


def test_operations_are_counted(gateway: Gateway, node: Node, name: str):
    """Under the built-in's names, when the client has ended at the latest."""
    before = metrics(node)
    rule = f'{{deny, all, subscribe, ["{name}/denied"]}}'
    with file_rules(gateway, rule), gateway.nats(name=name) as client:
        client.send(f"SUB {name} 1\r\nSUB {name}.denied 2\r\n")
        assert b"Permissions Violation" in client.line()
        client.publish(name, b"x")
        client.publish(name, b"y", headers=b"NATS/1.0\r\nk: v\r\n\r\n")
        assert [client.message().payload for _ in range(2)] == [b"x", b"y"]
        client.send("PONG\r\nUNSUB 1\r\n")
        client.ping()
    wait_until(lambda: grown(node, before, OPERATIONS) == OPERATIONS, "all are counted", deadline=20)


def test_statistics_of_the_first_seconds(gateway: Gateway, name: str):
    """Somebody looks at a client that has just come."""
    with gateway.nats(name=name) as client:
        client.subscribe(f"{name}.a").subscribe(f"{name}.b", sid="2")
        client.publish(f"{name}.a", b"x")
        client.message()
        expected = {"subscriptions_cnt": 2, "recv_msg": 1, "send_msg": 1}

        def shown() -> bool:
            known = gateway.known(name)
            told = all(known[key] == value for key, value in expected.items())
            # CONNECT, three PINGs, two SUBs and a PUB; INFO, three PONGs and a MSG
            return told and known["recv_pkt"] == 7 and known["send_pkt"] == 5 and known["recv_oct"] and known["send_oct"]

        # a quarter of a second, on a machine with nothing else to do; it was five
        wait_until(shown, "all is told", deadline=4)


# --- Nothing is left -------------------------------------------------------------------------------------------------


def rows(node: Node) -> str:
    """Of all tables that know clients: how many of the gateway's processes are in the broker's and its own."""
    return node.eval(
        "[length([1 || K <- mnesia:dirty_all_keys(emqx_gateway_nats_channel_registry), K =/= undefined])"
        " | [ets:info(T, size) || T <- [emqx_gateway_nats_channel, emqx_gateway_nats_channel_conn,"
        " emqx_gateway_nats_channel_info]]]"
    )


@pytest.mark.timeout(120, func_only=True)
def test_no_row_is_left_of_clients_that_came_and_went(gateway: Gateway, node: Node, name: str):
    subscriptions = int(node.eval("ets:info(emqx_subscription, size)"))
    for number in range(GONE):
        with Nats(gateway.address) as client:
            client.login(name=f"{name}-{number}")
            client.send(f"SUB {name}.{number} 1\r\n")
            client.ping()
    wait_until(lambda: gateway.clients() == [], "no client is listed any more", deadline=30)
    wait_until(lambda: rows(node) == "[0,0,0,0]", "no row is left", deadline=20)
    assert int(node.eval("ets:info(emqx_subscription, size)")) == subscriptions


def test_no_row_is_left_of_a_client_that_was_killed(gateway: Gateway, name: str):
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from emqx.nats import Nats\n"
        "client = Nats(('127.0.0.1', int(sys.argv[2]))).connect(name=sys.argv[3])\n"
        "client.subscribe('a.b')\n"
        "client.send('PUB half 100\\r\\nx')\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    arguments = [str(Path(__file__).resolve().parents[1]), str(gateway.address[1]), name]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        gateway.known(name)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    gateway.forgotten(name)


@pytest.mark.kills
def test_no_row_is_left_of_a_connection_process_that_was_killed(gateway: Gateway, node: Node, name: str):
    with gateway.nats(name=name) as client:
        gateway.known(name)
        node.eval(f'[exit(P, kill) || {{_, P}} <- ets:lookup(emqx_gateway_nats_channel, <<"{name}">>)]')
        client.closed()
        gateway.forgotten(name)


def test_a_refused_login_leaves_no_row(gateway: Gateway, name: str):
    gateway.authenticate(BUILT_IN_DATABASE)
    with gateway.raw() as client:
        client.login(name=name, user="nobody", **{"pass": "x"})
        client.rest()
    assert gateway.client(name) is None


def test_sessions_are_counted_for_the_license(gateway: Gateway, node: Node):
    """As the license counts those of the built-in."""
    count = "emqx_gateway_cm_registry:get_connected_client_count()"
    before = int(node.eval(count))
    clients = [gateway.nats(name=unique()) for _ in range(5)]
    try:
        assert int(node.eval(count)) == before + 5
    finally:
        for client in clients:
            client.close()
