"""EMQX 6's queues and streams (docs/queues.md): NATS clients publish into them, MQTT 5 clients consume them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.stack import gateway_in_front_of
from emqx.gateway import BUILT_IN_DATABASE, NAMED, Gateway, unique
from emqx.mqtt import Mqtt, user_properties
from emqx.nats import Address, Nats, headers
from emqx.node import wait_until
from emqx.rest import RestError

NO_RESPONDERS = b"NATS/1.0 503\r\n\r\n"
KINDS = ("queue", "stream")
READY = 60.0
SILENCE = 1.0
FROM_THE_BEGINNING = {"UserProperty": [("stream-offset", "earliest")]}


def has_queues(gateway: Gateway) -> bool:
    try:
        gateway.rest.get("/queues/config")
    except RestError as error:
        if error.answer.status != 404:
            raise
        return False
    return True


def is_ready(gateway: Gateway, kind: str) -> bool:
    return gateway.rest.call("GET", f"/{kind}s").status == 200


@pytest.fixture(scope="module")
def _enabled(_gateway: Gateway) -> Iterator[bool]:
    """EMQX has both, and they are on: by default they are not."""
    if not has_queues(_gateway):
        yield False
        return
    paths = [f"/{kind}s/config" for kind in KINDS]
    before = {path: _gateway.rest.get(path) for path in paths}
    for path in paths:
        _gateway.rest.put(path, before[path] | {"enable": True})
    for kind in KINDS:
        wait_until(lambda kind=kind: is_ready(_gateway, kind), f"EMQX's {kind}s are ready", READY)
    yield True
    for path in paths:
        _gateway.rest.put(path, before[path] | {"enable": False})
        _gateway.rest.put(path, before[path])


@pytest.fixture
def enabled(gateway: Gateway, _enabled: bool) -> Gateway:
    if not _enabled:
        pytest.skip("this EMQX has no queues and streams")
    return gateway


def make(gateway: Gateway, kind: str, name: str, topic_filter: str, **options) -> None:
    gateway.rest.post(f"/{kind}s", {"name": name, "topic_filter": topic_filter, "is_lastvalue": False} | options)


@pytest.fixture
def queue(enabled: Gateway) -> Iterator[str]:
    """A queue of all that is published below its name."""
    name = unique("queue")
    make(enabled, "queue", name, f"{name}/#")
    yield name
    enabled.rest.delete(f"/queue/{name}")


@pytest.fixture
def log(enabled: Gateway) -> Iterator[str]:
    """A stream of all that is published below its name."""
    name = unique("stream")
    make(enabled, "stream", name, f"{name}/#")
    yield name
    enabled.rest.delete(f"/stream/{name}")


def denied(client: Nats, subject: str, group: str | None = None) -> None:
    client.send(f"SUB {subject} {group + ' ' if group else ''}99\r\n")
    queue = f' using queue "{group}"' if group else ""
    client.error(f'Permissions Violation for Subscription to "{subject}"{queue}')


def silent(mqtt: Mqtt) -> bool:
    time.sleep(SILENCE)
    return mqtt.waiting == 0


# --- Where EMQX has none, or has them off ---------------------------------------------------------------------------


@pytest.mark.plugin
def test_names_where_there_are_no_streams(gateway: Gateway, name: str):
    """Those of streams are like any other. `$queue` is always refused: EMQX 5 has another meaning for it."""
    assert not is_ready(gateway, "stream")
    with gateway.nats() as nats:
        denied(nats, f"$queue.{name}")
        nats.subscribe(f"$stream.{name}").publish(f"$stream.{name}", b"x")
        assert nats.message().payload == b"x"


# --- Queues ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verbose", [False, True])
def test_a_queue_keeps_what_nats_clients_publish(enabled: Gateway, queue: str, verbose: bool):
    """No consumer is there when they publish."""
    ok = b"+OK\r\n" if verbose else b""
    with enabled.raw() as nats:
        nats.login(verbose=verbose)
        nats.publish(f"{queue}.a", b"1", headers=headers(("Colour", "red"), ("Colour", "blue")))
        nats.publish(f"{queue}.b.c", b"2")
        nats.send(b"PING\r\n")
        nats.expect(ok * 3 + b"PONG\r\n")
    with enabled.mqtt() as consumer:
        consumer.subscribe(f"$queue/{queue}")
        first, second = consumer.messages(2)
    assert (first.topic, first.payload) == (f"{queue}/a", b"1")
    assert user_properties(first) == [("Colour", "red"), ("Colour", "blue")]
    assert (second.topic, second.payload) == (f"{queue}/b/c", b"2")


def test_a_message_goes_to_another_consumer_until_one_acknowledges_it(enabled: Gateway, queue: str):
    with enabled.nats() as nats:
        for number in range(5):
            nats.publish(f"{queue}.a", b"%d" % number)
        nats.ping()
    with enabled.mqtt(manual_ack=True) as lost:
        lost.subscribe(f"$queue/{queue}")
        messages = lost.messages(5)
        assert [message.payload for message in messages] == [b"0", b"1", b"2", b"3", b"4"]
        for message in messages[:2]:
            lost.acknowledge(message)
        # EMQX has taken the acknowledgements
        lost.subscribe(f"{queue}-fence")
        lost.lose()
    with enabled.mqtt() as consumer:
        consumer.subscribe(f"$queue/{queue}")
        assert sorted(message.payload for message in consumer.messages(3)) == [b"2", b"3", b"4"]
        assert silent(consumer), "what was acknowledged is delivered again"
    with enabled.mqtt() as late:
        late.subscribe(f"$queue/{queue}")
        assert silent(late), "what was acknowledged is delivered again"


def test_a_reply_subject_is_kept(enabled: Gateway, queue: str):
    """A client that has not asked for 503 gets the answer of whoever consumes the request."""
    with enabled.nats(no_responders=False) as nats, enabled.mqtt() as consumer:
        nats.subscribe(f"inbox.{queue}")
        nats.publish(f"{queue}.a", b"question", reply=f"inbox.{queue}")
        nats.ping()
        consumer.subscribe(f"$queue/{queue}")
        request = consumer.message()
        assert request.properties.ResponseTopic == f"inbox/{queue}"
        consumer.publish(request.properties.ResponseTopic, b"answer")
        assert nats.message().payload == b"answer"


def test_a_queue_is_no_responder(enabled: Gateway, queue: str):
    """The requester gets 503 although the queue has the message."""
    with enabled.nats() as nats, enabled.mqtt() as consumer:
        nats.subscribe(f"inbox.{queue}")
        nats.publish(f"{queue}.a", b"question", reply=f"inbox.{queue}")
        assert nats.message().headers == NO_RESPONDERS
        consumer.subscribe(f"$queue/{queue}")
        assert consumer.message().payload == b"question"


def test_a_queue_of_mounted_clients(enabled: Gateway, queue: str):
    """It binds the topic with the mountpoint."""
    enabled.settings(mountpoint=f"{queue}/")
    with enabled.nats() as nats, enabled.mqtt() as consumer:
        nats.publish("a", b"x")
        nats.ping()
        denied(nats, f"$queue.{queue}")
        consumer.subscribe(f"$queue/{queue}")
        assert consumer.message().topic == f"{queue}/a"


def test_a_last_value_queue_has_one_message_per_nats_client(enabled: Gateway, name: str):
    """EMQX's default key is the client identifier of the publisher."""
    enabled.settings(**NAMED)
    make(enabled, "queue", name, f"{name}/#", is_lastvalue=True)
    try:
        for client in (f"{name}a", f"{name}b"):
            with enabled.nats(name=client, user=client) as nats:
                for number in range(3):
                    nats.publish(f"{name}.x", f"{client}{number}".encode())
                nats.ping()
        with enabled.mqtt() as consumer:
            consumer.subscribe(f"$queue/{name}")
            assert sorted(one.payload for one in consumer.messages(2)) == [f"{name}a2".encode(), f"{name}b2".encode()]
            assert silent(consumer)
    finally:
        enabled.rest.delete(f"/queue/{name}")


