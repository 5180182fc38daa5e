"""What docs/from-builtin.md says of names: each row, in the built-in gateway (EMQX_GATEWAY=builtin) and in the plugin."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest

from emqx.conftest import BUILT_IN, REPOSITORY
from emqx.gateway import BUILT_IN_DATABASE, Gateway
from emqx.nats import Address, NatsFailure

NAME = re.compile(r"`([^`]*)`")
ONLY_LATER = "(in 5.10 none)"


def rows(first_column: str) -> list[tuple[str, str | None, bool]]:
    """A name, what it is on the other side, and whether it is that in 5.10, too."""
    page = (REPOSITORY / "docs" / "from-builtin.md").read_text()
    found: list[tuple[str, str | None, bool]] = []
    inside = False
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith(f"| {first_column} |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|--"):
            assert len(cells) == 4, line
            cell = cells[1 if BUILT_IN else 2]
            given, others = NAME.findall(cells[0]), NAME.findall(cell)
            assert others or cell.startswith("none: "), line
            for name, other in zip(given, others or [None] * len(given), strict=True):
                found.append((name, other, ONLY_LATER not in cell))
    return found


SUBJECTS, TOPICS = rows("NATS subject"), rows("MQTT topic")


def expected(gateway: Gateway, other: str | None, always: bool) -> list[str]:
    if other is None or not always and gateway.node.version < (6,):
        return []
    return [other]


def test_the_page_has_the_rows():
    assert len(SUBJECTS) > 10 and len(TOPICS) > 7


@pytest.mark.parametrize(("subject", "topic", "always"), SUBJECTS, ids=[row[0] for row in SUBJECTS])
def test_a_subject_is_a_topic(gateway: Gateway, name: str, subject: str, topic: str | None, always: bool):
    mark = name.encode()
    with gateway.nats() as client, gateway.mqtt() as mqtt:
        mqtt.subscribe("#")
        client.publish(subject, mark)
        # The built-in ends the connection for some.
        with suppress(NatsFailure):
            client.ping()
        mqtt.publish(name, b"the end")
        found = []
        while (message := mqtt.message()).payload != b"the end":
            found += [message.topic] if message.payload == mark else []
    assert found == expected(gateway, topic, always)


@pytest.mark.parametrize(("topic", "subject", "always"), TOPICS, ids=[row[0] for row in TOPICS])
def test_a_topic_is_a_subject(gateway: Gateway, name: str, topic: str, subject: str | None, always: bool):
    with gateway.nats() as client, gateway.mqtt() as mqtt:
        client.subscribe(">")
        mqtt.publish(topic, name.encode())
        mqtt.publish(name, b"the end")
        found = []
        while (message := client.message()).payload != b"the end":
            found += [message.subject] if message.payload == name.encode() else []
        assert found == expected(gateway, subject, always)
        if not BUILT_IN:
            # and who subscribes to that subject gets the message
            client.subscribe(subject, "2")
            mqtt.publish(topic, b"again")
            assert {client.message().sid, client.message().sid} == {"1", "2"}


def test_a_level_with_a_dot(gateway: Gateway, name: str):
    """In the built-in only a wildcard takes it."""
    by_name, by_wildcard = (f"{name}.0.x", "*.x") if BUILT_IN else (f"{name}//0.x", "*.x")
    with gateway.nats() as client, gateway.mqtt() as mqtt:
        client.subscribe(by_name, "name").subscribe(by_wildcard, "wildcard")
        mqtt.publish(f"{name}.0/x", b"x")
        mqtt.publish(f"{name}/x", b"the end")
        sids = set()
        while (message := client.message()).payload != b"the end":
            sids |= {message.sid}
    assert sids == ({"wildcard"} if BUILT_IN else {"name", "wildcard"})


# --- INFO ------------------------------------------------------------------------------------------------------------


def told(gateway: Gateway, address: Address | None = None) -> object:
    with gateway.raw(address) as client:
        return client.info.get("auth_required", "nothing")


def test_what_info_says_of_logins(gateway: Gateway, name: str):
    assert told(gateway) == (False if BUILT_IN else "nothing")
    address = gateway.listen(name)
    gateway.authenticate(BUILT_IN_DATABASE, name)
    assert told(gateway, address) == (False if BUILT_IN else True)
    gateway.authenticate(BUILT_IN_DATABASE | {"enable": False})
    assert told(gateway) == (True if BUILT_IN else "nothing")
    # whatever was said, everybody is let in
    gateway.nats().close()
    gateway.authenticate(BUILT_IN_DATABASE)
    assert told(gateway) is True
