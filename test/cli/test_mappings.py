"""Subject mappings in front of Mosquitto, and next to a real nats-server with the same rules."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nats as nats_py
import pytest

from cli.running import GATEWAY, Running, started_gateway, started_mosquitto
from emqx.mqtt import Mqtt
from emqx.nats import Nats
from mappings import both_ways, published, rules, subscribed
from ports import HOST, free_port
from wire.servers import TARGETS, accepts, nats_server_path

# nats-server 2.10 has no left, right, random and no partition of a whole subject for these.
SHARED = [
    "a.* -> fleet.{{wildcard(1)}}.x",
    "old.*.* -> new.$2.$1",
    "p.*.* -> q.{{partition(7,1,2)}}.{{wildcard(2)}}",
    "one.* -> part.{{ Partition(1000, 1) }}",
    "sp.* -> s.{{split(1,-)}}",
    "cut.* -> c.{{splitfromleft(1,2)}}.{{splitFromRight(1,1)}}.{{slicefromleft(1,2)}}.{{SliceFromRight(1,2)}}",
    "g.> -> h.i.>",
    "lost -> lost 1%",
    "few -> few 1%, many 99%",
]
USERS = [
    {"user": "all", "password": "p"},
    {"user": "before", "password": "p", "permissions": {"publish": ["a.>"]}},
    {"user": "after", "password": "p", "permissions": {"publish": ["fleet.>"]}},
]


def nats_server_text(port: int) -> str:
    def destination(text: str) -> str:
        weighted = [part.strip().rsplit(" ", 1) for part in text.split(",")]
        if not text.endswith("%"):
            return f'"{text}"'
        return "[" + ", ".join(f'{{destination: "{name}", weight: "{weight}"}}' for name, weight in weighted) + "]"

    lines = "\n".join(f'  "{source}": {destination(to)}' for source, to in (rule.split(" -> ") for rule in SHARED))
    users = "\n".join(
        f'    {{user: {user["user"]}, password: p'
        + (f', permissions: {{publish: ["{user["permissions"]["publish"][0]}"], subscribe: ">"}}' if len(user) > 2 else "")
        + "}"
        for user in USERS
    )
    return f"listen: {HOST}:{port}\nauthorization {{\n  users = [\n{users}\n  ]\n}}\nmappings = {{\n{lines}\n}}\n"


class Server:
    def __init__(self, port: int):
        self.port = port

    def client(self, user: str = "all", **fields: object) -> Nats:
        client = Nats((HOST, self.port)).connect(user=user, **{"pass": "p"}, **fields)
        client.ping()
        return client


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the broker of all tests here, which leave nothing in it."""
    with started_mosquitto(tmp_path_factory.mktemp("mosquitto")) as port:
        yield port