# --- Streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_replays_what_nats_clients_publish(enabled: Gateway, log: str):
    with enabled.nats() as nats:
        nats.publish(f"{log}.a", b"1", headers=headers(("Colour", "red")))
        nats.publish(f"{log}.b", b"2")
        nats.ping()
    for _ in range(2):
        with enabled.mqtt() as consumer:
            consumer.subscribe(f"$stream/{log}", **FROM_THE_BEGINNING)
            first, second = consumer.messages(2)
        assert (first.topic, first.payload) == (f"{log}/a", b"1")
        assert (second.topic, second.payload) == (f"{log}/b", b"2")
        assert ("Colour", "red") in user_properties(first)
        added = dict(user_properties(second))
        assert added.keys() == {"key", "ts"}
        since = int(added["ts"])
    with enabled.mqtt() as consumer:
        consumer.subscribe(f"$stream/{log}", UserProperty=[("stream-offset", str(since))])
        assert consumer.message().payload == b"2"
        assert silent(consumer)


# --- What NATS clients cannot ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["$queue.{}", "$queue.{}.{}.>", "$q.{}.>", "$stream.{}", "$s.earliest.{}.>"])
def test_nats_clients_cannot_consume(enabled: Gateway, queue: str, log: str, form: str):
    """The connection is open, nothing is left behind, and the messages are there for others."""
    enabled.settings(**NAMED)
    name = log if form.startswith("$s") else queue
    subject = form.format(name, name)
    with enabled.nats(name=f"{name}c") as nats, enabled.mqtt() as consumer:
        denied(nats, subject)
        denied(nats, subject, group="workers")
        assert enabled.subscriptions(f"{name}c") == []
        nats.publish(f"{name}.a", b"x")
        nats.ping()
        if name == queue:
            consumer.subscribe(f"$queue/{queue}")
        else:
            consumer.subscribe(f"$stream/{log}", **FROM_THE_BEGINNING)
        assert consumer.message().payload == b"x"
        nats.silent()


