"""EMQX's authorization sources decide who may publish and subscribe to what; the texts are nats-server's."""

from __future__ import annotations

import pytest

from emqx.gateway import BUILT_IN_DATABASE, NAMED, Gateway, file_rules, rest_change
from emqx.http_auth import HttpAuthority
from emqx.nats import Nats
from emqx.node import wait_until

SETTINGS = "/authorization/settings"


@pytest.fixture
def database(gateway: Gateway) -> Gateway:
    """The built-in database in front of the file."""
    gateway.undo("DELETE", "/authorization/sources/built_in_database")
    gateway.rest.post("/authorization/sources", {"type": "built_in_database", "enable": True})
    gateway.rest.post("/authorization/sources/built_in_database/move", {"position": "front"})
    return gateway


def publish_denied(client: Nats, subject: str) -> None:
    client.publish(subject, b"x")
    client.error(f'Permissions Violation for Publish to "{subject}"')


def subscribe_denied(client: Nats, subject: str, group: str | None = None) -> None:
    client.send(f"SUB {subject} {group + ' ' if group else ''}99\r\n")
    queue = f' using queue "{group}"' if group else ""
    client.error(f'Permissions Violation for Subscription to "{subject}"{queue}')


def test_file_rules(gateway: Gateway, name: str):
    rules = (
        f'{{deny, all, publish, ["{name}/closed/#"]}}',
        f'{{deny, all, subscribe, ["{name}/closed/#"]}}',
    )
    with file_rules(gateway, *rules), gateway.mqtt() as mqtt, gateway.nats() as client:
        mqtt.subscribe(f"{name}/#")
        publish_denied(client, f"{name}.closed.a")
        subscribe_denied(client, f"{name}.closed.a")
        subscribe_denied(client, f"{name}.closed.>")
        subscribe_denied(client, f"{name}.closed.*", group="workers")
        # the connection is open, and everything else is allowed
        client.subscribe(f"{name}.open").publish(f"{name}.open", b"allowed")
        assert client.message().payload == b"allowed"
        assert mqtt.message().payload == b"allowed", "a denied message was delivered"


def test_denied_in_verbose_mode(gateway: Gateway, name: str):
    """An error takes the place of +OK."""
    with file_rules(gateway, f'{{deny, all, all, ["{name}/closed"]}}'), gateway.raw() as client:
        client.login(verbose=True)
        client.expect(b"+OK\r\n")
        publish_denied(client, f"{name}.closed")
        subscribe_denied(client, f"{name}.closed")
        client.publish(f"{name}.open", b"x")
        client.expect(b"+OK\r\n")


@pytest.mark.parametrize("placeholder", ["username", "clientid"])
def test_file_rules_with_placeholders(gateway: Gateway, name: str, placeholder: str):
    gateway.settings(**NAMED)
    rules = (
        f'{{allow, all, all, ["{name}/${{{placeholder}}}/#"]}}',
        f'{{deny, all, all, ["{name}/#"]}}',
    )
    with file_rules(gateway, *rules), gateway.nats(user=f"{name}u", name=f"{name}u") as client:
        client.subscribe(f"{name}.{name}u.>").publish(f"{name}.{name}u.a", b"own")
        assert client.message().payload == b"own"
        publish_denied(client, f"{name}.other.a")
        subscribe_denied(client, f"{name}.>")


def test_rules_are_for_topics_without_the_mountpoint(gateway: Gateway, name: str):
    """As for MQTT clients."""
    gateway.settings(mountpoint="mounted/")
    with file_rules(gateway, f'{{deny, all, all, ["{name}/closed"]}}'), gateway.nats() as client:
        publish_denied(client, f"{name}.closed")
        subscribe_denied(client, f"{name}.closed")
        client.publish(f"{name}.open", b"x")
        client.ping()


def test_built_in_database_rules(database: Gateway, name: str):
    rules = [
        {"topic": f"{name}/${{username}}/#", "permission": "allow", "action": "all"},
        {"topic": f"{name}/in", "permission": "allow", "action": "subscribe"},
        {"topic": f"{name}/#", "permission": "deny", "action": "all"},
    ]
    path = "/authorization/sources/built_in_database/rules/users"
    database.undo("DELETE", f"{path}/{name}")
    database.rest.post(path, [{"username": name, "rules": rules}])
    with database.nats(user=name) as client, database.nats(user="other") as other:
        client.subscribe(f"{name}.{name}.a").publish(f"{name}.{name}.a", b"1")
        assert client.message().payload == b"1"
        client.subscribe(f"{name}.in", sid="2")
        publish_denied(client, f"{name}.in")
        publish_denied(client, f"{name}.out")
        subscribe_denied(client, f"{name}.out")
        # the rules are this user's
        other.publish(f"{name}.in", b"2")
        assert client.message().payload == b"2"


def test_the_cache_holds_until_it_is_drained(database: Gateway, name: str):
    database.settings(**NAMED)
    path = "/authorization/sources/built_in_database/rules/users"
    database.undo("DELETE", f"{path}/{name}")
    with database.nats(user=name, name=name) as client:
        client.subscribe(name)
        client.publish(name, b"allowed, and remembered")
        client.message()
        rule = {"topic": name, "permission": "deny", "action": "publish"}
        database.rest.post(path, [{"username": name, "rules": [rule]}])
        client.publish(name, b"still allowed")
        assert client.message().payload == b"still allowed"
        database.rest.delete("/authorization/cache")
        publish_denied(client, name)
        client.silent()
        # and the denial is remembered, too
        database.rest.delete(f"{path}/{name}")
        publish_denied(client, name)
        database.rest.delete("/authorization/cache")
        client.publish(name, b"allowed again")
        assert client.message().payload == b"allowed again"


