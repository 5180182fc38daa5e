"""WebSocket connections that have not logged in: requests, control frames and compression have their bounds."""

from __future__ import annotations

from contextlib import ExitStack

from hostile.clients import Client, Raw
from hostile.conftest import Hosts, Watch, size
from hostile.measure import MB
from websocket_client import PING, frame, request

# Of HTTP headers, the gateway's bound on a request.
REQUEST = 15_000


def test_requests_of_very_many_headers(hosts: Hosts, watch: Watch):
    """Never ended, so that the gateway has to keep them."""
    host = hosts()
    count = size(100, 300)
    begin = request()[:-2]
    many = begin + b"a:b\r\n" * ((REQUEST - len(begin)) // 5)
    with watch(host) as seen, ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(Raw(host.address("ws"))).send_if_taken(many)
        # Served after all of them.
        Client(host.address("ws"), "ws").close()
    seen.stays_below(16 * MB + 3 * count * REQUEST)
    seen.neighbour_is_well()


def test_pongs_that_nobody_reads(hosts: Hosts, watch: Watch):
    host = hosts()
    pings = frame(b"p" * 125, PING) * 1000
    with watch(host) as seen, ExitStack() as stack:
        for _ in range(size(5, 10)):
            client = stack.enter_context(Client(host.address("ws"), "ws", receive_buffer=4096, login=False))
            for _ in range(500):
                if client.is_cut_off():
                    break
                # Whoever is waited for reads no more.
                client.send_frames(pings, 1.0)
    seen.stays_below(32 * MB)
    seen.neighbour_is_well()


def test_compression_costs_nothing_before_the_login(hosts: Hosts, watch: Watch):
    host = hosts()
    count = size(300, 1000)
    held = {}
    for transport in ("ws", "ws-deflate"):
        with watch(host) as seen, ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(Client(host.address(transport), transport, login=False))
        held[transport] = seen.memory
        seen.neighbour_is_well()
    assert held["ws-deflate"] < 2 * held["ws"] + 8 * MB, held
