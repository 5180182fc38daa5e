"""nats-py for tests: connections that are closed at the end, and waits that say what they waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

DEADLINE = 10.0
RECONNECT_DEADLINE = 10.0

T = TypeVar("T")


async def within(what: str, awaitable: Awaitable[T], deadline: float = DEADLINE) -> T:
    try:
        return await asyncio.wait_for(awaitable, deadline)
    except (TimeoutError, nats.errors.TimeoutError):
        raise AssertionError(f"{what}: not within {deadline} s") from None


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Client]:
    """A connection on which any error the client reports fails the test, unless the test takes the errors itself."""
    errors: list[Exception] = []

    async def keep(error: Exception) -> None:
        errors.append(error)

    nc = await within(
        "connect", nats.connect(url, **{"allow_reconnect": False, "error_cb": keep, "connect_timeout": 5, **options})
    )
    try:
        yield nc
    finally:
        if not nc.is_closed:
            await within("close", nc.close())
    assert not errors, f"the client reported {errors}"


class Lifeline:
    """Options for a connection that has to survive the loss of its server, and what became of it."""

    def __init__(self):
        self.lost = asyncio.Event()
        self.back = asyncio.Event()
        self.errors: list[Exception] = []

    def options(self) -> dict[str, Any]:
        return {
            "allow_reconnect": True,
            "reconnect_time_wait": 0.1,
            "max_reconnect_attempts": -1,
            "disconnected_cb": self._lost,
            "reconnected_cb": self._back,
            "error_cb": self._error,
        }

    async def was_lost(self) -> None:
        await within("the client notices that the connection is gone", self.lost.wait(), RECONNECT_DEADLINE)

    async def came_back(self) -> None:
        what = f"the client reconnects (it reported {self.errors[-3:]})"
        await within(what, self.back.wait(), RECONNECT_DEADLINE)

    async def _lost(self) -> None:
        self.lost.set()

    async def _back(self) -> None:
        self.back.set()

    async def _error(self, error: Exception) -> None:
        self.errors.append(error)


async def barrier(nc: Client, what: str = "PONG", deadline: float = DEADLINE) -> None:
    """The server has processed all that this client was told to send."""
    # nats-py writes the PING of a flush at once, ahead of what it has queued. That is written by the time of the PONG.
    await within(what, nc.flush(deadline), deadline)
    await within(what, nc.flush(deadline), deadline)


async def subscribed(nc: Client, subject: str, queue: str = "", **options: Any) -> Subscription:
    """A subscription that is active for every publisher."""
    sub = await nc.subscribe(subject, queue=queue, **options)
    await barrier(nc, f"PONG after SUB {subject}")
    return sub


async def take(sub: Subscription, count: int, deadline: float = DEADLINE) -> list[Msg]:
    messages: list[Msg] = []

    async def collect() -> None:
        while len(messages) < count:
            messages.append(await sub.next_msg(timeout=deadline))

    try:
        await asyncio.wait_for(collect(), deadline)
    except (TimeoutError, nats.errors.TimeoutError):
        raise AssertionError(f"{len(messages)} of {count} messages on {sub.subject} within {deadline} s") from None
    return messages


async def exchanged(publisher: Client, receiver: Client, subject: str, **request: Any) -> None:
    """Many messages in order, the largest too, and a request with its answer."""
    sub = await subscribed(receiver, f"{subject}.>")
    payloads = [b"%d" % number for number in range(500)] + [b"", bytes(range(256)) * 4096]
    for payload in payloads:
        await publisher.publish(f"{subject}.a", payload)
    assert [message.data for message in await take(sub, len(payloads))] == payloads
    await sub.unsubscribe()

    async def answer(message: Msg) -> None:
        await message.respond(message.data.upper())

    await subscribed(receiver, f"{subject}.service", cb=answer)
    answered = await publisher.request(f"{subject}.service", b"hello", timeout=5, **request)
    assert answered.data == b"HELLO"


def waiting(sub: Subscription) -> list[Msg]:
    """What has arrived and was not taken yet."""
    messages = []
    while sub.pending_msgs:
        messages.append(sub._pending_queue.get_nowait())
        sub._pending_queue.task_done()
        sub._pending_size -= len(messages[-1].data)
    return messages


class Fence:
    """Shows that nothing more comes: what one publisher sends arrives in order, so its last message ends the wait."""

    def __init__(self, publisher: Client, subject: str):
        self._publisher = publisher
        self._subject = f"{subject}-fence"
        self._subs: list[Subscription] = []

    async def around(self, *receivers: Client) -> Fence:
        self._subs = [await subscribed(nc, self._subject) for nc in receivers]
        return self

    async def passed(self) -> None:
        await self._publisher.publish(self._subject, b"fence")
        for sub in self._subs:
            await take(sub, 1)
