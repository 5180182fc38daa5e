"""`nats_gateway check`: what it says of a broker, and what clients then have. And: every error of a start names its setting."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from certificates import Authority
from cli.running import GATEWAY, read_settings, started_mosquitto
from emqx.nats import Nats
from ports import HOST, free_port
from wire.servers import accepts


def run(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [GATEWAY, *(str(argument) for argument in arguments)], capture_output=True, text=True, timeout=60,
        env={name: value for name, value in os.environ.items() if not name.startswith("NATS_")} | (environment or {}),
    )


def check(*arguments: object, **more: dict[str, str]) -> subprocess.CompletedProcess:
    return run("check", *arguments, **more)


@contextmanager
def broker(directory: Path, settings: str):
    with started_mosquitto(directory, settings) as port:
        yield f"mqtt://{HOST}:{port}"


def test_a_broker_that_has_everything(mosquitto: int):
    url = f"mqtt://{HOST}:{mosquitto}"
    done = check("--upstream", url)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"broker {url}: it is there and has accepted the login" in done.stdout
    for line in (
        "Maximum QoS                         2", "Receive Maximum                     20", "Maximum Packet Size                 no limit",
        "Shared Subscription Available       yes", "  It does what MQTT 5 says.", "  INFO has max_payload 1048576, as max_payload_size says.",
        "  Queue groups are available.", "is answered with 503 at once", "A client with echo:false does not get its own messages.",
        "At most 20 messages of one client wait",
    ):
        assert line in done.stdout
    found = json.loads(check("--upstream", url, "--json").stdout)
    assert found["ok"] is True and found["broker"] == url
    assert found["granted"] == {
        "maximum_qos": 2, "retain_available": True, "wildcard_subscription_available": True, "shared_subscription_available": True,
        "subscription_identifier_available": True, "maximum_packet_size": None, "receive_maximum": 20,
        "topic_alias_maximum": found["granted"]["topic_alias_maximum"], "server_keep_alive": None,
    }
    assert found["probe"] == {"outcome": "conclusive", "quirks": [], "no_local": True, "tells_no_subscribers": True}
    assert found["clients"] == {
        "max_payload": 1048576, "queue_groups": True, "wildcards": True, "no_responders": True, "echo_false": True
    }


def test_what_it_says_is_what_clients_have(tmp_path: Path):
    port = free_port()
    limits = "allow_anonymous true\nmax_packet_size 50000\nmax_qos 0\nretain_available false\nmax_keepalive 45\nmax_topic_alias 7\n"
    with broker(tmp_path, limits) as url:
        settings = tmp_path / "gateway.toml"
        settings.write_text(
            f'retained_on_subscribe = true\n[upstream]\nurl = "{url}"\nmax_topic_levels = 0\n[listeners.tcp.a]\nbind = "{HOST}:{port}"\n'
        )
        found = json.loads(check("-c", settings, "--json").stdout)
        granted = found["granted"]
        assert (granted["maximum_qos"], granted["retain_available"], granted["maximum_packet_size"]) == (0, False, 50000)
        assert (granted["server_keep_alive"], granted["topic_alias_maximum"]) == (45, 7)
        text = check("-c", settings).stdout
        assert "the broker takes packets of 50000 bytes" in text and "QoS 0 only" in text and "it times out" in text
        assert "retained_on_subscribe brings nothing" in text and "any number of tokens" in text
        process = subprocess.Popen([GATEWAY, "-c", settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not accepts((HOST, port)):
                assert process.poll() is None
            with Nats((HOST, port)) as first:
                first.connect().ping()
            with Nats((HOST, port)) as second:
                assert second.info["max_payload"] == found["clients"]["max_payload"] < 50000
        finally:
            process.kill()
            process.wait()


def test_without_the_probe(tmp_path: Path, mosquitto: int):
    settings = tmp_path / "gateway.toml"
    settings.write_text(f'[upstream]\nurl = "mqtt://{HOST}:{mosquitto}"\nprobe = false\n')
    done = check("-c", settings)
    assert done.returncode == 0 and "It was not tried: upstream.probe is false." in done.stdout
    assert "503 is not known" in done.stdout and "echo:false works is not known" in done.stdout
    found = json.loads(check("-c", settings, "--json").stdout)
    assert found["probe"] == {"outcome": "off", "quirks": []} and found["clients"]["no_responders"] is None


def test_a_broker_that_denies_the_probe(tmp_path: Path):
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite only/this/#\n")
    with broker(tmp_path, f"user root\nallow_anonymous true\nacl_file {acl}\n") as url:
        done = check("--upstream", url)
        assert done.returncode == 0 and "The broker denied the probe" in done.stdout


def test_logins(tmp_path: Path):
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "ann", "right"], check=True)
    passwords.chmod(0o644)
    with broker(tmp_path, f"user root\nallow_anonymous false\npassword_file {passwords}\n") as url:
        done = check("--upstream", url)
        assert done.returncode == 69 and "(upstream.url) does not accept a login (reason code 135, not_authorized" in done.stderr
        assert check("--upstream", url, "--user", "ann", "--password", "right").returncode == 0
        assert check("--upstream", url, environment={"NATS_USER": "ann", "NATS_PASSWORD": "right"}).returncode == 0
        wrong = check("--upstream", url, "--user", "ann", "--password", "s3cret", "--json")
        assert wrong.returncode == 69 and wrong.stderr == ""
        said = json.loads(wrong.stdout)
        assert said["ok"] is False and said["exit_status"] == 69 and "s3cret" not in said["error"]
        settings = tmp_path / "gateway.toml"
        settings.write_text(
            f'[clientinfo_override]\nusername = "ann"\npassword = "right"\n[upstream]\nurl = "{url}"\n'
        )
        assert check("-c", settings).returncode == 0


def test_tls(tmp_path: Path, authority: Authority):
    server, other = authority.server(), Authority(tmp_path / "other", "other")
    tls = f"user root\nallow_anonymous true\ncertfile {server.certfile}\nkeyfile {server.keyfile}\n"
    with broker(tmp_path, tls) as url:
        settings = tmp_path / "gateway.toml"
        for cacertfile, status, said in (
            (authority.certfile, 0, "it is there and has accepted the login"), (other.certfile, 69, "(TLS: "),
        ):
            settings.write_text(
                f'[upstream]\nurl = "{url.replace("mqtt:", "mqtts:")}"\n[upstream.ssl_options]\ncacertfile = "{cacertfile}"\n'
            )
            done = check("-c", settings)
            assert done.returncode == status and said in done.stdout + done.stderr, done


@contextmanager
def answering(answer: bytes | None):
    """What is no MQTT broker: it sends this to whoever sends something, and closes. None: it stays silent."""
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            kept = []
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                if answer is None:
                    kept.append(client)
                    continue
                with client:
                    client.recv(4096)
                    client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield "mqtt://{}:{}".format(*server.getsockname())
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "it closes the connection"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"a" * 200, "it does not speak MQTT"),
        (b"\x20\x02\x00\x01", "it does not speak MQTT 5"),
        (b"\x20\x03\x00\x87\x00", "reason code 135, not_authorized"),
        (b"\x20\x03\x00\x89\x00", "reason code 137, server_busy"),
        (b"\x20\x0b\x00\x88\x08\x1f\x00\x05later", "reason code 136, server_unavailable: later"),
        (None, "it does not answer within upstream.connect_timeout"),
    ],
)
def test_what_is_no_broker(tmp_path: Path, answer: bytes | None, said: str):
    with answering(answer) as url:
        settings = tmp_path / "gateway.toml"
        settings.write_text(f'[upstream]\nurl = "{url}"\nconnect_timeout = "1s"\n')
        done = check("-c", settings)
    assert (done.returncode, done.stdout) == (69, "")
    assert f"the broker at {url} (upstream.url) does not accept a login ({said})" in done.stderr


def test_no_broker():
    port = free_port()
    done = check("--upstream", f"mqtt://{HOST}:{port}")
    assert done.returncode == 69 and f"no MQTT broker at {HOST}:{port} (connection refused)" in done.stderr
    done = check("--upstream", f"mqtt://{HOST}:{port}", "--json")
    assert json.loads(done.stdout)["exit_status"] == 69


def test_a_wrong_setting(tmp_path: Path):
    settings = tmp_path / "gateway.toml"
    settings.write_text("no_such_setting = 1\n")
    done = check("-c", settings)
    assert done.returncode == 78 and f"{settings}: no_such_setting: unknown key" in done.stderr
    assert json.loads(check("-c", settings, "--json").stdout)["exit_status"] == 78


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--what"], "unknown option --what"), (["-c"], "-c needs a value"), (["--user"], "--user needs a value")],
)
def test_wrong_options(arguments: list[str], said: str):
    done = check(*arguments)
    assert done.returncode == 64 and done.stderr.startswith(f"nats_gateway: check: {said}")


def test_help():
    done = check("--help")
    assert done.returncode == 0 and all(word in done.stdout for word in ("-c FILE", "--upstream", "--user", "--json", "69", "78"))


# --- Every error of a start names its setting ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


WRONG = [
    ("[upstream]\nurl = \"127.0.0.1:1883\"\n", "upstream.url"),
    ("[upstream]\nurl = \"http://127.0.0.1:1883\"\n", "upstream.url"),
    ("[upstream]\nurl = \"mqtt://127.0.0.1\"\n", "upstream.url"),
    ("[upstream]\nurl = \"mqtt://127.0.0.1:65536\"\n", "upstream.url"),
    ("[upstream]\nurl = \"mqtt://127.0.0.1:1\"\n[upstream.ssl_options]\ncertfile = \"x\"\n", "upstream.ssl_options"),
    ("[upstream]\nurl = \"mqtts://{taken}\"\n[upstream.ssl_options]\ncacertfile = \"/none.pem\"\n", "upstream.ssl_options.cacertfile"),
    ("[upstream]\nurl = \"mqtts://{taken}\"\n[upstream.ssl_options]\nverify = \"verify_none\"\ncertfile = \"/none.pem\"\n",
     "upstream.ssl_options.certfile"),
    ("[upstream]\nurl = \"mqtts://{taken}\"\n[upstream.ssl_options]\nverify = \"verify_none\"\ncertfile = \"{cert}\"\nkeyfile = \"/none.pem\"\n",
     "upstream.ssl_options.keyfile"),
    ("[upstream]\nconnect_timeout = \"0s\"\n", "upstream.connect_timeout"),
    ("[upstream]\nkeepalive = 65536\n", "upstream.keepalive"),
    ("[listeners.tcp.a]\nbind = \"localhost:4222\"\n", "listeners.tcp.a.bind"),
    ("[listeners.tcp.a]\nbind = 65536\n", "listeners.tcp.a.bind"),
    ("{broker}[listeners.tcp.a]\nbind = \"{taken}\"\n", "listeners.tcp.a.bind"),
    ("{broker}[listeners.ws.b]\nbind = \"{taken}\"\n", "listeners.ws.b.bind"),
    ("{broker}[listeners.tcp.a]\nbind = \"192.0.2.1:4222\"\n", "listeners.tcp.a.bind"),
    ("{broker}[listeners.ssl.a]\nbind = \"{taken}\"\n[listeners.ssl.a.ssl_options]\ncertfile = \"{cert}\"\nkeyfile = \"{key}\"\n",
     "listeners.ssl.a.bind"),
    ("[listeners.ssl.a]\n", "listeners.ssl.a.ssl_options.certfile"),
    ("[listeners.wss.a.ssl_options]\ncertfile = \"/none.pem\"\nkeyfile = \"{key}\"\n", "listeners.wss.a.ssl_options.certfile"),
    ("[listeners.ssl.a.ssl_options]\ncertfile = \"{cert}\"\nkeyfile = \"/none.pem\"\n", "listeners.ssl.a.ssl_options.keyfile"),
    ("[listeners.ssl.a.ssl_options]\ncertfile = \"{cert}\"\nkeyfile = \"{key}\"\nverify = \"verify_peer\"\ncacertfile = \"/none.pem\"\n",
     "listeners.ssl.a.ssl_options.cacertfile"),
    ("{broker}[listeners.tcp.a]\nbind = \"{free}\"\n[monitor]\nbind = \"{taken}\"\n", "monitor.bind"),
    ("[monitor]\nbind = \"x\"\n", "monitor.bind"),
    ("[control]\nsocket = \"relative.sock\"\n", "control.socket"),
    ("[control]\nsocket = \"/{a108}\"\n", "control.socket"),
    ("{broker}[listeners.tcp.a]\nbind = \"{free}\"\n[control]\nsocket = \"/none/c.sock\"\n", "control.socket"),
    ("log_format = \"xml\"\n", "log_format"),
    ("log_file = \"\"\n", "log_file"),
    ("log_file = \"/none/x.log\"\n{broker}[listeners.tcp.a]\nbind = \"{free}\"\n", "log_file"),
    ("log_level = \"loud\"\n", "log_level"),
    ("users = [{{ user = \"u\", password = \"$2a$99$x\" }}]\n", "users[1].password"),
    ("users = [{{ user = \"u\", password = \"p\" }}, {{ user = \"u\", password = \"q\" }}]\n", "users: must be different"),
    ("users = [{{ nkey = \"UABC\" }}]\n", "users[1].nkey"),
    ("no_auth_user = \"nobody\"\n", "no_auth_user"),
    ("auth_token = 1\n", "auth_token"),
]


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> dict[str, tuple[Path, int, str]]:
    """File, status and text for those that the program refuses when it has read them, before it opens anything."""
    directory, certificate = tmp_path_factory.mktemp("wrong"), authority.server()
    files = {}
    for number, toml in enumerate(toml for toml, _ in WRONG if not any(name in toml for name in ("{taken}", "{free}", "{broker}"))):
        files[toml] = directory / f"{number}.toml"
        files[toml].write_text(toml.format(cert=certificate.certfile, key=certificate.keyfile, a108="a" * 107))
    done = zip(files, read_settings(files.values()), strict=True)
    return {toml: (files[toml], status, text) for toml, (status, text) in done if status}


@pytest.mark.parametrize(("toml", "setting"), WRONG, ids=[f"{number}-{setting}" for number, (_, setting) in enumerate(WRONG)])
def test_every_error_of_a_start_names_its_setting(
    toml: str, setting: str, tmp_path: Path, refused: dict[str, tuple[Path, int, str]], request: pytest.FixtureRequest
):
    if toml in refused:
        _, status, text = refused[toml]
        [said] = text.splitlines()
        assert status in (69, 78) and setting in said, (status, said)
        return
    certificate, mosquitto = request.getfixturevalue("authority").server(), request.getfixturevalue("mosquitto")
    with socket.create_server((HOST, 0)) as taken:
        settings = tmp_path / "gateway.toml"
        settings.write_text(toml.format(
            taken="{}:{}".format(*taken.getsockname()), free=f"{HOST}:{free_port()}", cert=certificate.certfile, key=certificate.keyfile,
            broker=f'upstream.url = "mqtt://{HOST}:{mosquitto}"\n', a108="a" * 107,
        ))
        done = run("-c", settings)
    assert done.returncode in (69, 78), (done.returncode, done.stdout, done.stderr)
    [said] = done.stderr.splitlines()
    assert said.startswith("nats_gateway: ") and setting in said, said


def test_the_program_says_what_was_read(refused: dict[str, tuple[Path, int, str]]):
    """So that what the test above takes from a process of its own is what a start says."""
    assert len(refused) > 10
    for settings, status, text in list(refused.values())[::6]:
        done = run("-c", settings)
        assert (done.returncode, done.stdout, done.stderr) == (status, "", f"nats_gateway: {text}\n")
