"""What `make release` has made: it runs where there is no Erlang, and the Debian package fits its unit."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest

from certificates import Authority
from cli.running import GATEWAY, Running
from monitoring import answers, get, get_json
from ports import HOST, free_port
from wire.servers import REPOSITORY

RELEASE = REPOSITORY / "_build" / "release"
PACKAGING = REPOSITORY / "packaging"
VERSION = re.search(r'{vsn, "(.*)"}', (REPOSITORY / "erlang_src" / "nats_gateway.app.src").read_text()).group(1)

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")


def only(pattern: str) -> Path:
    found = list(RELEASE.glob(pattern))
    assert len(found) == 1, found
    return found[0]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tarball, unpacked."""
    directory = tmp_path_factory.mktemp("tarball")
    with tarfile.open(only("nats_gateway-standalone-*.tar.gz")) as archive:
        archive.extractall(directory, filter="tar")
    (unpacked,) = directory.iterdir()
    return unpacked


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the Debian package, and DEBIAN."""
    directory = tmp_path_factory.mktemp("package") / "root"
    subprocess.run(["dpkg-deb", "-R", only("nats-gateway_*.deb"), directory], check=True)
    return directory


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which no command is found."""
    (tmp_path / "empty").mkdir()
    return {"PATH": str(tmp_path / "empty")}


