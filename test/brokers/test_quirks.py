"""What the gateway relies on is tried out, once for a broker; where it is otherwise there is another way."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from brokers.model import PUBLISH, Faults, ModelBroker, before
from brokers.nats import Client, Closed, message
from clients.stack import Server, gateway_in_front_of
from wire.servers import accepts

NO_MATCHING_SUBSCRIBERS, PROTOCOL_ERROR, NOT_AUTHORIZED = 0x10, 0x82, 0x87
PROBE = b"nats_gateway/probe/"


def quirks(gateway: Server) -> list[str]:
    return [line.rpartition("quirks=")[2].split(" ")[0] for line in gateway.log().splitlines() if "upstream_has_quirks" in line]


def probes(broker: ModelBroker) -> int:
    return sum(topic.startswith(PROBE) for topic in broker.topics)


def count(said: bytes, sid: int) -> int:
    return said.count(b" %d 2\r\nhi\r\n" % sid)


FAULTS = {
    "none": (Faults(), []),
    "puback_lies": (Faults(says=NO_MATCHING_SUBSCRIBERS), ["[puback_lies]"]),
    "no_shared_identifiers": (Faults(identifies_shared=False), ["[no_shared_identifiers]"]),
    "merges": (Faults(merges=True), ["[merges]"]),
    "no_identifiers": (Faults(merges=True, identifies_plain=False, identifies_shared=False), ["[no_identifiers]"]),
    "pong_overtakes": (Faults(defers=True), ["[pong_overtakes]"]),
    "two at once": (Faults(says=NO_MATCHING_SUBSCRIBERS, merges=True), ["[puback_lies,merges]"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_broker_is_tried_out_once_and_its_quirks_are_told_once(tmp_path: Path, name: str):
    faults, expected = FAULTS[name]
    with before(faults, tmp_path) as (gateway, broker):
        for _ in range(5):
            with Client(gateway.address, verbose=False) as client:
                client.send(b"SUB a.* 1\r\nPUB a.b 2\r\nhi\r\n")
                assert client.ping() == message("a.b", 1, b"hi")
        assert probes(broker) == 1
        assert quirks(gateway) == expected


@pytest.mark.parametrize("name", ["none", "pong_overtakes", "no_shared_identifiers", "merges"])
def test_each_subscription_gets_each_message_once(tmp_path: Path, name: str):
    faults, _ = FAULTS[name]
    with before(faults, tmp_path) as (gateway, _):
        with Client(gateway.address, verbose=False) as client:
            client.send(b"SUB a.b 1\r\nSUB a.* 2\r\nSUB a.b q 3\r\nSUB a.b p 4\r\n")
            client.ping()
            client.send(b"PUB a.b 2\r\nhi\r\n" * 10)
            said = client.ping()
            assert [count(said, sid) for sid in (1, 2, 3, 4)] == [10, 10, 10, 10]


def test_without_identifiers_plain_subscriptions_get_each_message(tmp_path: Path):
    faults, _ = FAULTS["no_identifiers"]
    with before(faults, tmp_path) as (gateway, _):
        with Client(gateway.address, verbose=False) as client:
            client.send(b"SUB a.b 1\r\nSUB a.* 2\r\nSUB c q 3\r\n")
            client.ping()
            client.send(b"PUB a.b 2\r\nhi\r\nPUB c 2\r\nhi\r\n" * 10)
            said = client.ping()
            assert [count(said, sid) for sid in (1, 2, 3)] == [10, 10, 10]


@pytest.mark.parametrize("swallowed", [0, 3000], ids=["", "some never come"])
def test_a_burst_to_its_own_subscriptions_comes_in_pieces(tmp_path: Path, swallowed: int):
    """EMQX ends the connection of a client for which more than 1000 messages wait."""
    with before(Faults(defers=True, swallows=lambda topic: topic == b"own/denied"), tmp_path) as (gateway, broker):
        with Client(gateway.address, verbose=False) as client:
            client.send(b"SUB own.* 1\r\n")
            client.ping()
            client.send(b"PUB own.denied 2\r\nno\r\n" * swallowed + b"PUB own.a 2\r\nhi\r\n" * 3000)
            assert count(client.ping(), 1) == 3000
        # Whoever has no such subscription is not held back.
        assert broker.most_deferred <= 400
        with Client(gateway.address, verbose=False) as client:
            client.send(b"PUB own.a 2\r\nhi\r\n" * 3000)
            client.ping()
        assert broker.most_deferred > 2000


def test_a_puback_that_lies_makes_no_503(tmp_path: Path):
    faults, _ = FAULTS["puback_lies"]
    with before(faults, tmp_path) as (gateway, _):
        with Client(gateway.address, verbose=False) as client:
            client.send(b"SUB svc 1\r\nSUB r 2\r\nPUB svc r 2\r\nhi\r\n")
            assert client.ping() == b"MSG svc 1 r 2\r\nhi\r\n"


def test_a_puback_that_does_not_lie_makes_one(tmp_path: Path):
    with before(Faults(), tmp_path) as (gateway, _):
        with Client(gateway.address, verbose=False) as client:
            client.send(b"SUB r 2\r\nPUB svc r 2\r\nhi\r\n")
            assert b"503" in client.ping()


def test_who_comes_at_the_same_time_waits_for_the_one_who_tries(tmp_path: Path):
    faults, _ = FAULTS["puback_lies"]
    with ModelBroker(faults) as broker:
        gateway = gateway_in_front_of(broker.address, tmp_path, ready=accepts)
        gateway.start()
        try:
            answers: list[bytes] = []

            def ask() -> None:
                with Client(gateway.address, verbose=False) as client:
                    client.send(b"SUB svc 1\r\nSUB r 2\r\nPUB svc r 2\r\nhi\r\n")
                    answers.append(client.ping())

            threads = [threading.Thread(target=ask) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(answers) == 20 and not any(b"503" in answer for answer in answers)
            assert probes(broker) == 1
        finally:
            gateway.stop()


def test_who_may_not_is_served_all_the_same_and_asked_five_times(tmp_path: Path):
    faults = Faults(suback=lambda _, topic: NOT_AUTHORIZED if PROBE in topic else None)
    with before(faults, tmp_path) as (gateway, broker):
        for _ in range(8):
            with Client(gateway.address, verbose=False) as client:
                client.send(b"SUB a.* 1\r\nPUB a.b 2\r\nhi\r\n")
                assert client.ping() == message("a.b", 1, b"hi")
        assert probes(broker) == 5
        assert gateway.log().count("upstream_was_not_probed") == 1


def test_a_broker_that_hangs_up_on_it_is_not_tried_again(tmp_path: Path):
    faults = Faults(hangs_up=lambda kind, topic: PROTOCOL_ERROR if kind == PUBLISH and topic.startswith(PROBE) else None)
    with before(faults, tmp_path) as (gateway, broker):
        served(gateway)
        served(gateway)
        assert probes(broker) == 1
        assert gateway.log().count("upstream_was_not_probed") == 1


def served(gateway: Server) -> None:
    until = time.monotonic() + 5
    while True:
        with suppress(Closed), Client(gateway.address, verbose=False) as client:
            client.send(b"SUB a.* 1\r\nPUB a.b 2\r\nhi\r\n")
            assert client.ping() == message("a.b", 1, b"hi")
            return
        assert time.monotonic() < until


def test_it_can_be_switched_off(tmp_path: Path):
    faults, _ = FAULTS["puback_lies"]
    with ModelBroker(faults) as broker:
        gateway = gateway_in_front_of(broker.address, tmp_path)
        config = tmp_path / "gateway.toml"
        config.write_text(config.read_text().replace("[upstream]\n", "[upstream]\nprobe = false\n"))
        gateway.start()
        try:
            served(gateway)
            assert probes(broker) == 0
        finally:
            gateway.stop()
