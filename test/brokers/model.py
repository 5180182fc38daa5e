"""A broker with faults: what one of them does otherwise than the book, or what others do that these tests have not."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from clients.broker import NO_LOCAL, ScriptedBroker, _matches, _Peer, _take_properties, _take_string
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
    # The reason code of every PUBACK, of messages that were delivered as they should be.
    says: int | None = None
    # Which copies tell the identifier of their subscription.
    identifies_plain: bool = True
    identifies_shared: bool = True
    # One copy for all plain filters of a client that match, with the identifier of the first one.
    merges: bool = False
    # Messages come after the answer to the next PINGREQ, not before.
    defers: bool = False
    # Messages that nobody gets, and nobody is told of.
    swallows: Callable[[bytes], bool] = lambda _: False


class ModelBroker(ScriptedBroker):
    def __init__(self, faults: Faults):
        super().__init__()
        self.faults = faults
        self.logins = 0
        self.topics: list[bytes] = []
        self._turns = itertools.count()
        self._deferred: list[tuple] = []
        # The most messages that ever waited for the next PINGREQ.
        self.most_deferred = 0

    def _connected(self, peer: _Peer, body: bytes) -> None:
        self.logins += 1
        peer.send(0x20, self.faults.connack)

    def _published(self, peer: _Peer, flags: int, body: bytes) -> None:
        topic, _ = _take_string(body)
        self.topics.append(topic)
        self._judge(peer, PUBLISH, topic)
        reason = self.faults.puback(PUBLISH, topic)
        if reason is None and self.faults.says is not None:
            _, rest = _take_string(body)
            self._route(topic, *_take_properties(rest[2:] if flags & 6 else rest), peer)
            reason = self.faults.says
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

    def _pinged(self, peer: _Peer) -> None:
        super()._pinged(peer)
        deferred, self._deferred = self._deferred, []
        for message in deferred:
            super()._route(*message)

    def _route(self, topic: bytes, properties: bytes, payload: bytes, publisher: _Peer | None) -> int:
        if self.faults.swallows(topic):
            return 0
        if not self.faults.defers:
            return super()._route(topic, properties, payload, publisher)
        self._deferred.append((topic, properties, payload, publisher))
        self.most_deferred = max(self.most_deferred, len(self._deferred))
        return 1

    def _receivers(self, topic: bytes, publisher: _Peer | None) -> list[tuple[_Peer, bytes]]:
        faults, copies, groups = self.faults, [], {}
        with self._lock:
            for peer in self._peers:
                plain = []
                for topic_filter, (options, tag) in peer.filters.items():
                    if not _matches(topic_filter, topic):
                        continue
                    if topic_filter.startswith(b"$share/"):
                        groups.setdefault(topic_filter, []).append((peer, tag if faults.identifies_shared else b""))
                    elif not (peer is publisher and options & NO_LOCAL):
                        plain.append((peer, tag if faults.identifies_plain else b""))
                copies += plain[:1] if faults.merges else plain
        return copies + [members[next(self._turns) % len(members)] for members in groups.values()]

    def _judge(self, peer: _Peer, kind: int, topic: bytes) -> None:
        reason = self.faults.hangs_up(kind, topic)
        if reason:
            peer.send(0xE0, bytes([reason]))
        if reason is not None:
            # Bytes that nobody has read would make a reset of the end, which takes the last answers with it.
            with suppress(OSError):
                peer.socket.shutdown(socket.SHUT_WR)
                peer.socket.settimeout(1.0)
                while peer.socket.recv(65536):
                    pass
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
