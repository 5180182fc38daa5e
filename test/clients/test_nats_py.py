"""Unmodified nats-py."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import nats
import pytest
from nats.aio.msg import Msg

from clients.aio import DEADLINE, Fence, Lifeline, barrier, connected, subscribed, take, waiting, within
from clients.stack import DENIED, MAX_PAYLOAD, PASSWORD, USER, Stack


def data(messages: list[Msg]) -> list[bytes]:
    return [message.data for message in messages]


# --- Publish and subscribe -------------------------------------------------------------------------------------------


async def test_messages_arrive_in_order(stack: Stack, subject: str):
    async with connected(stack.url) as publisher, connected(stack.url) as receiver:
        sub = await subscribed(receiver, f"{subject}.orders")
        payloads = [b"%d" % number for number in range(500)] + [b"", bytes(range(256)), b"\r\n+OK\r\nPING\r\n"]
        for payload in payloads:
            await publisher.publish(f"{subject}.orders", payload)
        messages = await take(sub, len(payloads))
        assert data(messages) == payloads
        assert {message.subject for message in messages} == {f"{subject}.orders"}
        assert {message.reply for message in messages} == {""}


async def test_publisher_receives_its_own(stack: Stack, subject: str):
    async with connected(stack.url) as nc:
        sub = await subscribed(nc, subject)
        await nc.publish(subject, b"mine")
        assert data(await take(sub, 1)) == [b"mine"]


async def test_no_echo(stack: Stack, subject: str):
    async with connected(stack.url, no_echo=True) as silent, connected(stack.url) as other:
        own = await subscribed(silent, subject)
        others = await subscribed(other, subject)
        fence = await Fence(other, subject).around(silent)
        await silent.publish(subject, b"from the silent one")
        assert data(await take(others, 1)) == [b"from the silent one"]
        await other.publish(subject, b"from the other")
        await fence.passed()
        assert data(waiting(own)) == [b"from the other"]


async def test_wildcards(stack: Stack, subject: str):
    matches = {
        "*": ["a", "$b"],
        "*.b": ["a.b", "b.b"],
        "a.*": ["a.b", "a.c"],
        "a.>": ["a.b", "a.c", "a.b.c", "a.b.c.d"],
        "*.*.c": ["a.b.c"],
        "*.b.>": ["a.b.c", "a.b.c.d"],
        ">": ["a", "$b", "a.b", "a.c", "b.b", "a.b.c", "a.b.c.d"],
        "a.b": ["a.b"],
    }
    async with connected(stack.url) as publisher, connected(stack.url) as receiver:
        subs = {pattern: await subscribed(receiver, f"{subject}.{pattern}") for pattern in matches}
        fence = await Fence(publisher, subject).around(receiver)
        for tail in matches[">"]:
            await publisher.publish(f"{subject}.{tail}", tail.encode())
        await publisher.publish(subject, b"the parent of >")
        await fence.passed()
        received = {pattern: waiting(sub) for pattern, sub in subs.items()}
        assert {pattern: [m.data.decode() for m in messages] for pattern, messages in received.items()} == matches
        for message in (message for messages in received.values() for message in messages):
            assert message.subject == f"{subject}.{message.data.decode()}"


async def test_two_subscriptions_on_one_subject(stack: Stack, subject: str):
    async with connected(stack.url) as nc:
        first, second = await subscribed(nc, subject), await subscribed(nc, subject)
        fence = await Fence(nc, subject).around(nc)
        await nc.publish(subject, b"to both")
        assert data(await take(first, 1)) == data(await take(second, 1)) == [b"to both"]
        await first.unsubscribe()
        await nc.publish(subject, b"to the second")
        await fence.passed()
        assert data(waiting(second)) == [b"to the second"]


async def test_unsubscribe(stack: Stack, subject: str):
    async with connected(stack.url) as publisher, connected(stack.url) as receiver:
        arrived: list[bytes] = []

        async def keep(message: Msg) -> None:
            arrived.append(message.data)

        sub = await subscribed(receiver, subject, cb=keep)
        fence = await Fence(publisher, subject).around(receiver)
        await publisher.publish(subject, b"before")
        await fence.passed()
        await sub.unsubscribe()
        await barrier(receiver, "PONG after UNSUB")
        received = receiver.stats["in_msgs"]
        await publisher.publish(subject, b"after")
        await fence.passed()
        assert arrived == [b"before"]
        assert receiver.stats["in_msgs"] == received + 1, "more than the fence arrived after UNSUB"


async def test_unsubscribe_with_max(stack: Stack, subject: str):
    async with connected(stack.url) as publisher, connected(stack.url) as receiver:
        limited, unlimited = await subscribed(receiver, subject), await subscribed(receiver, subject)
        fence = await Fence(publisher, subject).around(receiver)
        await limited.unsubscribe(limit=5)
        await barrier(receiver, "PONG after UNSUB")
        for number in range(12):
            await publisher.publish(subject, b"%d" % number)
        await fence.passed()
        # nats-py itself forgets the subscription after the fifth message: what came over the wire is what counts.
        assert receiver.stats["in_msgs"] == 5 + 12 + 1
        assert data(waiting(limited)) == [b"%d" % number for number in range(5)]
        assert len(waiting(unlimited)) == 12


# --- Queue groups ----------------------------------------------------------------------------------------------------


async def test_queue_groups(stack: Stack, subject: str):
    count = 300
    async with AsyncExitStack() as opened:
        publisher, *receivers = [await opened.enter_async_context(connected(stack.url)) for _ in range(4)]
        workers = [await subscribed(nc, f"{subject}.*", "workers") for nc in receivers]
        # Another group whose members share a connection, and a subscription outside all groups.
        auditors = [await subscribed(receivers[0], f"{subject}.*", "auditors") for _ in range(2)]
        everything = await subscribed(receivers[1], f"{subject}.*")
        fence = await Fence(publisher, subject).around(*receivers)
        numbers = [b"%d" % number for number in range(count)]
        for number in numbers:
            await publisher.publish(f"{subject}.job", number)
        await fence.passed()
        shares = [data(waiting(sub)) for sub in workers]
        assert sorted(number for share in shares for number in share) == sorted(numbers), "each message to one worker"
        assert all(shares), f"the shares of the workers are {[len(share) for share in shares]}"
        assert sorted(n for sub in auditors for n in data(waiting(sub))) == sorted(numbers), "each to one auditor"
        assert data(waiting(everything)) == numbers


async def test_queue_member_leaves(stack: Stack, subject: str):
    async with connected(stack.url) as publisher, connected(stack.url) as staying:
        async with connected(stack.url) as leaving:
            await subscribed(leaving, subject, "q")
            kept = await subscribed(staying, subject, "q")
        numbers = [b"%d" % number for number in range(50)]
        # The server may notice the end of the connection later: the member is gone when all of a batch arrives.
        until = time.monotonic() + DEADLINE
        fence = await Fence(publisher, subject).around(staying)
        while True:
            for number in numbers:
                await publisher.publish(subject, number)
            await fence.passed()
            arrived = data(waiting(kept))
            if arrived == numbers:
                break
            assert time.monotonic() < until, f"{len(arrived)} of {len(numbers)} reach the member that stayed"


async def test_queue_member_with_max_hands_over(stack: Stack, subject: str):
    async with connected(stack.url) as publisher, connected(stack.url) as first, connected(stack.url) as second:
        limited, other = await subscribed(first, subject, "q"), await subscribed(second, subject, "q")
        fence = await Fence(publisher, subject).around(first, second)
        await limited.unsubscribe(limit=3)
        await barrier(first, "PONG after UNSUB")
        # One at a time, so that no message is on its way to the member while it leaves.
        for number in range(30):
            await publisher.publish(subject, b"%d" % number)
            await fence.passed()
        shares = data(waiting(limited)), data(waiting(other))
        assert len(shares[0]) == 3
        assert sorted(shares[0] + shares[1], key=int) == [b"%d" % number for number in range(30)]


# --- Requests --------------------------------------------------------------------------------------------------------


async def test_requests(stack: Stack, subject: str):
    async with connected(stack.url) as service, connected(stack.url) as client:

        async def answer(message: Msg) -> None:
            await message.respond(message.data.upper())

        await subscribed(service, f"{subject}.*", cb=answer)
        questions = [f"question {number}" for number in range(100)]
        answers = await within(
            "100 answers",
            asyncio.gather(
                *(client.request(f"{subject}.{n}", text.encode(), timeout=DEADLINE) for n, text in enumerate(questions))
            ),
        )
        assert [answer.data.decode() for answer in answers] == [text.upper() for text in questions]


async def test_old_style_request(stack: Stack, subject: str):
    async with connected(stack.url) as service, connected(stack.url) as client:

        async def answer(message: Msg) -> None:
            await message.respond(b"pong")

        await subscribed(service, subject, cb=answer)
        reply = await client.request(subject, b"ping", timeout=DEADLINE, old_style=True)
        assert reply.data == b"pong"


async def test_request_to_queue_group_is_answered_once(stack: Stack, subject: str):
    async with AsyncExitStack() as opened:
        client, *services = [await opened.enter_async_context(connected(stack.url)) for _ in range(4)]

        def answering(name: bytes):
            async def answer(message: Msg) -> None:
                await message.respond(name)

            return answer

        for number, nc in enumerate(services):
            await subscribed(nc, subject, "services", cb=answering(b"%d" % number))
        inbox = client.new_inbox()
        answers = await subscribed(client, inbox)
        for number in range(60):
            await client.publish(subject, b"%d" % number, reply=inbox)
        names = data(await take(answers, 60))
        assert set(names) == {b"0", b"1", b"2"}
        for nc in services:
            await barrier(nc, "PONG of a service")
        fence = await Fence(client, inbox).around(client)
        await fence.passed()
        assert not waiting(answers), "a request was answered twice"


async def test_no_responders_fails_fast(stack: Stack, subject: str):
    async with connected(stack.url) as nc:
        for _ in range(3):
            started = time.monotonic()
            with pytest.raises(nats.errors.NoRespondersError):
                await nc.request(f"{subject}.nobody", b"?", timeout=30)
            assert time.monotonic() - started < 3


async def test_service_that_left_has_no_responders(stack: Stack, subject: str):
    async with connected(stack.url) as service, connected(stack.url) as client:

        async def answer(message: Msg) -> None:
            await message.respond(b"here")

        sub = await subscribed(service, subject, cb=answer)
        assert (await client.request(subject, b"?", timeout=DEADLINE)).data == b"here"
        await sub.unsubscribe()
        await barrier(service, "PONG after UNSUB")
        with pytest.raises(nats.errors.NoRespondersError):
            await client.request(subject, b"?", timeout=DEADLINE)


# --- Headers ---------------------------------------------------------------------------------------------------------


async def test_headers(stack: Stack, subject: str):
    async with connected(stack.url) as publisher, connected(stack.url) as receiver:
        sub = await subscribed(receiver, subject)
        headers = {
            "X-Zulu": "last name first",
            "x-alpha": "lower",
            "X-Alpha": "upper",
            "Content-Type": "application/json",
            "content-type": "text/plain",
            "Colons": "a:b: c",
            "Percent": "100%25 %0d%0a",
            "Tab": "a\tb",
            "Words": "Grüße, 日本",
            "Empty": "",
            "Status": "not a status line",
        }
        await publisher.publish(subject, b"with headers", headers=headers)
        await publisher.publish(subject, b"without")
        await publisher.publish(subject, b"", headers={"Only": "headers"})
        messages = await take(sub, 3)
        assert data(messages) == [b"with headers", b"without", b""]
        assert list(messages[0].headers.items()) == list(headers.items())
        assert messages[1].headers is None
        assert messages[2].headers == {"Only": "headers"}


async def test_many_headers(stack: Stack, subject: str):
    async with connected(stack.url) as publisher, connected(stack.url) as receiver:
        sub = await subscribed(receiver, subject)
        headers = {f"Name-{number}": f"value {number} " * 20 for number in range(200)}
        await publisher.publish(subject, b"payload", headers=headers)
        (message,) = await take(sub, 1)
        assert message.headers == {name: value.strip() for name, value in headers.items()}
        assert message.data == b"payload"


async def test_headers_on_request_and_reply(stack: Stack, subject: str):
    async with connected(stack.url) as service, connected(stack.url) as client:

        async def answer(message: Msg) -> None:
            await service.publish(message.reply, b"ok", headers={"Seen": message.headers["Ask"]})

        await subscribed(service, subject, cb=answer)
        reply = await client.request(subject, b"?", timeout=DEADLINE, headers={"Ask": "this"})
        assert (reply.data, reply.headers) == (b"ok", {"Seen": "this"})


# --- Drain -----------------------------------------------------------------------------------------------------------


async def test_drain_subscription(stack: Stack, subject: str):
    async with connected(stack.url) as publisher, connected(stack.url) as receiver:
        handled: list[bytes] = []

        async def handle(message: Msg) -> None:
            await asyncio.sleep(0)
            handled.append(message.data)

        sub = await subscribed(receiver, subject, cb=handle)
        fence = await Fence(publisher, subject).around(receiver)
        for number in range(200):
            await publisher.publish(subject, b"%d" % number)
        await fence.passed()
        await within("drain of the subscription", sub.drain())
        assert handled == [b"%d" % number for number in range(200)]
        await publisher.publish(subject, b"too late")
        await fence.passed()
        assert len(handled) == 200


async def test_drain_connection_loses_nothing(stack: Stack, subject: str):
    """A queue member drains while messages flow: those under way reach it, the others go to the member that stays."""
    count = 2000
    async with AsyncExitStack() as opened:
        publisher, staying, leaving = [await opened.enter_async_context(connected(stack.url)) for _ in range(3)]
        shares: dict[str, list[bytes]] = {"staying": [], "leaving": []}
        half = asyncio.Event()

        def keeping(name: str):
            async def keep(message: Msg) -> None:
                shares[name].append(message.data)
                if len(shares[name]) >= count // 8:
                    half.set()

            return keep

        await subscribed(staying, subject, "q", cb=keeping("staying"))
        await subscribed(leaving, subject, "q", cb=keeping("leaving"))
        fence = await Fence(publisher, subject).around(staying)

        async def publish() -> None:
            for number in range(count):
                await publisher.publish(subject, b"%d" % number)
                if number % 20 == 0:
                    await barrier(publisher)

        publishing = asyncio.create_task(publish())
        await within("an eighth of the messages", half.wait())
        await within("drain of the connection", leaving.drain())
        assert leaving.is_closed
        await within("all messages are published", publishing, 20)
        await fence.passed()
        assert shares["leaving"] and shares["staying"]
        numbers = [int(number) for share in shares.values() for number in share]
        lost = sorted(set(range(count)) - set(numbers))
        assert not lost, f"{len(lost)} lost, the first: {lost[:5]}"
        assert len(numbers) == count, "a message came twice"


# --- Limits ----------------------------------------------------------------------------------------------------------


async def test_largest_payload(stack: Stack, subject: str):
    async with connected(stack.url) as publisher, connected(stack.url) as receiver:
        assert publisher.max_payload == MAX_PAYLOAD
        sub = await subscribed(receiver, subject)
        payload = bytes(range(256)) * (MAX_PAYLOAD // 256)
        await publisher.publish(subject, payload)
        await publisher.publish(subject, b"next")
        large, small = await take(sub, 2, 20)
        assert large.data == payload
        assert small.data == b"next"


async def test_payload_over_the_limit_is_refused_by_the_client(stack: Stack, subject: str):
    async with connected(stack.url) as nc:
        with pytest.raises(nats.errors.MaxPayloadError):
            await nc.publish(subject, bytes(MAX_PAYLOAD + 1))
        await barrier(nc)


async def test_payload_over_the_limit_is_refused_by_the_server(stack: Stack, subject: str):
    closed = asyncio.Event()

    async def close() -> None:
        closed.set()

    async with connected(stack.url) as receiver:
        sub = await subscribed(receiver, subject)
        async with connected(stack.url, closed_cb=close) as nc:
            # A client that does not look at INFO. The refusal comes before a byte of the payload is sent.
            await nc._send_command(f"PUB {subject} {MAX_PAYLOAD + 1}\r\n".encode())
            await nc._flush_pending()
            await within("the server closes the connection", closed.wait())
            assert str(nc.last_error) == "nats: maximum payload violation"
        await receiver.publish(subject, b"next")
        assert data(await take(sub, 1)) == [b"next"]


# --- Reconnect -------------------------------------------------------------------------------------------------------


async def exchange(one: nats.NATS, other: nats.NATS, subject: str, subs) -> None:
    """Both subscriptions live, in both directions, each message once."""
    for nc in (one, other):
        await barrier(nc, "PONG after the reconnect")
    for sub in subs:
        waiting(sub)
    for nc, text in ((one, b"from one"), (other, b"from the other")):
        await nc.publish(f"{subject}.x", text, headers={"After": "reconnect"})
    for sub in subs:
        messages = await take(sub, 2)
        assert sorted(data(messages)) == [b"from one", b"from the other"]
        assert {message.headers["After"] for message in messages} == {"reconnect"}


async def test_reconnect_after_gateway_restart(fragile: Stack, subject: str):
    lines = Lifeline(), Lifeline()
    async with (
        connected(fragile.url, **lines[0].options()) as one,
        connected(fragile.url, **lines[1].options()) as other,
    ):
        subs = [await subscribed(nc, f"{subject}.*") for nc in (one, other)]
        await exchange(one, other, subject, subs)
        await asyncio.to_thread(fragile.gateway.stop)
        for line in lines:
            await line.was_lost()
        await one.publish(f"{subject}.buffered", b"while away")
        await asyncio.to_thread(fragile.gateway.start)
        for line in lines:
            await line.came_back()
        await exchange(one, other, subject, subs)


async def test_reconnect_after_gateway_crash(fragile: Stack, subject: str):
    line = Lifeline()
    async with connected(fragile.url, **line.options()) as nc:

        async def answer(message: Msg) -> None:
            await message.respond(b"answer")

        await subscribed(nc, subject, "services", cb=answer)
        await asyncio.to_thread(fragile.gateway.kill)
        await line.was_lost()
        await asyncio.to_thread(fragile.gateway.start)
        await line.came_back()
        await barrier(nc, "PONG after the reconnect")
        async with connected(fragile.url) as client:
            assert (await client.request(subject, b"?", timeout=DEADLINE)).data == b"answer"


async def test_reconnect_after_broker_loss(fragile_bridge: Stack, subject: str):
    lines = Lifeline(), Lifeline()
    async with (
        connected(fragile_bridge.url, **lines[0].options()) as one,
        connected(fragile_bridge.url, **lines[1].options()) as other,
    ):
        subs = [await subscribed(nc, f"{subject}.*") for nc in (one, other)]
        await exchange(one, other, subject, subs)
        await asyncio.to_thread(fragile_bridge.broker.stop)
        for line in lines:
            await line.was_lost()
        await asyncio.to_thread(fragile_bridge.broker.start)
        for line in lines:
            await line.came_back()
        await exchange(one, other, subject, subs)


# --- Authentication and authorization --------------------------------------------------------------------------------


async def test_login(login: Stack, subject: str):
    async with connected(login.url, user=USER, password=PASSWORD) as nc:
        sub = await subscribed(nc, subject)
        await nc.publish(subject, b"welcome")
        assert data(await take(sub, 1)) == [b"welcome"]


@pytest.mark.parametrize(
    "credentials",
    [
        {"user": USER, "password": "wrong"},
        {"user": "mallory", "password": PASSWORD},
        {"user": USER, "password": ""},
        {},
    ],
    ids=["wrong password", "unknown user", "empty password", "none"],
)
async def test_bad_login(login: Stack, credentials: dict[str, str]):
    with pytest.raises(nats.errors.Error, match="Authorization Violation"):
        async with connected(login.url, **credentials):
            pass


async def test_denied_subscribe(restricted: Stack, subject: str):
    errors: asyncio.Queue[str] = asyncio.Queue()

    async def keep(error: Exception) -> None:
        errors.put_nowait(str(error))  # which nats-py makes lower case

    async with connected(restricted.url, user=USER, password=PASSWORD, error_cb=keep) as nc:
        await nc.subscribe(f"{DENIED}.{subject}")
        violation = await within("a permissions violation", errors.get())
        assert violation == f'nats: permissions violation for subscription to "{DENIED}.{subject}"'
        await nc.subscribe(f"{DENIED}.{subject}.>", queue="q")
        violation = await within("a permissions violation", errors.get())
        assert violation == f'nats: permissions violation for subscription to "{DENIED}.{subject}.>" using queue "q"'
        sub = await subscribed(nc, subject)
        await nc.publish(subject, b"still connected")
        assert data(await take(sub, 1)) == [b"still connected"]
        assert errors.empty()


async def test_denied_publish(restricted: Stack, subject: str):
    errors: asyncio.Queue[str] = asyncio.Queue()

    async def keep(error: Exception) -> None:
        errors.put_nowait(str(error))  # which nats-py makes lower case

    async with connected(restricted.url, user=USER, password=PASSWORD, error_cb=keep, verbose=True) as nc:
        await nc.publish(f"{DENIED}.{subject}", b"secret")
        violation = await within("a permissions violation", errors.get())
        assert violation == f'nats: permissions violation for publish to "{DENIED}.{subject}"'
        sub = await subscribed(nc, subject)
        await nc.publish(subject, b"still connected")
        assert data(await take(sub, 1)) == [b"still connected"]
        assert errors.empty()


async def test_verbose(stack: Stack, subject: str):
    async with connected(stack.url, verbose=True) as nc:
        sub = await subscribed(nc, f"{subject}.>")
        for number in range(50):
            await nc.publish(f"{subject}.{number}", b"%d" % number, headers={"N": str(number)})
        messages = await take(sub, 50)
        assert data(messages) == [b"%d" % number for number in range(50)]
        await barrier(nc)
