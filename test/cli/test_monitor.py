"""The monitoring port of the standalone gateway."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.running import GATEWAY, Running, started_mosquitto
from monitoring import answers, connections, get, get_json, metrics
from ports import HOST, free_port
from wire.servers import REPOSITORY, accepts


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def watched(gateway: Running, port: int) -> Running:
    gateway.write(monitor={"bind": f"{HOST}:{port}"})
    gateway.start()
    gateway.until(lambda: f"monitoring on http://{HOST}:{port}" in gateway.log, "it says so")
    assert get(port, "/subsz")[0] == 200
    return gateway


def test_what_clients_do_is_seen(watched: Running, port: int):
    with watched.client(name="orders", lang="python", version="1.2.3", verbose=False) as client:
        client.send(b"SUB a.> 1\r\nSUB b workers 2\r\nUNSUB 2 5\r\n" + b"PUB a.x 2\r\nhi\r\n" * 3)
        for _ in range(3):
            assert client.message().payload == b"hi"
        [seen] = connections(port, "?subs=detail&auth=1")
        assert seen["name"] == "orders" and seen["lang"] == "python" and seen["version"] == "1.2.3"
        assert (seen["in_msgs"], seen["out_msgs"], seen["subscriptions"]) == (3, 3, 2)
        assert (seen["ip"], seen["type"], seen["account"], seen["kind"]) == (HOST, "nats", "$G", "Client")
        assert seen["in_bytes"] > 3 * len(b"PUB a.x 2\r\nhi\r\n") and seen["out_bytes"] > 0
        assert [(s["subject"], s.get("qgroup"), s["msgs"], s.get("max")) for s in seen["subscriptions_list_detail"]] == [
            ("a.>", None, 3, None),
            ("b", "workers", 0, 5),
        ]
        # Totals come with the next report, soon.
        watched.until(lambda: get_json(port, "/varz")["in_msgs"] == 3, "it is in the totals")
        varz = get_json(port, "/varz")
        assert (varz["out_msgs"], varz["connections"], varz["subscriptions"]) == (3, 1, 2)
        assert varz["port"] == watched.port and varz["http_port"] == port
        assert get_json(port, "/subsz")["num_subscriptions"] == 2
        listed = get_json(port, "/subsz?subs=1&test=b")
        assert [s["subject"] for s in listed["subscriptions_list"]] == ["b"] and listed["total"] == 1
    watched.until(lambda: connections(port) == [], "it has gone")
    [gone] = connections(port, "?state=closed")
    assert gone["name"] == "orders" and gone["reason"] == "Client Closed" and gone["in_msgs"] == 3
    assert metrics(port)['nats_gateway_connections_ended_total{reason="client_closed"}'] == 1


def refused_with(gateway: Running, line: bytes) -> None:
    with socket.create_connection((HOST, gateway.port)) as client:
        client.sendall(line)
        while client.recv(4096):
            pass


def test_who_is_not_let_in_is_counted(gateway: Running, port: int):
    gateway.write(monitor={"bind": f"{HOST}:{port}"}, auth_token="right")
    gateway.start()
    gateway.until(lambda: answers(port), "it is monitored")
    refused_with(gateway, b'CONNECT {"auth_token":"wrong"}\r\n')
    sample = 'nats_gateway_connections_ended_total{reason="authorization_violation"}'
    gateway.until(lambda: metrics(port).get(sample) == 1, "it is counted")
    assert metrics(port)['nats_gateway_logins_refused_total{method="token",reason="wrong_token"}'] == 1
    [refused] = connections(port, "?state=closed&auth=1")
    assert refused["reason"] == "Authentication Failure"
    assert "wrong" not in json.dumps(refused) and "right" not in get(port, "/varz")[1]


def test_whom_the_broker_does_not_let_in_is_counted(gateway: Running, port: int, tmp_path: Path):
    with started_mosquitto(tmp_path, "allow_anonymous false\n") as broker:
        gateway.file.write_text(
            f'[monitor]\nbind = "{HOST}:{port}"\n[upstream]\nurl = "mqtt://{HOST}:{broker}"\n'
            f'[listeners.tcp.default]\nbind = "{HOST}:{gateway.port}"\n'
        )
        gateway.start()
        gateway.until(lambda: answers(port), "it is monitored")
        refused_with(gateway, b'CONNECT {"user":"u","pass":"p"}\r\n')
        sample = 'nats_gateway_logins_refused_total{method="broker",reason="not_authorized"}'
        gateway.until(lambda: metrics(port).get(sample) == 1, "it is counted")


def test_durations(watched: Running, port: int):
    """A round trip to the broker is timed at once, a call of the library after a report of the client."""
    trips = "nats_gateway_broker_round_trip_seconds"
    with watched.client() as client:
        client.subscribe("a").ping()
        seen = metrics(port)
        assert seen[f"{trips}_count"] >= 1 and 0 < seen[f"{trips}_sum"] < 5
        assert seen[f'{trips}_bucket{{le="+Inf"}}'] == seen[f"{trips}_count"]

        def timed() -> bool:
            client.publish("a", b"hi")
            client.message()
            return all(
                metrics(port)[f'nats_gateway_library_call_seconds_count{{function="{function}"}}'] >= 1
                for function in ("decode", "encode")
            )

        watched.until(timed, "both are timed")
    watched.until(lambda: metrics(port)["nats_gateway_mailbox_messages_max"] == 0, "no mailbox is filling")


def test_health(gateway: Running, port: int, mosquitto: int):
    gateway.write(monitor={"bind": f"{HOST}:{port}"}, lame_duck_grace_period="1h")
    gateway.start()
    gateway.until(lambda: answers(port), "it is monitored")
    assert get(port, "/healthz") == (200, '{"status":"ok"}\n')
    assert get(port, "/healthz?js-enabled-only=true")[0] == 200
    with gateway.client(protocol=1):
        gateway.signal(signal.SIGTERM)
        gateway.until(lambda: get(port, "/healthz")[0] == 503, "it is not ready any more")
        assert "lame duck" in get(port, "/healthz")[1]
        assert metrics(port)["nats_gateway_up"] == 0
    assert gateway.ended() == 0


def test_health_without_a_broker(gateway: Running, port: int):
    with socket.create_server((HOST, 0)) as broker:
        gateway.file.write_text(
            f'[monitor]\nbind = "{HOST}:{port}"\n[upstream]\nurl = "mqtt://{HOST}:{broker.getsockname()[1]}"\n'
            f'[listeners.tcp.default]\nbind = "{HOST}:{gateway.port}"\n'
        )
        gateway.start()
        gateway.until(lambda: answers(port), "it is monitored")
    status, body = get(port, "/healthz")
    assert status == 503 and "cannot be reached: connection refused" in body


def test_a_reload_opens_moves_and_closes_it(gateway: Running, port: int):
    gateway.write()
    gateway.start()
    assert not accepts((HOST, port))
    with gateway.client(name="early") as client:
        gateway.write(monitor={"bind": f"{HOST}:{port}"})
        gateway.reload("settings_reloaded")
        gateway.until(lambda: answers(port), "it is opened")
        gateway.until(lambda: [c["name"] for c in connections(port)] == ["early"], "who was there before is seen")
        client.ping()
        other = free_port()
        gateway.write(monitor={"bind": f"{HOST}:{other}"})
        gateway.reload("settings_reloaded")
        gateway.until(lambda: answers(other) and not accepts((HOST, port)), "it is moved")
        with socket.create_server((HOST, port)):
            gateway.write(monitor={"bind": f"{HOST}:{port}"})
            gateway.reload("monitor_not_changed")
            gateway.until(lambda: answers(other), "the old one stays")
            assert [c["name"] for c in connections(other)] == ["early"]
        gateway.write()
        gateway.reload("settings_reloaded")
        gateway.until(lambda: not accepts((HOST, other)), "it is closed")
        client.ping()


def test_a_port_in_use(gateway: Running, mosquitto: int):
    gateway.write(monitor={"bind": f"{HOST}:{mosquitto}"})
    ended = subprocess.run([GATEWAY, "-c", gateway.file], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 69
    assert f"cannot listen on {HOST}:{mosquitto} (address already in use): choose another monitor.bind" in ended.stderr


def test_many_clients(watched: Running, port: int):
    """More than a page of them; the list is the same as the sum."""
    clients = [socket.create_connection((HOST, watched.port)) for _ in range(300)]
    try:
        for client in clients:
            client.sendall(b'CONNECT {"verbose":false}\r\nSUB a 1\r\nPING\r\n')
        for client in clients:
            said = b""
            while b"PONG" not in said:
                said += client.recv(4096)
        assert len(connections(port, "?limit=100")) == 100
        cids = [c["cid"] for offset in (0, 100, 200, 300) for c in connections(port, f"?limit=100&offset={offset}")]
        assert len(cids) == 300 and cids == sorted(cids)
        assert sum(c["subscriptions"] for c in connections(port)) == 300
        watched.until(lambda: get_json(port, "/varz")["subscriptions"] == 300, "all have reported")
    finally:
        for client in clients:
            client.close()
    watched.until(lambda: get_json(port, "/varz")["connections"] == 0, "all have gone")


def test_the_page(watched: Running, port: int, tmp_path: Path):
    """What clients say of themselves is shown as text."""
    command = [
        tool("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", f"http://{HOST}:{port}/",
    ]
    with watched.client(name="<b>orders</b>", lang="python", version="1.2.3") as client:
        client.subscribe("a").ping()
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert ">ready<" in shown and "&lt;b&gt;orders&lt;/b&gt;" in shown and "python 1.2.3" in shown
    assert re.search("<dt>logins refused</dt><dd>0</dd>", shown)
    assert re.search(r"<dt>broker's round trip</dt><dd>[0-9.]+ (µs|ms)</dd>", shown), shown
    assert re.search(r'<td class="n">[0-9.]+ (µs|ms)</td>', shown)


# --- Tools for nats-server -------------------------------------------------------------------------------------------


def tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(REPOSITORY / ".tools" / "bin"))
    if found is None:
        pytest.skip(f"no {name}")
    return found


def test_nats_top(watched: Running, port: int):
    command = [tool("nats-top"), "-s", HOST, "-m", str(port), "-o", "-", "-r", "1"]
    with watched.client(name="orders", lang="python", version="1.2.3") as client:
        client.subscribe("a").ping()
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert shown.returncode == 0, shown.stderr
    assert "Connections Polled: 1" in shown.stdout and "orders" in shown.stdout and "1.2.3" in shown.stdout


def test_promtool_finds_nothing_wrong_with_the_metrics(watched: Running, port: int):
    with watched.client():
        text = get(port, "/metrics")[1]
    found = subprocess.run([tool("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_prometheus_nats_exporter(watched: Running, port: int):
    exporter = free_port()
    process = subprocess.Popen(
        [tool("prometheus-nats-exporter"), "-varz", "-connz", "-subz", "-healthz", "-a", HOST, "-p", str(exporter),
         f"http://{HOST}:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        with watched.client() as client:
            client.subscribe("a").ping()
            watched.until(lambda: accepts((HOST, exporter)), "the exporter listens")

            def shown(begin: str) -> Callable[[], bool]:
                return lambda: any(
                    line.startswith(begin) and line.endswith(" 1") for line in get(exporter, "/metrics")[1].splitlines()
                )

            watched.until(shown("gnatsd_varz_connections{"), "varz")
            watched.until(shown("gnatsd_connz_total{"), "connz")
            watched.until(shown("gnatsd_varz_subscriptions{"), "subscriptions")
    finally:
        process.terminate()
        process.wait(10)
