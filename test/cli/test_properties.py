"""Headers of a publish that set MQTT properties, and headers of a delivery that tell them, in front of Mosquitto."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nats as nats_py
import pytest
from paho.mqtt.client import MQTTMessage

from cli.running import Running, started_gateway, started_mosquitto
from clients.mqtt import Mqtt, user_properties
from emqx.nats import Nats, headers
from ports import HOST
from wire.servers import REPOSITORY

# Started by root it would change to a user of its own, who cannot read the files here.
MOSQUITTO_AS_ROOT = "user root\n" if os.geteuid() == 0 else ""
NATS_CLI = REPOSITORY / ".tools" / "bin" / "nats"
WRONG = {
    "Mqtt-Retain": ("yes", "must be true or false"),
    "Mqtt-Qos": ("3", "must be 0, 1 or 2"),
    "Mqtt-Expiry": ("0", "must be seconds from 1 to 4294967295, or a duration such as 90s, 5m or 1h30m"),
    "Mqtt-Payload-Format": ("2", "must be 0, 1 or utf-8"),
    "Mqtt-Response-Topic": ("a/+", "must be a topic without wildcards and control characters"),
}


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the broker of all tests here, each of which has topics of its own."""
    with started_mosquitto(tmp_path_factory.mktemp("mosquitto")) as port:
        yield port


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, mosquitto: int) -> Iterator[Running]:
    settings = {"publish_properties": True, "show_properties": True, "retained_on_subscribe": True}
    with started_gateway(tmp_path_factory.mktemp("served"), mosquitto, **settings) as gateway:
        yield gateway


@pytest.fixture
def mqtt(mosquitto: int) -> Iterator[Mqtt]:
    with Mqtt((HOST, mosquitto)) as client:
        yield client


def retained(mosquitto: int, topic: str, seconds: float = 0.5) -> list[MQTTMessage]:
    """What a new subscriber gets at once."""
    with Mqtt((HOST, mosquitto)) as client:
        client.subscribe(topic, qos=2)
        time.sleep(seconds)
        return [client.messages.get() for _ in range(client.messages.qsize())]


def client(gateway: Running, verbose: bool) -> Nats:
    nats = Nats((HOST, gateway.port))
    nats.login(verbose=verbose)
    nats.expect(b"+OK\r\n" if verbose else b"")
    nats.ping()
    return nats


def violation(subject: str, header: str, text: str) -> str:
    return f'Permissions Violation for Publish to "{subject}", {header} {text}'


# --- Publish ---------------------------------------------------------------------------------------------------------


def test_a_retained_message_with_all_properties(served: Running, mosquitto: int):
    with served.client() as nats:
        nats.publish("r.a", b"21.5", headers=headers(
            ("Mqtt-Retain", "true"), ("Mqtt-Qos", "2"), ("mqtt-expiry", "1h"), ("Mqtt-Payload-Format", "utf-8"),
            ("Unit", "C"), ("Content-Type", "text/plain"), ("Mqtt-Response-Topic", "r/answers"),
        ))
        nats.ping()
    [message] = retained(mosquitto, "r/a")
    assert (message.payload, message.retain, message.qos) == (b"21.5", True, 2)
    properties = message.properties
    assert 3590 <= properties.MessageExpiryInterval <= 3600
    assert (properties.PayloadFormatIndicator, properties.ContentType, properties.ResponseTopic) == (1, "text/plain", "r/answers")
    assert user_properties(message) == [("Unit", "C"), ("Content-Type", "text/plain")]


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("qos", [None, 0, 1, 2])
def test_the_header_decides_about_qos(served: Running, mqtt: Mqtt, verbose: bool, qos: int | None):
    mqtt.subscribe("q/#", qos=2)
    with client(served, verbose) as nats:
        block = headers(("X", "y")) if qos is None else headers(("X", "y"), ("Mqtt-Qos", str(qos)))
        for number in range(20):
            nats.publish("q.a", b"%d" % number, headers=block)
        nats.expect(b"+OK\r\n" * 20 if verbose else b"")
        nats.ping()
        messages = mqtt.take(20)
        assert [message.payload for message in messages] == [b"%d" % number for number in range(20)]
        assert {message.qos for message in messages} == {int(verbose) if qos is None else qos}
        assert {tuple(user_properties(message)) for message in messages} == {(("X", "y"),)}


