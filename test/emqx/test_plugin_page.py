"""The plugin's own page: what EMQX's NATS page has no field for."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from emqx.gateway import BUILT_IN_DATABASE, Gateway
from emqx.nats import NatsFailure
from emqx.node import Node, wait_until
from emqx.page import DEFAULTS, Page, installed_with, stored_file

pytestmark = pytest.mark.plugin
# Of `w0rd`, cost 4.
HASH = "$2a$04$JUIzNcqxj1tTtswnN1a6rOwYU7ysPtDI2t2MvR0L5NgENKQzHf/9y"


def test_the_form(node: Node, plugin: str):
    shown = node.rest.get(f"/plugins/{plugin}/schema")
    assert [field["name"] for field in shown["avsc"]["fields"]] == list(DEFAULTS)
    assert set(shown["i18n"]["$drain_time_label"]) == {"en", "zh"}


def test_a_fresh_plugin_shows_its_defaults(page: Page):
    assert page.read() == DEFAULTS


def test_max_control_line(gateway: Gateway, page: Page):
    page.change(max_control_line="512")
    with gateway.nats() as client:
        client.send(f"SUB {'a' * 600} 1\r\n")
        client.rejected("maximum control line exceeded")
    page.change(max_control_line="8KB")
    with gateway.nats() as client:
        client.subscribe("a" * 6000)


def test_max_subscriptions(gateway: Gateway, page: Page):
    page.change(max_subscriptions=2)
    with gateway.nats() as client:
        client.subscribe("a", sid="1").subscribe("b", sid="2")
        client.send("SUB c 3\r\n")
        client.error("maximum subscriptions exceeded")
        client.send("UNSUB 1\r\n")
        client.subscribe("c", sid="3")


def test_authentication_timeout(gateway: Gateway, page: Page):
    page.change(authentication_timeout="500ms")
    gateway.authenticate(BUILT_IN_DATABASE)
    with gateway.raw() as client:
        began = time.monotonic()
        client.expect(b"-ERR 'Authentication Timeout'\r\n", deadline=5)
        client.closed()
        assert 0.4 < time.monotonic() - began < 1.9


def test_retained_on_subscribe(gateway: Gateway, page: Page, name: str):
    page.change(retained_on_subscribe=True)
    with gateway.mqtt() as mqtt:
        mqtt.publish(f"{name}/a", b"retained", retain=True)
        try:
            gateway.rest.get(f"/mqtt/retainer/message/{name}%2Fa")
            with gateway.nats() as client:
                client.send(f"SUB {name}.* 1\r\n")
                assert client.message().payload == b"retained"
                # not in a queue group, as in MQTT
                client.subscribe(f"{name}.a", sid="2", group="workers")
                time.sleep(0.3)
                client.silent()
        finally:
            mqtt.publish(f"{name}/a", b"", retain=True)


def test_many_retained_messages(gateway: Gateway, page: Page, name: str):
    page.change(retained_on_subscribe=True)
    topics = [f"{name}/{number}" for number in range(250)]
    with gateway.mqtt() as mqtt:
        for topic in topics:
            mqtt.publish(topic, topic.encode(), retain=True)
        try:
            gateway.rest.get(f"/mqtt/retainer/message/{name}%2F249")
            with gateway.nats() as client:
                client.send(f"SUB {name}.> 1\r\nSUB {name}.7 2\r\n")
                messages = [client.message() for _ in range(251)]
                assert sorted(message.payload.decode() for message in messages if message.sid == "1") == sorted(topics)
                assert [message.payload for message in messages if message.sid == "2"] == [f"{name}/7".encode()]
                client.silent()
        finally:
            for topic in topics:
                mqtt.publish(topic, b"", retain=True)


def test_send_timeout(gateway: Gateway, page: Page, name: str):
    """A client that takes nothing is closed after this time."""
    page.change(send_timeout="1s", max_pending="1MB")
    address = gateway.listen(name)
    with gateway.nats(address, name="slow") as slow, gateway.nats() as sender:
        port = int(slow.peername.rpartition(":")[2])
        slow.subscribe(name)
        for _ in range(40):
            sender.publish(name, b"x" * 500000)
        sender.ping()

        def gone() -> bool:
            return not [one for one in gateway.clients() if one["port"] == port]

        wait_until(gone, "the slow client is gone", deadline=15)
        sender.ping()


# In Erlang, as `emqx ctl gateway-metrics nats` shows it.
SLOW_CONSUMERS = "proplists:get_value('clients.slow_consumer', emqx_gateway_metrics:lookup(nats), 0)"


# A busy machine takes many seconds for each command of EMQX.
@pytest.mark.timeout(180, func_only=True)
@pytest.mark.parametrize(("count", "is_slow"), [(2000, False), (10000, True)])
def test_max_pending_counts_what_waits_in_the_mailbox(
    gateway: Gateway, page: Page, name: str, count: int, is_slow: bool
):
    """A client whose process gets no time piles up messages, not bytes in its socket."""
    page.change(max_pending="2MB", send_timeout="1h")
    address = gateway.listen(name)
    with gateway.nats(address) as slow, gateway.nats(address) as quick, gateway.nats() as sender:
        slow.subscribe(name)
        # for as long as this holder of the process lives
        before = int(
            gateway.node.eval(
                f'[P] = emqx_broker:subscribers(<<"{name}">>), S = self(),'
                " true = register(holder, spawn(fun() ->"
                " true = erlang:suspend_process(P), S ! suspended, receive stop -> ok end end)),"
                f" receive suspended -> {SLOW_CONSUMERS} end"
            )
        )
        quick.subscribe(name)
        try:
            for number in range(count):
                sender.publish(name, b"%100d" % number)
            sender.ping()
            for number in range(count):
                assert int(quick.message().payload) == number
        finally:
            gateway.node.eval("holder ! stop.")
        if is_slow:
            with pytest.raises(NatsFailure):
                for _ in range(count):
                    slow.message()
            wait_until(lambda: gateway.node.eval(SLOW_CONSUMERS) == str(before + 1), "it is counted", deadline=60)
        else:
            for number in range(count):
                assert int(slow.message().payload) == number
            # Nobody was closed who could be counted.
            slow.ping()
        quick.ping()


def test_a_removed_listener_tells_its_clients(gateway: Gateway, page: Page, name: str):
    """Nobody waits for them: drain_time is for a plugin that stops."""
    page.change(drain_time="8s")
    address = gateway.listen(name)
    with gateway.nats(address, protocol=1) as client:
        began = time.monotonic()
        gateway.remove_listener(name)
        line = client.line()
        assert json.loads(line[5:])["ldm"] is True
        client.closed(deadline=8)
        assert time.monotonic() - began < 8


@pytest.mark.parametrize("seconds", [0, 8])
def test_drain_time(ready: Gateway, node: Node, package: Path, page: Page, seconds: int):
    """From the notice to the end, when the plugin stops. EMQX gives a plugin 10 s to stop."""
    page.change(drain_time=f"{seconds}s")
    with ready.nats(protocol=1) as client:
        stopping = threading.Thread(target=node.stop_plugin, args=(package,))
        stopping.start()
        began = time.monotonic()
        assert json.loads(client.line()[5:])["ldm"] is True
        if seconds:
            client.ping()
        client.closed(deadline=12)
        assert seconds - 0.5 < time.monotonic() - began < seconds + 4
        stopping.join()
    wait_until(lambda: ready.served(by_us=False), "the built-in serves")
    assert node.plugin("nats_gateway")["here"]["status"] == "stopped"
    node.start_plugin(package)


def test_a_client_that_is_there_stays_when_the_page_changes(gateway: Gateway, page: Page, name: str):
    with gateway.nats() as client:
        client.subscribe(name)
        page.change(max_control_line="8KB", max_pending="32MB")
        client.publish(name, b"x")
        assert client.message().payload == b"x"


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("max_control_line", "100", "from 512 to 1048576 bytes"),
        ("max_control_line", "2MB", "from 512 to 1048576 bytes"),
        ("max_control_line", "much", "from 512 to 1048576 bytes"),
        ("max_subscriptions", -1, "from 0 (no limit) to 1073741824"),
        ("authentication_timeout", "0s", "at least 1 ms"),
        ("authentication_timeout", "soon", "a duration"),
        ("max_pending", "1B", "from 1024 to 1073741824 bytes"),
        ("send_timeout", "0ms", "at least 1 ms"),
        ("drain_time", "9s", "from 0 to 8000 ms"),
        ("tls_mode", "never", "one of upgrade, handshake_first, auto"),
        ("handshake_first_wait", "0ms", "at least 1 ms"),
        ("peer_cert_as_username", "md5", "one of disabled, cn, dn, san_email, san_dns, san_uri"),
    ],
)
def test_a_wrong_value_is_refused_by_name(page: Page, field: str, value: object, text: str):
    before = page.read()
    answer = page.try_change(**{field: value})
    assert answer.status == 400, answer
    assert f"{field}: must be" in str(answer) and text in str(answer)
    assert page.read() == before


@pytest.mark.parametrize(("field", "value"), [("max_subscriptions", "many"), ("retained_on_subscribe", "yes")])
def test_a_value_of_the_wrong_type_is_refused(page: Page, field: str, value: object):
    assert page.try_change(**{field: value}).status == 400


def test_a_list_that_was_cleared_in_the_form(gateway: Gateway, page: Page):
    """The dashboard then sends one empty entry."""
    page.change(internal_authn=["token"], token=HASH)
    with pytest.raises(NatsFailure), gateway.nats():
        pass
    page.change(internal_authn=[""], nkeys=[""], trusted_operators=[""], resolver_preload=[""])
    # the authenticator that stands for the logins is taken away
    wait_until(lambda: page.health() == "", "well")
    with gateway.nats():
        pass


def test_an_unknown_field_is_refused(page: Page):
    assert page.try_change(max_controlline="4KB").status == 400


# --- Settings that lack a key -----------------------------------------------------------------------------------------


def test_settings_that_lack_a_key_are_not_stored(page: Page):
    """A PUT replaces all settings, so a key that was forgotten would get its default, and the logins with it."""
    page.change(max_subscriptions=7)
    before = page.read()
    for key in DEFAULTS:
        answer = page.replace({other: value for other, value in DEFAULTS.items() if other != key})
        assert answer.status == 400 and f"{key}: must be there" in str(answer), answer
    answer = page.replace({"max_subscriptions": 1})
    missing = ", ".join(sorted(DEFAULTS.keys() - {"max_subscriptions"}))
    assert answer.status == 400 and f"{missing}: must be there" in str(answer), answer
    assert page.read() == before


# Settings that an older version did not have.
NEW = {"max_sub_tokens", "monitor_bind", "nkeys"}


def key_of(line: str) -> str:
    return line.partition("=")[0].strip()


def of_an_older_version(text: str) -> str:
    kept = [line for line in text.splitlines() if key_of(line) not in NEW]
    assert len(text.splitlines()) - len(kept) == len(NEW)
    return "\n".join(kept) + "\n"


def has_a_login(gateway: Gateway) -> bool:
    with pytest.raises(NatsFailure), gateway.nats():
        pass
    with gateway.raw() as client:
        client.login(auth_token="w0rd")
        client.ping()
    return True


def without_logins(page: Page) -> None:
    page.change()
    # the authenticator that stands for the logins is taken away
    wait_until(lambda: page.health() == "", "well")


@pytest.mark.kills
@pytest.mark.timeout(180, func_only=True)
def test_an_upgrade_gives_the_stored_settings_the_new_keys(node: Node, gateway: Gateway, page: Page, package: Path):
    page.change(internal_authn=["token"], token=HASH, max_subscriptions=7)
    wait_until(lambda: page.health() == "", "the logins are in force")
    before = page.read()
    with installed_with(node, package, of_an_older_version):
        wait_until(gateway.served, "the plugin serves")
        assert page.read() == before
        assert all(key in stored_file(node).read_text() for key in DEFAULTS)
        assert page.health() == "" and has_a_login(gateway)
        page.replace(before | {"max_subscriptions": 8})
        assert page.read() == before | {"max_subscriptions": 8}
        # for who goes back to the older version
        backups = [file.read_text() for file in stored_file(node).parent.glob("config.hocon.*.bak")]
        assert any(HASH in text and NEW.isdisjoint(map(key_of, text.splitlines())) for text in backups)
    wait_until(gateway.served, "the plugin serves")
    without_logins(page)


@pytest.mark.kills
@pytest.mark.timeout(180, func_only=True)
def test_a_boot_gives_the_stored_settings_the_new_keys(node: Node, gateway: Gateway, page: Page):
    page.change(internal_authn=["token"], token=HASH)
    wait_until(lambda: page.health() == "", "the logins are in force")
    before = page.read()
    file = stored_file(node)
    file.write_text(of_an_older_version(file.read_text()))
    node.restart()
    wait_until(gateway.served, "the plugin serves", deadline=30)
    assert page.read() == before
    assert all(key in file.read_text() for key in DEFAULTS)
    assert page.health() == "" and has_a_login(gateway)
    without_logins(page)


# --- Health ----------------------------------------------------------------------------------------------------------


def test_healthy(page: Page):
    assert page.health() == ""


@pytest.mark.kills
@pytest.mark.timeout(120, func_only=True)
def test_health_without_the_gateway_application(node: Node, page: Page, gateway: Gateway):
    """It says what is wrong; and the plugin takes its place again when the application is back."""
    node.eval("application:stop(emqx_gateway)")
    try:
        assert "gateway application of EMQX is not running" in page.health()
    finally:
        node.eval("application:ensure_all_started(emqx_gateway)")
    wait_until(lambda: page.health() == "", "the plugin serves again", deadline=15)
    assert "nats_gateway" in node.eval("maps:get(cbkmod, emqx_gateway_registry:lookup(nats))")
    with gateway.nats() as client:
        client.ping()
