"""Devices without Response Topic: requests of NATS clients, answered by clients of MQTT 3.1.1."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cli.running import GATEWAY, Running, started_mosquitto
from devices import Device, echo, silent
from emqx.mqtt import Mqtt
from emqx.nats import Nats
from ports import HOST
from system_requests import NO_RESPONDERS, nats, nats_cli

RULE = "dev.*.get -> cmd/${1} -> cmd/${1}/reply"
# Mosquitto that was started by root would not read and write files of the tests.
READS = "allow_anonymous true\nuser root\n"
WITH_ID = "call.*.> -> rpc/${1}/${id}/${2} -> rpc/${1}/${id}/${2}/reply"


@pytest.fixture
def broker(mosquitto: int) -> tuple[str, int]:
    return HOST, mosquitto


def started(gateway: Running, **devices: object) -> None:
    gateway.write(devices={"rules": [RULE, WITH_ID]} | devices)
    gateway.start()


def requester(gateway: Running, **fields: object) -> Nats:
    return gateway.client(**fields).subscribe("_INBOX.me.*", sid="9")


def test_an_unmodified_request(gateway: Running, broker: tuple[str, int]):
    started(gateway)
    with Device(broker, "cmd/+", echo), Device(broker, "rpc/+/+/#", echo):
        assert nats(gateway.port, "request", "--raw", "dev.lamp.get", "status").strip() == "cmd/lamp: status"
        assert nats(gateway.port, "request", "--raw", "-H", "A: b", "dev.lamp.get", "again").strip() == "cmd/lamp: again"
        answer = nats(gateway.port, "request", "--raw", "call.pump.motor.start", "now").strip()
        assert answer.startswith("rpc/pump/") and answer.endswith("/motor/start: now")


def test_a_device_that_is_not_there_has_no_responders_at_once(gateway: Running, broker: tuple[str, int]):
    started(gateway)
    with requester(gateway) as client:
        for _ in range(2):
            client.publish("dev.lamp.get", reply="_INBOX.me.1")
            message = client.message()
            assert (message.subject, message.headers) == ("_INBOX.me.1", NO_RESPONDERS)
        done = nats_cli(gateway.port, "request", "dev.lamp.get", "status", timeout="30s")
        assert "o responders" in done.stdout + done.stderr
        # It is there now, and its first answer is not for the requests before.
        with Device(broker, "cmd/+", echo):
            client.publish("dev.lamp.get", b"x", reply="_INBOX.me.2")
            assert client.message().subject == "_INBOX.me.2"


def test_answers_go_to_requests_in_order(gateway: Running, broker: tuple[str, int]):
    started(gateway)
    with requester(gateway) as client, Device(broker, "cmd/+", silent) as device:
        for n in (1, 2):
            client.publish("dev.lamp.get", b"%d" % n, reply=f"_INBOX.me.{n}")
        assert [device.command() for _ in range(2)] == [("cmd/lamp", b"1"), ("cmd/lamp", b"2")]
        for answer in (b"first", b"second", b"second, further"):
            device.publish("cmd/lamp/reply", answer)
        got = [client.message() for _ in range(3)]
        assert [(m.subject, m.payload) for m in got] == [
            ("_INBOX.me.1", b"first"), ("_INBOX.me.2", b"second"), ("_INBOX.me.2", b"second, further"),
        ]


def test_an_id_tells_requests_apart(gateway: Running, broker: tuple[str, int]):
    started(gateway)
    with requester(gateway) as client, requester(gateway) as other, Device(broker, "rpc/+/+/#", silent) as device:
        client.publish("call.pump.a", b"1", reply="_INBOX.me.1")
        first, _ = device.command()
        client.publish("call.pump.a", b"2", reply="_INBOX.me.2")
        second, _ = device.command()
        other.publish("call.pump.a", b"3", reply="_INBOX.me.3")
        third, _ = device.command()
        for topic, answer in ((third, b"3"), (second, b"2"), (first, b"1"), (first, b"1, further")):
            device.publish(f"{topic}/reply", answer)
        got = [client.message() for _ in range(3)]
        assert [(m.subject, m.payload) for m in got] == [
            ("_INBOX.me.2", b"2"), ("_INBOX.me.1", b"1"), ("_INBOX.me.1", b"1, further"),
        ]
        assert other.message().payload == b"3"
        client.ping()
        other.ping()


def test_clients_with_verbose_and_without_echo(gateway: Running, broker: tuple[str, int]):
    started(gateway)
    with Device(broker, "cmd/+", echo), requester(gateway, echo=False) as client:
        client.publish("dev.lamp.get", b"x", reply="_INBOX.me.1")
        assert client.message().payload == b"cmd/lamp: x"
    with Device(broker, "cmd/+", echo), gateway.client() as client:
        client.send('CONNECT {"verbose":true,"headers":true,"no_responders":true}\r\nSUB _INBOX.me.* 9\r\n')
        client.expect(b"+OK\r\n+OK\r\n")
        client.publish("dev.lamp.get", b"x", reply="_INBOX.me.1")
        client.expect(b"+OK\r\n")
        assert client.message().payload == b"cmd/lamp: x"


def test_mqtt_5_knows_where_the_answer_is_awaited(gateway: Running, broker: tuple[str, int]):
    """A NATS service on the command's subject can answer, too."""
    gateway.write(mountpoint="site/", devices={"rules": [RULE]})
    gateway.start()
    with Mqtt(broker) as mqtt, requester(gateway) as client, gateway.client() as service:
        mqtt.subscribe("site/cmd/+")
        client.publish("dev.lamp.get", b"x", reply="_INBOX.me.1")
        message = mqtt.message()
        assert (message.topic, message.properties.ResponseTopic) == ("site/cmd/lamp", "site/cmd/lamp/reply")
        mqtt.publish("site/cmd/lamp/reply", b"y", UserProperty=[("A", "b")])
        answer = client.message()
        assert (answer.subject, answer.headers, answer.payload) == ("_INBOX.me.1", b"NATS/1.0\r\nA: b\r\n\r\n", b"y")
        service.subscribe("cmd.pump")
        client.publish("dev.pump.get", b"x", reply="_INBOX.me.2")
        asked = service.message()
        assert (asked.subject, asked.reply) == ("cmd.pump", "cmd.pump.reply")
        service.publish(asked.reply, b"of a service")
        assert client.message().payload == b"of a service"


