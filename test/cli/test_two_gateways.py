"""Two standalone gateways in front of one Mosquitto, behind one address: HAProxy, which asks /healthz."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.running import Running
from clients.reconnecting import Load, load
from emqx.nats import Nats
from monitoring import answers, get
from nats_keys import Key, account_jwt, operator_jwt, user_jwt
from ports import HOST, free_port
from wire.servers import accepts

pytestmark = pytest.mark.timeout(90)

GRACE = 3.0
# What Kubernetes leaves a pod after SIGTERM: terminationGracePeriodSeconds without preStop.
KILLED_AFTER = GRACE + 5.0
HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")

CONFIG = """
global
    stats socket {directory}/admin
defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    timeout check 1s
    # Who was sent to a gateway that has just closed its port goes to the other.
    retries 3
    option redispatch 1
listen nats
    bind {host}:{port}
    balance roundrobin
    option httpchk GET /healthz
    default-server inter 100ms fall 1 rise 1
"""


@dataclass
class Member:
    """A gateway behind the balancer."""

    name: str
    running: Running
    monitor: int

    @property
    def address(self) -> tuple[str, int]:
        return HOST, self.running.port

    def write(self, **settings: object) -> None:
        self.running.write(
            monitor={"bind": f"{HOST}:{self.monitor}"}, server_name=self.name,
            lame_duck_grace_period=f"{int(GRACE)}s", **settings,
        )

    def start(self) -> None:
        self.running.start()
        self.running.until(lambda: answers(self.monitor), "it is monitored")

    def nats(self, **fields: object) -> Nats:
        return Nats(self.address).connect(**fields)


class Balancer:
    def __init__(self, directory: Path, members: list[Member]):
        self.address = HOST, free_port()
        self._admin = directory / "admin"
        config = directory / "haproxy.cfg"
        servers = (f"    server {one.name} {HOST}:{one.running.port} check port {one.monitor}\n" for one in members)
        config.write_text(CONFIG.format(directory=directory, host=HOST, port=self.address[1]) + "".join(servers))
        with (directory / "haproxy.log").open("wb") as log:
            self.process = subprocess.Popen([HAPROXY, "-db", "-f", config], stdout=log, stderr=log)

    def is_ready(self) -> bool:
        return self._admin.exists()

    def status(self, name: str) -> str:
        """UP, DOWN, or what HAProxy says otherwise."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self._admin))
            admin.sendall(b"show stat\n")
            text = b""
            while chunk := admin.recv(65536):
                text += chunk
        head, *rows = (line.split(",") for line in text.decode().splitlines() if line)
        return next(row[head.index("status")] for row in rows if row[1] == name)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@dataclass
class Both:
    one: Member
    two: Member
    balancer: Balancer
    broker: int

    def until(self, condition, what: str, deadline: float = 15.0) -> None:
        self.one.running.until(condition, what, deadline)


@pytest.fixture
def members(tmp_path: Path, mosquitto: int) -> Iterator[list[Member]]:
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(Member(name, Running(tmp_path / name, mosquitto), free_port()))
    yield made
    for member in made:
        process = member.running.process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def both(members: list[Member], tmp_path: Path, mosquitto: int) -> Iterator[Both]:
    if HAPROXY is None:
        pytest.skip("HAProxy is not installed; bin/install-missing test installs it")
    for member in members:
        member.write()
        member.start()
    balancer = Balancer(tmp_path, members)
    try:
        both = Both(*members, balancer, mosquitto)
        # HAProxy gives the socket for its administration its name last.
        both.until(lambda: accepts(balancer.address) and balancer.is_ready(), "HAProxy listens")
        both.until(lambda: all(balancer.status(one.name) == "UP" for one in members), "both are up")
        yield both
    finally:
        balancer.stop()


def served_by(both: Both, number: int = 6) -> list[str]:
    """Who answers so many new clients, one after the other."""
    names = []
    for _ in range(number):
        with Nats(both.balancer.address) as client:
            names.append(client.info["server_name"])
    return names


# --- One goes, and comes back ----------------------------------------------------------------------------------------


def test_clients_of_a_gateway_that_ends_go_to_the_other(both: Both):
    """As Kubernetes ends a pod, with all that has to happen at the same time."""
    with load(both.balancer.address, (HOST, both.broker), "t") as clients:
        assert set(served_by(both)) == {"one", "two"}
        with both.one.nats(protocol=1) as service, both.one.nats(protocol=1) as requester:
            service.subscribe("slow.service")
            requester.subscribe("answer")
            requester.publish("slow.service", b"?", reply="answer")
            request = service.message()

            begin = time.monotonic()
            both.one.running.signal(signal.SIGTERM)
            # Everybody who looks is told: the clients, the balancer, and new clients, which find no port.
            assert b'"ldm":true' in service.line() and b'"ldm":true' in requester.line()
            both.until(lambda: get(both.one.monitor, "/healthz")[0] == 503, "it is not ready any more")
            both.until(lambda: not accepts(both.one.address), "its port is closed")
            both.until(lambda: both.balancer.status("one") == "DOWN", "HAProxy has noticed", GRACE)
            assert set(served_by(both)) == {"two"}
            # Requests under way are answered.
            service.publish(request.reply, b"!")
            assert requester.message().payload == b"!"
            assert time.monotonic() - begin < GRACE, "the machine was too slow to see it"
            service.closed(KILLED_AFTER)
        assert both.one.running.ended(KILLED_AFTER) == 0
        ended = time.monotonic() - begin
        assert GRACE <= ended < KILLED_AFTER
        moved = works_again(both, clients, begin)
        assert 0 < moved < len(clients.seen), "they were at both"

        # Those who are at the other stay there, until that one ends.
        both.one.start()
        both.until(lambda: both.balancer.status("one") == "UP", "HAProxy has noticed")
        assert set(served_by(both)) == {"one", "two"}
        begin = time.monotonic()
        both.two.running.signal(signal.SIGTERM)
        assert both.two.running.ended(KILLED_AFTER) == 0
        assert works_again(both, clients, begin) == len(clients.seen)
    complete(clients)


