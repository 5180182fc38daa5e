"""The gateway in front of real brokers: the rows of the table in docs/brokers.md."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from brokers.nats import Client, Closed, message
from clients.stack import AGAINST_NATS_SERVER, Address, Server, Stack, gateway_in_front_of, mosquitto
from emqx.node import Node, emqx_homes
from ports import HOST, free_port
from rust_programs import rust_program
from wire.servers import REPOSITORY, accepts

HOMES = emqx_homes()
HERE = Path(__file__).resolve().parent
BUILD_DEADLINE = 600
# Of what depends on chance.
NOT_ALWAYS = "not always"
LOSES = "messages may be lost"

pytestmark = pytest.mark.skipif(AGAINST_NATS_SERVER, reason="a nats-server has no MQTT broker behind it")


@dataclass(frozen=True)
class Kind:
    start: Callable[[Path], Server]
    # Rows that are otherwise than they should be, with what is seen instead.
    otherwise: dict[str, str] = field(default_factory=dict)


def _mosquitto(directory: Path) -> Server:
    return mosquitto(directory, "allow_anonymous true\n")


def _mochi(directory: Path) -> Server:
    program = REPOSITORY / "target" / "brokers" / "mochi"
    program.parent.mkdir(parents=True, exist_ok=True)
    _build(["go", "build", "-o", str(program), "."], HERE / "mochi", GOTOOLCHAIN="local", GOFLAGS="-mod=readonly")
    return _server("mochi", [str(program)], directory)


def _rumqttd(directory: Path) -> Server:
    return _server("rumqttd", [str(rust_program("rumqttd-broker"))], directory)


class _Emqx:
    """What the tests need of a Server."""

    def __init__(self, home: Path) -> None:
        self._node = Node(home)
        self.address = self._node.mqtt
        self.start, self.stop = self._node.start, self._node.remove


def _emqx(*majors: int) -> Callable[[Path], _Emqx]:
    def start(_: Path) -> _Emqx:
        homes = [home for home in HOMES if _major(home) in majors]
        if not homes:
            pytest.skip(f"there is no EMQX {' or '.join(map(str, majors))}")
        return _Emqx(homes[0])

    return start


def _major(home: Path) -> int:
    return int(re.search(r'^REL_VSN="(\d+)', (home / "releases" / "emqx_vars").read_text(), re.MULTILINE)[1])


def _server(name: str, command: list[str], directory: Path) -> Server:
    port = free_port()
    return Server(name, [*command, str(port)], (HOST, port), accepts, directory / f"{name}.log")


def _build(command: list[str], directory: Path, **environment: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]}: bin/install-missing test brings it")
    done = subprocess.run(
        command, cwd=directory, env=os.environ | environment, capture_output=True, text=True, timeout=BUILD_DEADLINE
    )
    assert done.returncode == 0, done.stderr[-2000:]


KINDS = {
    "Mosquitto": Kind(_mosquitto),
    "EMQX 5": Kind(_emqx(5), {"subjects of 200 levels": "refused"}),
    "EMQX 6": Kind(_emqx(6), {"subjects of 200 levels": "refused"}),
    "mochi-mqtt": Kind(
        _mochi,
        {
            "two queue groups of one connection, different filters": LOSES,
            "503 when nobody listens": "never",
            "PONG after own messages": NOT_ALWAYS,
        },
    ),
    "rumqttd": Kind(
        _rumqttd,
        {
            "queue groups of one name, different subjects": LOSES,
            "503 when nobody listens": "never",
            "`echo:false`": "no",
        },
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def broker(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server | _Emqx]:
    broker = KINDS[kind].start(tmp_path_factory.mktemp("broker"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def gateway(broker: Server | _Emqx, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    gateway = gateway_in_front_of(broker.address, tmp_path_factory.mktemp("real"))
    gateway.start()
    yield gateway
    gateway.stop()


def gathered(client: Client, seconds: float = 0.5) -> bytes:
    """All that comes, without a PING to end it."""
    until = time.monotonic() + seconds
    said = b""
    client.socket.settimeout(0.05)
    while time.monotonic() < until:
        try:
            data = client.socket.recv(65536)
        except TimeoutError:
            continue
        if not data:
            raise Closed(said)
        said += data
    return said


def quiet(address: Address) -> Client:
    client = Client(address, verbose=False)
    client.ping()
    return client


def delivered(said: bytes, sid: int) -> int:
    return said.count(b" %d 2\r\nhi\r\n" % sid)


def plain(address: Address) -> str:
    with quiet(address) as client:
        client.send(b"SUB t.a 1\r\nSUB t.* 2\r\nSUB t.> 3\r\nSUB t.a 4\r\nPUB t.a 2\r\nhi\r\n")
        said = gathered(client)
    return "yes" if [delivered(said, sid) for sid in (1, 2, 3, 4)] == [1, 1, 1, 1] else str(said)


def group_beside_plain(address: Address) -> str:
    with quiet(address) as client, quiet(address) as other:
        client.send(b"SUB g.a 1\r\nSUB g.a beside 2\r\n")
        other.send(b"SUB g.a beside 5\r\n")
        client.ping()
        other.ping()
        client.send(b"PUB g.a 2\r\nhi\r\n" * 20)
        said, others = gathered(client), gathered(other)
    shares = delivered(said, 2) + delivered(others, 5)
    return "yes" if (delivered(said, 1), shares) == (20, 20) else str((said, others))


def two_groups(address: Address) -> str:
    """Another connection has a share of the first one."""
    with quiet(address) as client, quiet(address) as other:
        client.send(b"SUB g.b 1\r\nSUB g.b two 2\r\nSUB g.* wild 3\r\n")
        other.send(b"SUB g.b two 4\r\n")
        client.ping()
        other.ping()
        client.send(b"PUB g.b 2\r\nhi\r\n" * 20)
        said, others = gathered(client), gathered(other)
    shares = delivered(said, 2) + delivered(others, 4)
    seen = delivered(said, 1), shares, delivered(said, 3)
    if seen == (20, 20, 20):
        return "yes"
    return LOSES if seen[0] == 20 and max(seen) == 20 and min(seen) > 0 else str(seen)


def one_group_name(address: Address) -> str:
    """Queue groups of one name on two subjects have nothing to do with each other."""
    with quiet(address) as client, quiet(address) as other:
        client.send(b"SUB n.a same 1\r\n")
        other.send(b"SUB n.b same 2\r\n")
        client.ping()
        other.ping()
        client.send(b"PUB n.a 2\r\nhi\r\nPUB n.b 2\r\nhi\r\n" * 20)
        seen = delivered(gathered(client), 1), delivered(gathered(other), 2)
    if seen == (20, 20):
        return "yes"
    return LOSES if max(seen) <= 20 else str(seen)


def request_and_reply(address: Address) -> str:
    with quiet(address) as service, quiet(address) as requester:
        service.send(b"SUB svc workers 1\r\n")
        service.ping()
        requester.send(b"SUB inbox.1 2\r\nPUB svc inbox.1 2\r\nhi\r\n")
        service.until(b"MSG svc 1 inbox.1 2\r\nhi\r\n")
        service.send(b"PUB inbox.1 2\r\nhi\r\n")
        return "yes" if requester.until(message("inbox.1", 2, b"hi")) == message("inbox.1", 2, b"hi") else "no"


def no_responders(address: Address) -> str:
    with quiet(address) as client:
        client.send(b"SUB inbox.2 2\r\nPUB nobody inbox.2 2\r\nhi\r\n")
        return "yes" if b"503" in gathered(client) else "never"


def headers(address: Address) -> str:
    block = b"NATS/1.0\r\nA: 1\r\nA: 2\r\nb:x\r\n\r\n"
    with quiet(address) as client:
        client.send(b"SUB h 1\r\nHPUB h %d %d\r\n%shi\r\n" % (len(block), len(block) + 2, block))
        expected = b"HMSG h 1 %d %d\r\n%shi\r\n" % (len(block), len(block) + 2, block)
        return "yes" if gathered(client) == expected else "no"


def large(address: Address) -> str:
    with quiet(address) as client:
        payload = b"x" * min(client.info["max_payload"], 1 << 20)
        client.send(b"SUB l 1\r\nPUB l %d\r\n%s\r\n" % (len(payload), payload))
        return "yes" if client.until(message("l", 1, payload), 20) else "no"


def no_echo(address: Address) -> str:
    with Client(address, verbose=False, echo=False) as client:
        client.send(b"SUB e 1\r\nPUB e 2\r\nhi\r\n")
        return "yes" if b"MSG" not in gathered(client) else "no"


def unsubscribe(address: Address) -> str:
    with quiet(address) as client:
        client.send(b"SUB u 1\r\nUNSUB 1 2\r\n" + b"PUB u 2\r\nhi\r\n" * 4)
        return "yes" if delivered(gathered(client), 1) == 2 else "no"


def barrier(address: Address) -> str:
    with quiet(address) as client:
        client.send(b"SUB b 1\r\n")
        client.ping()
        for _ in range(300):
            client.send(b"PUB b 2\r\nhi\r\nPING\r\n")
            if message("b", 1, b"hi") not in client.until(b"PONG\r\n"):
                return NOT_ALWAYS
    return "yes"


def deep_subject(address: Address) -> str:
    """Whether a service can be told is one thing, that a client stays connected another one: it does by its third try."""
    subject = ".".join(["a"] * 200).encode()
    for _ in range(3):
        with suppress(Closed), quiet(address) as client:
            client.send(b"SUB " + subject + b" 1\r\n")
            refused = b"-ERR" in client.ping()
            client.send(b"PUB " + subject + b" 2\r\nhi\r\n")
            said = gathered(client)
            refused = refused and b"-ERR 'Permissions Violation for Publish" in said
            return "yes" if delivered(said, 1) == 1 else "refused" if refused else "no"
    return "no"


def confirmed(address: Address) -> str:
    with Client(address, verbose=True) as client:
        client.send(b"SUB v 1\r\nPUB v 2\r\nhi\r\n")
        return "yes" if gathered(client) == b"+OK\r\n" * 3 + message("v", 1, b"hi") else "no"


ROWS: dict[str, Callable[[Address], str]] = {
    "subjects, wildcards, overlapping subscriptions": plain,
    "queue groups beside plain subscriptions": group_beside_plain,
    "two queue groups of one connection, different filters": two_groups,
    "queue groups of one name, different subjects": one_group_name,
    "request and reply": request_and_reply,
    "503 when nobody listens": no_responders,
    "headers, byte for byte": headers,
    "payloads as large as INFO says, up to 1 MB": large,
    "`echo:false`": no_echo,
    "UNSUB with a max": unsubscribe,
    "PONG after own messages": barrier,
    "subjects of 200 levels": deep_subject,
    "`verbose`: +OK of the broker": confirmed,
}


@pytest.mark.parametrize("row", ROWS)
def test_row(kind: str, gateway: Server, row: str):
    expected = KINDS[kind].otherwise.get(row, "yes")
    seen = ROWS[row](gateway.address)
    assert seen == expected or (seen == "yes" and expected in (NOT_ALWAYS, LOSES))


def test_the_check_says_what_clients_have(kind: str, broker: Server | _Emqx):
    url = "mqtt://{}:{}".format(*broker.address)
    done = subprocess.run(
        [REPOSITORY / "bin" / "nats_gateway", "check", "--upstream", url, "--json"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    otherwise = KINDS[kind].otherwise
    assert found["clients"]["no_responders"] is ("503 when nobody listens" not in otherwise)
    assert found["clients"]["echo_false"] is ("`echo:false`" not in otherwise)
    assert found["probe"]["outcome"] == "conclusive"
    assert found["granted"]["maximum_qos"] >= 1 and found["clients"]["queue_groups"] and found["clients"]["wildcards"]
    # docs/brokers.md: who overtakes.
    assert ("pong_overtakes" in found["probe"]["quirks"]) is (kind != "Mosquitto"), found["probe"]


def test_the_table_is_in_the_documentation():
    document = (REPOSITORY / "docs" / "brokers.md").read_text()
    for row in ROWS:
        cells = [KINDS[kind].otherwise.get(row, "yes") for kind in KINDS]
        assert f"| {row} | {' | '.join(cells)} |" in document


def test_a_broker_of_mqtt_3_is_named_as_such(tmp_path: Path):
    """aedes, which speaks 3.1.1."""
    directory = REPOSITORY / "target" / "brokers" / "aedes"
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", "broker.mjs"):
        shutil.copy(HERE / "aedes" / name, directory)
    _build(["npm", "ci", "--no-audit", "--no-fund"], directory)
    broker = _server("aedes", [os.environ.get("NODE", "node"), str(directory / "broker.mjs")], tmp_path)
    gateway = gateway_in_front_of(broker.address, tmp_path, ready=accepts)
    with Stack(gateway, broker):
        with Client(gateway.address, verbose=False) as client:
            assert client.closed() == b""
        until = time.monotonic() + 5
        while "reason=it does not speak MQTT 5" not in gateway.log():
            assert time.monotonic() < until
            time.sleep(0.01)