@pytest.fixture(scope="module", params=TARGETS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, mosquitto: int) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("server")
    if request.param == "gateway":
        with started_gateway(directory, mosquitto, users=USERS, mappings={"publish": SHARED}) as gateway:
            yield Server(gateway.port)
        return
    port = free_port()
    file = directory / "nats-server.conf"
    file.write_text(nats_server_text(port))
    command = [nats_server_path() or pytest.skip("no nats-server"), "-c", str(file)]
    log = (directory / "server.log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until_accepts(port, directory / "server.log")
        yield Server(port)
    finally:
        process.terminate()
        process.wait(15)


def until_accepts(port: int, log: Path) -> None:
    end = time.monotonic() + 20
    while not accepts((HOST, port)):
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


# --- As nats-server --------------------------------------------------------------------------------------------------


def test_published_subjects(server: Server):
    subjects = {
        "a.5": "fleet.5.x", "a.5.6": "a.5.6", "a": "a", "b.5": "b.5", "old.1.2": "new.2.1", "g.1": "h.i.1", "g.1.2": "h.i.1.2",
        "fleet.5.x": "fleet.5.x", "sp.-a-b--c-": "s.a.b.c", "cut.12345": "c.12.345.1234.5.12.34.5.1.23.45",
        "cut.1": "c.1.1.1.1",
    }
    with server.client() as client:
        client.subscribe(">")
        for subject, expected in subjects.items():
            client.publish(subject)
            assert client.message().subject == expected
        # A subject with an empty token is nobody's.
        client.publish("sp.-")
        client.ping()


def test_partitions(server: Server):
    hashed = {"one." + text: fnv1a(text.encode()) % 1000 for text in ("a", "device-17", "Zürich", "x" * 100)}
    with server.client() as client:
        client.subscribe(">")
        for subject, number in hashed.items():
            client.publish(subject)
            assert client.message().subject == f"part.{number}"
        for first, second in itertools.product(("a", "b", "0815"), ("x", "yy")):
            client.publish(f"p.{first}.{second}")
            assert client.message().subject == f"q.{fnv1a((first + second).encode()) % 7}.{second}"


def fnv1a(data: bytes) -> int:
    number = 0x811C9DC5
    for byte in data:
        number = ((number ^ byte) * 0x01000193) % 2**32
    return number


def test_permissions_are_about_the_mapped_subject(server: Server):
    with server.client("before") as client:
        client.publish("a.5")
        client.error('Permissions Violation for Publish to "fleet.5.x"')
    with server.client("after") as client, server.client() as watcher:
        watcher.subscribe(">")
        client.publish("a.5", b"x")
        assert watcher.message().subject == "fleet.5.x"


def test_replies_and_subscriptions_are_not_mapped(server: Server):
    with server.client(headers=True, no_responders=True) as client, server.client() as service:
        service.subscribe("fleet.*.x")
        client.subscribe("a.*", sid="1").subscribe("_INBOX.*", sid="2")
        client.publish("a.5", b"x", reply="a.reply")
        message = service.message()
        assert (message.subject, message.reply) == ("fleet.5.x", "a.reply")
        client.publish("g.1", reply="_INBOX.1")
        answer = client.message()
        assert (answer.subject, answer.sid, answer.headers) == ("_INBOX.1", "2", b"NATS/1.0 503\r\n\r\n")


def test_weights(server: Server):
    with server.client() as client:
        client.subscribe(">")
        for _ in range(200):
            client.publish("few")
        counts = Counter(client.message().subject for _ in range(200))
        # 2 are expected. More than 20 come once in 10^14 runs.
        assert set(counts) <= {"few", "many"} and counts["many"] >= 180
        # Of 300 messages 3 arrive; 60 would be a wonder.
        for _ in range(300):
            client.publish("lost", b"x")
        client.publish("end")
        seen = 0
        while client.message().subject == "lost":
            seen += 1
        assert seen < 60


def test_a_lost_request_has_no_responders(server: Server):
    with server.client(headers=True, no_responders=True) as client:
        client.subscribe("_INBOX.*")
        for n in range(5):
            client.publish("lost", reply=f"_INBOX.{n}")
        # One of a hundred is not lost, and its answer comes from the broker, behind the others.
        assert sorted(client.message().subject for _ in range(5)) == [f"_INBOX.{n}" for n in range(5)]


# --- In front of a broker --------------------------------------------------------------------------------------------


@pytest.fixture
def mqtt(mosquitto: int) -> Iterator[Mqtt]:
    with Mqtt((HOST, mosquitto)) as client:
        yield client


@pytest.fixture(scope="module", params=["", "site/"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, mosquitto: int) -> Iterator[Running]:
    mappings = {"publish": rules("n"), "subscribe": rules("n")}
    with started_gateway(tmp_path_factory.mktemp("served"), mosquitto, mountpoint=request.param, mappings=mappings) as gateway:
        yield gateway


def test_publishes(gateway: Running, mqtt: Mqtt):
    gateway.write(mappings={"publish": rules("n")})
    gateway.start()
    published(gateway.client, mqtt, "n")


def test_subscriptions(gateway: Running, mqtt: Mqtt):
    gateway.write(mappings={"subscribe": rules("n")})
    gateway.start()
    subscribed(gateway.client, mqtt, "n")


def test_nats_clients_notice_nothing(served: Running):
    both_ways(lambda: served.client(headers=True, no_responders=True), "n")


def test_clients_with_verbose(served: Running):
    with Nats((HOST, served.port)) as client:
        client.login(verbose=True)
        client.expect(b"+OK\r\n")
        client.send("SUB n.*.temp 1\r\nPUB n.5.temp 1\r\nx\r\n")
        client.expect(b"+OK\r\n+OK\r\n")
        assert client.message().subject == "n.5.temp"


def test_an_unmodified_client(served: Running):
    async def scenario() -> None:
        first = await nats_py.connect(f"nats://{HOST}:{served.port}")
        second = await nats_py.connect(f"nats://{HOST}:{served.port}")

        async def answer(message):
            await message.respond(message.subject.encode())

        await first.subscribe("n.*.temp", cb=answer)
        await first.flush()
        assert (await second.request("n.17.temp", b"", timeout=5)).data == b"n.17.temp"
        await first.drain()
        await second.close()

    asyncio.run(scenario())


def test_a_reload_holds_for_what_follows(gateway: Running, mqtt: Mqtt):
    gateway.write(mappings={"publish": ["a.* -> t.$1"], "subscribe": ["a.* -> t.$1"]})
    gateway.start()
    mqtt.subscribe("u/#")
    with gateway.client() as client:
        client.subscribe("a.*", sid="1")
        gateway.write(mappings={"publish": ["a.* -> u.$1"], "subscribe": ["a.* -> u.$1"]})
        gateway.reload("settings_reloaded")
        client.subscribe("a.*", sid="2")
        client.publish("a.5", b"x")
        assert mqtt.message().topic == "u/5"
        message = client.message()
        assert (message.subject, message.sid) == ("a.5", "2")
        mqtt.publish("t/6")
        message = client.message()
        assert (message.subject, message.sid) == ("a.6", "1")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"publish": ["a.* -> b.*"]}, "mappings.publish[1]: must have a subject after the arrow, without *"),
        ({"subscribe": ["a -> b", "a.* -> b"]}, "mappings.subscribe[2]: must be reversible for subscriptions"),
        ({"publish": [f"a{n} -> b" for n in range(101)]}, "mappings.publish: must be at most 100 rules"),
    ],
)
def test_a_wrong_rule_is_refused(gateway: Running, settings: dict, text: str):
    gateway.write(mappings=settings)
    done = subprocess.run([GATEWAY, "-c", gateway.file], capture_output=True, text=True, timeout=30)
    assert done.returncode != 0 and text in done.stdout + done.stderr


def test_a_wrong_rule_changes_nothing_at_a_reload(gateway: Running, mqtt: Mqtt):
    gateway.write(mappings={"publish": ["a.* -> t.$1"]})
    gateway.start()
    mqtt.subscribe("t/#")
    gateway.write(mappings={"publish": ["a.* -> t.$2"]})
    gateway.reload("mappings.publish[1]: must not use a wildcard that the subject before the arrow does not have")
    with gateway.client() as client:
        client.publish("a.5")
        assert mqtt.message().topic == "t/5"