def test_pong_comes_after_what_qos_2_has_brought(served: Running):
    """The broker passes such a message on when it gets the PUBREL."""
    with served.client() as nats:
        nats.subscribe("p.>")
        for _ in range(50):
            nats.send(b"HPUB p.a 25 26\r\nNATS/1.0\r\nMqtt-Qos: 2\r\n\r\nx\r\nPING\r\n")
            assert nats.message().payload == b"x"
            nats.expect(b"PONG\r\n")


def test_an_empty_payload_deletes_a_retained_message(served: Running, mosquitto: int):
    with served.client() as nats:
        keep = headers(("Mqtt-Retain", "true"))
        nats.publish("d.a", b"here", headers=keep)
        nats.ping()
        assert [message.payload for message in retained(mosquitto, "d/a")] == [b"here"]
        nats.publish("d.a", b"", headers=keep)
        nats.ping()
        assert retained(mosquitto, "d/a") == []


def test_an_expired_message_is_gone(served: Running, mosquitto: int):
    with served.client() as nats:
        nats.publish("e.a", b"short", headers=headers(("Mqtt-Retain", "true"), ("Mqtt-Expiry", "1")))
        nats.publish("e.b", b"long", headers=headers(("Mqtt-Retain", "true"), ("Mqtt-Expiry", "4294967295")))
        nats.ping()
        time.sleep(2.5)
        assert [message.payload for message in retained(mosquitto, "e/+")] == [b"long"]


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("header", WRONG)
def test_a_wrong_value_is_refused_and_nothing_is_published(served: Running, mosquitto: int, mqtt: Mqtt, header: str, verbose: bool):
    value, text = WRONG[header]
    mqtt.subscribe("w/#")
    ok = b"+OK\r\n" if verbose else b""
    with client(served, verbose) as nats:
        nats.publish("w.a", b"before")
        nats.publish("w.a", b"wrong", headers=headers(("Mqtt-Retain", "true"), (header, value)) if header != "Mqtt-Retain" else headers((header, value)))
        nats.publish("w.a", b"after")
        nats.expect(ok)
        nats.error(violation("w.a", header, text))
        nats.expect(ok)
        nats.ping()
        assert [message.payload for message in mqtt.take(2)] == [b"before", b"after"]
        assert retained(mosquitto, "w/#", 0.2) == []


def test_a_refused_request_is_answered_at_once(served: Running):
    with served.client(no_responders=True) as nats:
        nats.subscribe("inbox.*")
        nats.publish("w.a", b"?", reply="inbox.1", headers=headers(("Mqtt-Qos", "two")))
        nats.error(violation("w.a", "Mqtt-Qos", "must be 0, 1 or 2"))
        answer = nats.message()
        assert (answer.subject, answer.payload) == ("inbox.1", b"")
        assert answer.headers == b"NATS/1.0 400 Bad Mqtt-Qos\r\nMqtt-Qos: must be 0, 1 or 2\r\n\r\n"
        nats.publish("w.a", b"?", reply="inbox.2", headers=headers(("Mqtt-Response-Topic", "r/s")))
        nats.error(violation("w.a", "Mqtt-Response-Topic", "must not be there, because the message has a reply subject"))
        assert nats.message().headers.startswith(b"NATS/1.0 400 Bad Mqtt-Response-Topic\r\n")
        nats.silent()


