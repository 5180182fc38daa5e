"""Load that a gateway must carry without losing anything or letting anybody wait. Used for both of its hosts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from emqx.nats import Address, Nats

DEADLINE = 60.0
BURST = 100_000


@contextmanager
def sending(connection: Nats, data: bytes) -> Iterator[None]:
    """Sends meanwhile, for as long as the server lets it wait."""
    failures: list[OSError] = []

    def send() -> None:
        try:
            connection.send(data)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    yield
    thread.join(DEADLINE)
    assert not thread.is_alive() and not failures, f"not all was taken: {failures}"


def burst_to_one_reader(address: Address, name: str) -> None:
    """Every message of a burst arrives, in order, and nothing else."""
    numbers = [b"%06d" % number for number in range(BURST)]
    subject = f"{name}.burst".encode()
    with Nats(address, DEADLINE) as subscriber, Nats(address, DEADLINE) as publisher:
        subscriber.connect()
        publisher.connect()
        subscriber.subscribe(subject.decode())
        with sending(publisher, b"".join(b"PUB %s 6\r\n%s\r\n" % (subject, number) for number in numbers)):
            expected = b"".join(b"MSG %s 1 6\r\n%s\r\n" % (subject, number) for number in numbers)
            received = subscriber.read(len(expected))
        assert received == expected
        subscriber.silent()


def flood_and_listen(address: Address, name: str) -> None:
    """Who publishes as fast as it can gets its messages meanwhile, and others are answered."""
    flood = f"PUB {name}.flood 1\r\nx\r\n".encode() * 300_000 + b"PING\r\n"
    with Nats(address, DEADLINE) as flooder, Nats(address, DEADLINE) as other:
        flooder.connect()
        other.connect()
        flooder.subscribe(f"{name}.news")
        with sending(flooder, flood):
            # Taken, and so on its way, while most of the flood is still to come.
            other.publish(f"{name}.news", b"1")
            other.ping()
            first = flooder.line()
            assert first == f"MSG {name}.news 1 1".encode(), f"{first!r} came first"
            flooder.expect(b"1\r\n")
            flooder.expect(b"PONG\r\n")
        flooder.silent()