def test_another_login_is_decided_anew(gateway: Gateway, name: str):
    """What one user was allowed or denied is not remembered for the next one of the connection."""
    rules = (f'{{deny, {{username, "b"}}, all, ["{name}/b"]}}', f'{{deny, {{username, "a"}}, all, ["{name}/a"]}}')
    with file_rules(gateway, *rules), gateway.mqtt() as mqtt, gateway.nats(user="a") as client:
        mqtt.subscribe(f"{name}/#")
        client.publish(f"{name}.b", b"of a")
        client.subscribe(f"{name}.b").send("UNSUB 1\r\n")
        publish_denied(client, f"{name}.a")
        subscribe_denied(client, f"{name}.a")
        assert mqtt.message().payload == b"of a"
        client.connect(user="b")
        publish_denied(client, f"{name}.b")
        subscribe_denied(client, f"{name}.b")
        client.subscribe(f"{name}.a").publish(f"{name}.a", b"of b")
        assert client.message().payload == b"of b"
        assert mqtt.message().payload == b"of b", "a denied message was delivered"


def test_without_the_cache_a_rule_holds_at_once(database: Gateway, name: str):
    path = "/authorization/sources/built_in_database/rules/users"
    database.undo("DELETE", f"{path}/{name}")
    cache = database.rest.get(SETTINGS)["cache"]
    with rest_change(database.rest, SETTINGS, {"cache": cache | {"enable": False}}), database.nats(user=name) as client:
        client.subscribe(name)
        client.publish(name, b"allowed")
        client.message()
        rule = {"topic": name, "permission": "deny", "action": "publish"}
        database.rest.post(path, [{"username": name, "rules": [rule]}])
        publish_denied(client, name)


def test_deny_action_disconnect(gateway: Gateway, name: str):
    with (
        file_rules(gateway, f'{{deny, all, all, ["{name}"]}}'),
        rest_change(gateway.rest, SETTINGS, {"deny_action": "disconnect"}),
    ):
        with gateway.nats() as client:
            client.publish(name, b"x")
            client.rejected(f'Permissions Violation for Publish to "{name}"')
        with gateway.nats() as client:
            client.send(f"SUB {name} 1\r\n")
            client.rejected(f'Permissions Violation for Subscription to "{name}"')
        with gateway.nats() as client:
            client.publish(f"{name}.open", b"x")
            client.ping()


def test_superuser(gateway: Gateway, name: str):
    gateway.authenticate(BUILT_IN_DATABASE)
    gateway.add_user("root", "secret", is_superuser=True)
    gateway.add_user("anne", "secret")
    with file_rules(gateway, f'{{deny, all, all, ["{name}"]}}'):
        with gateway.nats(user="root", **{"pass": "secret"}) as client:
            client.subscribe(name).publish(name, b"x")
            assert client.message().payload == b"x"
        with gateway.nats(user="anne", **{"pass": "secret"}) as client:
            publish_denied(client, name)
            subscribe_denied(client, name)


def test_no_match_deny(gateway: Gateway, name: str):
    path = "/authorization/sources/file"
    before = gateway.rest.get(path)
    with rest_change(gateway.rest, SETTINGS, {"no_match": "deny"}):
        gateway.rest.put(path, before | {"rules": f'{{allow, all, all, ["{name}/open"]}}.\n'})
        try:
            with gateway.nats() as client:
                client.subscribe(f"{name}.open").publish(f"{name}.open", b"x")
                assert client.message().payload == b"x"
                publish_denied(client, f"{name}.other")
                subscribe_denied(client, f"{name}.other")
        finally:
            gateway.rest.put(path, before)


@pytest.mark.plugin
def test_a_long_run_over_slow_access_control(gateway: Gateway, name: str):
    """What comes meanwhile, and a kick, wait for one decision; not for those of the whole run."""
    gateway.settings(**NAMED)
    count, few = 200, 50
    with HttpAuthority(delay=0.05) as authority:
        authority.answers[name] = {"result": "allow"}
        gateway.undo("DELETE", "/authorization/sources/http")
        gateway.rest.post("/authorization/sources", authority.authorizer)
        gateway.rest.post("/authorization/sources/http/move", {"position": "front"})
        with gateway.nats(name=name, user=name) as client, gateway.mqtt(username=name) as mqtt:
            gateway.known(name)
            client.subscribe(name)
            authority.requests.clear()
            client.send("".join(f"PUB {name}.{number} 1\r\nx\r\n" for number in range(count)))
            wait_until(lambda: len(authority.requests) > 1, "the run has begun")
            mqtt.publish(name, b"meanwhile")
            assert client.message().payload == b"meanwhile"
            assert len(authority.requests) < count
            before = len(authority.requests)
            gateway.kick(name)
            client.closed()
            assert len(authority.requests) - before < few
            # the rest of the run has ended with the client
            gateway.forgotten(name)
            assert len(authority.requests) < count


@pytest.mark.parametrize("subject", ["$SYS.brokers", "$share.g.t", "$queue.t"])
def test_names_of_the_broker_cannot_be_published_to(gateway: Gateway, subject: str):
    with gateway.nats() as client:
        publish_denied(client, subject)


@pytest.mark.parametrize("subject", ["$share.g.t", "$queue.t", "$exclusive.t"])
def test_names_of_the_broker_cannot_be_subscribed_to(gateway: Gateway, subject: str):
    with gateway.nats() as client:
        subscribe_denied(client, subject)
