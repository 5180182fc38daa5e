"""Starts the servers the cases run against, on free ports of 127.0.0.1, and stops what it started."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from .transports import TCP, TLS, WS, WSS, Certificate, Transport, for_settings, server_certificate
from .wire import Connection, WireFailure

from ports import HOST, free_port

REPOSITORY = Path(__file__).resolve().parents[2]
TARGETS = ("nats-server", "gateway")
# In which most cases are played.
WAYS = [transport.settings for transport in (TCP, TLS, WS, WSS)]
START_DEADLINE = 30.0
STOP_DEADLINE = 10.0
# tls_mode auto: long enough for a slow machine, not for those who wait for it.
AUTO_WAIT_MS = 300

Address = tuple[str, int]
Settings = dict[str, Any]


# --- The oracle ------------------------------------------------------------------------------------------------------


@functools.cache
def nats_server_path() -> str | None:
    named = os.environ.get("NATS_SERVER")
    if named:
        return named
    places = (REPOSITORY / ".tools" / "bin" / "nats-server", Path.home() / "go" / "bin" / "nats-server")
    # The one that was installed for these tests is newer than Debian's.
    return next((str(place) for place in places if place.is_file()), None) or shutil.which("nats-server")


@functools.cache
def nats_server_version() -> tuple[int, ...]:
    output = subprocess.run([nats_server_path(), "--version"], capture_output=True, text=True, check=True).stdout
    return version(re.search(r"\d+\.\d+\.\d+", output).group())


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def nats_server_config(settings: Settings, port: int) -> str:
    lines = {"host": HOST, "port": port}
    for name, value in settings.items():
        match name:
            case "heartbeat":
                lines |= {"ping_interval": value, "ping_max": 2}
            case ("max_payload" | "max_pending" | "max_control_line" | "max_connections" | "max_subscriptions"
                  | "max_sub_tokens" | "server_name"):
                lines[name] = value
            case "tls":
                lines |= nats_server_tls(**value)
            case "websocket":
                lines |= {"port": -1, "websocket": nats_server_websocket(port, **value)}
            case "login":
                lines["authorization"] = {"user": value["user"], "password": value["password"]} | (
                    {"timeout": value["timeout"]} if "timeout" in value else {}
                )
            case "users" | "auth_token" | "nkeys":
                authorization = lines.setdefault("authorization", {})
                if name == "auth_token":
                    authorization["token"] = value
                elif name == "nkeys":
                    authorization["users"] = [{"nkey": key} for key in value]
                else:
                    authorization["users"] = value
            case "no_auth_user":
                lines[name] = value
            case "jwt":
                lines |= {"operator": value["operator"], "resolver": "MEMORY", "resolver_preload": value["accounts"]}
            case _:
                raise ValueError(f"no nats-server option for the setting {name}")
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in lines.items())


def nats_server_tls(
    mode: str = "upgrade",
    allow_non_tls: bool = False,
    verify: bool = False,
    user: str | None = None,
    timeout: float = 2,
    **versions: str,
) -> Settings:
    """user: whatever name of the certificate it is; nats-server takes the first one that it finds."""
    own = server_certificate()
    tls = {"cert_file": own.certfile, "key_file": own.keyfile, "ca_file": own.cafile, "timeout": timeout} | versions
    match mode:
        case "handshake_first":
            tls["handshake_first"] = True
        case "auto":
            tls["handshake_first"] = f"{AUTO_WAIT_MS}ms"
    if verify:
        tls["verify_and_map" if user else "verify"] = True
    return {"tls": tls} | ({"allow_non_tls": True} if allow_non_tls else {})


def nats_server_websocket(port: int, tls: bool = False, **options: Any) -> Settings:
    """same_origin, allowed_origins, compression, handshake_timeout, jwt_cookie"""
    security = nats_server_tls() if tls else {"no_tls": True}
    return {"host": HOST, "port": port} | security | options


# --- The gateway -----------------------------------------------------------------------------------------------------


def gateway_config(settings: Settings, port: int, broker_port: int) -> str:
    way, rest = split(settings)
    return gateway_config_of(rest, {port: way}, broker_port)


def split(settings: Settings) -> tuple[Settings, Settings]:
    """How the server is spoken to, and the rest."""
    way = {name: settings[name] for name in ("tls", "websocket") if name in settings}
    return way, {name: value for name, value in settings.items() if name not in way}


def gateway_config_of(settings: Settings, ways: dict[int, Settings], broker_port: int) -> str:
    """ways: for each port how it is spoken to, each of them of another kind."""
    # A test that stops the gateway does not wait for the clients to leave.
    top: Settings = {"server_name": "wire", "lame_duck_grace_period": "0s"}
    listener: Settings = {}
    for name, value in settings.items():
        match name:
            case "heartbeat":
                top |= {"default_heartbeat_interval": value, "heartbeat_wait_timeout": value}
            case "max_payload":
                top["max_payload_size"] = value
            case ("max_control_line" | "max_subscriptions" | "max_sub_tokens" | "max_pending" | "server_name" | "send_timeout"
                  | "log_level" | "authentication_timeout"):
                top[name] = value
            case "max_connections" | "proxy_protocol" | "proxy_protocol_timeout":
                listener[name] = value
            case "login":
                top |= {"auth_required": True} | (
                    {"authentication_timeout": f"{value['timeout']}s"} if "timeout" in value else {}
                )
            case "users" | "auth_token" | "no_auth_user" | "kv":
                top[name] = value
            case "nkeys":
                top["internal_authn"] = [{"type": "nkey", "nkeys": value}]
            case "jwt":
                preload = [{"pubkey": key, "jwt": token} for key, token in value["accounts"].items()]
                top["internal_authn"] = [
                    {
                        "type": "jwt",
                        "trusted_operators": [value["operator"]],
                        "resolver": {"type": "memory", "resolver_preload": preload},
                    }
                ]
            case _:
                raise ValueError(f"no gateway option for the setting {name}")
    tables = [("", top), ("[upstream]", {"url": f"mqtt://{HOST}:{broker_port}"})]
    for port, way in ways.items():
        tables += listener_tables({"bind": f"{HOST}:{port}"} | listener, **way)
    return "\n".join(
        "".join([f"{title}\n" if title else "", *(f"{name} = {toml(value)}\n" for name, value in values.items())])
        for title, values in tables
    )


def listener_tables(
    listener: Settings, tls: Settings | None = None, websocket: Settings | None = None
) -> list[tuple[str, Settings]]:
    kind, more, options = "tcp", {}, {}
    if tls is not None:
        kind = "ssl"
        more, options["ssl_options"] = gateway_tls(**tls)
    elif websocket is not None:
        kind, options["ssl_options"], options["websocket"] = gateway_websocket(**websocket)
    title = f"listeners.{kind}.default"
    return [
        (f"[{title}]", listener | more),
        *((f"[{title}.{name}]", values) for name, values in options.items() if values),
    ]


def gateway_tls(
    mode: str = "upgrade",
    allow_non_tls: bool = False,
    verify: bool = False,
    user: str = "cn",
    timeout: float = 2,
    min_version: str = "1.2",
    certificate: tuple[str, str, str] | None = None,
) -> tuple[Settings, Settings]:
    own = Certificate(*certificate) if certificate else server_certificate()
    listener = {
        "tls_mode": mode,
        "allow_non_tls": allow_non_tls,
        "handshake_first_wait": f"{AUTO_WAIT_MS}ms",
        "peer_cert_as_username": user,
    }
    ssl_options = {
        "certfile": own.certfile,
        "keyfile": own.keyfile,
        "cacertfile": own.cafile,
        "handshake_timeout": f"{round(timeout * 1000)}ms",
        "versions": ["tlsv1.3"] if min_version == "1.3" else ["tlsv1.2", "tlsv1.3"],
    }
    if verify:
        ssl_options |= {"verify": "verify_peer", "fail_if_no_peer_cert": True}
    return listener, ssl_options


def gateway_websocket(tls: bool = False, **options: Any) -> tuple[str, Settings, Settings]:
    own = server_certificate()
    names = {"compression": "compress"}
    websocket = {names.get(name, name): value for name, value in options.items()}
    if tls:
        return "wss", {"certfile": own.certfile, "keyfile": own.keyfile}, websocket
    return "ws", {}, websocket


def toml(value: Any) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"{json.dumps(name)} = {toml(inner)}" for name, inner in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case _:
            return json.dumps(value)


def broker_config(port: int) -> str:
    # Mosquitto has no packet size limit unless one is set, and refuses an explicit "none" for max_packet_size.
    return "".join(
        f"{line}\n"
        for line in (
            f"listener {port} {HOST}",
            "allow_anonymous true",
            "message_size_limit 0",
            "max_queued_messages 1000000",
            "max_queued_bytes 0",
            "persistence false",
            "set_tcp_nodelay true",
            "log_dest stderr",
        )
    )


def mosquitto_path() -> str:
    path = os.environ.get("MOSQUITTO") or shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if path is None:
        pytest.fail("the gateway needs a broker: no mosquitto on PATH or in /usr/sbin")
    return path


# --- Processes -------------------------------------------------------------------------------------------------------


def speaks_nats(address: Address, transport: Transport = TCP) -> bool:
    try:
        connection = Connection(address, deadline=1.0, transport=transport)
    except OSError:
        return False
    try:
        connection.begin()
        return True
    except (WireFailure, OSError):
        return False
    finally:
        connection.close()


def _speaks_nats_as(settings: Settings):
    tls = settings.get("tls", {})
    if tls.get("verify") or tls.get("certificate") or "path" in settings.get("websocket", {}):
        # It would not let us in, or is not the one we trust.
        return accepts
    return functools.partial(speaks_nats, transport=for_settings(settings))


def accepts(address: Address) -> bool:
    with suppress(OSError), socket.create_connection(address, timeout=1.0):
        return True
    return False


class Servers:
    """One server per target and settings, started when first asked for."""

    def __init__(self):
        self._directory = Path(tempfile.mkdtemp(prefix="wire-"))
        self._processes: list[subprocess.Popen] = []
        self._addresses: dict[tuple[str, str], Address] = {}
        self._logs: dict[Address, Path] = {}
        self._failures: dict[tuple[str, str], str] = {}
        self._broker_port: int | None = None

    def address(self, target: str, settings: Settings, transport: Transport = TCP) -> Address:
        running = os.environ.get("GATEWAY_ADDRESS")
        if running and target == "gateway":
            if settings:
                pytest.skip(f"the gateway at GATEWAY_ADDRESS cannot be given {settings}")
            host, _, port = running.rpartition(":")
            return host, int(port)
        settings = transport.settings | settings
        key = (target, json.dumps(settings, sort_keys=True))
        if key not in self._addresses and key not in self._failures:
            try:
                self._start_for(key, settings)
            except RuntimeError as error:
                # Each case for a server that does not start fails; only the first has waited for it.
                self._failures[key] = str(error)
        if key in self._failures:
            pytest.fail(self._failures[key], pytrace=False)
        return self._addresses[key]

    def _start_for(self, key: tuple[str, str], settings: Settings) -> None:
        target, _ = key
        way, rest = split(settings)
        if target != "gateway":
            self._addresses[key] = self.start_nats_server(settings)
        elif way in WAYS:
            # One gateway for all of them: a start costs as much processor time as hundreds of cases.
            for other, address in zip(WAYS, self.start_gateway(rest, *WAYS)):
                self._addresses[target, json.dumps(other | rest, sort_keys=True)] = address
        else:
            [self._addresses[key]] = self.start_gateway(rest, way)

    def start_nats_server(self, settings: Settings) -> Address:
        port = free_port()
        config = self._write(f"nats-server-{port}.conf", nats_server_config(settings, port))
        return self._start([nats_server_path(), "-c", config], port, _speaks_nats_as(settings))

    def start_gateway(self, settings: Settings, *ways: Settings) -> list[Address]:
        """Each address is spoken to in one of the ways."""
        program = REPOSITORY / "bin" / "nats_gateway"
        if not program.exists():
            raise RuntimeError("bin/nats_gateway is missing: run `make build`, or set GATEWAY_ADDRESS=host:port")
        ports = {free_port(): way for way in ways}
        port = next(iter(ports))
        config = self._write(f"gateway-{port}.toml", gateway_config_of(settings, ports, self._broker()))
        readies = {(HOST, port): _speaks_nats_as(settings | way) for port, way in ports.items()}
        self._start([str(program), "-c", config], port, lambda _: all(ready(address) for address, ready in readies.items()))
        self._logs |= dict.fromkeys(readies, self._logs[HOST, port])
        return list(readies)

    def _broker(self) -> int:
        if self._broker_port is None:
            port = free_port()
            config = self._write(f"mosquitto-{port}.conf", broker_config(port))
            self._start([mosquitto_path(), "-c", config], port, accepts)
            self._broker_port = port
        return self._broker_port

    def log(self, address: Address) -> str:
        """Of the server that was started there."""
        return self._logs[address].read_text(errors="replace")

    def stop(self) -> None:
        for process in reversed(self._processes):
            _signal(process, signal.SIGTERM)
        for process in self._processes:
            until = time.monotonic() + STOP_DEADLINE
            # The group outlives its leader when a launcher ends before what it launched.
            while process.poll() is None or _signal(process, 0):
                if time.monotonic() > until:
                    _signal(process, signal.SIGKILL)
                    process.wait()
                    break
                time.sleep(0.01)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _write(self, name: str, text: str) -> str:
        path = self._directory / name
        path.write_text(text)
        return str(path)

    def _start(self, command: list[str], port: int, ready) -> Address:
        address = (HOST, port)
        log_path = self._directory / f"{port}.log"
        with log_path.open("wb") as log:
            # A session of its own, so that a launcher script and what it launched are stopped together.
            process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=os.environ | {"ERL_CRASH_DUMP": str(self._directory / "erl_crash.dump")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        self._logs[address] = log_path
        until = time.monotonic() + START_DEADLINE
        while not ready(address):
            if process.poll() is not None or time.monotonic() > until:
                tail = log_path.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{' '.join(command)} is not ready (exit status {process.returncode}):\n{tail}")
            time.sleep(0.02)
        return address


def _signal(process: subprocess.Popen, number: int) -> bool:
    """Whether any process of the group was there to take it."""
    try:
        os.killpg(process.pid, number)
        return True
    except ProcessLookupError:
        return False


# --- Fixtures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    running = Servers()
    try:
        yield running
    finally:
        running.stop()


def require(target: str, since: str | None) -> None:
    """Skips what this machine's nats-server cannot show."""
    if target != "nats-server":
        return
    if nats_server_path() is None:
        pytest.skip("no nats-server: set NATS_SERVER or install one (README.md)")
    if since and nats_server_version() < version(since):
        pytest.skip(f"needs nats-server {since} or newer")
