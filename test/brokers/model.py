"""A broker with faults: what one of them does otherwise than the book, or what others do that these tests have not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clients.broker import ScriptedBroker, _Peer, _take_properties, _take_string
from clients.stack import Server, gateway_in_front_of

PUBLISH, SUBSCRIBE = 3, 8
ALIVE = b"\x00\x00\x00"


class HungUp(ConnectionError):
    pass


def nothing(_kind: int, _topic: bytes) -> int | None:
    return None


@dataclass
class Faults:
    # What CONNACK says: flags, reason code, properties.
    connack: bytes = ALIVE
    # Of a packet and its topic: the connection ends, after a DISCONNECT with this reason unless it is 0.
    hangs_up: Callable[[int, bytes], int | None] = nothing
    # The reason code of an answer, whatever happened to the message or the subscription.
    puback: Callable[[int, bytes], int | None] = nothing
    suback: Callable[[int, bytes], int | None] = nothing


class ModelBroker(ScriptedBroker):
    def __init__(self, faults: Faults):
        super().__init__()
        self.faults = faults
        self.logins = 0

    def _connected(self, peer: _Peer, body: bytes) -> None:
        self.logins += 1
        peer.send(0x20, self.faults.connack)

    def _published(self, peer: _Peer, flags: int, body: bytes) -> None:
        topic, _ = _take_string(body)
        self._judge(peer, PUBLISH, topic)
        reason = self.faults.puback(PUBLISH, topic)
        if reason is None:
            super()._published(peer, flags, body)
        elif flags & 6:
            at = 2 + len(topic)
            peer.send(0x40, body[at : at + 2] + bytes([reason]))

    def _subscribed(self, peer: _Peer, body: bytes) -> None:
        _, rest = _take_properties(body[2:])
        topic, _ = _take_string(rest)
        self._judge(peer, SUBSCRIBE, topic)
        reason = self.faults.suback(SUBSCRIBE, topic)
        if reason is None:
            super()._subscribed(peer, body)
        else:
            peer.send(0x90, body[:2] + b"\x00" + bytes([reason]))

    def _judge(self, peer: _Peer, kind: int, topic: bytes) -> None:
        reason = self.faults.hangs_up(kind, topic)
        if reason:
            peer.send(0xE0, bytes([reason]))
        if reason is not None:
            raise HungUp


@contextmanager
def before(faults: Faults, directory: Path) -> Iterator[tuple[Server, ModelBroker]]:
    """A gateway in front of such a broker."""
    with ModelBroker(faults) as broker:
        gateway = gateway_in_front_of(broker.address, directory)
        gateway.start()
        try:
            yield gateway, broker
        finally:
            gateway.stop()
