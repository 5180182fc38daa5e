"""A throw-away EMQX node: everything it writes is in one directory, every port it opens is a free one of 127.0.0.1."""

from __future__ import annotations

import glob
import os
import random
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from emqx.rest import PASSWORD, Answer, Rest, RestError
from ports import HOST, free_port, is_free

START_DEADLINE = 120.0
STOP_DEADLINE = 60.0
COMMAND_DEADLINE = 60.0
POLL = 0.05
# ekka_dist's and gen_rpc's base ports; the number at the end of the node name is added to them.
DIST_PORT, RPC_PORT = 4370, 5370


# Of unpacked releases, and of the official image.
PLACES = ("/opt/emqx-*", "/opt/emqx")


def emqx_homes() -> list[Path]:
    """EMQX_HOME alone, else every EMQX in /opt, the newest first."""
    named = os.environ.get("EMQX_HOME")
    found = [place for pattern in PLACES for place in glob.glob(pattern)]
    places = [named] if named else newest_first(found)
    return [Path(place) for place in places if os.access(f"{place}/bin/emqx", os.X_OK)]


def newest_first(places: list[str]) -> list[str]:
    """By the version in the last part of the name: 5.10 is newer than 5.9."""

    def version(place: str) -> tuple[list[int], str]:
        return [int(number) for number in re.findall(r"\d+", Path(place).name)], place

    return sorted(places, key=version, reverse=True)


_numbers: set[int] = set()


def _node_number() -> int:
    while True:
        number = random.randrange(1000, 20000)
        if number not in _numbers and is_free(DIST_PORT + number) and is_free(RPC_PORT + number):
            _numbers.add(number)
            return number


def wait_until(condition: Callable[[], Any], what: str, deadline: float = 10.0) -> Any:
    """The first true value of the condition."""
    until = time.monotonic() + deadline
    while not (value := condition()):
        if time.monotonic() > until:
            raise AssertionError(f"not within {deadline} s: {what}")
        time.sleep(POLL)
    return value


def link_release(home: Path, root: Path, etc: Path) -> Path:
    """Makes `root` the release of `home` with `etc` as its settings; answers where the settings of `home` are.

    releases/emqx_vars of a release sets EMQX_ETC_DIR whatever the environment says, and bin/emqx takes the vars from
    where it really is: those two are copied, and the rest is links.
    """
    home = home.resolve()
    shutil.copytree(home / "bin", root / "bin")
    # Whoever removes it must be able to.
    (root / "bin").chmod(0o755)
    (root / "releases").mkdir()
    for entry in (*home.iterdir(), *(home / "releases").iterdir()):
        place = root / entry.relative_to(home)
        # The directories that a node writes in are elsewhere, too.
        if not place.exists() and entry.name not in ("emqx_vars", "data", "etc", "log", "plugins", "relup"):
            place.symlink_to(entry)
    names = (home / "releases" / "emqx_vars").read_text()
    changed = {"EMQX_ETC_DIR": etc, "RUNNER_BIN_DIR": root / "bin", "RUNNER_USER": "", "ROOTDIR": root}
    lines = [f"export {name}={shlex.quote(str(value))}\n" for name, value in changed.items()]
    (root / "releases" / "emqx_vars").write_text(names + "\n" + "".join(lines))
    return released_settings(home)


def released_settings(home: Path) -> Path:
    """Where its packager has put them: beside the release, or in /etc."""
    script = '. "$RUNNER_ROOT_DIR/releases/emqx_vars" && printf %s "$EMQX_ETC_DIR"'
    environment = {"RUNNER_ROOT_DIR": str(home), "BASE_RUNNER_ROOT_DIR": str(home)}
    return Path(subprocess.run(["sh", "-c", script], env=environment, check=True, capture_output=True, text=True).stdout)


