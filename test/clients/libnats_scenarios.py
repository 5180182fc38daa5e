"""Unmodified libnats (nats.c): `libnats_scenarios.py SCENARIO JSON`. Exit status 0 means the scenario saw what it expects."""

from __future__ import annotations

import ctypes
import json
import queue
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_void_p
from ctypes.util import find_library
from typing import Any

import nkeys

DEADLINE_MS = 10_000
# natsStatus of status.h
CONNECTION_AUTH_FAILED, NOT_PERMITTED, MAX_DELIVERED, NO_RESPONDERS = 11, 12, 22, 34

lib = ctypes.CDLL(find_library("nats"))
for name, result in {
    "natsStatus_GetText": c_char_p,
    "natsMsg_GetSubject": c_char_p,
    "natsMsg_GetReply": c_char_p,
    "natsMsg_GetData": c_void_p,
    "natsConnection_GetMaxPayload": c_int64,
}.items():
    getattr(lib, name).restype = result

ON_ERROR = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int, c_void_p)


class Failure(Exception):
    def __init__(self, status: int):
        super().__init__(f"{status}: {lib.natsStatus_GetText(status).decode()}")
        self.status = status


def call(name: str, *arguments: Any) -> None:
    if status := getattr(lib, name)(*arguments):
        raise Failure(status)


@contextmanager
def fails(status: int) -> Iterator[None]:
    try:
        yield
    except Failure as failure:
        assert failure.status == status, failure
    else:
        raise AssertionError(f"done, instead of {Failure(status)}")


class Message:
    def __init__(self, subject: str = "", payload: bytes = b""):
        self.pointer = c_void_p()
        if subject:
            call("natsMsg_Create", byref(self.pointer), subject.encode(), None, payload, len(payload))

    @property
    def subject(self) -> str:
        return lib.natsMsg_GetSubject(self.pointer).decode()

    @property
    def reply(self) -> bytes:
        return lib.natsMsg_GetReply(self.pointer)

    @property
    def payload(self) -> bytes:
        return ctypes.string_at(lib.natsMsg_GetData(self.pointer), lib.natsMsg_GetDataLength(self.pointer))

    def values(self, name: str) -> list[str]:
        values, count = POINTER(c_char_p)(), c_int()
        call("natsMsgHeader_Values", self.pointer, name.encode(), byref(values), byref(count))
        return [values[i].decode() for i in range(count.value)]

    def names(self) -> set[str]:
        names, count = POINTER(c_char_p)(), c_int()
        call("natsMsgHeader_Keys", self.pointer, byref(names), byref(count))
        return {names[i].decode() for i in range(count.value)}


class Subscription:
    def __init__(self, pointer: c_void_p):
        self.pointer = pointer

    def next(self, deadline: int = DEADLINE_MS) -> Message:
        message = Message()
        call("natsSubscription_NextMsg", byref(message.pointer), self.pointer, c_int64(deadline))
        return message


class Connection:
    def __init__(self, given: dict):
        options = c_void_p()
        self.errors: queue.Queue[tuple[int, str]] = queue.Queue()
        self.pointer = c_void_p()
        call("natsOptions_Create", byref(options))
        call("natsOptions_SetURL", options, given["url"].encode())
        call("natsOptions_SetAllowReconnect", options, False)
        call("natsOptions_SetTimeout", options, c_int64(DEADLINE_MS))
        self._on_error = ON_ERROR(self._failed)
        call("natsOptions_SetErrorHandler", options, self._on_error, None)
        match given:
            case {"user": user, "password": password}:
                call("natsOptions_SetUserInfo", options, user.encode(), password.encode())
            case {"token": token}:
                call("natsOptions_SetToken", options, token.encode())
            case {"creds": creds}:
                call("natsOptions_SetUserCredentialsFromFiles", options, creds.encode(), None)
            case {"seed": seed}:
                public = nkeys.from_seed(seed.encode()).public_key
                # It is read at each connect.
                self._seed = tempfile.NamedTemporaryFile("w")
                self._seed.write(seed)
                self._seed.flush()
                call("natsOptions_SetNKeyFromSeed", options, public, self._seed.name.encode())
        if tls := given.get("tls"):
            call("natsOptions_SetSecure", options, True)
            call("natsOptions_LoadCATrustedCertificates", options, tls["cafile"].encode())
            call("natsOptions_SetExpectedHostname", options, b"localhost")
            if "certfile" in tls:
                files = tls["certfile"].encode(), tls["keyfile"].encode()
                call("natsOptions_LoadCertificatesChain", options, *files)
        call("natsConnection_Connect", byref(self.pointer), options)

    def _failed(self, _connection: int, _subscription: int, status: int, _closure: int) -> None:
        text = c_char_p()
        lib.natsConnection_GetLastError(self.pointer, byref(text))
        self.errors.put((status, (text.value or b"").decode()))

    @property
    def max_payload(self) -> int:
        return lib.natsConnection_GetMaxPayload(self.pointer)

    def subscribe(self, subject: str, queue_group: str | None = None) -> Subscription:
        pointer = c_void_p()
        if queue_group:
            names = subject.encode(), queue_group.encode()
            call("natsConnection_QueueSubscribeSync", byref(pointer), self.pointer, *names)
        else:
            call("natsConnection_SubscribeSync", byref(pointer), self.pointer, subject.encode())
        return Subscription(pointer)

    def publish(self, subject: str | bytes, payload: bytes = b"") -> None:
        name = subject.encode() if isinstance(subject, str) else subject
        call("natsConnection_Publish", self.pointer, name, payload, len(payload))

    def request(self, subject: str, payload: bytes = b"") -> Message:
        answer = Message()
        arguments = self.pointer, subject.encode(), payload, len(payload), c_int64(DEADLINE_MS)
        call("natsConnection_Request", byref(answer.pointer), *arguments)
        return answer

    def flush(self) -> None:
        call("natsConnection_FlushTimeout", self.pointer, c_int64(DEADLINE_MS))