def test_superusers_cannot_consume(enabled: Gateway, queue: str, log: str, name: str):
    enabled.authenticate(BUILT_IN_DATABASE)
    enabled.add_user(name, "secret", is_superuser=True)
    with enabled.nats(user=name, **{"pass": "secret"}) as nats:
        denied(nats, f"$queue.{queue}")
        denied(nats, f"$stream.{log}")


# --- The standalone gateway, which is an MQTT 5 client for EMQX -----------------------------------------------------


@pytest.fixture
def standalone(enabled: Gateway, tmp_path: Path) -> Iterator[Address]:
    server = gateway_in_front_of(enabled.node.mqtt, tmp_path)
    server.start()
    yield server.address
    server.stop()


def test_a_stream_through_the_standalone_gateway(enabled: Gateway, standalone: Address, log: str):
    """Live; EMQX adds the headers `key` and `ts`. What is published with QoS 0 may be stored a little later."""
    with Nats(standalone).connect() as nats, enabled.raw() as publisher:
        publisher.login(verbose=True)
        publisher.publish(f"{log}.a", b"before")
        publisher.expect(b"+OK\r\n" * 2)
        nats.subscribe(f"$stream.{log}")
        publisher.publish(f"{log}.a", b"after", headers=headers(("Colour", "red")))
        message = nats.message()
        assert (message.subject, message.payload) == (f"{log}.a", b"after")
        names = [line.partition(b":")[0] for line in message.headers.splitlines()[1:-1]]
        assert sorted(names) == [b"Colour", b"key", b"ts"]
        nats.silent()


@pytest.mark.parametrize("verbose", [False, True])
def test_a_queue_through_the_standalone_gateway(enabled: Gateway, standalone: Address, queue: str, verbose: bool):
    """It would acknowledge what its client has not seen, so it refuses."""
    with Nats(standalone) as nats, enabled.mqtt() as consumer:
        nats.login(verbose=verbose)
        nats.expect(b"+OK\r\n" if verbose else b"")
        denied(nats, f"$queue.{queue}")
        denied(nats, f"$queue.{queue}.{queue}.>", group="workers")
        nats.publish(f"{queue}.a", b"x")
        consumer.subscribe(f"$queue/{queue}")
        assert consumer.message().payload == b"x"
