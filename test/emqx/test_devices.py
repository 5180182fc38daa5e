"""Devices without Response Topic: requests of NATS clients, answered by clients of MQTT 3.1.1."""

from __future__ import annotations

import pytest

from devices import Device, echo, silent
from emqx.gateway import NAMED, Gateway, file_rules, rest_change
from emqx.nats import Nats
from emqx.node import wait_until
from emqx.page import Page
from system_requests import NO_RESPONDERS, nats, nats_cli

pytestmark = pytest.mark.plugin


@pytest.fixture
def rules(name: str) -> list[str]:
    return [
        f"{name}.*.get -> {name}/cmd/${{1}} -> {name}/cmd/${{1}}/reply",
        f"{name}.call.*.> -> {name}/rpc/${{1}}/${{id}}/${{2}} -> {name}/rpc/${{1}}/${{id}}/${{2}}/reply",
    ]


@pytest.fixture
def devices(gateway: Gateway, page: Page, rules: list[str]) -> Gateway:
    page.change(device_rules=rules)
    return gateway


def requester(gateway: Gateway, **fields: object) -> Nats:
    return gateway.nats(**fields).subscribe("_INBOX.me.*", sid="9")


def test_an_unmodified_request(devices: Gateway, name: str, page: Page, rules: list[str]):
    assert page.read()["device_rules"] == rules
    port = devices.address[1]
    with Device(devices.node.mqtt, f"{name}/cmd/+", echo), Device(devices.node.mqtt, f"{name}/rpc/+/+/#", echo):
        assert nats(port, "request", "--raw", f"{name}.lamp.get", "status").strip() == f"{name}/cmd/lamp: status"
        answer = nats(port, "request", "--raw", f"{name}.call.pump.motor.start", "now").strip()
        assert answer.startswith(f"{name}/rpc/pump/") and answer.endswith("/motor/start: now")


def test_a_device_that_is_not_there_has_no_responders_at_once(devices: Gateway, name: str):
    done = nats_cli(devices.address[1], "request", f"{name}.lamp.get", "status", timeout="30s")
    assert "o responders" in done.stdout + done.stderr
    with requester(devices) as client:
        client.publish(f"{name}.lamp.get", reply="_INBOX.me.1")
        assert client.message().headers == NO_RESPONDERS
        with Device(devices.node.mqtt, f"{name}/cmd/+", echo):
            client.publish(f"{name}.lamp.get", b"x", reply="_INBOX.me.2")
            assert client.message().subject == "_INBOX.me.2"


def test_which_request_gets_an_answer(devices: Gateway, name: str):
    with requester(devices) as client, Device(devices.node.mqtt, f"{name}/cmd/+", silent) as device:
        for n in (1, 2):
            client.publish(f"{name}.lamp.get", b"%d" % n, reply=f"_INBOX.me.{n}")
        assert [device.command()[1] for _ in range(2)] == [b"1", b"2"]
        for answer in (b"first", b"second", b"further"):
            device.publish(f"{name}/cmd/lamp/reply", answer)
        got = [client.message() for _ in range(3)]
        assert [(m.subject[-1], m.payload) for m in got] == [("1", b"first"), ("2", b"second"), ("2", b"further")]
    with requester(devices) as client, Device(devices.node.mqtt, f"{name}/rpc/+/+/#", silent) as device:
        topics = []
        for n in (1, 2):
            client.publish(f"{name}.call.pump.a", b"%d" % n, reply=f"_INBOX.me.{n}")
            topics.append(device.command()[0])
        for topic in reversed(topics):
            device.publish(f"{topic}/reply", b"")
        assert [client.message().subject[-1] for _ in range(2)] == ["2", "1"]


def test_authorization_is_for_both_topics(devices: Gateway, name: str):
    denied = f'Permissions Violation for Publish to "{name}.lamp.get"'
    with Device(devices.node.mqtt, f"{name}/cmd/+", echo) as device, requester(devices) as client:
        for action, topic in (("subscribe", f"{name}/cmd/lamp/reply"), ("publish", f"{name}/cmd/lamp")):
            with file_rules(devices, f'{{deny, all, {action}, ["{topic}"]}}'):
                wait_until(lambda: is_denied(client, f"{name}.lamp.get", denied), "the rule holds")
                client.ping()
        client.publish(f"{name}.lamp.get", b"allowed", reply="_INBOX.me.1")
        assert client.message().payload == f"{name}/cmd/lamp: allowed".encode()
        assert device.command()[1] == b"allowed", "a denied command was delivered"


def is_denied(client: Nats, subject: str, error: str) -> bool:
    client.publish(subject, b"denied", reply="_INBOX.me.0")
    client.error(error)
    return True


