"""A gateway and the broker behind it, which a test can stop and start; or a nats-server, to prove the tests."""

from __future__ import annotations

import base64
import glob
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ports import HOST, free_port
from wire.servers import (
    REPOSITORY,
    accepts,
    gateway_config,
    mosquitto_path,
    nats_server_config,
    nats_server_path,
    speaks_nats,
)

Address = tuple[str, int]

MAX_PAYLOAD = 1024 * 1024
START_DEADLINE = 30.0
STOP_DEADLINE = 10.0
# What the gateway waits for a login or a handshake. Java needs more than its 2 seconds on a busy machine.
PATIENCE = "20s"
# CLIENTS_AGAINST=nats-server runs what needs no MQTT against the real server: a test that fails there is wrong.
AGAINST_NATS_SERVER = os.environ.get("CLIENTS_AGAINST") == "nats-server"

# The account of the stacks with authentication, which may not use subjects below DENIED.
USER, PASSWORD = "alice", "correct horse"
DENIED = "denied"


class Server:
    """One process on one address. It stays on that address over restarts."""

    def __init__(self, name: str, command: list[str], address: Address, ready: Callable[[Address], bool], log: Path):
        self.name = name
        self.address = address
        self._command = command
        self._ready = ready
        self._log = log
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            # A session of its own: a launcher script and what it launched are stopped together.
            self._process = subprocess.Popen(
                self._command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + START_DEADLINE
        while not self._ready(self.address):
            if self._process.poll() is not None or time.monotonic() > until:
                status = self._process.returncode
                self.stop()
                raise RuntimeError(f"{self.name} is not ready (exit status {status}):\n{self.log_tail()}")
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        _signal(process, number)
        try:
            process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.wait()
        # The group outlives its leader when a launcher exits first; the port must be free for the next start.
        _signal(process, signal.SIGKILL)

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    @property
    def session(self) -> int:
        """Of its processes: the first one's id."""
        return self._process.pid

    def restart(self) -> None:
        self.stop()
        self.start()

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def log_tail(self) -> str:
        return self.log()[-2000:]


def _signal(process: subprocess.Popen, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


class RunningServer:
    """A server somebody else started: it cannot be stopped."""

    def __init__(self, address: str):
        host, _, port = address.rpartition(":")
        self.address = (host, int(port))

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass


@dataclass
class Stack:
    """What a test talks to. `broker` is None when a nats-server stands in for the gateway."""

    gateway: Server | RunningServer
    broker: Server | RunningServer | None
    scheme: str = "nats"

    @property
    def url(self) -> str:
        host, port = self.gateway.address
        return f"{self.scheme}://{host}:{port}"

    @property
    def mqtt(self) -> Address:
        return self.broker.address

    def __enter__(self) -> Stack:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        try:
            if self.broker:
                self.broker.start()
            self.gateway.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self.gateway.stop()
        if self.broker:
            self.broker.stop()


def running_stack() -> Stack | None:
    gateway, broker = os.environ.get("GATEWAY_ADDRESS"), os.environ.get("MQTT_ADDRESS")
    if not gateway:
        return None
    return Stack(RunningServer(gateway), RunningServer(broker) if broker else None)


def open_stack(directory: Path) -> Stack:
    """Anybody may log in."""
    if AGAINST_NATS_SERVER:
        return Stack(nats_server(directory, ""), None)
    return _gateway_stack(directory, "allow_anonymous true\n")


def login_stack(directory: Path) -> Stack:
    """Only USER with PASSWORD may log in."""
    if AGAINST_NATS_SERVER:
        account = f"authorization {{ user: {json.dumps(USER)}, password: {json.dumps(PASSWORD)} }}\n"
        return Stack(nats_server(directory, account), None)
    directory.mkdir(parents=True, exist_ok=True)
    passwords = directory / "passwords"
    passwords.touch()
    subprocess.run(["mosquitto_passwd", "-b", str(passwords), USER, PASSWORD], check=True, timeout=STOP_DEADLINE)
    return _gateway_stack(directory, f"allow_anonymous false\npassword_file {passwords}\n")


def restricted_stack(directory: Path, settings: dict | None = None) -> Stack:
    """Only USER with PASSWORD may log in, and may neither publish nor subscribe below DENIED."""
    if AGAINST_NATS_SERVER:
        deny = f'{{ deny: "{DENIED}.>" }}'
        permissions = f"{{ publish: {deny}, subscribe: {deny} }}"
        user = f"{{ user: {json.dumps(USER)}, password: {json.dumps(PASSWORD)}, permissions: {permissions} }}"
        return Stack(nats_server(directory, f"authorization {{ users: [{user}] }}\n"), None)
    directory.mkdir(parents=True, exist_ok=True)
    state = directory / "dynamic-security.json"
    state.write_text(json.dumps(_dynamic_security()))
    # In Mosquitto 2.0 an acl_file refuses no subscription, it only withholds the messages; the plugin does refuse.
    lines = f"allow_anonymous false\nplugin {_dynamic_security_plugin()}\nplugin_opt_config_file {state}\n"
    return _gateway_stack(directory, lines, settings)


def tls_stack(directory: Path, tls: dict) -> Stack:
    """Anybody may log in, over TLS."""
    tls = tls | {"timeout": 20}
    if AGAINST_NATS_SERVER:
        return Stack(nats_server(directory, nats_server_config({"tls": tls}, 0), accepts), None)
    broker = mosquitto(directory, "allow_anonymous true\n")
    return Stack(gateway_in_front_of(broker.address, directory, {"tls": tls}, accepts), broker)


def websocket_stack(directory: Path, scheme: str, options: dict) -> Stack:
    """Anybody may log in, over WebSocket: ws, or wss over TLS."""
    settings = {"websocket": options | {"tls": scheme == "wss", "handshake_timeout": PATIENCE}}
    if AGAINST_NATS_SERVER:
        return Stack(nats_server_of(directory, lambda port: nats_server_config(settings, port), accepts), None, scheme)
    broker = mosquitto(directory, "allow_anonymous true\n")
    return Stack(gateway_in_front_of(broker.address, directory, settings, accepts), broker, scheme)


def logins_stack(directory: Path, settings: dict) -> Stack:
    """The broker lets in anybody, the gateway only whom these settings of the wire cases name."""
    if AGAINST_NATS_SERVER:
        return Stack(nats_server(directory, nats_server_config(settings, 0)), None)
    broker = mosquitto(directory, "allow_anonymous true\n")
    return Stack(gateway_in_front_of(broker.address, directory, settings), broker)


def gateway_in_front_of(
    mqtt: Address, directory: Path, more: dict | None = None, ready: Callable[[Address], bool] = speaks_nats
) -> Server:
    """A gateway for a broker the test runs itself."""
    program = REPOSITORY / "bin" / "nats_gateway"
    if not program.exists():
        raise RuntimeError("bin/nats_gateway is missing: run `make build`, or set GATEWAY_ADDRESS=host:port")
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    credentials = '\n[clientinfo_override]\nusername = "${Packet.user}"\npassword = "${Packet.pass}"\n'
    settings = {"server_name": "clients", "max_payload": MAX_PAYLOAD, "authentication_timeout": PATIENCE} | (more or {})
    config = directory / "gateway.toml"
    config.write_text(gateway_config(settings, port, mqtt[1]) + credentials)
    return Server("gateway", [str(program), "-c", str(config)], (HOST, port), ready, directory / "gateway.log")


def _gateway_stack(directory: Path, access: str, settings: dict | None = None) -> Stack:
    broker = mosquitto(directory, access)
    return Stack(gateway_in_front_of(broker.address, directory, settings), broker)


def mosquitto(directory: Path, access: str) -> Server:
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = directory / "mosquitto.conf"
    # 0 means no limit; but Mosquitto 2.0 with max_queued_messages 0 disconnects whoever publishes what it may not.
    # Started by root it would change to a user of its own, who cannot read the files here.
    config.write_text(
        f"listener {port} {HOST}\n"
        "persistence false\n"
        "message_size_limit 0\n"
        "max_queued_messages 1000000\n"
        "max_queued_bytes 0\n"
        "max_inflight_messages 0\n"
        "set_tcp_nodelay true\n"
        "log_dest stderr\n"
        f"{'user root' if os.geteuid() == 0 else ''}\n" + access
    )
    return Server(
        "mosquitto", [mosquitto_path(), "-c", str(config)], (HOST, port), accepts, directory / "mosquitto.log"
    )


def nats_server(directory: Path, access: str, ready: Callable[[Address], bool] = speaks_nats) -> Server:
    # The last one of a name counts.
    return nats_server_of(directory, lambda port: f"{access}\nhost: {HOST}\nport: {port}\n", ready)


def nats_server_of(directory: Path, settings: Callable[[int], str], ready: Callable[[Address], bool]) -> Server:
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = directory / "nats-server.conf"
    config.write_text(f"{settings(port)}\nmax_payload: {MAX_PAYLOAD}\n")
    command = [nats_server_path() or "nats-server", "-c", str(config)]
    return Server("nats-server", command, (HOST, port), ready, directory / "nats-server.log")


def _dynamic_security_plugin() -> str:
    name = "mosquitto_dynamic_security.so"
    found = [path for place in ("/usr/lib", "/usr/lib/*", "/usr/local/lib") for path in glob.glob(f"{place}/{name}")]
    if not found:
        raise RuntimeError(f"{name} is missing; it comes with Mosquitto 2")
    return found[0]


def _dynamic_security() -> dict:
    salt, iterations = b"clients-test", 101
    digest = hashlib.pbkdf2_hmac("sha512", PASSWORD.encode(), salt, iterations)
    deny = [
        {"acltype": kind, "topic": topic_filter, "priority": 1, "allow": False}
        for kind in ("publishClientSend", "subscribePattern")
        for topic_filter in (f"{DENIED}/#", f"$share/+/{DENIED}/#")
    ]
    return {
        "defaultACLAccess": {
            "publishClientSend": True,
            "publishClientReceive": True,
            "subscribe": True,
            "unsubscribe": True,
        },
        "clients": [
            {
                "username": USER,
                "password": base64.b64encode(digest).decode(),
                "salt": base64.b64encode(salt).decode(),
                "iterations": iterations,
                "roles": [{"rolename": "restricted"}],
            }
        ],
        "roles": [{"rolename": "restricted", "acls": deny}],
    }
