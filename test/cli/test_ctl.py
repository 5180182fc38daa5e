"""`nats_gateway ctl`: what it says of a running gateway, and what it does to it."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from certificates import Authority
from cli.running import GATEWAY, Running, started_gateway, started_mosquitto
from emqx.nats import Nats
from monitoring import answers
from ports import HOST, free_port
from wire.servers import accepts


def ctl(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [GATEWAY, "ctl", *(str(argument) for argument in arguments)], capture_output=True, text=True, timeout=60
    )


class Controlled:
    """A gateway with a control socket."""

    def __init__(self, gateway: Running, directory: Path):
        self.gateway = gateway
        self.path = directory / "control.sock"

    def write(self, **settings: object) -> None:
        self.gateway.write(control={"socket": str(self.path)}, **settings)

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess:
        return ctl("-c", self.gateway.file, *arguments)

    def json(self, *arguments: object) -> dict:
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def controlled(gateway: Running, tmp_path: Path) -> Controlled:
    return Controlled(gateway, tmp_path)


@pytest.fixture
def started(controlled: Controlled) -> Controlled:
    controlled.write()
    controlled.gateway.start()
    controlled.gateway.until(controlled.path.exists, "it has a control socket")
    return controlled


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controlled]:
    """For what does nothing to it."""
    directory = tmp_path_factory.mktemp("shared")
    socket_of_it = directory / "control.sock"
    with (
        started_mosquitto(directory) as mosquitto,
        started_gateway(directory, mosquitto, control={"socket": str(socket_of_it)}) as gateway,
    ):
        gateway.until(socket_of_it.exists, "it has a control socket")
        yield Controlled(gateway, directory)


def lines(text: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in text.splitlines())


# --- status ----------------------------------------------------------------------------------------------------------


def test_status(started: Controlled, mosquitto: int):
    gateway = started.gateway
    with gateway.client() as client:
        client.send(b"SUB a 1\r\nSUB b 2\r\n")
        client.ping()
        gateway.until(lambda: started.json("status")["subscriptions"] == 2, "subscriptions are counted")
        said = started("status")
        assert said.returncode == 0 and said.stderr == ""
        shown = lines(said.stdout)
        assert re.fullmatch(r"\d+\.\d+\.\d+", shown["version"])
        assert shown["pid"] == str(gateway.process.pid)
        assert re.fullmatch(r"(\d+m)?\d+s", shown["uptime"])
        assert shown["listener"] == f"tcp:default {HOST}:{gateway.port}"
        assert (shown["broker"], shown["broker reachable"]) == (f"mqtt://{HOST}:{mosquitto}", "yes")
        assert (shown["connections"], shown["subscriptions"], shown["lame duck"]) == ("1", "2", "no")
        status = started.json("status")
        assert status["pid"] == gateway.process.pid and status["connections"] == 1 and status["lame_duck"] is False
        assert status["listeners"] == [{"name": "tcp:default", "address": f"{HOST}:{gateway.port}"}]
        assert status["broker"] == {"url": f"mqtt://{HOST}:{mosquitto}", "reachable": True}


def test_status_without_a_broker(controlled: Controlled):
    gateway = controlled.gateway
    with socket.create_server((HOST, 0)) as broker:
        url = f"mqtt://{HOST}:{broker.getsockname()[1]}"
        gateway.file.write_text(
            f'[control]\nsocket = "{controlled.path}"\n[upstream]\nurl = "{url}"\n'
            f'[listeners.tcp.default]\nbind = "{HOST}:{gateway.port}"\n'
        )
        gateway.start()
        gateway.until(controlled.path.exists, "it has a control socket")
    assert lines(controlled("status").stdout)["broker reachable"] == "no: connection refused"
    assert controlled.json("status")["broker"] == {"url": url, "reachable": False, "reason": "connection refused"}


# --- clients and kick ------------------------------------------------------------------------------------------------


def test_clients(started: Controlled):
    gateway = started.gateway
    assert started.json("clients")["connections"] == []
    with (
        gateway.client(user="ann", name="orders", lang="python", version="1.2.3", verbose=False) as ann,
        gateway.client(user="bob", name="\x1b[31mred\n\u202e"),
    ):
        ann.send(b"SUB a 1\r\nPUB a 2\r\nhi\r\n")
        assert ann.message().payload == b"hi"
        ann.ping()
        [first, second] = started.json("clients")["connections"]
        assert first["authorized_user"] == "ann" and second["authorized_user"] == "bob"
        assert (first["name"], first["lang"], first["version"]) == ("orders", "python", "1.2.3")
        assert (first["in_msgs"], first["out_msgs"], first["subscriptions"], first["ip"]) == (1, 1, 1, HOST)
        assert [c["authorized_user"] for c in started.json("clients", "--user", "bob")["connections"]] == ["bob"]
        shown = started("clients").stdout
        # What a client says of itself does not reach the terminal as it is.
        assert "\x1b" not in shown and "\u202e" not in shown and "?[31mred??" in shown
        head, *rows = shown.splitlines()
        assert head.split()[:7] == ["CID", "ADDRESS", "USER", "NAME", "LANG", "VERSION", "SUBS"] and len(rows) == 2
        assert rows[0].split()[:9] == [
            str(first["cid"]), f"{HOST}:{first['port']}", "ann", "orders", "python", "1.2.3", "1", "1", "1"
        ]


def test_kick(started: Controlled):
    gateway = started.gateway
    with gateway.client(user="ann") as ann, gateway.client(user="bob") as bob, gateway.client(user="bob") as other:
        [cid] = [c["cid"] for c in started.json("clients", "--user", "ann")["connections"]]
        done = started("kick", cid)
        assert (done.returncode, done.stdout) == (0, "1 client was closed\n")
        # Without an error, as a nats-server does it.
        ann.closed()
        bob.ping()
        assert started.json("kick", "--user", "bob") == {"kicked": 2}
        bob.closed()
        other.closed()
    gateway.until(lambda: gateway.log.count("reason=kicked") == 3, "the log says why")
    again = started("kick", cid)
    assert (again.returncode, again.stdout, again.stderr) == (1, "", f"no client has the cid {cid}\n")
    nobody = started("kick", "--user", "bob")
    assert (nobody.returncode, nobody.stderr) == (1, "no client is logged in as bob\n")
    foreign = started("kick", "--user", "\u20ac\u00e9\x1b")
    assert (foreign.returncode, foreign.stderr) == (1, "no client is logged in as \u20ac\u00e9?\n")


def test_kick_of_a_client_that_has_not_logged_in(controlled: Controlled):
    gateway = controlled.gateway
    controlled.write(auth_token="right", authentication_timeout="60s")
    gateway.start()
    gateway.until(controlled.path.exists, "it has a control socket")
    with Nats((HOST, gateway.port)) as client:
        assert controlled.json("kick", client.info["client_id"]) == {"kicked": 1}
        client.closed()


# --- reload ----------------------------------------------------------------------------------------------------------


def test_a_reload_says_what_has_changed(controlled: Controlled):
    gateway = controlled.gateway
    more, other = free_port(), free_port()
    controlled.write(listeners={"a": gateway.port, "b": more}, max_payload_size=1000)
    gateway.start()
    gateway.until(controlled.path.exists, "it has a control socket")
    same = controlled("reload")
    assert (same.returncode, same.stdout) == (0, "the settings are what they were\n")
    with Nats((HOST, gateway.port)).connect() as client:
        controlled.write(
            listeners={"a": gateway.port, "c": other}, max_payload_size=2000, log_level="info",
            users=[{"user": "u", "password": "p"}],
        )
        done = controlled("reload")
        assert done.returncode == 0, done.stderr
        assert lines(done.stdout) == {
            "changed": "auth_required, log_level, logins, max_payload_size",
            "listeners opened": "tcp:c",
            "listeners closed": "tcp:b",
        }
        assert not accepts((HOST, more)) and accepts((HOST, other))
        client.ping()
    controlled.write(listeners={"a": more})
    assert controlled.json("reload") == {
        "changed": ["auth_required", "log_level", "logins", "max_payload_size"],
        "listeners_opened": [], "listeners_closed": ["tcp:c"], "listeners_changed": ["tcp:a"], "certificates": [], "problems": [],
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_payload_size = \n", "line 1"),
        ("no_such_setting = 1\n", "no_such_setting: unknown key"),
        ("[[users]]\nuser = 1\npassword = \"p\"\n", "users[1].user: must be a string"),
    ],
)
def test_a_broken_file_changes_nothing_and_says_so(controlled: Controlled, text: str, said: str):
    gateway = controlled.gateway
    controlled.write(max_payload_size=1000)
    gateway.start()
    gateway.until(controlled.path.exists, "it has a control socket")
    good = gateway.file.read_text()
    with gateway.client() as client:
        gateway.file.write_text(good + text if text.startswith("[") else text + good)
        done = ctl("--socket", controlled.path, "reload")
        assert done.returncode == 78 and done.stdout == ""
        assert done.stderr.startswith(f"nothing was changed: {gateway.file}: ") and said in done.stderr
        done = ctl("--socket", controlled.path, "reload", "--json")
        assert done.returncode == 78 and said in json.loads(done.stdout)["error"]
        client.ping()
        assert Nats((HOST, gateway.port)).info["max_payload"] == 1000
        gateway.file.write_text(good)
        assert controlled("reload").returncode == 0


def test_certificates_are_read_again(controlled: Controlled, mosquitto: int, tmp_path: Path):
    gateway, port = controlled.gateway, free_port()
    authority = Authority(tmp_path / "certificates")
    first, second = authority.server("first"), authority.server("second")

    def write(certificate, keyfile: str | None = None) -> None:
        gateway.file.write_text(
            f'[control]\nsocket = "{controlled.path}"\n[upstream]\nurl = "mqtt://{HOST}:{mosquitto}"\n'
            f'[listeners.tcp.default]\nbind = "{HOST}:{gateway.port}"\n'
            f'[listeners.ssl.s]\nbind = "{HOST}:{port}"\n[listeners.ssl.s.ssl_options]\n'
            f'certfile = "{certificate.certfile}"\nkeyfile = "{keyfile or certificate.keyfile}"\n'
        )

    write(first)
    gateway.start()
    gateway.until(controlled.path.exists, "it has a control socket")
    done = controlled("reload")
    assert (done.returncode, done.stdout) == (
        0, "the settings are what they were\ncertificates read again: ssl:s\n"
    )
    write(second)
    done = controlled("reload")
    assert (done.returncode, done.stdout) == (0, "listeners changed: ssl:s\ncertificates read again: ssl:s\n")
    write(second, first.keyfile)
    done = controlled("reload")
    assert done.returncode == 78 and "listeners.ssl.s.ssl_options.keyfile" in done.stderr


def test_what_cannot_be_opened_is_named(controlled: Controlled, tmp_path: Path):
    gateway = controlled.gateway
    controlled.write()
    gateway.start()
    gateway.until(controlled.path.exists, "it has a control socket")
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        gateway.write(
            listeners={"default": gateway.port, "more": port}, monitor={"bind": f"{HOST}:{port}"},
            control={"socket": str(tmp_path / "none" / "c.sock")}, log_file=str(tmp_path / "none" / "x.log"), max_payload_size=1000,
        )
        done = ctl("--socket", controlled.path, "reload")
    assert done.returncode == 69
    where = f"cannot listen on {HOST}:{port} (address already in use)"
    assert done.stderr.splitlines() == [
        "changed: max_payload_size",
        f"not changed: log_file: {tmp_path}/none/x.log: no such file or directory",
        f"not changed: control.socket: {tmp_path}/none/c.sock: no such file or directory",
        f"not changed: listeners.tcp.more.bind: {where}",
        f"not changed: monitor.bind: {where}",
    ]
    assert Nats((HOST, gateway.port)).info["max_payload"] == 1000
    assert ctl("--socket", controlled.path, "status").returncode == 0


def test_a_reload_moves_opens_and_closes_the_socket(controlled: Controlled, tmp_path: Path):
    gateway, other = controlled.gateway, tmp_path / "other.sock"
    gateway.write()
    gateway.start()
    with gateway.client(name="early"):
        assert not controlled.path.exists()
        controlled.write()
        gateway.reload("settings_reloaded")
        gateway.until(controlled.path.exists, "it is opened")
        gateway.until(lambda: len(controlled.json("clients")["connections"]) == 1, "who was there before is seen")
        gateway.write(control={"socket": str(other)})
        # The answer comes through the old one.
        done = ctl("--socket", controlled.path, "reload")
        assert (done.returncode, done.stdout) == (0, "changed: control.socket\n")
        assert other.exists() and not controlled.path.exists()
        gateway.write()
        assert ctl("--socket", other, "reload").returncode == 0
        gateway.until(lambda: not other.exists(), "it is closed")


def test_a_reload_opens_the_monitoring_port(started: Controlled):
    port = free_port()
    started.write(monitor={"bind": f"{HOST}:{port}"})
    assert started("reload").stdout == "changed: monitor.bind\n"
    assert answers(port)


# --- drain -----------------------------------------------------------------------------------------------------------


def test_drain(controlled: Controlled):
    gateway = controlled.gateway
    controlled.write(lame_duck_grace_period="60s", lame_duck_duration="90s")
    gateway.start()
    gateway.until(controlled.path.exists, "it has a control socket")
    with gateway.client(protocol=1) as client:
        done = controlled("drain")
        assert done.returncode == 0 and "in 1m30s at the latest" in done.stdout
        assert b'"ldm":true' in client.line()
        assert controlled("drain").stdout == "the gateway is in lame duck mode already\n"
        shown = lines(controlled("status").stdout)
        assert shown["lame duck"] == "yes" and "listener" not in shown
        reload = controlled("reload")
        assert reload.returncode == 78 and "lame duck" in reload.stderr
        assert not accepts((HOST, gateway.port))
        client.ping()
    assert gateway.ended() == 0
    assert not controlled.path.exists()


# --- The socket ------------------------------------------------------------------------------------------------------


def test_only_its_user_gets_answers(started: Controlled, tmp_path: Path):
    # It is given its mode once it is there.
    started.gateway.until(lambda: stat.S_IMODE(started.path.stat().st_mode) == 0o600, "it is its user's alone")
    if os.getuid() != 0:
        pytest.skip("needs root, to be somebody else")
    # Whatever the mode is: who asks is looked at, too.
    started.path.chmod(0o666)
    nobody = pwd.getpwnam("nobody").pw_uid
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == 0 and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    asked = subprocess.run(
        ["python3", "-c", "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.settimeout(10)\ns.connect(sys.argv[1])\n"
         "try:\n    s.sendall(b'\\0\\0\\0\\6status')\n    print(len(s.recv(100)))\nexcept OSError:\n    print(0)\n", str(started.path)],
        capture_output=True, text=True, user=nobody, cwd="/", timeout=30,
    )
    assert asked.stdout == "0\n", asked.stderr
    assert started("status").returncode == 0


def test_a_socket_that_was_left_behind(started: Controlled):
    gateway = started.gateway
    gateway.signal(signal.SIGKILL)
    gateway.process.wait(10)
    assert started.path.exists()
    dead = started("status")
    assert dead.returncode == 69 and "left behind by a gateway that was killed" in dead.stderr
    gateway.start()
    gateway.until(lambda: started("status").returncode == 0, "it answers")


def test_it_is_gone_after_the_end(started: Controlled):
    started.gateway.signal(signal.SIGTERM)
    assert started.gateway.ended() == 0
    assert not started.path.exists()
    done = started("status")
    assert done.returncode == 69 and f"no gateway answers at {started.path}" in done.stderr


def run(file: Path) -> subprocess.CompletedProcess:
    return subprocess.run([GATEWAY, "-c", file], capture_output=True, text=True, timeout=60)


def test_another_gateway_is_there_already(started: Controlled, tmp_path: Path, mosquitto: int):
    second = Running(tmp_path / "second", mosquitto)
    second.file.parent.mkdir()
    second.write(control={"socket": str(started.path)})
    done = run(second.file)
    assert done.returncode == 69
    assert f"{second.file}: control.socket: {started.path}: another gateway answers there" in done.stderr
    assert started("status").returncode == 0


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, os.mkfifo])
def test_what_is_no_socket_stays(controlled: Controlled, make: Callable[[Path], None]):
    make(controlled.path)
    controlled.write()
    done = run(controlled.gateway.file)
    assert done.returncode == 69
    assert f"control.socket: {controlled.path}: there is a file that is no socket" in done.stderr
    assert controlled.path.exists()


@pytest.mark.parametrize(
    "sent",
    [b"\0\0\0\4\xff\xfe\xfd\xfc", b"", b"\0\0\0\0", b"\0\0\0\1\0", b"\xff\xff\xff\xff", b"\0\1\0\1" + b"a" * 65537, b"\0\0\0\7status\0", b"GET / HTTP/1.1\r\n\r\n"],
)
def test_nonsense_does_not_disturb_it(shared: Controlled, sent: bytes):
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(shared.path))
            try:
                client.sendall(sent)
            except OSError:
                pass
    assert shared("status").returncode == 0
    assert "crash" not in shared.gateway.log and "control_failed" not in shared.gateway.log


@pytest.mark.parametrize(("size", "answered"), [(0, True), (65536, True), (65537, False)])
def test_the_size_of_a_command(shared: Controlled, size: int, answered: bool):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(shared.path))
        try:
            client.sendall(size.to_bytes(4, "big") + b"a" * size)
            answer = client.recv(5)
        except OSError:
            answer = b""
    # Four bytes of length, then the exit status.
    assert answer[4:] == (b"\x40" if answered else b"")


def test_many_that_say_nothing(shared: Controlled):
    """They have 5 s each; then it is another's turn."""
    silent = []
    for _ in range(8):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(shared.path))
        silent.append(client)
    assert shared("status").returncode == 0
    for client in silent:
        client.close()