def test_deny_action_disconnect(devices: Gateway, name: str):
    rest = devices.rest
    with rest_change(rest, "/authorization/settings", {"deny_action": "disconnect"}), \
            file_rules(devices, f'{{deny, all, subscribe, ["{name}/cmd/lamp/reply"]}}'), requester(devices) as client:
        client.publish(f"{name}.lamp.get", reply="_INBOX.me.1")
        client.error(f'Permissions Violation for Publish to "{name}.lamp.get"')
        client.closed()


def test_the_answer_topic_is_a_subscription_of_the_client(gateway: Gateway, page: Page, rules: list[str], name: str):
    """EMQX sees it, with the mountpoint, until nobody has asked for a while."""
    gateway.settings(mountpoint=f"{name}/", **NAMED)
    page.change(device_rules=["dev.*.get -> cmd/${1} -> cmd/${1}/reply"], device_timeout="500ms", device_idle_timeout="1s")

    def topics() -> list[str]:
        return sorted(one["topic"] for one in gateway.subscriptions(name))

    with Device(gateway.node.mqtt, f"{name}/cmd/+", echo), requester(gateway, name=name) as client:
        own = topics()
        client.publish("dev.lamp.get", b"x", reply="_INBOX.me.1")
        assert client.message().payload == f"{name}/cmd/lamp: x".encode()
        assert topics() == sorted([*own, f"{name}/cmd/lamp/reply"])
        wait_until(lambda: topics() == own, "it is unsubscribed")
        client.publish("dev.lamp.get", b"x", reply="_INBOX.me.2")
        assert client.message().subject == "_INBOX.me.2"
    gateway.forgotten(name)


def test_a_retained_message_is_no_answer(gateway: Gateway, page: Page, rules: list[str], name: str):
    page.change(device_rules=rules, retained_on_subscribe=True)
    with Device(gateway.node.mqtt, f"{name}/cmd/+", echo) as device, gateway.mqtt() as mqtt, requester(gateway) as client:
        mqtt.publish(f"{name}/cmd/lamp/reply", b"an old one", retain=True)
        client.publish(f"{name}.lamp.get", b"x", reply="_INBOX.me.1")
        assert client.message().payload == f"{name}/cmd/lamp: x".encode()
        assert device.command()[1] == b"x"
        mqtt.publish(f"{name}/cmd/lamp/reply", b"", retain=True)


def test_rules_hold_for_connected_clients(gateway: Gateway, page: Page, rules: list[str], name: str):
    with Device(gateway.node.mqtt, f"{name}/cmd/+", echo), requester(gateway) as client:
        client.publish(f"{name}.lamp.get", b"x", reply="_INBOX.me.1")
        assert client.message().headers == NO_RESPONDERS
        page.change(device_rules=rules)
        client.publish(f"{name}.lamp.get", b"x", reply="_INBOX.me.2")
        assert client.message().payload == f"{name}/cmd/lamp: x".encode()
        page.change(device_rules=[])
        client.publish(f"{name}.lamp.get", b"x", reply="_INBOX.me.3")
        assert client.message().headers == NO_RESPONDERS


def test_one_request_too_many(gateway: Gateway, page: Page, rules: list[str], name: str):
    page.change(device_rules=rules, device_max_requests=1)
    with Device(gateway.node.mqtt, f"{name}/cmd/+", silent) as device, requester(gateway) as client:
        client.publish(f"{name}.lamp.get", reply="_INBOX.me.1")
        client.publish(f"{name}.lamp.get", reply="_INBOX.me.2")
        message = client.message()
        assert (message.subject, message.headers) == ("_INBOX.me.2", NO_RESPONDERS)
        assert device.command()[0] == f"{name}/cmd/lamp"


@pytest.mark.kills
@pytest.mark.timeout(180, func_only=True)
def test_rules_are_the_same_after_a_boot(devices: Gateway, page: Page, rules: list[str], name: str):
    """`${1}` means something in a file of EMQX, too."""
    devices.node.restart()
    wait_until(devices.served, "the plugin serves", deadline=30)
    assert page.read()["device_rules"] == rules and page.health() == ""
    with Device(devices.node.mqtt, f"{name}/cmd/+", echo), requester(devices) as client:
        client.publish(f"{name}.lamp.get", b"x", reply="_INBOX.me.1")
        assert client.message().payload == f"{name}/cmd/lamp: x".encode()


@pytest.mark.parametrize("setting, said", [
    ({"device_rules": ["a -> b"]}, 'device_rules[1]: must be \\"SUBJECT -> COMMAND TOPIC -> ANSWER TOPIC\\"'),
    ({"device_rules": ["a -> c/${id} -> r"]}, "device_rules[1]: must have ${id} in both topics, or in neither"),
    ({"device_max_requests": 0}, "device_max_requests: must be an integer from 1 to 65536"),
    ({"device_timeout": "0s"}, "device_timeout: must be a duration"),
])
def test_a_wrong_setting_is_refused(page: Page, setting: dict, said: str):
    before = page.read()
    answer = page.try_change(**setting)
    assert answer.status == 400 and said.replace("\\", "") in str(answer.body).replace("\\", "")
    assert page.read() == before