def test_a_retained_message_is_no_answer(gateway: Running, broker: tuple[str, int]):
    gateway.write(retained_on_subscribe=True, devices={"rules": [RULE]})
    gateway.start()
    with Mqtt(broker) as mqtt, Device(broker, "cmd/+", echo), requester(gateway) as client:
        mqtt.publish("cmd/lamp/reply", b"an old one", retain=True)
        client.publish("dev.lamp.get", b"x", reply="_INBOX.me.1")
        assert client.message().payload == b"cmd/lamp: x"


def test_the_broker_denies_the_command(gateway: Running, tmp_path: Path):
    rules = tmp_path / "acl"
    rules.write_text("topic read #\ntopic write _INBOX/#\n")
    with started_mosquitto(tmp_path, f"{READS}acl_file {rules}\n") as port:
        refused = Running(tmp_path, port)
        started(refused)
        try:
            with requester(refused) as client:
                client.publish("dev.lamp.get", reply="_INBOX.me.1")
                client.expect(b"-ERR 'Permissions Violation for Publish to \"dev.lamp.get\"'\r\n")
        finally:
            refused.process.kill()
            refused.process.wait()


def test_an_answer_topic_is_subscribed_for_a_while(gateway: Running, tmp_path: Path):
    log = tmp_path / "mosquitto.log"

    def packets(kind: str) -> int:
        return len(re.findall(rf"Received {kind} from .*\n\S+ \tcmd/lamp/reply\b", log.read_text()))

    with started_mosquitto(tmp_path, f"{READS}log_type all\nlog_dest file {log}\n") as port:
        running = Running(tmp_path, port)
        started(running, timeout="500ms", idle_timeout="1s")
        try:
            with Device((HOST, port), "cmd/+", echo), requester(running) as client:
                for n in (1, 2):
                    client.publish("dev.lamp.get", b"x", reply=f"_INBOX.me.{n}")
                    assert client.message().subject == f"_INBOX.me.{n}"
                running.until(lambda: packets("UNSUBSCRIBE") == 1, "it is unsubscribed")
                assert packets("SUBSCRIBE") == 1
                # What nobody has asked for is no answer any more.
                client.publish("cmd.lamp.reply", b"late")
                client.ping()
                client.publish("dev.lamp.get", b"x", reply="_INBOX.me.3")
                assert client.message().subject == "_INBOX.me.3"
                running.until(lambda: packets("SUBSCRIBE") == 2, "it is subscribed again")
        finally:
            running.process.kill()
            running.process.wait()


def test_rules_are_read_again(gateway: Running, broker: tuple[str, int]):
    gateway.write(devices={"rules": []})
    gateway.start()
    with Device(broker, "cmd/+", echo) as device, requester(gateway) as client:
        client.publish("dev.lamp.get", b"x", reply="_INBOX.me.1")
        assert client.message().headers == NO_RESPONDERS
        gateway.write(devices={"rules": [RULE]})
        gateway.reload("settings_reloaded")
        client.publish("dev.lamp.get", b"x", reply="_INBOX.me.2")
        assert client.message().payload == b"cmd/lamp: x"
        gateway.write(devices={"rules": ["dev.*.get -> cmd/${2} -> r"]})
        gateway.reload("devices.rules[1]: knows ${1}, ${id} and no other ${...} in a command topic")
        client.publish("dev.lamp.get", b"y", reply="_INBOX.me.3")
        assert client.message().payload == b"cmd/lamp: y"
        assert device.command() == ("cmd/lamp", b"x") and device.command() == ("cmd/lamp", b"y")


@pytest.mark.parametrize("setting, said", [
    ({"rules": [RULE, "a -> b"]}, 'devices.rules[2]: must be "SUBJECT -> COMMAND TOPIC -> ANSWER TOPIC"'),
    ({"max_requests": 0}, "devices.max_requests: must be an integer from 1 to 65536"),
    ({"rule": []}, "devices.rule: unknown key; known here: idle_timeout, max_requests, rules, timeout"),
])
def test_a_wrong_setting_is_named(gateway: Running, setting: dict, said: str):
    gateway.write(devices=setting)
    done = subprocess.run([GATEWAY, "-c", gateway.file], capture_output=True, text=True, timeout=30)
    assert done.returncode != 0 and said in done.stdout + done.stderr


def test_one_request_too_many(gateway: Running, broker: tuple[str, int]):
    started(gateway, max_requests=2)
    with Device(broker, "cmd/+", silent) as device, requester(gateway) as client:
        for n in (1, 2, 3):
            client.publish("dev.lamp.get", reply=f"_INBOX.me.{n}")
        message = client.message()
        assert (message.subject, message.headers) == ("_INBOX.me.3", NO_RESPONDERS)
        assert [device.command()[0] for _ in range(2)] == ["cmd/lamp"] * 2
        device.publish("cmd/lamp/reply", b"1")
        assert client.message().subject == "_INBOX.me.1"
        client.publish("dev.lamp.get", reply="_INBOX.me.4")
        assert device.command()[0] == "cmd/lamp"
