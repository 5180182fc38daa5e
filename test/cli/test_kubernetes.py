"""packaging/kubernetes: the objects fit the gateway, its image and each other."""

from __future__ import annotations

import re
import socket
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from cli.running import GATEWAY
from ports import HOST
from wire.servers import REPOSITORY

PACKAGING = REPOSITORY / "packaging"
MANIFEST = PACKAGING / "kubernetes" / "nats-gateway.yaml"
VERSION = re.search(r'{vsn, "(.*)"}', (REPOSITORY / "erlang_src" / "nats_gateway.app.src").read_text()).group(1)


@pytest.fixture(scope="module")
def objects() -> dict[str, dict]:
    read = list(yaml.safe_load_all(MANIFEST.read_text()))
    by_kind = {one["kind"]: one for one in read}
    assert len(by_kind) == len(read)
    return by_kind


@pytest.fixture
def pod(objects: dict[str, dict]) -> dict:
    return objects["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: dict) -> dict:
    [container] = pod["containers"]
    return container


@pytest.fixture
def settings(objects: dict[str, dict], container: dict, pod: dict) -> str:
    """The file that the gateway reads."""
    [volume] = pod["volumes"]
    [mount] = container["volumeMounts"]
    assert volume["configMap"]["name"] == objects["ConfigMap"]["metadata"]["name"] and mount["name"] == volume["name"]
    option, file = container["args"]
    assert option == "-c" and Path(file).parent == Path(mount["mountPath"])
    return objects["ConfigMap"]["data"][Path(file).name]


def seconds(duration: str) -> int:
    return int(re.fullmatch(r"(\d+)s", duration).group(1))


def test_the_gateway_takes_the_settings(settings: str, tmp_path: Path):
    file = tmp_path / "nats-gateway.toml"
    file.write_text(settings)
    done = subprocess.run([GATEWAY, "-c", file, "--check"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_the_pod_has_time_for_the_lame_duck_mode(pod: dict, container: dict, settings: str):
    command, wait = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    grace = seconds(tomllib.loads(settings)["lame_duck_grace_period"])
    assert pod["terminationGracePeriodSeconds"] >= int(wait) + grace + 5


def test_the_ports_are_those_of_the_settings(objects: dict[str, dict], container: dict, settings: str):
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    set_to = tomllib.loads(settings)
    assert set_to["listeners"]["tcp"]["default"]["bind"] == f"0.0.0.0:{ports['nats']}"
    assert set_to["monitor"]["bind"] == f"0.0.0.0:{ports['monitor']}"
    [served] = objects["Service"]["spec"]["ports"]
    assert served["targetPort"] == "nats"
    assert container["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": "monitor"}
    for probe in ("startupProbe", "livenessProbe"):
        # The port of NATS is closed in lame duck mode.
        assert container[probe]["tcpSocket"] == {"port": "monitor"}


def test_the_selectors_are_the_labels_of_the_pod(objects: dict[str, dict]):
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels


def test_it_is_what_the_image_has(pod: dict, container: dict):
    dockerfile = (PACKAGING / "Dockerfile").read_text()
    assert container["image"] == f"nats-gateway:{VERSION}"
    assert f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}\n" in dockerfile
    assert f'CMD {str(container["args"]).replace(chr(39), chr(34))}\n' in dockerfile


def test_the_pod_waits_for_the_broker_of_the_settings(pod: dict, settings: str):
    [first] = pod["initContainers"]
    *command, host, port = first["command"]
    assert tomllib.loads(settings)["upstream"]["url"] == f"mqtt://{host}:{port}"
    with socket.socket() as broker:
        broker.bind((HOST, 0))
        waiting = subprocess.Popen([*command, HOST, str(broker.getsockname()[1])])
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(1.5)
            broker.listen()
            assert waiting.wait(10) == 0
        finally:
            waiting.kill()
            waiting.wait()
