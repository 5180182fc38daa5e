"""What one client makes the gateway hold is bounded, whatever it subscribes to and however little it reads."""

from __future__ import annotations

import base64
import os
import threading
import time

import pytest

from hostile.clients import DEADLINE, TRANSPORTS, Client, pub, subs
from hostile.conftest import Hosts, Watch, size
from hostile.measure import MB, wait_until

# The default of max_pending.
MAX_PENDING = 64 * MB


def payload(length: int) -> bytes:
    """Text that deflate makes shorter, but not much."""
    return base64.b64encode(os.urandom(length))[:length]


# Subscriptions on one subject, messages and their length.
FAN_OUTS = {
    # below the length that is referred to instead of copied
    "small": (size(20_000, 20_000), 16, 4000),
    "many_small": (1000, size(100, 500), 4000),
    "large": (size(1000, 20_000), 1, MB),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("kind", FAN_OUTS)
def test_many_subscriptions_on_one_subject(hosts: Hosts, watch: Watch, kind: str, transport: str):
    sids, messages, length = FAN_OUTS[kind]
    # What deflate makes so short that max_pending holds all of it is closed after this time.
    host = hosts(max_subscriptions=0, send_timeout="3s")
    published = pub("f", payload(length)) * messages
    with watch(host) as seen:
        with Client(host.address(transport), transport) as client:
            client.send(subs("f", sids))
            client.ping()
            client.send_if_taken(published)
            client.cut_off()
    seen.stays_below(2 * MAX_PENDING)
    seen.neighbour_is_well()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_others_publish(hosts: Hosts, watch: Watch, transport: str):
    host = hosts(max_subscriptions=0)
    with watch(host) as seen:
        with Client(host.address(transport), transport) as client, Client(host.address()) as publisher:
            client.send(subs("f", size(2000, 20_000)))
            client.ping()
            publisher.send(pub("f", payload(MB)))
            publisher.ping()
            client.cut_off()
    seen.stays_below(2 * MAX_PENDING)
    seen.neighbour_is_well()


def test_who_never_reads(hosts: Hosts, watch: Watch):
    """Each is closed when what waits for it is more than max_pending."""
    clients, pending = size(5, 20), 8 * MB
    host = hosts(max_pending="8MB")
    with watch(host) as seen:
        opened = [Client(host.address()) for _ in range(clients)]
        for client in opened:
            client.send(subs("f", 1))
            client.ping()
        with Client(host.address()) as publisher:
            for _ in range(50):
                publisher.send(pub("f", payload(MB)))
                publisher.ping()
        for client in opened:
            client.cut_off()
            client.close()
    seen.stays_below(clients * 2 * pending)
    seen.neighbour_is_well()


ANSWERED = {
    "pings": (b"PING\r\n" * 10_000, {}),
    "oks": (pub("nobody", b"x") * 5000, {"verbose": True}),
    "errors": (b"SUB a..b 2\r\n" * 5000, {}),
    "no_responders": (pub("nobody", b"x", "r") * 5000, {}),
}


@pytest.mark.parametrize("kind", ANSWERED)
def test_answers_that_nobody_reads(hosts: Hosts, watch: Watch, kind: str):
    data, fields = ANSWERED[kind]
    host = hosts(max_pending="2MB", send_timeout="3s")
    with watch(host) as seen, Client(host.address(), receive_buffer=4096) as client:
        client.send(b"SUB r 1\r\n")
        client.ping()
        client.connect(**fields)
        for _ in range(2000):
            if client.is_cut_off():
                break
            client.send_if_taken(data)
        client.cut_off()
    # What the kernel buffers is not pending yet. 4096 requests may be under way, with some 350 bytes each.
    seen.stays_below(64 * MB)
    seen.neighbour_is_well()


class Drained(threading.Thread):
    """Reads as fast as it can until the connection ends."""

    def __init__(self, client: Client):
        super().__init__(daemon=True)
        self._socket = client.socket
        self.received = 0
        self.start()

    def run(self) -> None:
        buffer = bytearray(MB)
        try:
            while count := self._socket.recv_into(buffer):
                self.received += count
        except OSError:
            pass


def test_a_flood_for_one_with_many_subscriptions(hosts: Hosts, watch: Watch):
    """It reads, but each message is more work for it than for the publisher."""
    host = hosts(max_subscriptions=0)
    with watch(host) as seen:
        with Client(host.address()) as client, Client(host.address()) as publisher:
            client.send(subs("flood", 1000))
            client.ping()
            reader = Drained(client)
            for _ in range(size(15, 200)):
                publisher.send(pub("flood", b"tiny") * 5000)
            publisher.ping()
            wait_until(lambda: host.usage.is_idle(), "all is delivered, or the client closed", DEADLINE)
            seen.notes["received"] = f"{reader.received / MB:.0f} MB"
    seen.stays_below(2 * MAX_PENDING)
    seen.neighbour_is_well()


def test_small_parts_of_large_chunks(hosts: Hosts, watch: Watch):
    """Of what came in one chunk only what is kept is held: a long subject does not hold the payload before it."""
    count, length = size(100, 300), 1100
    message = pub("nobody", payload(MB))
    host = hosts(max_subscriptions=0)
    with watch(host) as seen, Client(host.address()) as client:
        for number in range(count):
            client.send(message + f"SUB {number:05}.{'x' * (length - 6)} {number}\r\n".encode())
            client.ping()
        # A part may hold 64 times its size. The rest is what the VM keeps in reserve after 1 MB payloads.
        allowed = seen.idle + 64 * count * length + 32 * MB
        wait_until(lambda: host.usage.rss() < allowed, f"no more than {allowed / MB:.0f} MB held", 20.0)
        seen.notes["held"] = f"{(host.usage.rss() - seen.idle) / MB:.0f} MB"


class Paced(threading.Thread):
    """Reads so many bytes a second and answers PINGs, until all has come or the connection ends."""

    def __init__(self, client: Client, rate: int, count: int):
        super().__init__(daemon=True)
        self._client, self._rate, self._count = client, rate, count
        self.received = 0

    def run(self) -> None:
        began, tail = time.monotonic(), b""
        while self.received < self._count:
            try:
                data = self._client.socket.recv(50_000)
            except OSError:
                return
            if not data:
                return
            tail = tail[-7:] + data
            if b"\nPING\r\n" in tail:
                self._client.send(b"PONG\r\n")
                tail = b""
            self.received += len(data)
            time.sleep(max(0.0, self.received / self._rate - (time.monotonic() - began)))


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_a_slow_reader_that_goes_on_reading_gets_everything(hosts: Hosts, watch: Watch, transport: str):
    """Heartbeats are due all the time, and their answers come as late as the reader gets to them."""
    messages, rate = size(5, 20), MB
    host = hosts(default_heartbeat_interval="1s", heartbeat_wait_timeout="1s")
    expected = messages * len(b"MSG big 1 1048576\r\n" + b"x" * MB + b"\r\n")
    with watch(host) as seen:
        with Client(host.address(transport), transport, receive_buffer=65536) as slow, Client(host.address()) as other:
            slow.send(b"SUB big 1\r\n")
            slow.ping()
            reader = Paced(slow, rate, expected)
            for _ in range(messages):
                other.send(pub("big", b"x" * MB))
                other.ping()
            reader.start()
            reader.join(10 * messages)
            # PINGs are among what has come; so much less than one message is missing at most.
            assert reader.received >= expected, f"{reader.received} of {expected} bytes"
            seen.notes["received"] = f"{reader.received / MB:.0f} MB"
    seen.stays_below(2 * MAX_PENDING)
    seen.neighbour_is_well()


def test_large_messages_that_take_long_make_no_slow_consumer(hosts: Hosts):
    """Less than max_pending is under way at any time; but the broker is faster than what compresses."""
    host = hosts()
    with Client(host.address("ws-deflate"), "ws-deflate") as subscriber, Client(host.address()) as publisher:
        subscriber.send(b"SUB big 1\r\n")
        subscriber.ping()
        for _ in range(5):
            publisher.send(pub("big", b"x" * MB) * 16)
            publisher.ping()
            subscriber.ping()
