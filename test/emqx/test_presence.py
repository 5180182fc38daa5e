"""Presence in EMQX: a retained message while a client is there, and another one when it is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from emqx.gateway import BUILT_IN_DATABASE, NAMED, Gateway, file_rules
from emqx.mqtt import Mqtt
from emqx.node import Node, wait_until
from emqx.page import Page

pytestmark = pytest.mark.plugin

HERE, GONE = '{"online":true,"name":"%s"}', '{"online":false}'
SETTINGS = {"presence_connected": HERE % "${name}", "presence_disconnected": GONE}


def told(client: Mqtt, deadline: float = 10.0) -> tuple[str, str]:
    message = client.message(deadline)
    return message.topic, message.payload.decode()


def retained(gateway: Gateway, topic: str) -> str | None:
    with gateway.mqtt() as client:
        client.subscribe(topic)
        try:
            message = client.message(0.5)
        except AssertionError:
            return None
        assert message.retain
        return message.payload.decode()


@pytest.fixture
def watched(gateway: Gateway, page: Page, name: str) -> Iterator[Mqtt]:
    page.change(presence_topic=f"presence/{name}/${{name}}", **SETTINGS)
    with gateway.mqtt() as client:
        client.subscribe(f"presence/{name}/#")
        yield client


def test_it_comes_and_goes(gateway: Gateway, watched: Mqtt, name: str):
    topic = f"presence/{name}/orders"
    with gateway.nats(name="orders") as nats:
        assert told(watched) == (topic, HERE % "orders")
        assert retained(gateway, topic) == HERE % "orders"
        nats.ping()
    assert told(watched) == (topic, GONE)
    assert retained(gateway, topic) == GONE
    with gateway.nats(name="last"):
        assert told(watched)[0] == f"presence/{name}/last"


def test_a_kick(gateway: Gateway, watched: Mqtt, name: str):
    gateway.settings(**NAMED)
    with gateway.nats(name=name) as nats:
        assert told(watched) == (f"presence/{name}/{name}", HERE % name)
        wait_until(lambda: gateway.client(name) is not None, "EMQX knows it")
        gateway.kick(name)
        assert told(watched) == (f"presence/{name}/{name}", GONE)
        nats.closed()


def test_a_process_that_is_killed(gateway: Gateway, watched: Mqtt, name: str):
    """It can say nothing: another one of the node does."""
    with gateway.nats(name="orders"):
        assert told(watched) == (f"presence/{name}/orders", HERE % "orders")
        killed = gateway.node.eval(
            "[exit(P, kill) || P <- pg:get_local_members(nats_gateway_emqx_presence,"
            f' hd([G || {{gone, #{{topic := <<"presence/{name}/orders">>}}}} = G <- pg:which_groups(nats_gateway_emqx_presence)]))]'
        )
        assert killed == "[true]"
        assert told(watched) == (f"presence/{name}/orders", GONE)


def test_a_killed_process_whose_client_has_come_back(gateway: Gateway, watched: Mqtt, name: str):
    topic = f"presence/{name}/orders"
    with gateway.nats(name="orders"):
        assert told(watched) == (topic, HERE % "orders")
        with gateway.nats(name="orders"):
            assert told(watched) == (topic, HERE % "orders")
            oldest = (
                "lists:min(lists:append([pg:get_members(nats_gateway_emqx_presence, G) ||"
                f' {{gone, #{{topic := <<"{topic}">>}}}} = G <- pg:which_groups(nats_gateway_emqx_presence)]))'
            )
            assert gateway.node.eval(f"exit({oldest}, kill)") == "true"
            with pytest.raises(AssertionError):
                told(watched, 2.5)
        assert told(watched) == (topic, GONE)


def test_another_login_on_the_same_connection(gateway: Gateway, page: Page, name: str):
    gateway.authenticate(BUILT_IN_DATABASE)
    for user in ("first", "second"):
        gateway.add_user(user, "pw")
    page.change(presence_topic=f"presence/{name}/${{username}}")
    with gateway.mqtt() as client:
        client.subscribe(f"presence/{name}/#")
        with gateway.nats(user="first", **{"pass": "pw"}) as nats:
            assert told(client) == (f"presence/{name}/first", "online")
            nats.login(user="second", **{"pass": "pw"})
            nats.ping()
            assert told(client) == (f"presence/{name}/first", "offline")
            assert told(client) == (f"presence/{name}/second", "online")
        assert told(client) == (f"presence/{name}/second", "offline")


def test_the_clients_permissions_do_not_count(gateway: Gateway, watched: Mqtt, name: str):
    """The operator chooses the topic, and the client may not write there itself."""
    with file_rules(gateway, f'{{deny, all, publish, ["presence/{name}/#"]}}'):
        with gateway.nats(name="orders") as nats:
            assert told(watched) == (f"presence/{name}/orders", HERE % "orders")
            nats.publish(f"presence.{name}.orders", b"x")
            nats.expect(f"-ERR 'Permissions Violation for Publish to \"presence.{name}.orders\"'\r\n".encode())
        assert told(watched) == (f"presence/{name}/orders", GONE)


def test_what_the_templates_hold(gateway: Gateway, page: Page, name: str):
    fields = ("account", "clientid", "connected_at", "listener", "name", "peerhost", "server_name", "username")
    payload = "{" + ",".join(f'"{field}":"${{{field}}}"' for field in fields) + "}"
    gateway.settings(**NAMED, mountpoint="site/")
    page.change(presence_topic="presence/${clientid}", presence_connected=payload, presence_retain=False, presence_qos=0)
    with gateway.mqtt() as client:
        client.subscribe(f"site/presence/{name}")
        with gateway.nats(name=name, user='u"\\'):
            seen = json.loads(client.message().payload)
        assert told(client) == (f"site/presence/{name}", "offline")
    assert retained(gateway, f"site/presence/{name}") is None
    assert seen.pop("connected_at").isdigit()
    assert seen == {
        "account": "$G", "clientid": name, "listener": "nats:tcp:default", "name": name, "peerhost": "127.0.0.1",
        "server_name": seen["server_name"], "username": 'u"\\',
    }


@pytest.mark.parametrize(("client", "reason"), [("", "empty_value"), ("a+", "wildcard"), ("a/b", "separator")])
def test_a_topic_that_cannot_be_made(gateway: Gateway, watched: Mqtt, name: str, client: str, reason: str):
    begin = gateway.node.log_size
    for _ in range(3):
        with gateway.nats(name=client) as nats:
            nats.ping()
    with gateway.nats(name="orders"):
        assert told(watched) == (f"presence/{name}/orders", HERE % "orders")

    def lines() -> list[str]:
        return [line for line in gateway.node.log(begin).splitlines() if "presence_not_published" in line]

    wait_until(lambda: lines(), "the log tells it")
    assert len(lines()) == 1 and "presence_topic" in lines()[0] and reason in lines()[0]


@pytest.mark.parametrize(("change", "text"), [
    ({"presence_topic": "presence/${nme}"}, "presence_topic: has a placeholder that is unknown"),
    ({"presence_topic": "presence/+"}, "presence_topic: must not have a wildcard"),
    ({"presence_topic": "$share/x"}, "presence_topic: must not begin with $"),
    ({"presence_topic": "x" * 1025}, "presence_topic: must be a string of at most 1024 bytes"),
    ({"presence_disconnected": "x" * 4097}, "presence_disconnected: must be a string of at most 4096 bytes"),
    ({"presence_qos": 2}, "presence_qos: must be an integer from 0 to 1"),
])
def test_wrong_settings_are_refused_by_name(page: Page, change: dict, text: str):
    before = page.read()
    answer = page.try_change(**change)
    assert answer.status == 400 and text in str(answer.body)
    assert page.read() == before


@pytest.mark.kills
@pytest.mark.timeout(120, func_only=True)
def test_the_plugin_stops(gateway: Gateway, node: Node, package: Path, watched: Mqtt, name: str):
    """And the node: its clients are told to leave, and each is said to be gone."""
    with gateway.nats(name="orders"):
        assert told(watched) == (f"presence/{name}/orders", HERE % "orders")
        with node.stopped_plugin(package):
            assert told(watched) == (f"presence/{name}/orders", GONE)
    wait_until(gateway.served, "the plugin serves again", deadline=30)
