"""What the NATS page of the dashboard sets: at load, and changed while clients are connected."""

from __future__ import annotations

import time

import pytest

from emqx.gateway import NAMED, SETTINGS, Gateway
from emqx.node import wait_until
from ports import HOST, is_free


def test_the_configuration_the_node_was_started_with_is_served(gateway: Gateway):
    """Nobody but the node's own configuration file has named this port."""
    with gateway.nats() as connection:
        connection.subscribe("t").publish("t", b"x")
        assert connection.message().payload == b"x"


def test_info(gateway: Gateway):
    with gateway.raw() as connection:
        info = connection.info
    assert info["server_id"] == "test"
    assert info["server_name"] == "test"
    assert info["max_payload"] == 1048576
    assert info["headers"] is True
    assert info["proto"] == 1
    assert info["host"] == HOST and info["port"] == gateway.address[1]
    assert info["client_ip"] == HOST
    assert "auth_required" not in info


def test_server_name_changes_for_new_connections_and_old_ones_stay(gateway: Gateway, name: str):
    with gateway.nats() as before:
        before.subscribe(name)
        gateway.settings(server_name="changed", server_id="other")
        with gateway.raw() as after:
            assert (after.info["server_name"], after.info["server_id"]) == ("changed", "other")
            after.connect()
            after.publish(name, b"still there")
            assert before.message().payload == b"still there"


def test_a_wrong_setting_is_refused_and_changes_nothing(gateway: Gateway):
    before = gateway.rest.get("/gateways/nats")
    answer = gateway.try_settings(idle_timeout="soon")
    assert answer.status == 400, answer
    assert "idle_timeout" in str(answer)
    assert gateway.rest.get("/gateways/nats") == before
    with gateway.nats():
        pass


# --- Mountpoint ------------------------------------------------------------------------------------------------------


def test_mountpoint(gateway: Gateway, name: str):
    gateway.settings(mountpoint=f"{name}/")
    with gateway.mqtt() as mqtt, gateway.nats() as nats:
        mqtt.subscribe(f"{name}/#")
        nats.subscribe("in.>").publish("out.a", b"1", reply="in.answer")
        message = mqtt.message()
        assert (message.topic, message.payload) == (f"{name}/out/a", b"1")
        assert message.properties.ResponseTopic == f"{name}/in/answer"
        mqtt.publish(message.properties.ResponseTopic, b"2")
        answer = nats.message()
        assert (answer.subject, answer.payload) == ("in.answer", b"2")


def test_mountpoint_without_connect(gateway: Gateway, name: str):
    """What a client begins with is under it, too."""
    gateway.settings(mountpoint=f"{name}/")
    with gateway.mqtt() as mqtt, gateway.raw() as client:
        mqtt.subscribe(f"{name}/#")
        mqtt.subscribe("a")
        client.send("PUB a 1\r\nx\r\nSUB b 1\r\nPING\r\n")
        client.expect(b"+OK\r\n+OK\r\nPONG\r\n")
        message = mqtt.message()
        assert (message.topic, message.payload) == (f"{name}/a", b"x")
        mqtt.publish("b", b"of others")
        mqtt.publish(f"{name}/b", b"y")
        message = client.message()
        assert (message.subject, message.payload) == ("b", b"y")
        assert mqtt.message().payload == b"y"


@pytest.mark.parametrize("group", [None, "workers"])
def test_mountpoint_separates_clients(gateway: Gateway, name: str, group: str | None):
    gateway.settings(mountpoint=f"{name}/${{username}}/")
    with gateway.nats(user="anne") as anne, gateway.nats(user="bert") as bert:
        anne.subscribe("t", group=group)
        bert.publish("t", b"bert")
        bert.ping()
        anne.publish("t", b"anne")
        assert anne.message().payload == b"anne"
        anne.silent()


@pytest.mark.plugin
def test_a_mountpoint_is_that_of_the_login(gateway: Gateway, name: str):
    """Not of the time when the connection came. Somebody who is there stays where they are."""
    with gateway.raw() as idle, gateway.nats() as live, gateway.mqtt() as mqtt:
        mqtt.subscribe(f"+/{name}").subscribe(name)
        gateway.settings(mountpoint="changed/")
        idle.connect().publish(name, b"x")
        assert mqtt.message().topic == f"changed/{name}"
        live.publish(name, b"x")
        assert mqtt.message().topic == name
        live.login(user="another")
        live.closed()


@pytest.mark.parametrize("placeholder", ["username", "clientid"])
def test_mountpoint_placeholders(gateway: Gateway, name: str, placeholder: str):
    gateway.settings(mountpoint=f"m/${{{placeholder}}}/", **NAMED)
    with gateway.mqtt() as mqtt, gateway.nats(user=name, name=name) as nats:
        mqtt.subscribe(f"m/{name}/#")
        nats.publish("a", b"x")
        assert mqtt.message().topic == f"m/{name}/a"


def test_mountpoint_of_a_listener(gateway: Gateway, name: str):
    address = gateway.listen(name, mountpoint=f"{name}/")
    with gateway.mqtt() as mqtt, gateway.nats(address) as nats:
        mqtt.subscribe(f"{name}/a")
        nats.publish("a", b"x")
        assert mqtt.message().payload == b"x"


