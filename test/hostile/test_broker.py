"""Names, messages and speeds that a broker does not take well, and brokers that do not do well."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import pytest

from clients.broker import ScriptedBroker
from emqx.mqtt import Mqtt
from emqx.node import Node
from hostile.clients import DEADLINE, Client, Raw, pub
from hostile.conftest import EMQX, STANDALONE, Hosts, Watch, size
from hostile.hosts import Standalone
from hostile.measure import MB, wait_until
from wire.servers import Address, speaks_nats

# --- Names -----------------------------------------------------------------------------------------------------------

# More levels than Mosquitto (200) and EMQX (128) take.
DEEP = ".".join("d" * 300)
NAMES = {
    "empty": b"SUB / 2\r\n",
    "share": b"SUB $share 2\r\n",
    "queue": b"SUB $queue 2\r\n",
    "exclusive": b"SUB $exclusive 2\r\n",
    "share_of_a_group": b"SUB $share g 2\r\n",
    "deep_sub": f"SUB {DEEP} 2\r\n".encode(),
    "deep_sub_with_wildcard": f"SUB {DEEP}.> 2\r\n".encode(),
    "deep_sub_of_a_group": f"SUB {DEEP} g 2\r\n".encode(),
    "deep_pub": pub(DEEP, b"x"),
    "deep_request": pub(DEEP, b"x", "r"),
    "deep_reply": pub("nobody", b"x", DEEP),
    "pub_empty": pub("/", b"x"),
    "pub_share": pub("$share", b"x"),
    "long_sub": f"SUB {'x' * 4000} 2\r\n".encode(),
    "long_pub": pub("x" * 4000, b"x"),
}


def survives(address: Address, operation: bytes, verbose: str) -> bool:
    """Whether the connection, and what it had subscribed to before, is there afterwards."""
    with Client(address, login=False) as client:
        client.send(b'CONNECT {"verbose":%s,"headers":true,"no_responders":true}\r\n' % verbose.encode())
        client.send(b"SUB before 1\r\n" + operation + b"PING\r\n")
        try:
            while client.line() != b"PONG":
                pass
            client.send(pub("before", b"still here"))
            while client.line() != b"MSG before 1 10":
                pass
        except (AssertionError, OSError):
            return False
        return True


@pytest.mark.parametrize("verbose", ["false", "true"], ids=["", "verbose"])
def test_a_strange_name_never_costs_the_connection(hosts: Hosts, verbose: str):
    address = hosts().address()
    assert [name for name, operation in NAMES.items() if not survives(address, operation, verbose)] == []


@EMQX
@pytest.mark.parametrize("verbose", ["false", "true"], ids=["", "verbose"])
def test_a_strange_name_with_emqx_as_the_broker(in_front_of, node: Node, verbose: str):
    address = in_front_of(node.mqtt).address()
    assert [name for name, operation in NAMES.items() if not survives(address, operation, verbose)] == []


# --- Messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 1.5, True, None, {"a": 1}, ["a"]], ids=str)
@EMQX
def test_a_user_property_that_is_no_text(hosts: Hosts, node: Node, value: object):
    """EMQX's REST API and rule engine publish such."""
    host = hosts()
    with Client(host.address()) as client:
        client.send(b"SUB poison.> 1\r\n")
        client.ping()
        properties = {"user_properties": {"n": value, "t": "text"}}
        body = {"topic": "poison/a", "payload": "hello", "qos": 0, "properties": properties}
        if node.rest.call("POST", "/publish", body).status != 200:
            pytest.skip("this EMQX does not publish it")
        line = client.line()
        assert line.startswith((b"MSG poison.a 1", b"HMSG poison.a 1")), line
        assert client.take(int(line.rsplit(b" ", 1)[1]) + 2).endswith(b"hello\r\n")
        client.ping()


@STANDALONE
def test_a_header_block_of_very_many_lines(hosts: Hosts, watch: Watch):
    """Any MQTT client can write the property in which a gateway writes header blocks."""
    host = hosts()
    block = "x" * 20 + "NATS/1.0%0D%0A" + "a:%0D%0A" * size(100_000, 500_000) + "%0D%0A"
    parts = [("Nats-Header-Block", block[at : at + 65_535]) for at in range(0, len(block), 65_535)]
    with ExitStack() as stack, Mqtt(host.mqtt) as publisher:
        clients = [stack.enter_context(Client(host.address())) for _ in range(5)]
        for client in clients:
            client.send(b"SUB block.> 1\r\n")
            client.ping()
        with watch(host) as seen:
            publisher.publish("block/a", b"lines", UserProperty=parts)
            publisher.publish("block/b", b"after")
            for client in clients:
                while not (line := client.line()).startswith(b"MSG block.b"):
                    client.take(int(line.rsplit(b" ", 1)[1]) + 2)
    # Each receiver has the message in the pieces in which it came, and as a whole.
    seen.stays_below(32 * MB + 5 * 4 * len(block))
    seen.neighbour_is_well()


# --- Both directions at once -----------------------------------------------------------------------------------------

# All match x.y.z.
FILTERS = ("x.>", "x.*.z", "x.y.*", "x.y.z")


def both_ways(host: Standalone, messages: int, payload: int = 10_000, filters: Sequence[str] = FILTERS) -> None:
    """Publishes messages that come back once for each filter, and reads all of them."""
    copy = len(f"MSG x.y.z 0 {payload}\r\n") + payload + 2
    with Client(host.address()) as client:
        client.send("".join(f"SUB {one} {sid}\r\n" for sid, one in enumerate(filters)).encode())
        client.ping()
        data = pub("x.y.z", b"x" * payload) * messages
        sender = threading.Thread(target=client.send_if_taken, args=(data,), daemon=True)
        sender.start()
        missing = messages * len(filters) * copy
        while missing:
            missing -= len(client.take(min(missing, 100 * copy)))
        sender.join(DEADLINE)
        client.ping()


@STANDALONE
def test_both_directions_with_a_broker_that_writes_before_it_reads_on(in_front_of):
    with ScriptedBroker() as broker:
        both_ways(in_front_of(broker.address), size(2000, 4000))


@EMQX
def test_both_directions_with_emqx_as_the_broker(in_front_of, node: Node):
    both_ways(in_front_of(node.mqtt), size(2000, 4000))


@EMQX
@pytest.mark.parametrize("subscriptions", [1, 4])
@pytest.mark.parametrize("payload", [10, 1000])
def test_a_burst_to_its_own_subscriptions_with_emqx_as_the_broker(in_front_of, node: Node, payload: int, subscriptions: int):
    """EMQX closes a client for which more than 1000 messages wait, and one segment holds more PUBs than that."""
    both_ways(in_front_of(node.mqtt), 20_000, payload, FILTERS[:subscriptions])


# --- Outages ---------------------------------------------------------------------------------------------------------


@STANDALONE
def test_an_outage_of_the_broker_is_one_line_in_the_log(hosts: Hosts, note: Callable[[object], None]):
    """Clients come again all the time meanwhile."""
    host = hosts()
    attempts = size(200, 2000)
    with Client(host.address()) as client:
        host.broker.stop()
        client.cut_off()
        before = len(host.log().splitlines())
        for _ in range(attempts):
            with Raw(host.address()) as again:
                while again.socket.recv(4096):
                    pass
        lines = host.log().splitlines()[before:]
    host.broker.start()
    wait_until(lambda: speaks_nats(host.address()), "served again")
    note(f"{len(lines)} lines for {attempts} attempts")
    assert 1 <= len(lines) <= 5, lines[:5]