# --- The command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "a command is missing"),
        (["stop"], "unknown command stop"),
        (["status", "now"], "unknown argument now"),
        (["status", "--user", "a"], "status has no such argument"),
        (["status", "7"], "status has no such argument"),
        (["clients", "7"], "clients has no such argument"),
        (["clients", "--user"], "--user needs the name of a user"),
        (["kick"], "kick needs the cid of a client, or --user USER"),
        (["kick", "7", "--user", "a"], "kick needs the cid of a client, or --user USER"),
        (["kick", "0"], "0 is no cid"),
        (["kick", "-1"], "-1 is no cid"),
        (["kick", "1", "2"], "unknown argument 2"),
        (["-c"], "-c needs a value"),
        (["--socket"], "--socket needs a value"),
        (["status", "-c", "x"], "-c comes before the command"),
    ],
)
def test_wrong_commands(arguments: list[str], said: str):
    done = ctl(*arguments)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith(f"nats_gateway: ctl: {said}"), done.stderr


def test_settings_without_a_socket(tmp_path: Path):
    file = tmp_path / "gateway.toml"
    file.write_text("")
    done = ctl("-c", file, "status")
    assert done.returncode == 78 and f"{file}: control.socket is not set" in done.stderr
    done = ctl("-c", tmp_path / "none.toml", "status")
    assert done.returncode == 78 and "none.toml: no such file or directory" in done.stderr


def test_a_wrong_setting_elsewhere_is_no_obstacle(started: Controlled):
    started.gateway.file.write_text("no_such_setting = 1\n" + started.gateway.file.read_text())
    assert started("status").returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["status", "--help"]])
def test_help(arguments: list[str]):
    done = ctl(*arguments)
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("status", "clients", "kick", "reload", "drain", "--socket", "--json"))