def test_a_payload_that_is_not_utf_8(served: Running, mqtt: Mqtt):
    mqtt.subscribe("u/#")
    with served.client() as nats:
        text = headers(("Mqtt-Payload-Format", "1"))
        nats.publish("u.a", b"\xff", headers=text)
        nats.error(violation("u.a", "Mqtt-Payload-Format", "must be 0, because the payload is not UTF-8"))
        nats.publish("u.a", "é".encode(), headers=text)
        nats.ping()
    [message] = mqtt.take(1)
    assert (message.payload, message.properties.PayloadFormatIndicator) == ("é".encode(), 1)


@contextmanager
def before_mosquitto(directory: Path, settings: str) -> Iterator[Nats]:
    """A client of a gateway in front of a Mosquitto with these settings."""
    with started_mosquitto(directory, f"allow_anonymous true\n{settings}\n") as broker:
        with started_gateway(directory, broker, publish_properties=True) as gateway, gateway.client() as nats:
            yield nats


@pytest.mark.parametrize(
    ("setting", "header", "value", "text"),
    [
        ("retain_available false", "Mqtt-Retain", "true", "must be false, because the broker has no retained messages"),
        ("max_qos 1", "Mqtt-Qos", "2", "must be 0 or 1, because the broker takes no more"),
        ("max_qos 0", "Mqtt-Qos", "1", "must be 0, because the broker takes no more"),
    ],
)
def test_what_the_broker_does_not_take_is_refused(tmp_path: Path, setting: str, header: str, value: str, text: str):
    with before_mosquitto(tmp_path, setting) as nats:
        nats.subscribe("c.>")
        nats.publish("c.a", b"refused", headers=headers((header, value)))
        nats.error(violation("c.a", header, text))
        nats.publish("c.a", b"taken", headers=headers(("Mqtt-Qos", "0")))
        assert nats.message().payload == b"taken"
        nats.silent()


def test_the_brokers_acl_decides(tmp_path: Path):
    """PUBACK and PUBREC say it, also to a client that is not verbose."""
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite ok/#\n")
    with before_mosquitto(tmp_path, f"acl_file {acl}\n{MOSQUITTO_AS_ROOT}") as nats:
        for qos in "12":
            nats.publish("no.a", b"x", headers=headers(("Mqtt-Qos", qos), ("Mqtt-Retain", "true")))
            nats.error('Permissions Violation for Publish to "no.a"')
            nats.publish("ok.a", b"x", headers=headers(("Mqtt-Qos", qos)))
            nats.silent()


# --- Delivery --------------------------------------------------------------------------------------------------------


def test_a_retained_message_says_so(served: Running, mqtt: Mqtt):
    mqtt.publish("s/a", b"kept", qos=1, retain=True, MessageExpiryInterval=600, UserProperty=[("Unit", "C"), ("mqtt-qos", "9")])
    mqtt.publish("s/b", b"plain", qos=0, retain=True)
    time.sleep(1.5)
    with client(served, True) as nats:
        nats.send("SUB s.a 1\r\n")
        nats.expect(b"+OK\r\n")
        kept = nats.message()
        lines = kept.headers.split(b"\r\n")
        assert lines[:4] == [b"NATS/1.0", b"Unit: C", b"Mqtt-Retain: true", b"Mqtt-Qos: 1"]
        assert 590 <= int(lines[4].removeprefix(b"Mqtt-Expiry: ")) <= 599
        assert lines[5:] == [b"", b""]
        nats.send("SUB s.b 2\r\n")
        nats.expect(b"+OK\r\n")
        assert nats.message().headers == headers(("Mqtt-Retain", "true"), ("Mqtt-Qos", "0"))
        # What comes later is not retained, whatever its publisher has asked for.
        mqtt.publish("s/b", b"live", qos=0, retain=True)
        assert nats.message().headers is None


def test_between_nats_clients_the_properties_are_those_of_the_message(served: Running):
    with served.client() as nats:
        nats.subscribe("n.>")
        nats.publish("n.a", b"1", headers=b"NATS/1.0\r\nA:1\r\nMqtt-Expiry:5m\r\nmqtt-retain: true\r\n\r\n")
        message = nats.message()
        assert message.headers == b"NATS/1.0\r\nA:1\r\nMqtt-Expiry: 300\r\n\r\n"
        nats.publish("n.b", b"2", headers=headers(("Mqtt-Retain", "false")))
        assert nats.message().headers is None
        nats.publish("n.c", b"3", headers=b"NATS/1.0\r\nA:1\r\n\r\n")
        assert nats.message().headers == b"NATS/1.0\r\nA:1\r\n\r\n"


