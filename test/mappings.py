"""What holds for subject mappings in front of every broker: NATS clients on one side, MQTT clients on the other."""

from __future__ import annotations

from collections.abc import Callable

from emqx.mqtt import Mqtt
from emqx.nats import Nats

Connect = Callable[..., Nats]


def rules(name: str) -> list[str]:
    """For publishes and for subscriptions alike."""
    return [
        f"{name}.special -> {name}.one",
        f"{name}.*.temp -> {name}.fleet.{{{{wildcard(1)}}}}.temp",
        f"{name}.all.> -> {name}.raw.>",
    ]


def published(connect: Connect, mqtt: Mqtt, name: str) -> None:
    """What NATS clients publish, as MQTT clients get it."""
    mqtt.subscribe(f"{name}/#")
    with connect() as nats:
        nats.publish(f"{name}.5.temp", b"1", headers=b"NATS/1.0\r\nA: b\r\n\r\n", reply="_INBOX.x")
        message = mqtt.message()
        assert (message.topic, message.payload) == (f"{name}/fleet/5/temp", b"1")
        assert (message.properties.ResponseTopic, message.properties.UserProperty) == ("_INBOX/x", [("A", "b")])
        for subject, topic in (
            (f"{name}.special", f"{name}/one"),
            (f"{name}.all.x.y", f"{name}/raw/x/y"),
            (f"{name}.5.other", f"{name}/5/other"),
            # What a rule leads to is not mapped again.
            (f"{name}.all.5.temp", f"{name}/raw/5/temp"),
        ):
            nats.publish(subject, b"x")
            assert mqtt.message().topic == topic


def subscribed(connect: Connect, mqtt: Mqtt, name: str) -> None:
    """What MQTT clients publish, as NATS clients get it."""
    with connect() as nats, connect() as member:
        nats.subscribe(f"{name}.*.temp", sid="1")
        nats.subscribe(f"{name}.all.>", sid="2")
        # The same at the broker as the first, and the names are others.
        nats.subscribe(f"{name}.fleet.*.temp", sid="3")
        member.subscribe(f"{name}.7.temp", sid="4", group="q")
        nats.ping()
        member.ping()
        mqtt.publish(f"{name}/fleet/5/temp", b"a")
        got = {(m.subject, m.sid) for m in (nats.message(), nats.message())}
        assert got == {(f"{name}.5.temp", "1"), (f"{name}.fleet.5.temp", "3")}
        mqtt.publish(f"{name}/raw/x/y", b"b")
        message = nats.message()
        assert (message.subject, message.sid) == (f"{name}.all.x.y", "2")
        mqtt.publish(f"{name}/fleet/7/temp", b"c")
        assert member.message().subject == f"{name}.7.temp"
        assert {nats.message().sid for _ in range(2)} == {"1", "3"}
        # Nothing comes under the names that only NATS clients use.
        mqtt.publish(f"{name}/5/temp", b"d")
        mqtt.publish(f"{name}/all/x", b"d")
        # The last of several subscriptions ends the broker's.
        nats.send("UNSUB 1\r\n")
        nats.ping()
        mqtt.publish(f"{name}/fleet/5/temp", b"e")
        message = nats.message()
        assert (message.subject, message.sid, message.payload) == (f"{name}.fleet.5.temp", "3", b"e")
        nats.send("UNSUB 3\r\n")
        nats.ping()
        mqtt.publish(f"{name}/fleet/5/temp", b"f")
        mqtt.publish(f"{name}/raw/end", b"g")
        assert nats.message().payload == b"g"


def both_ways(connect: Connect, name: str) -> None:
    """NATS clients among themselves notice nothing, requests and answers included."""
    with connect() as service, connect() as client:
        service.subscribe(f"{name}.*.temp", sid="1")
        service.ping()
        client.subscribe("_INBOX.me.*", sid="9")
        client.publish(f"{name}.8.temp", b"?", reply="_INBOX.me.1")
        request = service.message()
        assert (request.subject, request.reply, request.payload) == (f"{name}.8.temp", "_INBOX.me.1", b"?")
        service.publish(request.reply, b"!")
        assert client.message().payload == b"!"
        # Nobody is subscribed where the rule leads to.
        client.publish(f"{name}.special", reply="_INBOX.me.2")
        message = client.message()
        assert (message.subject, message.headers) == ("_INBOX.me.2", b"NATS/1.0 503\r\n\r\n")