def test_the_checksums_are_those_of_the_files():
    lines = (RELEASE / "SHA256SUMS").read_text().splitlines()
    stated = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = {file.name: file for file in RELEASE.iterdir() if file.is_file() and file.name != "SHA256SUMS"}
    assert stated == {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    assert all(VERSION in name for name in files)


# --- The tarball -----------------------------------------------------------------------------------------------------


def test_it_serves_clients_without_an_erlang(tree: Path, tmp_path: Path, bare: dict[str, str], mosquitto: int):
    gateway = Running(tmp_path, mosquitto, tree / "bin" / "nats_gateway", bare)
    monitor = free_port()
    gateway.write(monitor={"bind": f"{HOST}:{monitor}"})
    gateway.start()
    try:
        # The process that a supervisor has started is the gateway itself.
        assert os.readlink(f"/proc/{gateway.process.pid}/exe") == str(next(tree.glob("erlang/erts-*")) / "bin" / "beam.smp")
        with gateway.client() as client:
            client.subscribe("a.*").ping()
            client.send(b"PUB a.b 5\r\nhello\r\n")
            message = client.message()
            assert (message.subject, message.payload) == ("a.b", b"hello")
        assert healthy(gateway.port)
        gateway.until(lambda: answers(monitor), "it is monitored")
        assert get_json(monitor, "/healthz") == {"status": "ok"}
        assert "<html" in get(monitor, "/")[1]
        gateway.reload("settings_reloaded")
        gateway.signal(signal.SIGTERM)
        assert gateway.ended() == 0
    finally:
        gateway.process.kill()
        gateway.process.wait()
    assert not healthy(gateway.port)


def test_its_other_commands_need_no_erlang_either(tree: Path, tmp_path: Path, bare: dict[str, str], mosquitto: int):
    program = tree / "bin" / "nats_gateway"
    path = tmp_path / "control.sock"
    gateway = Running(tmp_path, mosquitto, program, bare)
    gateway.write(control={"socket": str(path)}, log_format="text")

    def said(*arguments: object) -> str:
        done = subprocess.run([program, *arguments], env=bare, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert json.loads(said("check", "-c", gateway.file, "--json"))["ok"] is True
    gateway.start()
    try:
        gateway.until(path.exists, "it has a control socket")
        with gateway.client(user="a\u00e9"):
            assert json.loads(said("ctl", "-c", gateway.file, "status", "--json"))["pid"] == gateway.process.pid
            assert "a\u00e9" in said("ctl", "-c", gateway.file, "clients")
            assert said("ctl", "-c", gateway.file, "kick", "--user", "a\u00e9") == "1 client was closed\n"
        gateway.write(control={"socket": str(path)}, log_format="json")
        assert said("ctl", "-c", gateway.file, "reload") == "changed: log_format\n"
        said("ctl", "-c", gateway.file, "drain")
        assert gateway.ended() == 0
    finally:
        gateway.process.kill()
        gateway.process.wait()


def healthy(port: int) -> bool:
    """As the images ask: both have the same command."""
    commands = re.findall(r'HEALTHCHECK .*\\\n +CMD \["bash", "-c", "(.*)"\]\n', (PACKAGING / "Dockerfile").read_text())
    assert len(commands) == 2 and len(set(commands)) == 1
    return subprocess.run(
        ["bash", "-c", commands[0]], env=os.environ | {"HEALTH_PORT": str(port)}, stderr=subprocess.DEVNULL
    ).returncode == 0


def test_it_says_the_same_as_the_one_that_make_build_has_built(tree: Path, tmp_path: Path, bare: dict[str, str]):
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('[listeners.tcp.default]\nbind = "nowhere"\n')
    linked = tmp_path / "nats-gateway"
    linked.symlink_to(tree / "bin" / "nats_gateway")

    def result(program: Path, arguments: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
        done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, timeout=30)
        return done.returncode, done.stdout, done.stderr

    for arguments, status in (
        (["--version"], 0),
        (["--help"], 0),
        (["--nonsense"], 64),
        (["-c", str(tmp_path / "none.toml")], 78),
        (["-c", str(wrong)], 78),
        (["--upstream", f"mqtt://{HOST}:{free_port()}"], 69),
    ):
        built = result(GATEWAY, arguments, dict(os.environ))
        assert built[0] == status, built
        assert result(tree / "bin" / "nats_gateway", arguments, bare) == built
        assert result(linked, arguments, dict(os.environ)) == built


def test_the_settings_file_shows_settings_that_there_are(tree: Path, tmp_path: Path):
    certificate = Authority(tmp_path).server()
    shown = (tree / "etc" / "nats_gateway.toml").read_text()
    assert "control" not in tomllib.loads(shown), "nobody makes the directory of the socket there"
    assert "#certfile = " in shown and "#keyfile = " in shown
    all_on = re.sub(r"^#(?=[a-z\[])", "", shown, flags=re.MULTILINE)
    all_on = re.sub(r"^(certfile|keyfile) = .*", lambda match: f'{match[1]} = "{getattr(certificate, match[1])}"', all_on, flags=re.MULTILINE)
    for name, text in (("as it is", shown), ("all on", all_on)):
        file = tmp_path / f"{name}.toml"
        file.write_text(text)
        done = subprocess.run([tree / "bin" / "nats_gateway", "-c", file, "--check"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_nothing_in_it_names_where_it_was_built(tree: Path):
    for beam in tree.glob("lib/nats_gateway/ebin/*.beam"):
        assert os.fsencode(REPOSITORY) not in beam.read_bytes(), beam.name
    assert not list(tree.glob("**/nats_gateway_emqx*")), "the modules for EMQX are not wanted"


# --- The Debian package ----------------------------------------------------------------------------------------------


def unit(package: Path) -> dict[str, list[str]]:
    """The settings of the systemd unit, each with its values."""
    settings: dict[str, list[str]] = {}
    for line in (package / "lib" / "systemd" / "system" / "nats-gateway.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            settings.setdefault(name, []).append(value)
    return settings


@needs_dpkg
def test_the_package_says_what_it_is(package: Path):
    control = (package / "DEBIAN" / "control").read_text()
    assert f"\nVersion: {VERSION}\n" in control
    assert re.search(r"^Depends: adduser, .*libc6 \(>= .*libssl", control, re.MULTILINE)
    assert (package / "DEBIAN" / "conffiles").read_text() == "/etc/nats-gateway/nats-gateway.toml\n"
    for line in (package / "DEBIAN" / "md5sums").read_text().splitlines():
        digest, name = line.split("  ", 1)
        assert hashlib.md5((package / name).read_bytes()).hexdigest() == digest, name
    listed = subprocess.run(
        ["dpkg-deb", "-c", only("nats-gateway_*.deb")], check=True, capture_output=True, text=True
    ).stdout
    assert {line.split()[1] for line in listed.splitlines()} == {"root/root"}


@needs_dpkg
def test_the_unit_names_what_the_package_has(package: Path):
    settings = unit(package)
    command = shlex.split(*settings["ExecStart"])
    assert (package / command[0].lstrip("/")).resolve() == package / "usr/lib/nats-gateway/bin/nats_gateway"
    assert os.access(package / command[0].lstrip("/"), os.X_OK)
    assert command[1:] == ["-c", "/etc/nats-gateway/nats-gateway.toml"]
    assert (package / command[2].lstrip("/")).is_file()
    assert (package / settings["WorkingDirectory"][0].lstrip("/")).is_dir()
    # The directory of the control socket, which the settings of the package name, and `ctl` without an option.
    text = (package / "etc/nats-gateway/nats-gateway.toml").read_text()
    socket = tomllib.loads(text)["control"]["socket"]
    assert socket == f"/run/{settings['RuntimeDirectory'][0]}/control.sock"
    told = subprocess.run([package / "usr/bin/nats-gateway", "ctl", "--help"], capture_output=True, text=True).stdout
    assert f"without both, {socket}" in told
    assert settings["Documentation"] == ["file:///usr/share/doc/nats-gateway/README.md"]
    assert (package / "usr/share/doc/nats-gateway/README.md").is_file()
    assert f" {settings['User'][0]}\n" in (package / "DEBIAN" / "postinst").read_text()
    # Another start does not help against these: see docs/operations.md.
    assert settings["RestartPreventExitStatus"] == ["64 78"]
    for script in ("postinst", "prerm", "postrm"):
        subprocess.run(["sh", "-n", package / "DEBIAN" / script], check=True)


@needs_dpkg
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_unit(package: Path, tmp_path: Path):
    # It looks for the command on this machine.
    text = (package / "lib" / "systemd" / "system" / "nats-gateway.service").read_text()
    here = tmp_path / "nats-gateway.service"
    here.write_text(text.replace("/usr/bin/nats-gateway", str(package / "usr" / "bin" / "nats-gateway")))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", here], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


@needs_dpkg
def test_the_packages_program_runs(package: Path):
    done = subprocess.run([package / "usr" / "bin" / "nats-gateway", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"nats_gateway {VERSION}\n")
