"""Subject mappings in EMQX: NATS clients on one side, EMQX's own MQTT clients on the other."""

from __future__ import annotations

import pytest

from emqx.gateway import Gateway, auto_subscribe, file_rules
from emqx.page import Page
from mappings import both_ways, published, rules, subscribed

pytestmark = pytest.mark.plugin


@pytest.fixture
def mapped(gateway: Gateway, page: Page, name: str) -> Gateway:
    page.change(publish_mappings=[*rules(name), ""], subscribe_mappings=rules(name))
    return gateway


def test_publishes(mapped: Gateway, name: str):
    with mapped.mqtt() as mqtt:
        published(mapped.nats, mqtt, name)


def test_subscriptions(mapped: Gateway, name: str):
    with mapped.mqtt() as mqtt:
        subscribed(mapped.nats, mqtt, name)


def test_nats_clients_notice_nothing(mapped: Gateway, name: str):
    both_ways(lambda: mapped.nats(headers=True, no_responders=True), name)


def test_off_is_off(gateway: Gateway, page: Page, name: str):
    assert page.read()["publish_mappings"] == page.read()["subscribe_mappings"] == []
    with gateway.mqtt() as mqtt, gateway.nats() as nats:
        mqtt.subscribe(f"{name}/#")
        nats.publish(f"{name}.5.temp")
        assert mqtt.message().topic == f"{name}/5/temp"


def test_partitions_and_weights(gateway: Gateway, page: Page, name: str):
    page.change(publish_mappings=[
        f"{name}.p.*.* -> {name}.part.{{{{partition(7,1,2)}}}}", f"{name}.w -> {name}.w1 50%, {name}.w2 50%"
    ])
    with gateway.mqtt() as mqtt, gateway.nats() as nats:
        mqtt.subscribe(f"{name}/#")
        # nats-server 2.10.27 has the same number: test/cli/test_mappings.py asks it.
        nats.publish(f"{name}.p.0815.x")
        assert mqtt.message().topic == f"{name}/part/5"
        for _ in range(100):
            nats.publish(f"{name}.w")
        assert {mqtt.message().topic for _ in range(100)} == {f"{name}/w1", f"{name}/w2"}


def test_emqx_authorizes_the_topic_that_a_rule_leads_to(mapped: Gateway, name: str):
    with file_rules(mapped, f'{{deny, all, all, ["{name}/fleet/#"]}}'), mapped.nats() as nats:
        nats.publish(f"{name}.5.temp")
        nats.error(f'Permissions Violation for Publish to "{name}.fleet.5.temp"')
        nats.send(f"SUB {name}.*.temp 1\r\n")
        nats.error(f'Permissions Violation for Subscription to "{name}.*.temp"')
        # What is not about the topic of a rule is not in its way.
        nats.subscribe(f"{name}.all.>", sid="2")
        nats.publish(f"{name}.all.1", b"x")
        assert nats.message().subject == f"{name}.all.1"


def test_what_emqx_subscribes_has_the_names_of_the_broker(mapped: Gateway, page: Page, name: str):
    page.change(auto_subscribe=True, subscribe_mappings=rules(name))
    with auto_subscribe(mapped, f"{name}/fleet/+/temp"), mapped.mqtt() as mqtt, mapped.nats() as nats:
        nats.ping()
        nats.subscribe(f"{name}.*.temp", sid="1")
        mqtt.publish(f"{name}/fleet/5/temp")
        assert {nats.message().subject for _ in range(2)} == {f"{name}.5.temp", f"{name}.fleet.5.temp"}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"publish_mappings": ["a.* -> b.$2"]}, "publish_mappings[1]: must not use a wildcard"),
        ({"subscribe_mappings": ["a.* -> b.{{partition(3,1)}}"]}, "subscribe_mappings[1]: must be reversible"),
        ({"publish_mappings": [f"a{n} -> b" for n in range(101)]}, "publish_mappings: must be at most 100 rules"),
        ({"publish_mappings": ["a -> b", "a -> c"]}, "publish_mappings[2]: has the subject of rule 1"),
    ],
)
def test_a_wrong_rule_is_refused_and_changes_nothing(mapped: Gateway, page: Page, name: str, changes: dict, text: str):
    answer = page.try_change(**changes)
    assert answer.status == 400 and text in str(answer)
    assert page.read()["subscribe_mappings"] == rules(name)
    with mapped.mqtt() as mqtt, mapped.nats() as nats:
        mqtt.subscribe(f"{name}/#")
        nats.publish(f"{name}.special")
        assert mqtt.message().topic == f"{name}/one"


def test_as_many_rules_as_there_may_be(gateway: Gateway, page: Page, name: str):
    page.change(publish_mappings=[f"{name}.{n} -> {name}.x.{n}" for n in range(100)])
    with gateway.mqtt() as mqtt, gateway.nats() as nats:
        mqtt.subscribe(f"{name}/#")
        nats.publish(f"{name}.99")
        assert mqtt.message().topic == f"{name}/x/99"
