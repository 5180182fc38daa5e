"""`make run` and bin/nats_gateway as a user meets them: what they print, what stops them, what they leave behind."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import signal
import socket
import subprocess
import termios
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from certificates import Authority
from cli.running import read_settings
from ports import HOST, free_port
from wire.servers import REPOSITORY

READY = 60.0
STOPPED = 10.0
GATEWAY = REPOSITORY / "bin" / "nats_gateway"


def environment(**variables: object) -> dict[str, str]:
    names = ("NATS_PORT", "MQTT_PORT", "UPSTREAM", "CONFIG", "EMQX_HOME")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    return inherited | {name: str(value) for name, value in variables.items()}


def _as_at_a_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Who runs the tests in the background of a shell ignores it, and so would all that they start.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def make_run(**variables: object):
    """`make run` on a terminal of its own, so that Ctrl-C is typed as a user does."""
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        ["make", "run"], cwd=REPOSITORY, env=environment(**variables), stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=_as_at_a_terminal,
    )
    os.close(theirs)
    os.set_blocking(terminal, False)
    try:
        yield Terminal(terminal, process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(terminal)


class Terminal:
    def __init__(self, descriptor: int, process: subprocess.Popen):
        self._descriptor = descriptor
        self._process = process
        self.text = ""

    def _read(self) -> None:
        with suppress(BlockingIOError, OSError):
            self.text += os.read(self._descriptor, 65536).decode(errors="replace").replace("\r\n", "\n")

    def wait_for(self, text: str, deadline: float = READY) -> None:
        until = time.monotonic() + deadline
        while text not in self.text:
            self._read()
            if text in self.text:
                return
            assert self._process.poll() is None, f"ended before {text!r}:\n{self.text}"
            assert time.monotonic() < until, f"no {text!r} within {deadline} s:\n{self.text}"
            time.sleep(0.05)

    def ctrl_c(self) -> None:
        os.write(self._descriptor, b"\x03")

    def status(self, deadline: float = READY) -> int:
        until = time.monotonic() + deadline
        while self._process.poll() is None:
            self._read()
            assert time.monotonic() < until, f"still running after {deadline} s:\n{self.text}"
            time.sleep(0.05)
        self._read()
        return self._process.returncode


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def test_make_run_starts_both_and_its_lines_to_paste_show_a_message_each():
    nats_port, mqtt_port = free_port(), free_port()
    with make_run(NATS_PORT=nats_port, MQTT_PORT=mqtt_port) as terminal:
        terminal.wait_for("Ctrl-C stops both.")
        pasted = re.findall(r"^  (MQTT to NATS|NATS to MQTT):  (.*)$", terminal.text, re.MULTILINE)
        assert [direction for direction, _ in pasted] == ["MQTT to NATS", "NATS to MQTT"]
        for direction, line in pasted:
            shown = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=20).stdout
            assert f"hello from {direction.split()[0]}" in shown
        terminal.ctrl_c()
        terminal.status(STOPPED)
    assert not is_open(nats_port)
    assert not is_open(mqtt_port)


def test_what_mosquitto_denies_does_not_cost_the_connection():
    nats_port = free_port()
    with make_run(NATS_PORT=nats_port, MQTT_PORT=free_port()) as terminal:
        terminal.wait_for("Ctrl-C stops both.")
        with socket.create_connection((HOST, nats_port), 5) as client:
            # A name that Mosquitto takes for one of its own.
            client.sendall(b'CONNECT {"verbose":false}\r\nPUB $shared.a 2\r\nhi\r\nPING\r\n')
            said = b""
            while b"PONG\r\n" not in said:
                data = client.recv(4096)
                assert data, said
                said += data


def test_make_run_in_front_of_another_broker_starts_none(mosquitto):
    nats_port, mqtt_port = free_port(), free_port()
    with make_run(NATS_PORT=nats_port, MQTT_PORT=mqtt_port, UPSTREAM=f"mqtt://{HOST}:{mosquitto}") as terminal:
        terminal.wait_for(f"listening on {HOST}:{nats_port}")
        assert not is_open(mqtt_port)
        terminal.ctrl_c()
        terminal.status(STOPPED)


def test_make_run_with_a_settings_file(tmp_path: Path):
    nats_port, mqtt_port = free_port(), free_port()
    config = tmp_path / "gateway.toml"
    config.write_text(f'server_name = "from the file"\n[listeners.tcp.a]\nbind = "{HOST}:{nats_port}"\n')
    with make_run(CONFIG=config, MQTT_PORT=mqtt_port) as terminal:
        terminal.wait_for(f"listening on {HOST}:{nats_port}")
        with socket.create_connection((HOST, nats_port), 5) as client:
            assert b'"server_name":"from the file"' in client.recv(4096)


def one_line(text: str, program: str) -> str:
    """What the user is told: exactly one line of the program itself."""
    lines = [line for line in text.splitlines() if line.startswith(f"{program}: ")]
    assert len(lines) == 1, text
    return lines[0]


@pytest.mark.parametrize("name", ["NATS_PORT", "MQTT_PORT"])
@pytest.mark.parametrize("value", ["0", "65536", "here", "-1"])
def test_make_run_says_what_is_no_port(name: str, value: str):
    ports = {"NATS_PORT": free_port(), "MQTT_PORT": free_port()} | {name: value}
    with make_run(**ports) as terminal:
        assert terminal.status() != 0
        assert f"{name}={value} is not a port" in one_line(terminal.text, "make run")


def test_make_run_says_that_the_brokers_port_is_in_use():
    with socket.create_server((HOST, 0)) as taken, make_run(NATS_PORT=free_port(), MQTT_PORT=taken.getsockname()[1]) as terminal:
        assert terminal.status() != 0
        assert "MQTT_PORT" in one_line(terminal.text, "make run")


def test_make_run_says_that_the_gateways_port_is_in_use_and_stops_the_broker():
    mqtt_port = free_port()
    with socket.create_server((HOST, 0)) as taken, make_run(NATS_PORT=taken.getsockname()[1], MQTT_PORT=mqtt_port) as terminal:
        assert terminal.status() != 0
        assert "address already in use" in one_line(terminal.text, "nats_gateway")
    assert not is_open(mqtt_port)


def test_make_run_says_that_there_is_no_broker():
    with make_run(NATS_PORT=free_port(), UPSTREAM=f"mqtt://{HOST}:{free_port()}") as terminal:
        assert terminal.status() != 0
        assert "no MQTT broker at" in one_line(terminal.text, "nats_gateway")


def test_make_run_says_what_is_wrong_in_the_settings(tmp_path: Path):
    config = tmp_path / "gateway.toml"
    config.write_text('server_nam = "x"\n')
    mqtt_port = free_port()
    with make_run(NATS_PORT=free_port(), MQTT_PORT=mqtt_port, CONFIG=config) as terminal:
        assert terminal.status() != 0
        assert "server_nam: unknown key" in one_line(terminal.text, "nats_gateway")
    assert not is_open(mqtt_port)


def test_make_run_says_that_rust_is_too_old(tmp_path: Path):
    old = tmp_path / "rustc"
    old.write_text("#!/bin/sh\necho 'rustc 1.63.0 (4b91a6ea7 2022-08-08)'\n")
    old.chmod(0o755)
    with make_run(PATH=f"{tmp_path}:{os.environ['PATH']}") as terminal:
        assert terminal.status() != 0
        assert "Rust 1.91 or newer is needed (found: 1.63.0)" in terminal.text


def gateway(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([GATEWAY, *arguments], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("toml", "status", "said"),
    [
        ("", 0, ""),
        ("max_payload = 1\n", 78, "max_payload: unknown key; known here: auth_required"),
        ("max_payload_size = -1\n", 78, "max_payload_size: must be a size from 0 to 268173311 bytes"),
        ("[listeners.tcp.a]\nbnd = 1\n", 78, "listeners.tcp.a.bnd: unknown key"),
        ("server_name = \n", 78, "line 1"),
        ("a = 1\na = 2\n", 78, "line 2"),
        ("\xff", 78, ""),
    ],
)
def test_settings_are_checked(tmp_path: Path, toml: str, status: int, said: str):
    config = tmp_path / "gateway.toml"
    config.write_bytes(toml.encode("latin-1"))
    done = gateway("-c", str(config), "--check")
    assert done.returncode == status, done.stderr
    if status:
        line = one_line(done.stderr, "nats_gateway")
        assert str(config) in line and said in line


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def test_the_files_of_tls_are_checked(tmp_path: Path, authority: Authority):
    good, other = authority.server(), authority.server("other")
    locked = authority.server("locked", password="open sesame")
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    missing = str(tmp_path / "missing.pem")
    cases: dict[Path, str | None] = {}
    for options, said in (
        ({"certfile": good.certfile, "keyfile": good.keyfile}, None),
        ({"certfile": locked.certfile, "keyfile": locked.keyfile, "password": "open sesame"}, None),
        ({}, "certfile: is needed"),
        ({"certfile": missing, "keyfile": good.keyfile}, f"certfile: {missing}: no such file or directory"),
        ({"certfile": str(text), "keyfile": good.keyfile}, f"certfile: {text}: holds no certificate in PEM form"),
        ({"certfile": good.certfile}, f"keyfile: {good.certfile}: holds no private key in PEM form"),
        ({"certfile": good.certfile, "keyfile": missing}, f"keyfile: {missing}: no such file or directory"),
        (
            {"certfile": good.certfile, "keyfile": other.keyfile},
            f"keyfile: {other.keyfile}: is not the key of the certificate in {good.certfile}",
        ),
        (
            {"certfile": locked.certfile, "keyfile": locked.keyfile},
            f"password: {locked.keyfile}: is needed: it is encrypted",
        ),
        (
            {"certfile": locked.certfile, "keyfile": locked.keyfile, "password": "wrong"},
            f"password: {locked.keyfile}: cannot decrypt it",
        ),
        (
            {"certfile": good.certfile, "keyfile": good.keyfile, "verify": "verify_peer", "cacertfile": missing},
            f"cacertfile: {missing}: no such file or directory",
        ),
    ):
        config = tmp_path / f"{len(cases)}.toml"
        lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items())
        config.write_text(f"[listeners.ssl.default.ssl_options]\n{lines}")
        cases[config] = said and f"{config}: listeners.ssl.default.ssl_options.{said}"
    for said, (status, text) in zip(cases.values(), read_settings(cases), strict=True):
        assert (status, len(text.splitlines())) == ((78, 1) if said else (0, 0)) and (said or "") in text, text
    right, *_, wrong = cases
    assert gateway("-c", str(right), "--check").returncode == 0
    # The start says the same as the check, before it looks for a broker.
    for arguments in ["--check"], []:
        done = gateway("-c", str(wrong), *arguments)
        assert done.returncode == 78 and cases[wrong] in one_line(done.stderr, "nats_gateway")


def test_a_missing_settings_file_is_named(tmp_path: Path):
    done = gateway("-c", str(tmp_path / "none.toml"))
    assert done.returncode == 78
    assert "none.toml: no such file or directory" in one_line(done.stderr, "nats_gateway")


def test_an_unknown_option_is_named():
    done = gateway("--lissten", "1")
    assert done.returncode == 64
    assert "unknown option --lissten" in one_line(done.stderr, "nats_gateway")


def test_help_lists_the_options():
    done = gateway("--help")
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("-c FILE", "--upstream", "--listen", "--check", "--version"))


def test_the_version_is_said():
    done = gateway("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"nats_gateway \d+\.\d+\.\d+\n", done.stdout)


def test_what_is_for_erlang_shells_is_not_read(tmp_path: Path, monkeypatch):
    (tmp_path / ".erlang").write_text("halt(3).\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    done = gateway("--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


DESCRIPTORS = 60


@contextmanager
def limited_gateway(tmp_path: Path, broker: int):
    """A gateway that may have few files and sockets open, in front of this broker; its port and its log."""
    port = free_port()
    log = tmp_path / "gateway.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [GATEWAY, "--upstream", f"mqtt://{HOST}:{broker}", "--listen", f"{HOST}:{port}"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS)),
        )
        try:
            until = time.monotonic() + READY
            while "listening on" not in log.read_text():
                assert process.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.05)
            yield port, log
        finally:
            process.kill()
            process.wait()


def least_cost(*starts: Callable[[], None], times: int = 7) -> list[tuple[float, float]]:
    """For each: seconds by the clock, and of processor time. The least of each is what other work on this machine
    disturbed least. They take turns, so that such work meets all of them."""

    def cost(start: Callable[[], None]) -> tuple[float, float]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.monotonic()
        start()
        took = time.monotonic() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    costs = [[cost(start) for start in starts] for _ in range(times)]
    return [(min(took for took, _ in each), min(worked for _, worked in each)) for each in zip(*costs, strict=True)]


def test_a_start_takes_about_twice_as_long_as_that_of_a_bare_erlang(mosquitto: int):
    def start_gateway() -> None:
        process = subprocess.Popen(
            [GATEWAY, "--upstream", f"mqtt://{HOST}:{mosquitto}", "--listen", f"{HOST}:{free_port()}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        try:
            assert b"listening on" in process.stdout.readline()
        finally:
            process.kill()
            process.communicate()

    def start_erlang() -> None:
        subprocess.run(["erl", "-noinput", "-boot", "start_clean", "-s", "erlang", "halt"], check=True)

    (bare, bare_work), (started, work) = least_cost(start_erlang, start_gateway)
    print(f"{started:.3f} s, a bare Erlang {bare:.3f} s; processor time {work:.3f} s and {bare_work:.3f} s")
    # What other work on the machine cannot change. The clock shows a start that waits for something, too.
    assert work < 3 * bare_work
    assert started < 5 * bare


def ping(client: socket.socket) -> None:
    client.sendall(b"PING\r\n")
    received = b""
    while not received.endswith(b"PONG\r\n"):
        assert (more := client.recv(4096)), f"the end after {received!r}"
        received += more


def served(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), 5) as client:
            ping(client)
            return True
    except (OSError, AssertionError):
        return False


def test_out_of_descriptors(tmp_path: Path, mosquitto: int):
    """Who is there is served, who comes waits; nothing crashes, and the log says it from time to time."""
    with limited_gateway(tmp_path, mosquitto) as (port, log):
        with socket.create_connection((HOST, port), 5) as old:
            ping(old)
            idle = [socket.create_connection((HOST, port), 5) for _ in range(DESCRIPTORS + 20)]
            until = time.monotonic() + 3
            while time.monotonic() < until:
                ping(old)
                time.sleep(0.05)
            for client in idle:
                client.close()
            until = time.monotonic() + STOPPED
            while not served(port):
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            ping(old)
        said = log.read_text()
    assert not re.search("crash|supervisor|undef|badmatch| error ", said, re.IGNORECASE), said
    assert 1 <= said.count("accept_failed") <= 2, said


def test_the_process_ends_when_its_application_ends(mosquitto, tmp_path: Path):
    """So that whoever supervises it starts it again; it leaves no dump of its memory."""
    port = free_port()
    go = tmp_path / "go"
    ends = (
        f'F = fun F() -> case filelib:is_file("{go}") of'
        " true -> exit(whereis(nats_gateway_sup), kill); false -> timer:sleep(50), F() end end, spawn(F)"
    )
    process = subprocess.Popen(
        [GATEWAY, "--upstream", f"mqtt://{HOST}:{mosquitto}", "--listen", f"{HOST}:{port}"],
        cwd=tmp_path, env=environment(ERL_AFLAGS=f"-eval '{ends}.'"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    try:
        while "listening on" not in (line := process.stdout.readline()):
            assert line, process.communicate(timeout=30)
        assert process.poll() is None
        go.touch()
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 1
    assert not is_open(port)
    assert list(tmp_path.glob("erl_crash*")) == []
