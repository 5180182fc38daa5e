"""The plugin is replaced by another version, and back, while NATS and MQTT clients work: as docs/emqx.md says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emqx.gateway import Gateway
from emqx.node import Node, name_vsn, wait_until
from emqx.package import release, with_version
from emqx.page import Page
from emqx.test_closed import LOGINS, TOKEN
from clients.reconnecting import Load, Seen, load

pytestmark = [pytest.mark.plugin, pytest.mark.timeout(90, func_only=True)]

OLD_CODE = "{ok, Ms} = application:get_key(nats_gateway, modules), length([M || M <- Ms, erlang:check_old_code(M)])"


@pytest.fixture
def newer(ready: Gateway, node: Node, package: Path, tmp_path: Path) -> Iterator[Path]:
    """The same plugin as the next version; afterwards the package of the tests is there, whatever happened."""
    major, minor, patch = release(package)["rel_vsn"].split(".")
    made = with_version(package, f"{major}.{minor}.{int(patch) + 1}", tmp_path)
    yield made
    if node.rest.call("GET", f"/plugins/{name_vsn(made)}").status == 200:
        node.stop_plugin(made)
        node.uninstall(made)


def replace(node: Node, old: Path, new: Path) -> dict[str, float]:
    """In the order of docs/emqx.md. Answers the milliseconds of each step."""
    node.ctl("plugins", "allow", name_vsn(new))
    steps = {"stop": node.stop_plugin, "uninstall": node.uninstall, "install": node.upload, "start": node.start_plugin}
    took = {}
    for step, do in steps.items():
        begin = time.monotonic()
        answer = do(new if step in ("install", "start") else old)
        assert answer is None or answer.status == 204, f"{step}: {answer}"
        took[step] = milliseconds(time.monotonic() - begin)
    return took


def milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def all_serve(gateway: Gateway, clients: Load) -> bool:
    """Every client has done its work with the plugin that is there now."""
    if not gateway.served():
        return False
    now = time.monotonic()
    acknowledged = [len(one.acknowledged) for one in clients.verbose]
    flushed = {name: len(numbers) for name, numbers in clients.real.flushed.items()}
    answers = len(clients.real.answered)
    wait_until(
        lambda: all(len(one.acknowledged) > before + 5 for one, before in zip(clients.verbose, acknowledged))
        and all(len(clients.real.flushed[name]) > before + 5 for name, before in flushed.items())
        and len(clients.real.answered) > answers + 5
        and all(max(numbers.values(), default=0) > now for numbers in clients.real.received.values()),
        "all work again",
        deadline=20,
    )
    return True


def pauses(seen: Seen, begin: float) -> tuple[int, int]:
    """Milliseconds from the notice to the close, and from the close to the last connection after it."""
    since = seen.since(begin)
    return milliseconds(since.closed[0] - since.notices[0]), milliseconds(since.opened[-1] - since.closed[0])


def replaced(gateway: Gateway, node: Node, clients: Load, old: Path, new: Path, what: str) -> None:
    # For comparison: the machine may be busy.
    quiet = time.monotonic()
    count = len(clients.mqtt.published)
    wait_until(lambda: len(clients.mqtt.published) > count + 200, "MQTT's publisher works")
    begin = time.monotonic()
    before = milliseconds(clients.mqtt.longest_wait(quiet, begin))
    took = replace(node, old, new)
    wait_until(lambda: all_serve(gateway, clients), "the other version serves", deadline=30)
    loaded = node.eval("[code:which(M) || M <- [nats_gateway_nif, nats_gateway_app, nats_gateway_connection]]")
    assert loaded.count(f"/{name_vsn(new)}/ebin/") == 3, loaded
    print(f"\n{what}: {took} ms")
    for seen in clients.seen:
        since = seen.since(begin)
        assert seen.ended == []
        # Told once, before the close; whoever came to the built-in meanwhile was not.
        assert len(since.notices) == 1 and since.notices[0] < since.closed[0], since
        print(f"  {seen.name}: closes {len(since.closed)}, notice to close and away: {pauses(seen, begin)} ms")
    away = max(pauses(seen, begin)[1] for seen in clients.seen)
    # MQTT clients are not sent away, so whatever they wait for is less.
    wait = milliseconds(clients.mqtt.longest_wait(begin))
    print(f"  MQTT waited for at most {wait} ms, and {before} ms before the stop")
    assert clients.mqtt.disconnects == [] and wait < away


def complete(clients: Load, name: str) -> None:
    """Whatever was acknowledged has arrived at the MQTT subscriber, which has stayed."""
    mqtt = clients.mqtt
    assert mqtt.disconnects == []
    assert mqtt.numbers("mqtt") == list(range(len(mqtt.published))), "MQTT clients have lost or doubled messages"
    for one in clients.verbose:
        assert one.failures == [] and one.acknowledged == list(range(len(one.acknowledged))) != []
        assert set(one.acknowledged) <= set(mqtt.numbers(one.seen.name.rpartition(".")[2]))
    for publisher, numbers in clients.real.flushed.items():
        assert numbers and set(numbers) <= set(mqtt.numbers(publisher))


def test_upgrade_and_rollback(ready: Gateway, node: Node, package: Path, newer: Path, name: str):
    """Between the two the built-in serves."""
    with load(ready.address, node.mqtt, name) as clients:
        replaced(ready, node, clients, package, newer, "upgrade")
        # So that the removal of this version has nothing to look for in all processes of the node.
        wait_until(lambda: node.eval(OLD_CODE) == "0", "the code of the version before is gone", deadline=30)
        replaced(ready, node, clients, newer, package, "rollback")
    complete(clients, name)


def test_upgrade_and_rollback_where_clients_log_in(
    ready: Gateway, node: Node, package: Path, newer: Path, name: str, page: Page
):
    """Between the two nobody is served."""
    page.change(**LOGINS)
    with load(ready.address, node.mqtt, name, auth_token=TOKEN) as clients:
        replaced(ready, node, clients, package, newer, "upgrade, with logins")
        replaced(ready, node, clients, newer, package, "rollback, with logins")
    complete(clients, name)


@pytest.mark.kills  # from 6.3 on EMQX logs an error for it
def test_two_versions_are_never_installed_together(ready: Gateway, node: Node, package: Path, newer: Path):
    """So the old one is removed first; docs/emqx.md says so. The one that is there is not disturbed."""
    with ready.nats() as client:
        node.ctl("plugins", "allow", name_vsn(newer))
        refused = node.upload(newer)
        assert refused.status in (400, 500), refused
        client.ping()
    assert node.plugin("nats_gateway")["rel_vsn"] == release(package)["rel_vsn"]