class Node:
    def __init__(self, home: Path, settings: str = "", cookie: str | None = None, **environment: str):
        """settings: HOCON that REST calls may override, as in base.hocon; environment: what they may not."""
        self._home = home
        self._extra = environment
        # EMQX compares the paths of processes with resolved ones.
        self._directory = Path(tempfile.mkdtemp(prefix="nats-gateway-emqx-")).resolve()
        self.name = f"natsgateway{_node_number()}@{HOST}"
        self.cookie = cookie or secrets.token_hex(8)
        self.mqtt = (HOST, free_port())
        self.url = f"http://{HOST}:{free_port()}"
        self.plugins = self._directory / "plugins"
        self.data = self._directory / "data"
        self.rest = Rest(f"{self.url}/api/v5", environment.get("EMQX_DASHBOARD__DEFAULT_PASSWORD", PASSWORD))
        self._root = self._directory / "release"
        self._emqx = str(self._root / "bin" / "emqx")
        self._process: subprocess.Popen | None = None
        self._write(settings)

    def _write(self, settings: str) -> None:
        etc = self._directory / "etc"
        for directory in (etc, self.plugins, self.data, self._directory / "log"):
            directory.mkdir()
        released = link_release(self._home, self._root, etc)
        for name in ("vm.args", "ssl_dist.conf"):
            # Without the mode: it is written to, below, whoever may write to the release.
            shutil.copyfile(released / name, etc / name)
        with (etc / "vm.args").open("a") as arguments:
            # Idle schedulers cost no CPU; the distribution listens on loopback only.
            arguments.write("\n+sbwt none\n+sbwtdcpu none\n+sbwtdio none\n")
            arguments.write("-kernel inet_dist_use_interface {127,0,0,1}\n")
        (etc / "certs").symlink_to(released / "certs")
        (etc / "acl.conf").write_text("{allow, all}.\n")
        (etc / "emqx.conf").write_text(
            f"""
node {{ name = "{self.name}", cookie = "{self.cookie}", data_dir = "{self.data}" }}
cluster {{ name = natsgatewaytest, discovery_strategy = manual }}
rpc {{ listen_address = "{HOST}", port_discovery = stateless }}
listeners.tcp.default {{ bind = "{HOST}:{self.mqtt[1]}" }}
listeners.ssl.default.enable = false
listeners.ws.default.enable = false
listeners.wss.default.enable = false
dashboard.listeners.http.bind = "{HOST}:{self.url.rpartition(":")[2]}"
plugins.install_dir = "{self.plugins}"
telemetry.enable = false
sysmon.os.mem_check_interval = disabled
"""
        )
        # The reduced builds of developers' machines cannot do routing schema v3.
        (etc / "base.hocon").write_text(f"broker.routing.storage_schema = v2\n{settings}\n")

    @property
    def acl_file(self) -> Path:
        return self._directory / "etc" / "acl.conf"

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("EMQX_")}
        return inherited | self._extra | {
            "EMQX_LOG_DIR": str(self._directory / "log"),
            "EMQX_NODE__NAME": self.name,
            "EMQX_NODE__COOKIE": self.cookie,
            "EMQX_NODE__DATA_DIR": str(self.data),
            "ERL_CRASH_DUMP": str(self._directory / "log" / "erl_crash.dump"),
        }

    def start(self) -> None:
        self.launch()
        self.await_ready()

    def launch(self) -> None:
        with (self._directory / "console.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._emqx, "foreground"],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def await_ready(self) -> None:
        until = time.monotonic() + START_DEADLINE
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > until:
                status = self._process.returncode
                self.kill()
                raise RuntimeError(f"EMQX is not ready (exit status {status}):\n{self.log_tail()}")
            time.sleep(0.2)

    def is_ready(self) -> bool:
        """The REST API is the last to start, and takes a login once everything is there."""
        try:
            self.rest.login()
            return True
        except (OSError, RestError):
            return False

    def stop(self) -> None:
        """By its own command."""
        process = self._process
        if process is None:
            return
        try:
            subprocess.run(
                [self._emqx, "stop"],
                env=self._environment() | {"EMQX_WAIT_FOR_STOP": str(int(STOP_DEADLINE))},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=STOP_DEADLINE,
            )
            process.wait(STOP_DEADLINE)
            self._process = None
        finally:
            self.kill()

    def kill(self) -> None:
        """What stop has left."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @property
    def session(self) -> int:
        """Of its processes: the first one's id."""
        return self._process.pid

    def restart(self) -> None:
        self.stop()
        self.start()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self._directory / "console.log"

    @property
    def log_size(self) -> int:
        return self._log.stat().st_size

    def log(self, begin: int = 0) -> str:
        with self._log.open("rb") as log:
            log.seek(begin)
            return log.read().decode(errors="replace")

    def log_tail(self) -> str:
        return self.log()[-6000:]

    def errors(self, begin: int) -> list[str]:
        return [line for line in self.log(begin).splitlines() if "[error]" in line or "[critical]" in line]

    # --- Commands ----------------------------------------------------------------------------------------------------

    def ctl(self, *arguments: str) -> str:
        """Its exit status is 1 also for commands that are done, when they end with anything but `ok`."""
        return self._run("ctl", *arguments).stdout

    def eval(self, expression: str) -> str:
        """For what neither REST nor ctl shows."""
        done = self._run("eval", expression)
        assert done.returncode == 0, f"emqx eval {expression!r}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def _run(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [self._emqx, *arguments],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_DEADLINE,
        )

    @property
    def version(self) -> tuple[int, ...]:
        """Of EMQX: 5, 10, 4."""
        return tuple(int(number) for number in re.match(r"[\d.]+", self.rest.get("/nodes")[0]["version"])[0].split("."))

    # --- Plugins -----------------------------------------------------------------------------------------------------

    def upload(self, package: Path) -> Answer:
        return self.rest.upload("/plugins/install", "plugin", package.name, package.read_bytes())

    def install(self, package: Path) -> None:
        self.ctl("plugins", "allow", name_vsn(package))
        answer = self.upload(package)
        assert answer.status == 204, f"install of {package.name}: {answer}"

    def start_plugin(self, package: Path) -> None:
        self.rest.put(f"/plugins/{name_vsn(package)}/start")

    def stop_plugin(self, package: Path) -> None:
        self.rest.put(f"/plugins/{name_vsn(package)}/stop")

    def uninstall(self, package: Path) -> None:
        self.rest.delete(f"/plugins/{name_vsn(package)}")

    def plugin(self, name: str) -> dict | None:
        """Its entry in the list of plugins, with the status of this node."""
        for plugin in self.rest.get("/plugins"):
            if plugin["name"] == name:
                return plugin | {"here": next(one for one in plugin["running_status"] if one["node"] == self.name)}
        return None

    @contextmanager
    def stopped_plugin(self, package: Path) -> Iterator[None]:
        self.stop_plugin(package)
        try:
            yield
        finally:
            self.start_plugin(package)


def name_vsn(package: Path) -> str:
    return package.name.removesuffix(".tar.gz")
