"""What dies, stops or comes and goes costs no message that was acknowledged, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from emqx.mqtt import Mqtt
from hostile.clients import DEADLINE, Client, Raw, pub
from hostile.conftest import STANDALONE, Hosts, Watch, size
from hostile.hosts import Host
from hostile.measure import MB, wait_until
from wire.servers import speaks_nats

PUBLISHERS = 4


class Publisher(threading.Thread):
    """Publishes numbers, and counts those that are acknowledged, until the connection ends."""

    def __init__(self, host: Host, name: str):
        super().__init__(daemon=True)
        self._client = Client(host.address(), verbose=True)
        self._name = name
        self.acknowledged = 0
        self.start()

    def run(self) -> None:
        try:
            while True:
                self._client.send(pub(self._name, b"%d" % self.acknowledged))
                while self._client.line() != b"+OK":
                    pass
                self.acknowledged += 1
        except (AssertionError, OSError):
            self._client.close()


@pytest.fixture
def observed(note: Callable[[object], None]):
    """Runs publishers until something happens to them, and looks for all they were told of."""

    def run(host: Host, happens: Callable[[], None]) -> None:
        with Mqtt(host.mqtt) as observer:
            observer.subscribe("acknowledged/#")
            publishers = [Publisher(host, f"acknowledged.{one}") for one in range(PUBLISHERS)]
            wait_until(lambda: all(one.acknowledged > size(200, 2000) for one in publishers), "messages", DEADLINE)
            happens()
            for one in publishers:
                one.join(DEADLINE)
            counts = {f"acknowledged/{number}": one.acknowledged for number, one in enumerate(publishers)}
            # One that was not acknowledged any more may have arrived, too.
            seen: dict[str, list[int]] = {topic: [] for topic in counts}
            while any(len(seen[topic]) < count for topic, count in counts.items()):
                message = observer.message()
                seen[message.topic].append(int(message.payload))
        assert all(numbers == list(range(len(numbers))) for numbers in seen.values())
        note(f"{sum(counts.values())} messages acknowledged, all of them have arrived once and in order")

    return run


@STANDALONE
def test_no_acknowledged_message_is_lost_when_the_gateway_is_killed(hosts: Hosts, observed):
    host = hosts()
    observed(host, host.kill)


@STANDALONE
def test_no_acknowledged_message_is_lost_when_the_broker_pauses(hosts: Hosts, watch: Watch, observed):
    """Whoever sends meanwhile is held back, not collected."""
    host = hosts()

    def pause() -> None:
        broker = host.broker.session
        with watch(host) as seen, Client(host.address()) as flooder:
            os.kill(broker, signal.SIGSTOP)
            flooder.socket.settimeout(float(size(3, 20)))
            # It waits, or after the send timeout towards the broker it is closed.
            with pytest.raises(OSError):
                while True:
                    flooder.socket.sendall(pub("flood", b"x" * 1000) * 100)
            os.kill(broker, signal.SIGCONT)
        seen.stays_below(64 * MB)
        host.kill()

    observed(host, pause)


@STANDALONE
def test_a_broker_that_comes_and_goes_leaves_nothing_behind(hosts: Hosts, note: Callable[[object], None]):
    host = hosts()

    def once() -> None:
        with ExitStack() as stack:
            clients = [stack.enter_context(Client(host.address())) for _ in range(8)]
            host.broker.restart()
            for client in clients:
                client.cut_off()
        wait_until(lambda: speaks_nats(host.address()), "served again")

    once()
    files, memory = host.usage.files(), host.usage.rss()
    for _ in range(size(5, 100)):
        once()
    wait_until(lambda: host.usage.files() <= files, "no file descriptor is left open")
    note(f"{(host.usage.rss() - memory) / MB:.1f} MB more, {host.usage.files()} file descriptors as before")
    assert host.usage.rss() - memory < 16 * MB


def test_connections_that_come_and_go_leave_nothing_behind(hosts: Hosts, watch: Watch):
    host = hosts()
    host.neighbour.quiet()
    files, memory = host.usage.files(), host.usage.rss()
    with watch(host) as seen:
        for number in range(size(1000, 10_000)):
            if number % 3:
                Client(host.address()).close()
            else:
                Raw(host.address()).close()
        seen.notes["file descriptors"] = f"{files} before"
    wait_until(lambda: host.usage.files() <= files, "no file descriptor is left open")
    # EMQX's own memory comes and goes by tens of megabytes.
    assert host.usage.rss() - memory < 96 * MB
    seen.neighbour_is_well()
