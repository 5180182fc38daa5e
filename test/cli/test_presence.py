"""Presence, standalone: a retained message while a client is there, and another one when it is gone, however it goes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.running import GATEWAY, Running, read_settings, started_mosquitto
from emqx.mqtt import Mqtt
from emqx.nats import Nats
from ports import HOST
from wire.servers import accepts, mosquitto_path

PRESENCE = {"topic": "presence/${name}", "connected": '{"online":true,"name":"${name}"}', "disconnected": '{"online":false}'}


def retained(broker: int, topic: str) -> str | None:
    """What somebody who comes now is told."""
    with Mqtt((HOST, broker)) as client:
        client.subscribe(topic)
        client.subscribe("nothing/else")
        try:
            message = client.message(0.3)
        except AssertionError:
            return None
    assert message.retain
    return message.payload.decode()


@pytest.fixture
def watched(gateway: Running, mosquitto: int) -> Iterator[tuple[Running, Mqtt]]:
    gateway.write(presence=PRESENCE)
    gateway.start()
    with Mqtt((HOST, mosquitto)) as client:
        client.subscribe("presence/#")
        yield gateway, client


def told(client: Mqtt) -> tuple[str, str]:
    message = client.message()
    return message.topic, message.payload.decode()


HERE = ("presence/orders", '{"online":true,"name":"orders"}')
GONE = ("presence/orders", '{"online":false}')


def test_it_comes_and_goes(watched: tuple[Running, Mqtt], mosquitto: int):
    gateway, client = watched
    with gateway.client(name="orders") as nats:
        assert told(client) == HERE
        assert retained(mosquitto, "presence/orders") == HERE[1]
        nats.ping()
    assert told(client) == GONE
    assert retained(mosquitto, "presence/orders") == GONE[1]
    # Only one message each.
    with gateway.client(name="last"):
        assert told(client)[0] == "presence/last"


def test_nats_clients_see_it(watched: tuple[Running, Mqtt]):
    gateway, client = watched
    with gateway.client(name="watcher") as nats:
        nats.subscribe("presence.orders")
        nats.ping()
        with gateway.client(name="orders"):
            assert nats.message().payload.decode() == HERE[1]
        assert nats.message().payload.decode() == GONE[1]


def test_a_kick(gateway: Running, mosquitto: int):
    users = [{"user": name, "password": "pw"} for name in ("admin", "other")]
    gateway.write(presence=PRESENCE | {"topic": "presence/${username}"}, users=users, system={"users": ["admin"]})
    gateway.start()
    with Mqtt((HOST, mosquitto)) as client, gateway.client(user="admin", **{"pass": "pw"}) as admin:
        client.subscribe("presence/other")
        admin.subscribe("answers")
        other = gateway.client(user="other", **{"pass": "pw"})
        assert told(client)[1] == '{"online":true,"name":""}'
        kick = json.dumps({"cid": other.info["client_id"]}).encode()
        admin.publish(f"$SYS.REQ.SERVER.{admin.info['server_id']}.KICK", kick, reply="answers")
        assert told(client)[1] == '{"online":false}'
        other.closed()


def test_a_slow_consumer(gateway: Running, mosquitto: int):
    gateway.write(presence=PRESENCE, max_pending="1KB")
    gateway.start()
    with Mqtt((HOST, mosquitto)) as client, gateway.client(name="orders") as slow:
        client.subscribe("presence/orders")
        assert told(client) == HERE
        slow.subscribe("flood")
        slow.ping()
        with gateway.client(name="fast") as fast:
            for _ in range(100):
                fast.publish("flood", bytes(500000))
            fast.ping()
        assert told(client) == GONE
    assert "reason=slow_consumer" in gateway.log


def test_the_gateway_is_killed(watched: tuple[Running, Mqtt], mosquitto: int):
    gateway, client = watched
    with gateway.client(name="orders"):
        assert told(client) == HERE
        gateway.signal(signal.SIGKILL)
        gateway.process.wait(10)
        assert told(client) == GONE
    assert retained(mosquitto, "presence/orders") == GONE[1]


def test_the_gateway_stops(gateway: Running, mosquitto: int):
    gateway.write(presence=PRESENCE, lame_duck_grace_period="100ms", lame_duck_duration="1ms")
    gateway.start()
    with Mqtt((HOST, mosquitto)) as client, gateway.client(name="orders"):
        client.subscribe("presence/#")
        assert told(client) == HERE
        gateway.signal(signal.SIGTERM)
        assert told(client) == GONE
        assert gateway.ended() == 0


def test_another_login_on_the_same_connection(gateway: Running, mosquitto: int):
    """The presence of the first one ends."""
    users = [{"user": name, "password": "pw"} for name in ("first", "second")]
    gateway.write(presence=PRESENCE | {"topic": "presence/${username}"}, users=users)
    gateway.start()
    with Mqtt((HOST, mosquitto)) as client, gateway.client(user="first", **{"pass": "pw"}) as nats:
        client.subscribe("presence/+")
        assert told(client)[0] == "presence/first"
        nats.login(user="second", **{"pass": "pw"})
        nats.ping()
        assert {told(client), told(client)} == {
            ("presence/first", '{"online":false}'), ("presence/second", '{"online":true,"name":""}')
        }


def test_the_broker_goes_and_comes_back(gateway: Running, tmp_path: Path):
    with started_mosquitto(tmp_path) as port:
        gateway._broker = port
        gateway.write(presence=PRESENCE)
        gateway.start()
        nats = gateway.client(name="orders")
    nats.closed()
    settings = tmp_path / f"mosquitto-{port}.conf"
    process = subprocess.Popen([mosquitto_path(), "-c", str(settings)], stderr=subprocess.DEVNULL)
    try:
        gateway.until(lambda: accepts((HOST, port)), "the broker is back")
        gateway.until(lambda: comes_in(gateway), "clients come in again")
        with gateway.client(name="orders"):
            assert retained(port, "presence/orders") == HERE[1]
    finally:
        process.terminate()
        process.wait(10)


def comes_in(gateway: Running) -> bool:
    try:
        with gateway.client(name="probing"):
            return True
    except (AssertionError, OSError):
        return False


def test_off_without_a_topic(gateway: Running, mosquitto: int):
    gateway.write(presence={"topic": "", "connected": "x"})
    gateway.start()
    with Mqtt((HOST, mosquitto)) as client:
        client.subscribe("#")
        with gateway.client(name="orders") as nats:
            nats.publish("end")
            nats.ping()
        topics = [told(client)[0]]
        while topics[-1] != "end":
            topics.append(told(client)[0])
        # The probe of the broker comes with the first client.
        assert [topic for topic in topics if not topic.startswith("nats_gateway/probe/")] == ["end"]


@pytest.mark.parametrize(("name", "reason"), [
    ("", "empty_value"), ("a+", "wildcard"), ("#", "wildcard"), ("a/b", "separator"), ("a\u0001", "not_text"),
])
def test_a_topic_that_cannot_be_made(watched: tuple[Running, Mqtt], name: str, reason: str):
    """The client is served, nothing is published, and the log says it once."""
    gateway, client = watched
    for _ in range(3):
        with gateway.client(name=name) as nats:
            nats.ping()
    with gateway.client(name="orders"):
        assert told(client) == HERE
    lines = [line for line in gateway.log.splitlines() if "presence_not_published" in line]
    assert len(lines) == 1 and "presence.topic" in lines[0] and reason in lines[0], gateway.log


def test_what_the_templates_hold(gateway: Running, mosquitto: int):
    fields = ("account", "clientid", "connected_at", "listener", "name", "peerhost", "server_name", "username")
    payload = "{" + ",".join(f'"{field}":"${{{field}}}"' for field in fields) + "}"
    gateway.write(
        presence={"topic": "presence/${clientid}", "connected": payload, "retain": False, "qos": 0},
        mountpoint="site/", server_name="edge",
    )
    gateway.start()
    with Mqtt((HOST, mosquitto)) as client:
        client.subscribe("site/presence/#")
        with gateway.client(name='say "hi"\\', user="u\u00fc"):
            message = client.message()
        assert client.message().payload == b"offline"
    assert retained(mosquitto, message.topic) is None
    seen = json.loads(message.payload)
    assert message.topic == f"site/presence/{seen['clientid']}" and seen["clientid"].startswith("nats-")
    assert re.fullmatch("[0-9]{13}", seen.pop("connected_at"))
    seen.pop("clientid")
    assert seen == {
        "account": "$G", "listener": "tcp:default", "name": 'say "hi"\\', "peerhost": HOST, "server_name": "edge",
        "username": "u\u00fc",
    }


def test_an_empty_payload_takes_the_retained_message_away(gateway: Running, mosquitto: int):
    gateway.write(presence={"topic": "presence/${name}", "disconnected": ""})
    gateway.start()
    with Mqtt((HOST, mosquitto)) as client:
        client.subscribe("presence/#")
        with gateway.client(name="orders"):
            assert told(client) == ("presence/orders", "online")
            assert retained(mosquitto, "presence/orders") == "online"
        assert told(client) == ("presence/orders", "")
    assert retained(mosquitto, "presence/orders") is None


@pytest.mark.parametrize(("broker", "setting", "instead"), [
    ("retain_available false", "presence.retain", {"retain": False}), ("max_qos 0", "presence.qos", {"qos": 0}),
])
def test_a_broker_that_refuses_the_will(gateway: Running, tmp_path: Path, broker: str, setting: str, instead: dict):
    """No client gets in, and the log names the setting, which the operator changes."""
    with started_mosquitto(tmp_path, f"allow_anonymous true\n{broker}\n") as port:
        gateway._broker = port
        gateway.write(presence=PRESENCE)
        gateway.start()
        nats = Nats((HOST, gateway.port))
        nats.login(name="orders")
        nats.closed()
        gateway.until(lambda: setting in gateway.log, "the log names the setting")
        gateway.write(presence=PRESENCE | instead)
        gateway.reload("settings_reloaded")
        with Mqtt((HOST, port)) as client:
            client.subscribe("presence/#", qos=0)
            gateway.until(lambda: comes_in(gateway), "clients come in")
            assert told(client) == ("presence/probing", '{"online":true,"name":"probing"}')
            assert told(client) == ("presence/probing", '{"online":false}')


def test_a_broker_that_denies_the_topic(gateway: Running, tmp_path: Path):
    """This one takes the will and drops the messages: the client is served, and the log names the setting."""
    (tmp_path / "acl").write_text("topic readwrite t/#\n")
    with started_mosquitto(tmp_path, f"user root\nallow_anonymous true\nacl_file {tmp_path / 'acl'}\n") as port:
        gateway._broker = port
        gateway.write(presence=PRESENCE)
        gateway.start()
        for _ in range(2):
            with gateway.client(name="orders"):
                gateway.until(lambda: "presence_not_published" in gateway.log, "the log tells it")
    [line] = [line for line in gateway.log.splitlines() if "presence_not_published" in line]
    assert "presence.topic" in line and "not_authorized" in line


def test_wrong_settings_are_refused_by_name(gateway: Running, tmp_path: Path):
    files: dict[Path, str] = {}
    for wrong, text in (
        ({"topic": "presence/${nme}"}, "presence.topic: has a placeholder that is unknown; known here: ${account}, "),
        ({"topic": "presence/#"}, "presence.topic: must not have a wildcard"),
        ({"topic": "$SYS/x"}, "presence.topic: must not begin with $"),
        ({"topic": 1}, "presence.topic: must be a string of at most 1024 bytes"),
        ({"topic": "t", "qos": 2}, "presence.qos: must be an integer from 0 to 1"),
        ({"topic": "t", "retain": "yes"}, "presence.retain: must be true or false"),
        ({"topic": "t", "connected": "x" * 4097}, "presence.connected: must be a string of at most 4096 bytes"),
        ({"topic": "t", "payload": "x"}, "presence.payload: unknown key; known here: connected, disconnected, qos, retain, topic"),
    ):
        gateway.write(presence=wrong)
        files[gateway.file.rename(tmp_path / f"{len(files)}.toml")] = text
    for expected, (status, text) in zip(files.values(), read_settings(files), strict=True):
        assert status == 78 and expected in text, text
    # The program says it.
    done = subprocess.run([GATEWAY, "-c", file := next(iter(files))], capture_output=True, text=True, timeout=20)
    assert done.returncode == 78 and files[file] in done.stderr, done