# --- Liveness --------------------------------------------------------------------------------------------------------


def test_heartbeat(gateway: Gateway):
    gateway.settings(default_heartbeat_interval="1s", heartbeat_wait_timeout="1s")
    with gateway.nats() as answering, gateway.nats() as silent:
        for _ in range(2):
            answering.expect(b"PING\r\n", deadline=3)
            answering.send(b"PONG\r\n")
        silent.expect(b"PING\r\n", deadline=3)
        silent.expect(b"-ERR 'Stale Connection'\r\n", deadline=3)
        silent.closed()
        answering.expect(b"PING\r\n", deadline=3)


def test_idle_timeout(gateway: Gateway):
    """Who says nothing is closed; who has logged in is not."""
    gateway.settings(idle_timeout="1s")
    with gateway.raw() as mute, gateway.nats() as client:
        mute.closed(deadline=4)
        client.ping()


def test_payload_limit(gateway: Gateway, name: str):
    gateway.settings(protocol={"max_payload_size": 1024})
    with gateway.nats() as client, gateway.nats() as subscriber:
        assert client.info["max_payload"] == 1024
        subscriber.subscribe(name)
        client.publish(name, b"x" * 1024)
        assert len(subscriber.message().payload) == 1024
        client.send(f"PUB {name} 1025\r\n")
        client.rejected("Maximum Payload Violation")


# --- Client information ----------------------------------------------------------------------------------------------


def test_clientinfo_override(gateway: Gateway, name: str):
    override = {"clientid": "${Packet.name}", "username": "u-${Packet.lang}", "password": "${Packet.pass}"}
    gateway.settings(clientinfo_override=override)
    with gateway.nats(name=name, lang="tests"):
        client = gateway.known(name)
        assert (client["clientid"], client["username"]) == (name, "u-tests")


def test_clientinfo_override_generated(gateway: Gateway, name: str):
    gateway.settings(clientinfo_override={"clientid": f"{name}-${{generated}}", "username": "${Packet.user}"})
    with gateway.nats(user=name), gateway.nats(user=name):
        ids = wait_until(lambda: len(found := gateway.clients(username=name)) == 2 and found, "both are listed")
        first, second = (client["clientid"] for client in ids)
        assert first != second
        assert all(one.startswith(f"{name}-") and len(one) > len(name) + 8 for one in (first, second))


def test_clientinfo_override_auth_token(gateway: Gateway, name: str):
    gateway.settings(clientinfo_override={"username": "${Packet.auth_token}", "password": "${Packet.pass}"})
    with gateway.nats(auth_token=name):
        assert wait_until(lambda: gateway.clients(username=name), "the client is listed")


def test_without_override_each_client_has_an_id_of_its_own(gateway: Gateway, name: str):
    with gateway.nats(user=name), gateway.nats(user=name):
        found = wait_until(lambda: len(found := gateway.clients(username=name)) == 2 and found, "both are listed")
        assert found[0]["clientid"] != found[1]["clientid"]


def test_a_client_id_in_use_belongs_to_the_newer_connection(gateway: Gateway, name: str):
    gateway.settings(**NAMED)
    with gateway.nats(name=name) as first, gateway.nats(name=name) as second:
        first.closed()
        second.ping()
        assert gateway.known(name)["port"] == int(second.peername.rpartition(":")[2])


def test_statistics(gateway: Gateway, name: str):
    gateway.settings(**NAMED)
    with gateway.nats(name=name) as client:
        client.subscribe("a.>", sid="1")
        client.subscribe("b.>", sid="2")
        for _ in range(3):
            client.publish("a.x", b"y")
            client.message()

        def moved() -> bool:
            shown = gateway.known(name)
            return shown["recv_msg"] >= 3 and shown["send_msg"] >= 3 and shown["subscriptions_cnt"] == 2

        wait_until(moved, "messages and subscriptions are counted", deadline=20)
        shown = gateway.known(name)
        assert shown["recv_oct"] > 0 and shown["send_oct"] > 0 and shown["recv_pkt"] > 0


def test_statistics_switched_off(gateway: Gateway, name: str):
    gateway.settings(enable_stats=False, **NAMED)
    with gateway.nats(name=name) as client:
        client.publish("a.x", b"y")
        client.ping()
        # Longer than the pause after which test_statistics sees the counters move.
        time.sleep(8)
        assert gateway.known(name)["recv_msg"] == 0


def test_disable_and_enable(gateway: Gateway, name: str):
    with gateway.nats() as client:
        gateway.rest.put("/gateways/nats/enable/false")
        try:
            # It may say that it goes, and then goes.
            client.rest()
            wait_until(lambda: is_free(gateway.address[1]), "the port is free")
            assert gateway.rest.get("/gateways/nats")["status"] == "stopped"
        finally:
            gateway.rest.put("/gateways/nats/enable/true")
    with gateway.nats() as client:
        client.subscribe(name).publish(name, b"x")
        assert client.message().payload == b"x"
    shown = gateway.rest.get("/gateways/nats")
    assert {key: shown[key] for key in ("server_name", "mountpoint")} == {
        key: SETTINGS[key] for key in ("server_name", "mountpoint")
    }
