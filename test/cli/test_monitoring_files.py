"""packaging/monitoring: the rules and the dashboard, against what the gateway tells and a real Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path

import pytest

from cli.running import Running
from monitoring import get, get_json
from ports import HOST, free_port
from wire.servers import REPOSITORY

FILES = REPOSITORY / "packaging" / "monitoring"
RULES, RULES_TEST, DASHBOARD = (FILES / name for name in ("rules.yaml", "rules-test.yaml", "grafana-dashboard.json"))
# A metric that is only there in EMQX: test/emqx/test_monitor.py looks for it.
OF_EMQX = "nats_gateway_publish_seconds"


def tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(REPOSITORY / ".tools" / "bin"))
    if found is None:
        pytest.skip(f"no {name}")
    return found


def dashboard() -> dict:
    return json.loads(DASHBOARD.read_text())


def panels() -> list[dict]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def named(text: str) -> set[str]:
    return set(re.findall(r"\bnats_gateway_[a-z_]+", text))


def families(text: str) -> set[str]:
    """The metrics that a text for Prometheus describes, and the series of its histograms."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names


@pytest.fixture
def watched(gateway: Running) -> tuple[Running, int]:
    port = free_port()
    gateway.write(monitor={"bind": f"{HOST}:{port}"})
    gateway.start()
    gateway.until(lambda: "monitoring on" in gateway.log, "it is monitored")
    return gateway, port


@pytest.mark.parametrize("file", [RULES, DASHBOARD], ids=lambda file: file.name)
def test_every_metric_is_there(watched: tuple[Running, int], file: Path):
    _, port = watched
    expressions = named("".join(queries())) if file is DASHBOARD else named(
        "".join(re.findall(r"^ +expr: (.*)$", file.read_text(), re.MULTILINE))
    )
    assert len(expressions) >= 8
    assert expressions - families(get(port, "/metrics")[1]) == {f"{OF_EMQX}_bucket"}


def test_every_metric_is_shown(watched: tuple[Running, int]):
    """So that whoever adds one thinks of the dashboard."""
    _, port = watched
    told = {name for name in families(get(port, "/metrics")[1]) if not name.endswith(("_sum", "_count"))}
    assert told - named("".join(queries())) == set()


def test_the_dashboard_is_laid_out():
    shown = dashboard()["panels"]
    assert len({panel["id"] for panel in shown}) == len(shown)
    taken: set[tuple[int, int]] = set()
    for panel in shown:
        at = panel["gridPos"]
        fields = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not fields & taken, panel["title"]
        taken |= fields
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels())
    assert {variable["name"] for variable in dashboard()["templating"]["list"]} == {"datasource", "instance"}


def test_the_rules_are_right():
    for command in (["check", "rules", RULES], ["test", "rules", RULES_TEST]):
        done = subprocess.run([tool("promtool"), *command], cwd=FILES, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_is_tested():
    alerts = set(re.findall(r"alert: (\w+)", RULES.read_text()))
    assert len(alerts) > 5 and [alert for alert in alerts if alert not in RULES_TEST.read_text()] == []


def test_prometheus_answers_every_query_of_the_dashboard(watched: tuple[Running, int], tmp_path: Path):
    gateway, port = watched
    web = free_port()
    config = tmp_path / "prometheus.yaml"
    config.write_text(
        f"global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{RULES}']\n"
        f"scrape_configs:\n  - job_name: nats\n    static_configs: [{{targets: ['{HOST}:{port}']}}]\n"
    )
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [tool("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}",
             f"--web.listen-address={HOST}:{web}"], stdout=log, stderr=log,
        )

    def answer(expression: str) -> dict:
        ready = expression.replace("$instance", ".*").replace("$__rate_interval", "1m")
        return get_json(web, f"/api/v1/query?query={urllib.parse.quote(ready)}")["data"]["result"]

    def is_there(expression: str) -> bool:
        try:
            return answer(expression) != []
        except (OSError, AssertionError):
            return False

    try:
        with gateway.client() as client:
            client.subscribe("a")
            gateway.until(lambda: is_there("nats_gateway_up == 1"), "it is scraped", 30)
            gateway.until(lambda: is_there("rate(nats_gateway_broker_round_trip_seconds_count[1m])"), "twice", 30)
            empty = [expression for expression in queries() if not answer(expression)]
        # Nobody was refused, and nothing has ended; of EMQX's there is none.
        quiet = (OF_EMQX, "nats_gateway_logins_refused_total", "nats_gateway_connections_ended_total")
        assert [expression for expression in empty if not any(name in expression for name in quiet)] == []
        rules = [rule for group in get_json(web, "/api/v1/rules")["data"]["groups"] for rule in group["rules"]]
        assert len(rules) == 10 and {rule["health"] for rule in rules} <= {"ok", "unknown"}
    finally:
        process.terminate()
        process.wait(20)
