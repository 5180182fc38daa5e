"""NATS clients on one side, MQTT clients on the other."""

from __future__ import annotations

import asyncio
import base64
from contextlib import ExitStack

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from paho.mqtt.client import MQTTMessage

from clients.aio import DEADLINE, barrier, connected, subscribed, take, waiting, within
from clients.broker import ScriptedBroker
from clients.mqtt import MosquittoSub, Mqtt, mosquitto_pub, topics, user_properties
from clients.program import Program, Talk
from clients.stack import MAX_PAYLOAD, Stack

EVERY_BYTE = bytes(range(256))
PAYLOADS = [b"text", b"", EVERY_BYTE, b"\r\nPING\r\n", b"\x00" * 70_000, EVERY_BYTE * (MAX_PAYLOAD // 256)]


# --- Names and payloads ----------------------------------------------------------------------------------------------


async def test_nats_to_mqtt(bridge: Stack, subject: str):
    async with connected(bridge.url) as nc:
        with Mqtt(bridge.mqtt) as mqtt, MosquittoSub(bridge.mqtt, f"{subject}/a") as mosquitto_sub:
            mqtt.subscribe(f"{subject}/a")
            for payload in PAYLOADS:
                await nc.publish(f"{subject}.a", payload)
            await barrier(nc)
            messages = await mqtt.arrived(len(PAYLOADS))
            assert [(message.topic, message.payload) for message in messages] == [(f"{subject}/a", p) for p in PAYLOADS]
            assert not any(message.retain for message in messages)
            assert mosquitto_sub.take(len(PAYLOADS)) == [(f"{subject}/a", payload) for payload in PAYLOADS]


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_mqtt_to_nats(bridge: Stack, subject: str, qos: int):
    async with connected(bridge.url) as nc:
        with Mqtt(bridge.mqtt) as mqtt:
            sub = await subscribed(nc, f"{subject}.a")
            for payload in PAYLOADS:
                mqtt.publish(f"{subject}/a", payload, qos)
            messages = await take(sub, len(PAYLOADS))
            assert [message.data for message in messages] == PAYLOADS
            assert {message.subject for message in messages} == {f"{subject}.a"}
            assert all(not message.reply and not message.headers for message in messages)


async def test_mqtt_3_to_nats(bridge: Stack, subject: str):
    async with connected(bridge.url) as nc:
        sub = await subscribed(nc, f"{subject}.*.c")
        for payload in PAYLOADS:
            mosquitto_pub(bridge.mqtt, f"{subject}/b/c", payload)
        messages = await take(sub, len(PAYLOADS))
        assert [(message.subject, message.data) for message in messages] == [(f"{subject}.b.c", p) for p in PAYLOADS]


async def test_wildcards_see_the_same(bridge: Stack, subject: str):
    tails = ["a", "b", "a/b", "b/b", "a/b/c", "b/b/c/d", "a/c/b", "a/b/c/d/e"]
    filters = {"*.b.>": "+/b/#", "a.*": "a/+", ">": "#", "*": "+", "a.>": "a/#", "*.*.c": "+/+/c"}
    # MQTT's # also matches the level above it.
    above = {"*.b.>": {"a/b", "b/b"}, "a.>": {"a"}}
    async with connected(bridge.url) as nc:
        with ExitStack() as opened, Mqtt(bridge.mqtt) as publisher:
            subs, subscribers = {}, {}
            for pattern, topic_filter in filters.items():
                subs[pattern] = await subscribed(nc, f"{subject}.{pattern}")
                subscribers[pattern] = opened.enter_context(Mqtt(bridge.mqtt))
                subscribers[pattern].subscribe(f"{subject}/{topic_filter}")
                subscribers[pattern].subscribe(f"{subject}-end")
            end = await subscribed(nc, f"{subject}-end")
            for tail in tails:
                publisher.publish(f"{subject}/{tail}", tail.encode())
            publisher.publish(f"{subject}-end", b"end")
            await take(end, 1)
            for pattern in filters:
                seen = []
                while (message := subscribers[pattern].take(1)[0]).payload != b"end":
                    seen.append(message.payload.decode())
                assert seen, pattern
                arrived = [(message.subject, message.data.decode()) for message in waiting(subs[pattern])]
                expected = [tail for tail in seen if tail not in above.get(pattern, ())]
                assert arrived == [(f"{subject}.{tail.replace('/', '.')}", tail) for tail in expected], pattern
            assert all(level in tails for levels in above.values() for level in levels)


async def test_parent_of_a_multi_level_wildcard(bridge: Stack, subject: str):
    async with connected(bridge.url) as nc:
        below, itself = await subscribed(nc, f"{subject}.foo.>"), await subscribed(nc, f"{subject}.foo")
        with Mqtt(bridge.mqtt) as mqtt:
            mqtt.subscribe(f"{subject}/foo/#")
            for tail in ("foo", "foo/bar", "foo/bar/baz"):
                mqtt.publish(f"{subject}/{tail}", tail.encode())
            assert topics(await mqtt.arrived(3)) == [f"{subject}/{tail}" for tail in ("foo", "foo/bar", "foo/bar/baz")]
            assert [message.data for message in await take(below, 2)] == [b"foo/bar", b"foo/bar/baz"]
            assert [message.data for message in await take(itself, 1)] == [b"foo"]


async def test_retained_messages_are_not_delivered_on_sub(bridge: Stack, subject: str):
    with Mqtt(bridge.mqtt) as mqtt:
        mqtt.publish(f"{subject}/kept", b"old", retain=True)
        try:
            async with connected(bridge.url) as nc:
                sub = await subscribed(nc, f"{subject}.*")
                mqtt.publish(f"{subject}/kept", b"live and retained", retain=True)
                mqtt.publish(f"{subject}/kept", b"live")
                messages = await take(sub, 2)
                assert [message.data for message in messages] == [b"live and retained", b"live"]
        finally:
            mqtt.publish(f"{subject}/kept", b"", retain=True)


# --- Headers and user properties -------------------------------------------------------------------------------------


class Lines(dict):
    """Headers for nats-py, which takes a dictionary and asks it for its items, with names more than once."""

    def __init__(self, lines: list[tuple[str, str]]):
        super().__init__(lines)
        self._lines = lines

    def items(self):
        return self._lines


def header_blocks(nc: Client) -> list[bytes]:
    """The header blocks as they come over the wire, for nats-py keeps one line per name only."""
    blocks: list[bytes] = []
    process = nc._process_headers

    async def keep(block: bytes):
        if block:
            blocks.append(bytes(block))
        return await process(block)

    nc._process_headers = keep
    return blocks


def header_lines(block: bytes) -> list[tuple[str, str]]:
    version, *lines = block.decode().removesuffix("\r\n\r\n").split("\r\n")
    assert version == "NATS/1.0"
    return [tuple(line.split(": ", 1)) for line in lines]


LINES = [
    ("X-Zulu", "first"),
    ("x-alpha", "lower"),
    ("X-Alpha", "upper"),
    ("X-Zulu", "again"),
    ("X-Zulu", "again"),
    ("Colons", "a:b: c"),
    ("Percent", "100%25 %0D"),
    ("Alpha", "last"),
]
TYPED = [("A", "1"), ("Content-Type", "text/plain; charset=utf-8"), ("B", "2")]


async def test_headers_become_user_properties(bridge: Stack, subject: str):
    async with connected(bridge.url) as nc:
        with Mqtt(bridge.mqtt) as mqtt:
            mqtt.subscribe(subject)
            await nc.publish(subject, b"plain")
            await nc.publish(subject, b"payload", headers=Lines(LINES))
            await nc.publish(subject, b"typed", headers=dict(TYPED))
            await nc.publish(subject, b"words", headers={"Words": "Grüße, 日本"})
            await barrier(nc)
            plain, message, typed, words = await mqtt.arrived(4)
            assert (plain.payload, user_properties(plain)) == (b"plain", [])
            assert (message.payload, user_properties(message)) == (b"payload", LINES)
            assert not hasattr(message.properties, "ContentType")
            assert typed.properties.ContentType == "text/plain; charset=utf-8"
            assert user_properties(typed) == TYPED
            assert ("Words", "Grüße, 日本") in user_properties(words)


async def test_user_properties_become_headers(bridge: Stack, subject: str):
    async with connected(bridge.url) as nc:
        blocks = header_blocks(nc)
        sub = await subscribed(nc, subject)
        with Mqtt(bridge.mqtt) as mqtt:
            mqtt.publish(subject, b"payload", UserProperty=LINES)
            mqtt.publish(subject, b"", UserProperty=[("Only", "headers")])
            mqtt.publish(subject, b"typed", ContentType="application/json")
            mqtt.publish(subject, b"typed", ContentType="application/json", UserProperty=[("A", "1")])
            mqtt.publish(subject, b"plain")
        messages = await take(sub, 5)
        assert [message.data for message in messages] == [b"payload", b"", b"typed", b"typed", b"plain"]
        assert [header_lines(block) for block in blocks] == [
            LINES,
            [("Only", "headers")],
            [("Content-Type", "application/json")],
            [("A", "1"), ("Content-Type", "application/json")],
        ]
        assert messages[4].headers is None


async def test_headers_that_mqtt_cannot_carry_do_no_harm(bridge: Stack, subject: str):
    """Mosquitto ends a connection that sends a control character as text; the client behind must not notice."""
    async with connected(bridge.url) as publisher, connected(bridge.url) as receiver:
        sub = await subscribed(receiver, subject)
        with Mqtt(bridge.mqtt) as mqtt:
            mqtt.subscribe(subject)
            for value in ("tab\there", "bell\x07", "delete\x7f", "next line\x85", "\ufffe"):
                await publisher.publish(subject, b"payload", headers={"Before": "1", "Odd": value, "After": "2"})
            await publisher.publish(subject, b"next")
            await barrier(publisher)
            messages = await take(sub, 6)
            assert [message.data for message in messages] == [b"payload"] * 5 + [b"next"]
            for message in messages[:5]:
                assert (message.headers["Before"], message.headers["After"]) == ("1", "2")
            arrived = await mqtt.arrived(6)
            assert [message.payload for message in arrived] == [b"payload"] * 5 + [b"next"]
            for message in arrived[:5]:
                lines = dict(user_properties(message))
                assert (lines["Before"], lines["After"]) == ("1", "2")


# --- Requests --------------------------------------------------------------------------------------------------------


async def test_mqtt_request_to_nats_service(bridge: Stack, subject: str):
    """Correlation Data comes back unchanged from a service that has never heard of it."""
    requests: asyncio.Queue[Msg] = asyncio.Queue()

    async def keep(message: Msg) -> None:
        requests.put_nowait(message)

    correlations = [b"one", b"two", b"", bytes(range(256)), b"\r\n \x00", b"the same", b"the same"]
    async with connected(bridge.url) as service:
        await subscribed(service, f"{subject}.service", cb=keep)
        with Mqtt(bridge.mqtt) as mqtt:
            mqtt.subscribe(f"{subject}/answers/#")
            for number, correlation in enumerate(correlations):
                mqtt.publish(
                    f"{subject}/service",
                    b"%d" % number,
                    ResponseTopic=f"{subject}/answers/mine",
                    CorrelationData=correlation,
                )
            taken = [await within(f"request {number}", requests.get()) for number in range(len(correlations))]
            assert [message.data for message in taken] == [b"%d" % number for number in range(len(correlations))]
            for message in reversed(taken):
                await message.respond(b"answer to " + message.data)
            await barrier(service)
            answers = await mqtt.arrived(len(correlations))
            for number, answer in zip(reversed(range(len(correlations))), answers, strict=True):
                assert answer.topic == f"{subject}/answers/mine"
                assert answer.payload == b"answer to %d" % number
                assert getattr(answer.properties, "CorrelationData", b"") == correlations[number]


async def test_mqtt_request_without_correlation_data(bridge: Stack, subject: str):
    async with connected(bridge.url) as service:
        sub = await subscribed(service, f"{subject}.service")
        with Mqtt(bridge.mqtt) as mqtt:
            mqtt.subscribe(f"{subject}/answers/#")
            mqtt.publish(f"{subject}/service", b"?", ResponseTopic=f"{subject}/answers/mine")
            (request,) = await take(sub, 1)
            assert request.reply == f"{subject}.answers.mine"
            await service.publish(request.reply, b"answer", headers={"Status": "fine"})
            await barrier(service)
            (answer,) = await mqtt.arrived(1)
            assert (answer.topic, answer.payload) == (f"{subject}/answers/mine", b"answer")
            assert user_properties(answer) == [("Status", "fine")]
            assert not hasattr(answer.properties, "CorrelationData")


async def test_mqtt_request_to_queue_group_is_answered_once(bridge: Stack, subject: str):
    async with connected(bridge.url) as first, connected(bridge.url) as second:

        async def answer(message: Msg) -> None:
            await message.respond(message.data)

        for service in (first, second):
            await subscribed(service, f"{subject}.service", "services", cb=answer)
        with Mqtt(bridge.mqtt) as mqtt:
            mqtt.subscribe(f"{subject}/answers")
            for number in range(40):
                topic = f"{subject}/answers"
                mqtt.publish(f"{subject}/service", b"%d" % number, ResponseTopic=topic, CorrelationData=b"c%d" % number)
            answers = await mqtt.arrived(40)
            # What a second answer to any of them would come before.
            for service in (first, second):
                await service.publish(f"{subject}.answers", b"last")
                await barrier(service)
            assert [message.payload for message in await mqtt.arrived(2)] == [b"last", b"last"]
            numbers = {message.payload: message.properties.CorrelationData for message in answers}
            assert numbers == {b"%d" % number: b"c%d" % number for number in range(40)}


async def test_nats_request_to_mqtt_responder(bridge: Stack, subject: str):
    with Mqtt(bridge.mqtt) as responder:

        def respond(request: MQTTMessage) -> None:
            properties = {"UserProperty": [("Answered-By", "mqtt"), *user_properties(request)]}
            if hasattr(request.properties, "CorrelationData"):
                properties["CorrelationData"] = request.properties.CorrelationData
            responder.post(request.properties.ResponseTopic, b"answer to " + request.payload, **properties)

        responder.on_message(respond)
        responder.subscribe(f"{subject}/service")
        async with connected(bridge.url) as client:
            answers = await within(
                "50 answers",
                asyncio.gather(
                    *(
                        client.request(f"{subject}.service", b"%d" % n, timeout=DEADLINE, headers={"N": str(n)})
                        for n in range(50)
                    )
                ),
            )
            assert [answer.data for answer in answers] == [b"answer to %d" % number for number in range(50)]
            assert [answer.headers["N"] for answer in answers] == [str(number) for number in range(50)]
            assert {answer.headers["Answered-By"] for answer in answers} == {"mqtt"}
            old = await client.request(f"{subject}.service", b"old", timeout=DEADLINE, old_style=True)
            assert old.data == b"answer to old"


# --- Queue groups ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("publisher_is", ["nats", "mqtt"])
async def test_queue_group_with_members_on_both_sides(bridge: Stack, subject: str, publisher_is: str):
    count = 300
    async with connected(bridge.url) as first, connected(bridge.url) as second:
        with Mqtt(bridge.mqtt) as member, Mqtt(bridge.mqtt) as publisher:
            members = [await subscribed(nc, f"{subject}.job", "workers") for nc in (first, second)]
            member.subscribe(f"$share/workers/{subject}/job")
            # Everybody's last message, from the one who publishes.
            ends = [await subscribed(nc, f"{subject}.end") for nc in (first, second)]
            member.subscribe(f"{subject}/end")
            if publisher_is == "nats":
                async with connected(bridge.url) as nc:
                    for number in range(count):
                        await nc.publish(f"{subject}.job", b"%d" % number)
                    await nc.publish(f"{subject}.end", b"end")
                    await barrier(nc)
            else:
                for number in range(count):
                    publisher.post(f"{subject}/job", b"%d" % number)
                publisher.publish(f"{subject}/end", b"end")
            for end in ends:
                await take(end, 1)
            shares = [[message.data for message in waiting(sub)] for sub in members]
            shares.append([])
            while (message := (await member.arrived(1))[0]).payload != b"end":
                shares[-1].append(message.payload)
            numbers = sorted(int(number) for share in shares for number in share)
            assert numbers == list(range(count)), f"shares: {[len(share) for share in shares]}"
            assert all(shares), f"shares: {[len(share) for share in shares]}"


# --- Awkward names ---------------------------------------------------------------------------------------------------

# Topic and subject; {} is a name of this test alone. No subject: any that leads back to the topic will do.
AWKWARD_TOPICS = {
    "{}/a b": "{}.a%20b",
    "{}/ ": "{}.%20",
    "{} {}/x": "{}%20{}.x",
    "{}/v1.2": "{}.v1//2",
    "{}/.": "{}.//",
    "{}/a..b": "{}.a////b",
    "{}//b": "{}./.b",
    "{}/": "{}./",
    "{}///": "{}./././",
    "/{}": "/.{}",
    "//{}/": "/./.{}./",
    "{}/*": "{}.+",
    "{}/>": "{}.#",
    "{}/*/x": "{}.+.x",
    "*/{}": "+.{}",
    ">/{}": "#.{}",
    "{}/a*b>c": "{}.a*b>c",
    "{}/*a": "{}.*a",
    "{}/100%": "{}.100%",
    "{}/%20": "{}.%2520",
    "{}/%2520": "{}.%252520",
    "{}/%41%zz%": "{}.%41%zz%",
    "{}/%2F": "",
    "{}/Grüße/日本/😀": "{}.Grüße.日本.😀",
    "{}/$x/y": "{}.$x.y",
    "$x/{}": "$x.{}",
    "{}/\"'\\{{}}[]:,;=&?!~`|<@^": "{}.\"'\\{{}}[]:,;=&?!~`|<@^",
    # Blanks to a client that splits lines at whatever Unicode calls white space.
    "{}/a\u00a0b": "",
    "{}/\u3000": "",
    "{}/a\u2028b\u2029c": "",
    "{}/\u1680\u2003\u202f\u205f": "",
    "{}/b\u200b\u2060": "",
}


def heard(talk: Talk, count: int) -> list[dict]:
    messages = [talk.expect("message") for _ in range(count)]
    return [{**message, "payload": base64.b64decode(message["payload"])} for message in messages]


def test_awkward_topics(tap: Program, bridge: Stack, subject: str):
    with (
        Mqtt(bridge.mqtt) as publisher,
        Mqtt(bridge.mqtt) as subscriber,
        tap.start("tap", url=bridge.url, subject=subject, subjects=[">", f"$x.{subject}"]) as talk,
    ):
        talk.expect("ready")
        subscriber.subscribe("#")
        subscriber.subscribe("$x/#")
        for number, (topic, expected) in enumerate(AWKWARD_TOPICS.items()):
            topic = topic.format(subject, subject)
            payload = b"%d" % number
            publisher.publish(topic, payload)
            publisher.publish(topic, payload, UserProperty=[("Plain", "value")], ResponseTopic=topic)
            bare, full = heard(talk, 2)
            assert bare["subject"] == full["subject"], topic
            assert not expected or bare["subject"] == expected.format(subject, subject), topic
            assert full["reply"] == full["subject"], topic
            assert (bare["payload"], bare["headers"], bare["reply"]) == (payload, [], None), topic
            assert (full["payload"], full["headers"]) == (payload, [["Plain", "value"]]), topic
            talk.say(do="publish", subject=bare["subject"], payload=base64.b64encode(b"back").decode())
            talk.expect("published")
            arrived = [subscriber.take(1, what=repr(topic))[0] for _ in range(3)]
            assert [(m.topic, m.payload) for m in arrived] == [(topic, payload), (topic, payload), (topic, b"back")]
        talk.say(do="stop")
        talk.finished()


def test_names_that_mosquitto_refuses(tap: Program, scripted: tuple[ScriptedBroker, Stack], subject: str):
    """Control characters in topics, response topics and user properties, from a broker that lets them pass."""
    broker, stack = scripted
    odd = [
        "\t",
        "\n",
        "\r\n",
        "\r",
        "\x0b",
        "\x0c",
        "\x01",
        "\x1b",
        "\x7f",
        "\x85",
        " \t ",
        "\x1c\x1d",
        "\r\nMSG x 1 0\r\n",
    ]
    with tap.start("tap", url=stack.url, subject=subject, subjects=[f"{subject}.>"]) as talk:
        talk.expect("ready")
        broker.await_subscription(f"{subject}/x".encode())
        for character in odd:
            topic = f"{subject}/a{character}b/{character}".encode()
            plain = (b"Plain", b"value")
            broker.publish(topic, b"bare")
            broker.publish(topic, b"full", [plain, (f"N{character}ame".encode(), b"value"), plain])
            broker.publish(topic, b"full", [plain, (character.encode(), character.encode())])
            broker.publish(topic, b"full", [plain, (b"Value", f"va{character}lue".encode()), plain])
            broker.publish(f"{subject}/marker".encode(), b"marker")
            *messages, marker = heard(talk, 5)
            assert [message["payload"] for message in messages] == [b"bare", b"full", b"full", b"full"], repr(character)
            assert len({message["subject"] for message in messages}) == 1
            for message in messages[1:]:
                assert ["Plain", "value"] in message["headers"], repr(character)
            assert (marker["payload"], marker["subject"]) == (b"marker", f"{subject}.marker")
            # The way back: the very bytes of the topic.
            talk.say(do="publish", subject=messages[0]["subject"], payload="")
            talk.expect("published")
        talk.say(do="stop")
        talk.finished()


def test_names_that_mosquitto_refuses_lead_nowhere_else(
    scripted: tuple[ScriptedBroker, Stack], nats_py: Program, subject: str
):
    """A subject made from a topic stands for that topic. Where it is not sent to brokers, it reaches no other."""
    broker, stack = scripted
    names = ["a b", "%09", "%2509", "a\u00a0b", "\t", "\n", "\r", "\r\n", "\x01", "\x7f", "\t%09"]
    given = {"subjects": [f"{subject}.>"], "url": stack.url, "subject": subject}
    with nats_py.start("tap", **given) as one, nats_py.start("tap", **given) as other:
        one.expect("ready")
        other.expect("ready")
        subjects = []
        for name in names:
            broker.publish(f"{subject}/x{name}".encode(), name.encode())
            (message,) = heard(one, 1)
            assert heard(other, 1) == [message]
            subjects.append(message["subject"])
            for back in (message["subject"], f"{subject}.marker"):
                one.say(do="publish", subject=back, payload="")
                one.expect("published")
            arrived = [heard(other, 1)[0]["subject"]]
            while arrived[-1] != f"{subject}.marker":
                arrived.append(heard(other, 1)[0]["subject"])
            may_be_refused = not name.isprintable() and "\u00a0" not in name
            assert arrived[:-1] == [message["subject"]] or (may_be_refused and not arrived[:-1]), repr(name)
        assert len(set(subjects)) == len(names), "two topics share a subject"


AWKWARD_PROPERTIES = [
    [("two words", "x")],
    [(" leading", "x"), ("trailing ", "x")],
    [("co:lon", "x"), (":", ":"), ("a: b", "c: d")],
    [("", "nameless"), ("", "")],
    [("Empty", "")],
    [("Grüße", "x"), ("日本", "x"), ("😀", "😀")],
    [("Words", "Grüße, 日本 😀")],
    [("Blanks", "  around  "), ("Only", " ")],
    [("NATS/1.0", "503"), ("NATS/1.0 503", "x"), ("Status", "503")],
    [("Spaces", "a\u00a0b\u3000c\u2028d\ufeff")],
    [("\u00a0", "\u00a0"), ("\u2028a", "x")],
    [('(),/;<=>?@[\\]{}"', "separators")],
    [("Percent", "%0D%0A"), ("%", "%"), ("%41", "%41")],
    [("Same", "1"), ("same", "2"), ("SAME", "3"), ("Same", "4")],
    [("N" * 300, "v" * 20_000)],
    [(f"Many-{number}", "x" * 50) for number in range(300)],
]


def test_awkward_user_properties(tap: Program, bridge: Stack, subject: str):
    with (
        Mqtt(bridge.mqtt) as mqtt,
        tap.start("tap", url=bridge.url, subject=subject, subjects=[f"{subject}.>"]) as talk,
    ):
        talk.expect("ready")
        for number, pairs in enumerate(AWKWARD_PROPERTIES):
            payload = b"%d" % number
            mqtt.publish(f"{subject}/x", payload, UserProperty=pairs)
            mqtt.publish(f"{subject}/x", payload, UserProperty=[("Plain", "first"), *pairs, ("Plain-Too", "last")])
            mqtt.publish(f"{subject}/marker", b"marker")
            alone, between, marker = heard(talk, 3)
            assert alone["payload"] == between["payload"] == payload, pairs
            assert ["Plain", "first"] in between["headers"], pairs
            assert ["Plain-Too", "last"] in between["headers"], pairs
            assert (marker["payload"], marker["headers"]) == (b"marker", []), pairs
        talk.say(do="stop")
        talk.finished()


WORDS = [("City", "Zürich"), ("Unit", "20 °C"), ("Place", "日本 😀"), ("Plain", "x")]


def test_words_in_user_properties(tap: Program, bridge: Stack, subject: str):
    with (
        Mqtt(bridge.mqtt) as mqtt,
        tap.start("tap", url=bridge.url, subject=subject, subjects=[f"{subject}.>"]) as talk,
    ):
        talk.expect("ready")
        for payload in (b"first", b"second"):
            mqtt.publish(f"{subject}/x", payload, UserProperty=WORDS)
            (message,) = heard(talk, 1)
            assert message["payload"] == payload
            # async-nats keeps no order of different names.
            assert sorted((name, value) for name, value in message["headers"]) == sorted(WORDS)
        talk.say(do="stop")
        talk.finished()


async def test_awkward_subjects(bridge: Stack, subject: str):
    """From NATS: every subject arrives as itself, by way of a topic of its own."""
    topics_of = {
        "a/b": "a%2Fb",
        "a+b": "a%2Bb",
        "a#": "a%23",
        "+": "*",
        "#": ">",
        "/": "",
        "//": ".",
        "a//b": "a.b",
        "%20": " ",
        "a%b": "a%b",
        "%2F": "%252F",
        "$SYS": "$SYS",
        "Grüße": "Grüße",
    }
    async with connected(bridge.url) as publisher, connected(bridge.url) as receiver:
        sub = await subscribed(receiver, f"{subject}.>")
        with Mqtt(bridge.mqtt) as mqtt:
            mqtt.subscribe(f"{subject}/#")
            for token in topics_of:
                await publisher.publish(f"{subject}.x.{token}", token.encode())
            await barrier(publisher)
            messages = await take(sub, len(topics_of))
            assert [message.subject for message in messages] == [f"{subject}.x.{token}" for token in topics_of]
            arrived = {message.payload.decode(): message.topic for message in await mqtt.arrived(len(topics_of))}
            known = {token: arrived[token] for token in topics_of if token != "%2F"}
            assert known == {token: f"{subject}/x/{level}" for token, level in topics_of.items() if token != "%2F"}
            assert len(set(arrived.values())) == len(topics_of), "two subjects share a topic"


ODD_TOKENS = ["bell\x07", "delete\x7f", "tab%09", "line%0A", "next\x85line", "\ufffe", "\ufdd0"]


@pytest.mark.parametrize("token", ODD_TOKENS, ids=ascii)
async def test_subjects_that_mosquitto_refuses_do_no_harm(bridge: Stack, subject: str, token: str):
    """Mosquitto ends a connection that names such a topic; the NATS client's must not be that one."""
    violations: list[Exception] = []

    async def keep(error: Exception) -> None:
        violations.append(error)

    async with connected(bridge.url) as publisher, connected(bridge.url, error_cb=keep) as receiver:
        sub = await subscribed(receiver, f"{subject}.>")
        await publisher.publish(f"{subject}.{token}", b"odd")
        await publisher.publish(f"{subject}.plain", b"next")
        await barrier(publisher)
        while (await take(sub, 1))[0].data != b"next":
            pass
        await subscribed(receiver, f"{subject}-{token}.x")
        await publisher.publish(f"{subject}.plain", b"still there")
        while (await take(sub, 1))[0].data != b"still there":
            pass
        # It may be told that it cannot subscribe to that, in words on which no client closes.
        assert all("permissions violation" in str(violation) for violation in violations), violations