def messages(given: dict) -> None:
    sender, receiver, subject = Connection(given), Connection(given), given["subject"]
    sub = receiver.subscribe(f"{subject}.>")
    receiver.flush()
    for i in range(1000):
        sender.publish(f"{subject}.{i % 7}", b"%d" % i)
    sender.flush()
    for i in range(1000):
        message = sub.next()
        assert (message.subject, message.payload) == (f"{subject}.{i % 7}", b"%d" % i)


def queue_groups(given: dict) -> None:
    nc, subject = Connection(given), given["subject"]
    members = [Connection(given) for _ in range(3)]
    subs = [member.subscribe(subject, "workers") for member in members]
    for member in members:
        member.flush()
    for i in range(300):
        nc.publish(subject, b"%d" % i)
    nc.flush()
    for member in members:
        member.flush()
    taken = []
    for sub in subs:
        while True:
            try:
                taken.append(int(sub.next(200).payload))
            except Failure:
                break
    assert sorted(taken) == list(range(300))


def requests(given: dict) -> None:
    service, client = Connection(given), Connection(given)
    sub = service.subscribe(given["subject"])
    service.flush()
    def serve() -> None:
        for _ in range(100):
            question = sub.next()
            service.publish(question.reply, question.payload.upper())
            service.flush()

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    for i in range(100):
        assert client.request(given["subject"], b"question %d" % i).payload == b"QUESTION %d" % i
    server.join()


def no_responders(given: dict) -> None:
    with fails(NO_RESPONDERS):
        Connection(given).request(given["subject"])


def headers(given: dict) -> None:
    nc = Connection(given)
    sub = nc.subscribe(given["subject"])
    message = Message(given["subject"], b"payload")
    # None of them empty: libnats 3.4 does not read the others, then.
    for value in (b"one", b"two: with a colon"):
        call("natsMsgHeader_Add", message.pointer, b"X-Two", value)
    call("natsMsgHeader_Set", message.pointer, b"lower", b"case")
    call("natsConnection_PublishMsg", nc.pointer, message.pointer)
    got = sub.next()
    assert {name: got.values(name) for name in got.names()} == {"X-Two": ["one", "two: with a colon"], "lower": ["case"]}
    assert got.payload == b"payload"


def words(given: dict) -> None:
    nc, expected = Connection(given), given["words"]
    sub = nc.subscribe(f"{given['subject']}.in")
    nc.flush()
    print('{"event": "ready"}', flush=True)
    for _ in range(2):
        got = sub.next()
        assert {name: got.values(name) for name in got.names()} == expected
        assert got.payload == b"words"
        back = Message(f"{given['subject']}.out")
        for name, values in expected.items():
            for value in values:
                call("natsMsgHeader_Add", back.pointer, name.encode(), value.encode())
        call("natsConnection_PublishMsg", nc.pointer, back.pointer)
    nc.flush()


def unsubscribe_max(given: dict) -> None:
    nc, subject = Connection(given), given["subject"]
    sub = nc.subscribe(subject)
    call("natsSubscription_AutoUnsubscribe", sub.pointer, 2)
    for i in range(5):
        nc.publish(subject, b"%d" % i)
    nc.flush()
    assert [sub.next().payload for _ in range(2)] == [b"0", b"1"]
    with fails(MAX_DELIVERED):
        sub.next()


def drain(given: dict) -> None:
    nc, subject = Connection(given), given["subject"]
    sub = nc.subscribe(subject)
    for i in range(200):
        nc.publish(subject, b"%d" % i)
    nc.flush()
    call("natsConnection_Drain", nc.pointer)
    assert [sub.next().payload for _ in range(200)] == [b"%d" % i for i in range(200)]


def largest_payload(given: dict) -> None:
    nc, subject = Connection(given), given["subject"]
    assert nc.max_payload == given["maxPayload"]
    sub = nc.subscribe(subject)
    payload = bytes(range(256)) * (given["maxPayload"] // 256)
    nc.publish(subject, payload)
    assert sub.next().payload == payload


def login(given: dict) -> None:
    welcome(Connection(given), given["subject"])


def bad_login(given: dict) -> None:
    with fails(CONNECTION_AUTH_FAILED):
        Connection(given)


def denied_subscribe(given: dict) -> None:
    nc = Connection(given)
    denied = f"{given['denied']}.{given['subject']}"
    nc.subscribe(denied, "q")
    status, text = nc.errors.get(timeout=DEADLINE_MS / 1000)
    assert status == NOT_PERMITTED
    assert text == f'Permissions Violation for Subscription to "{denied}" using queue "q"', text
    welcome(nc, given["subject"])


def welcome(nc: Connection, subject: str) -> None:
    sub = nc.subscribe(subject)
    nc.publish(subject, b"welcome")
    assert sub.next().payload == b"welcome"


SCENARIOS: list[Callable[[dict], None]] = [
    messages,
    queue_groups,
    requests,
    no_responders,
    headers,
    words,
    unsubscribe_max,
    drain,
    largest_payload,
    login,
    bad_login,
    denied_subscribe,
]


if __name__ == "__main__":
    scenarios = {scenario.__name__: scenario for scenario in SCENARIOS}
    scenarios[sys.argv[1]](json.loads(sys.argv[2]))
