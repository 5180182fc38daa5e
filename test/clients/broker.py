"""A small MQTT 5 broker that passes on any bytes as topic or user property, which Mosquitto does not."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from ports import HOST

Address = tuple[str, int]
Pairs = Iterable[tuple[bytes, bytes]]

CONNECT, PUBLISH, PUBREL, SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT = 1, 3, 6, 8, 10, 12, 14
NO_LOCAL = 0x04
SUBSCRIPTION_IDENTIFIER, USER_PROPERTY = 0x0B, 0x26


class ScriptedBroker:
    def __init__(self):
        self._listener = socket.create_server((HOST, 0))
        self.address: Address = self._listener.getsockname()
        self._lock = threading.Lock()
        self._peers: list[_Peer] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> ScriptedBroker:
        self._run(self._accept)
        return self

    def __exit__(self, *_) -> None:
        # A thread in accept or recv does not see a close, but it does see a shutdown.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for peer in self._peers:
                with suppress(OSError):
                    peer.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def publish(self, topic: bytes, payload: bytes = b"", properties: Pairs = ()) -> None:
        block = b"".join(bytes([USER_PROPERTY]) + _string(name) + _string(value) for name, value in properties)
        self._route(topic, block, payload, None)

    def await_subscription(self, topic: bytes, deadline: float = 10.0) -> None:
        until = time.monotonic() + deadline
        while not self._receivers(topic, None):
            assert time.monotonic() < until, f"nobody subscribed to {topic!r} within {deadline} s"
            time.sleep(0.01)

    def _run(self, target, *arguments) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer = _Peer(connection)
                with self._lock:
                    self._peers.append(peer)
                self._run(self._serve, peer)

    def _serve(self, peer: _Peer) -> None:
        stream = peer.socket.makefile("rb")
        try:
            while self._packet(peer, stream):
                pass
        except OSError:
            pass
        finally:
            with self._lock:
                self._peers.remove(peer)
            stream.close()
            peer.socket.close()

    def _packet(self, peer: _Peer, stream) -> bool:
        first = stream.read(1)
        if not first:
            return False
        length = _read_number(stream)
        body = stream.read(length)
        if len(body) < length:
            return False
        match first[0] >> 4:
            case 1:
                self._connected(peer, body)
            case 3:
                self._published(peer, first[0], body)
            case 6:
                peer.send(0x70, body[:2])
            case 8:
                self._subscribed(peer, body)
            case 10:
                self._unsubscribed(peer, body)
            case 12:
                self._pinged(peer)
            case 14:
                return False
        return True

    def _connected(self, peer: _Peer, body: bytes) -> None:
        peer.send(0x20, b"\x00\x00\x00")

    def _pinged(self, peer: _Peer) -> None:
        peer.send(0xD0, b"")

    def _published(self, peer: _Peer, flags: int, body: bytes) -> None:
        topic, rest = _take_string(body)
        qos = flags >> 1 & 3
        identifier, rest = (rest[:2], rest[2:]) if qos else (b"", rest)
        properties, payload = _take_properties(rest)
        taken = self._route(topic, properties, payload, peer)
        if qos:
            peer.send(0x40 if qos == 1 else 0x50, identifier + (b"\x00" if taken else b"\x10"))

    def _subscribed(self, peer: _Peer, body: bytes) -> None:
        identifier, (properties, rest) = body[:2], _take_properties(body[2:])
        tag = properties if properties[:1] == bytes([SUBSCRIPTION_IDENTIFIER]) else b""
        granted = b""
        while rest:
            topic_filter, rest = _take_string(rest)
            options, rest = rest[0], rest[1:]
            with self._lock:
                peer.filters[topic_filter] = (options, tag)
            granted += bytes([options & 3])
        peer.send(0x90, identifier + b"\x00" + granted)

    def _unsubscribed(self, peer: _Peer, body: bytes) -> None:
        identifier, (_, rest) = body[:2], _take_properties(body[2:])
        codes = b""
        while rest:
            topic_filter, rest = _take_string(rest)
            with self._lock:
                codes += b"\x00" if peer.filters.pop(topic_filter, None) else b"\x11"
        peer.send(0xB0, identifier + b"\x00" + codes)

    def _route(self, topic: bytes, properties: bytes, payload: bytes, publisher: _Peer | None) -> int:
        receivers = self._receivers(topic, publisher)
        for receiver, tag in receivers:
            block = tag + properties
            with suppress(OSError):
                receiver.send(0x30, _string(topic) + _number(len(block)) + block + payload)
        return len(receivers)

    def _receivers(self, topic: bytes, publisher: _Peer | None) -> list[tuple[_Peer, bytes]]:
        with self._lock:
            return [
                (peer, tag)
                for peer in self._peers
                for topic_filter, (options, tag) in peer.filters.items()
                if _matches(topic_filter, topic) and not (peer is publisher and options & NO_LOCAL)
            ]


@dataclass(eq=False)
class _Peer:
    socket: socket.socket
    filters: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    _sending: threading.Lock = field(default_factory=threading.Lock)

    def send(self, first: int, body: bytes) -> None:
        with self._sending:
            self.socket.sendall(bytes([first]) + _number(len(body)) + body)


def _matches(topic_filter: bytes, topic: bytes) -> bool:
    if topic_filter.startswith(b"$share/"):
        topic_filter = topic_filter.split(b"/", 2)[2]
    levels = topic.split(b"/")
    wanted = topic_filter.split(b"/")
    if topic[:1] == b"$" and wanted[0] in (b"+", b"#"):
        return False
    for index, level in enumerate(wanted):
        if level == b"#":
            return True
        if index >= len(levels):
            return False
        if level not in (b"+", levels[index]):
            return False
    return len(wanted) == len(levels) or (wanted[len(levels) :] == [b"#"])


def _string(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _take_string(data: bytes) -> tuple[bytes, bytes]:
    end = 2 + struct.unpack_from(">H", data)[0]
    return data[2:end], data[end:]


def _number(number: int) -> bytes:
    out = bytearray()
    while True:
        number, digit = number >> 7, number & 0x7F
        out.append(digit | (0x80 if number else 0))
        if not number:
            return bytes(out)


def _read_number(stream) -> int:
    number, shift = 0, 0
    while True:
        (digit,) = stream.read(1) or b"\x00"
        number |= (digit & 0x7F) << shift
        shift += 7
        if digit < 0x80:
            return number


def _take_properties(data: bytes) -> tuple[bytes, bytes]:
    length, shift, at = 0, 0, 0
    while True:
        digit = data[at]
        length |= (digit & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if digit < 0x80:
            return data[at : at + length], data[at + length :]
