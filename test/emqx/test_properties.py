"""Headers of a publish that set MQTT properties, and headers of a delivery that tell them, in EMQX."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from emqx.gateway import Gateway, file_rules, rest_change
from emqx.mqtt import user_properties
from emqx.nats import headers
from emqx.page import Page

pytestmark = pytest.mark.plugin


@pytest.fixture
def told(page: Page) -> Page:
    """Both settings on."""
    page.change(publish_properties=True, show_properties=True, retained_on_subscribe=True)
    return page


@pytest.fixture
def kept(gateway: Gateway, name: str) -> Iterator[str]:
    """A topic whose retained message is deleted at the end."""
    yield f"{name}/kept"
    gateway.rest.post("/publish", {"topic": f"{name}/kept", "payload": "", "retain": True})


def violation(subject: str, header: str, text: str) -> str:
    return f'Permissions Violation for Publish to "{subject}", {header} {text}'


def test_a_retained_message_with_all_properties(gateway: Gateway, told: Page, name: str, kept: str):
    with gateway.nats() as nats:
        nats.publish(f"{name}.kept", b"21.5", headers=headers(
            ("Mqtt-Retain", "true"), ("Mqtt-Qos", "2"), ("mqtt-expiry", "1h"), ("Mqtt-Payload-Format", "utf-8"),
            ("Unit", "C"), ("Content-Type", "text/plain"), ("Mqtt-Response-Topic", f"{name}/answers"),
        ))
        nats.ping()
        with gateway.mqtt() as mqtt:
            mqtt.subscribe(kept, qos=2)
            message = mqtt.message()
        properties = message.properties
        assert (message.payload, message.retain, message.qos) == (b"21.5", True, 2)
        assert 3590 <= properties.MessageExpiryInterval <= 3600
        assert (properties.PayloadFormatIndicator, properties.ContentType, properties.ResponseTopic) == (1, "text/plain", f"{name}/answers")
        assert user_properties(message) == [("Unit", "C"), ("Content-Type", "text/plain")]
        # And back.
        time.sleep(1.5)
        nats.send(f"SUB {name}.kept 1\r\n")
        shown = nats.message()
        lines = shown.headers.split(b"\r\n")
        assert shown.reply == f"{name}.answers"
        assert lines[:5] == [b"NATS/1.0", b"Unit: C", b"Content-Type: text/plain", b"Mqtt-Retain: true", b"Mqtt-Qos: 2"]
        assert 3590 <= int(lines[5].removeprefix(b"Mqtt-Expiry: ")) <= 3599
        assert lines[6:] == [b"Mqtt-Payload-Format: 1", b"", b""]


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("qos", [None, 0, 1, 2])
def test_the_header_decides_about_qos(gateway: Gateway, told: Page, name: str, verbose: bool, qos: int | None):
    before = metrics(gateway)
    with gateway.mqtt() as mqtt, gateway.raw() as nats:
        mqtt.subscribe(name, qos=2)
        nats.login(verbose=verbose)
        nats.expect(b"+OK\r\n" if verbose else b"")
        block = headers(("X", "y")) if qos is None else headers(("X", "y"), ("Mqtt-Qos", str(qos)))
        for _ in range(5):
            nats.publish(name, b"x", headers=block)
        nats.expect(b"+OK\r\n" * 5 if verbose else b"")
        nats.ping()
        used = int(verbose) if qos is None else qos
        messages = mqtt.messages(5)
        assert {message.qos for message in messages} == {used}
        assert {tuple(user_properties(message)) for message in messages} == {(("X", "y"),)}
    after = metrics(gateway)
    assert [after[level] - before[level] for level in range(3)] == [5 if level == used else 0 for level in range(3)]


def metrics(gateway: Gateway) -> list[int]:
    """Messages that the node has received, by QoS."""
    shown = gateway.rest.get("/metrics?aggregate=true")
    return [shown[f"messages.qos{level}.received"] for level in range(3)]


def test_between_nats_clients_the_properties_are_those_of_the_message(gateway: Gateway, told: Page, name: str, kept: str):
    with gateway.nats() as nats:
        # EMQX reads the retained messages some time after a SUB, as for MQTT clients: a message that is retained
        # meanwhile comes twice.
        gateway.rest.post("/publish", {"topic": kept, "payload": "0", "retain": True})
        # No PING: the retained message comes before or after its PONG.
        nats.send(f"SUB {name}.> 1\r\n")
        assert nats.message().payload == b"0"
        nats.publish(f"{name}.kept", b"1", headers=b"NATS/1.0\r\nA:1\r\nMqtt-Expiry:5m\r\nmqtt-retain: true\r\n\r\n")
        assert nats.message().headers == b"NATS/1.0\r\nA:1\r\nMqtt-Expiry: 300\r\n\r\n"
        nats.publish(f"{name}.b", b"2", headers=headers(("Mqtt-Retain", "false")))
        assert nats.message().headers is None
        with gateway.mqtt() as mqtt:
            mqtt.publish(f"{name}/c", b"3", qos=0, UserProperty=[("mqtt-retain", "true"), ("A", "1")])
            assert nats.message().headers == headers(("A", "1"))
            mqtt.publish(f"{name}/d", b"4", qos=1)
            assert nats.message().headers == headers(("Mqtt-Qos", "1"))


WRONG = {
    "Mqtt-Retain": ("1", "must be true or false"),
    "Mqtt-Qos": ("-1", "must be 0, 1 or 2"),
    "Mqtt-Expiry": ("4294967296", "must be seconds from 1 to 4294967295, or a duration such as 90s, 5m or 1h30m"),
    "Mqtt-Payload-Format": ("text", "must be 0, 1 or utf-8"),
    "Mqtt-Response-Topic": ("#", "must be a topic without wildcards and control characters"),
}


@pytest.mark.parametrize("header", WRONG)
def test_a_wrong_value_is_refused_and_nothing_is_published(gateway: Gateway, told: Page, name: str, header: str):
    value, text = WRONG[header]
    with gateway.mqtt() as mqtt, gateway.nats() as nats:
        mqtt.subscribe(f"{name}/#")
        nats.subscribe(f"{name}-inbox.*")
        wrong = headers((header, value)) if header == "Mqtt-Retain" else headers(("Mqtt-Retain", "true"), (header, value))
        nats.publish(f"{name}.a", b"before")
        nats.publish(f"{name}.a", b"wrong", reply=f"{name}-inbox.1", headers=wrong)
        nats.publish(f"{name}.a", b"after")
        nats.error(violation(f"{name}.a", header, text))
        answer = nats.message()
        assert (answer.subject, answer.payload) == (f"{name}-inbox.1", b"")
        assert answer.headers == f"NATS/1.0 400 Bad {header}\r\n{header}: {text}\r\n\r\n".encode()
        nats.silent()
        assert [message.payload for message in mqtt.messages(2)] == [b"before", b"after"]
        with gateway.mqtt() as late:
            late.subscribe(f"{name}/#")
            time.sleep(0.3)
            assert late.waiting == 0


def test_rules_see_qos_and_retain(gateway: Gateway, told: Page, name: str):
    """A decision for one kind of message is not taken for another."""
    rules = (
        f'{{deny, all, {{publish, [{{retain, true}}]}}, ["{name}/r"]}}',
        f'{{deny, all, {{publish, [{{qos, 2}}]}}, ["{name}/q"]}}',
    )
    with file_rules(gateway, *rules), gateway.mqtt() as mqtt, gateway.nats() as nats:
        mqtt.subscribe(f"{name}/#")
        for _ in range(2):
            nats.publish(f"{name}.r", b"plain")
            assert mqtt.message().payload == b"plain"
            nats.publish(f"{name}.r", b"kept", headers=headers(("Mqtt-Retain", "true")))
            nats.error(f'Permissions Violation for Publish to "{name}.r"')
            for qos in (0, 1):
                nats.publish(f"{name}.q", b"low", headers=headers(("Mqtt-Qos", str(qos))))
                assert mqtt.message().payload == b"low"
            nats.publish(f"{name}.q", b"high", headers=headers(("Mqtt-Qos", "2")))
            nats.error(f'Permissions Violation for Publish to "{name}.q"')
            nats.silent()


@pytest.mark.parametrize(
    ("setting", "header", "value", "text"),
    [
        ({"retain_available": False}, "Mqtt-Retain", "true", "must be false, because the broker has no retained messages"),
        ({"max_qos_allowed": 1}, "Mqtt-Qos", "2", "must be 0 or 1, because the broker takes no more"),
    ],
)
def test_what_emqx_does_not_take_is_refused(
    gateway: Gateway, told: Page, name: str, setting: dict, header: str, value: str, text: str
):
    """As its CONNACK tells MQTT clients, and from the moment on when it is set."""
    path = "/configs/global_zone"
    with gateway.nats() as nats:
        nats.subscribe(name)
        with rest_change(gateway.rest, path, {"mqtt": gateway.rest.get(path)["mqtt"] | setting}):
            nats.publish(name, b"x", headers=headers((header, value)))
            nats.error(violation(name, header, text))
            nats.silent()
        nats.publish(name, b"x", headers=headers((header, value)))
        assert nats.message().payload == b"x"
        nats.publish(name, b"", headers=headers(("Mqtt-Retain", "true")))
        nats.message()


def test_off_means_that_these_are_headers(gateway: Gateway, page: Page, name: str):
    with gateway.mqtt() as mqtt, gateway.nats() as nats:
        mqtt.subscribe(name)
        nats.subscribe(name)
        block = b"NATS/1.0\r\nMqtt-Retain:true\r\nmqtt-qos: 9\r\n\r\n"
        nats.publish(name, b"x", headers=block)
        assert nats.message().headers == block
        message = mqtt.message()
        assert user_properties(message) == [("Mqtt-Retain", "true"), ("mqtt-qos", "9")]
        with gateway.mqtt() as late:
            late.subscribe(name)
            time.sleep(0.3)
            assert late.waiting == 0