def test_off_means_that_these_are_headers(gateway: Running, mosquitto: int):
    gateway.write(retained_on_subscribe=True)
    gateway.start()
    with gateway.client() as nats, Mqtt((HOST, mosquitto)) as mqtt:
        mqtt.subscribe("o/#")
        nats.subscribe("o.>")
        block = b"NATS/1.0\r\nMqtt-Retain:true\r\nmqtt-qos: 9\r\n\r\n"
        nats.publish("o.a", b"x", headers=block)
        assert nats.message().headers == block
        [message] = mqtt.take(1)
        assert [pair for pair in user_properties(message) if pair[0] != "Nats-Header-Block"] == [("Mqtt-Retain", "true"), ("mqtt-qos", "9")]
        mqtt.publish("o/b", b"kept", retain=True, MessageExpiryInterval=60)
        assert nats.message().headers is None
    assert retained(mosquitto, "o/a", 0.2) == []


# --- Real clients ----------------------------------------------------------------------------------------------------


def test_the_scenario_of_the_docs(served: Running, mosquitto: int):
    """nats pub -H and mosquitto_sub, and back: docs/retained.md."""
    server = f"nats://{HOST}:{served.port}"
    pub = [NATS_CLI, "-s", server, "pub", "-H", "Mqtt-Retain:true", "-H", "Mqtt-Qos:1", "-H", "Mqtt-Expiry:1h", "room.kitchen.temp", "21.5"]
    subprocess.run(pub, check=True, capture_output=True, timeout=20)
    sub = ["mosquitto_sub", "-V", "5", "-h", HOST, "-p", str(mosquitto), "-q", "1", "-t", "room/#", "-C", "1", "-W", "10", "-F", "%t %r %q %E %p"]
    out = subprocess.run(sub, check=True, capture_output=True, text=True, timeout=20).stdout.split()
    assert out[:3] == ["room/kitchen/temp", "1", "1"] and out[4] == "21.5"
    assert 3590 <= int(out[3]) <= 3600
    mqtt_pub = ["mosquitto_pub", "-V", "5", "-h", HOST, "-p", str(mosquitto), "-q", "1", "-r", "-D", "publish", "message-expiry-interval", "600", "-t", "room/hall/temp", "-m", "19"]
    subprocess.run(mqtt_pub, check=True, timeout=20)
    shown = subprocess.run([NATS_CLI, "-s", server, "sub", "--count", "1", "room.hall.temp"], check=True, capture_output=True, text=True, timeout=20).stdout
    assert "Mqtt-Retain: true" in shown and "Mqtt-Expiry: " in shown and shown.rstrip().endswith("19")


def test_nats_py_survives_a_refusal_and_reads_the_status(served: Running):
    async def scenario() -> None:
        errors: list[Exception] = []

        async def failed(error: Exception) -> None:
            errors.append(error)

        client = await nats_py.connect(f"nats://{HOST}:{served.port}", error_cb=failed)
        answer = await client.request("w.a", b"?", timeout=5, headers={"Mqtt-Qos": "7"})
        assert answer.headers["Status"] == "400"
        await client.publish("w.a", b"x", headers={"Mqtt-Expiry": "soon"})
        sub = await client.subscribe("w.b")
        await client.publish("w.b", b"still here", headers={"Mqtt-Qos": "2"})
        assert (await sub.next_msg(5)).data == b"still here"
        assert client.is_connected
        # nats.py writes errors in lower case
        assert [str(error).split(", ")[1] for error in errors] == ["mqtt-qos must be 0", "mqtt-expiry must be seconds from 1 to 4294967295"]
        await client.close()

    asyncio.run(scenario())