def works_again(both: Both, clients: Load, begin: float) -> int:
    """How many were at the gateway that has ended."""
    now = time.monotonic()
    acknowledged = [len(one.acknowledged) for one in clients.verbose]
    both.until(
        lambda: all(len(one.acknowledged) > before for one, before in zip(clients.verbose, acknowledged))
        and all(max(numbers.values(), default=0) > now for numbers in clients.real.received.values())
        and max(clients.real.answered, default=0) > now,
        "all work again",
    )
    moved = [seen.since(begin) for seen in clients.seen if seen.since(begin).notices]
    for seen in moved:
        # Told, closed when the grace period was over, and then at the other at the first attempt.
        print(f"{seen.name}: notice to close {1000 * (seen.closed[0] - seen.notices[0]):.0f} ms, "
              f"away {1000 * (seen.opened[0] - seen.closed[0]):.0f} ms")
        assert len(seen.notices) == len(seen.closed) == len(seen.opened) == 1 and seen.ended == []
        assert seen.closed[0] - seen.notices[0] > GRACE - 0.5
    for seen in clients.seen:
        assert seen.name in [one.name for one in moved] or seen.since(begin).closed == []
    return len(moved)


def complete(clients: Load) -> None:
    """Whatever was acknowledged has arrived at the MQTT subscriber."""
    mqtt = clients.mqtt
    assert mqtt.disconnects == [] and mqtt.numbers("mqtt") == list(range(len(mqtt.published)))
    for one in clients.verbose:
        assert one.failures == [] and one.acknowledged == list(range(len(one.acknowledged))) != []
        assert set(one.acknowledged) <= set(mqtt.numbers(one.seen.name.rpartition(".")[2]))
    for publisher, numbers in clients.real.flushed.items():
        assert numbers and set(numbers) <= set(mqtt.numbers(publisher))


# --- What is shared, and what is not ---------------------------------------------------------------------------------


def test_a_queue_group_has_its_members_at_both(both: Both):
    count = 200
    with ExitStack() as stack:
        members = [stack.enter_context(one.nats()) for one in (both.one, both.two)]
        for member in members:
            member.subscribe("work", group="workers")
        publisher = stack.enter_context(Nats(both.balancer.address).connect())
        for number in range(count):
            publisher.publish("work", b"%d" % number)
        publisher.ping()
        taken: list[list[int]] = [[], []]

        def collect() -> bool:
            for member, numbers in zip(members, taken):
                while (message := member.available()) is not None:
                    numbers.append(int(message.payload))
            return sum(map(len, taken)) >= count

        both.until(collect, "all were taken")
        for member in members:
            member.silent()
    assert sorted(taken[0] + taken[1]) == list(range(count)) and taken[0] and taken[1]


def test_requests_are_answered_from_the_other(both: Both):
    for here, there in ((both.one, both.two), (both.two, both.one)):
        with here.nats() as requester, there.nats() as service:
            requester.subscribe("answers.*")
            requester.publish("service", b"?", reply="answers.1")
            assert b"503" in requester.message().headers
            service.subscribe("service")
            requester.publish("service", b"?", reply="answers.2")
            request = service.message()
            service.publish(request.reply, b"!")
            answer = requester.message()
            assert (answer.subject, answer.payload) == ("answers.2", b"!")


def test_an_account_has_its_connections_at_each(members: list[Member]):
    operator, account, user = (Key(role) for role in ("operator", "account", "user"))
    token = account_jwt(operator, account, limits={"conn": 1})
    for member in members:
        member.write(internal_authn=[{
            "type": "jwt", "trusted_operators": [operator_jwt(operator)],
            "resolver": {"type": "memory", "resolver_preload": [{"pubkey": account.public, "jwt": token}]},
        }])
        member.start()

    def log_in(member: Member) -> Nats:
        client = Nats(member.address)
        client.login(jwt=user_jwt(account, user), sig=user.signature(client.info))
        return client

    with ExitStack() as stack:
        for member in members:
            stack.enter_context(log_in(member)).ping()
        for member in members:
            stack.enter_context(log_in(member)).rejected("maximum account active connections exceeded")
