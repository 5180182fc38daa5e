"""The gateway `nats` of a node, as its REST API shows and changes it."""

from __future__ import annotations

import itertools
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from emqx.mqtt import Mqtt
from emqx.nats import Address, Nats
from emqx.node import Node, wait_until
from emqx.rest import Answer, quoted
from ports import HOST, free_port

# Heartbeats and idle time do not disturb a test unless it asks for them.
SETTINGS = {
    "server_id": "test",
    "server_name": "test",
    "mountpoint": "",
    "default_heartbeat_interval": "60s",
    "heartbeat_wait_timeout": "5s",
    "idle_timeout": "60s",
    "enable_stats": True,
    "protocol": {"max_payload_size": 1048576},
    "clientinfo_override": {"username": "${Packet.user}", "password": "${Packet.pass}"},
}
# The CONNECT field `name` is the client id: clients are found and kicked by a name the test has chosen.
NAMED = {"clientinfo_override": SETTINGS["clientinfo_override"] | {"clientid": "${Packet.name}"}}

_run = f"{os.getpid():x}"
_numbers = itertools.count()


def unique(prefix: str = "t") -> str:
    return f"{prefix}{_run}n{next(_numbers)}"


class Gateway:
    def __init__(self, node: Node, address: Address):
        self.node = node
        self.rest = node.rest
        self.address = address
        self._changed = False
        self._undo: list[tuple[str, str]] = []

    # --- Settings ----------------------------------------------------------------------------------------------------

    def settings(self, **changes: Any) -> None:
        self._changed = True
        self.rest.put("/gateways/nats", {"name": "nats", "enable": True} | SETTINGS | changes)

    def try_settings(self, **changes: Any) -> Answer:
        self._changed = True
        return self.rest.call("PUT", "/gateways/nats", {"name": "nats", "enable": True} | SETTINGS | changes)

    def restore(self) -> None:
        """Undoes what the test has changed, the latest first."""
        undo, self._undo = self._undo, []
        for method, path in reversed(undo):
            answer = self.rest.call(method, path)
            assert answer.status in (200, 204, 404), f"{method} {path}: {answer}"
        if self._changed:
            self.settings()
            self._changed = False

    def undo(self, method: str, path: str) -> None:
        self._undo.append((method, path))

    # --- Listeners ---------------------------------------------------------------------------------------------------

    def listen(self, name: str, kind: str = "tcp", **options: Any) -> Address:
        address = (HOST, options.pop("port", None) or free_port())
        self.undo("DELETE", f"/gateways/nats/listeners/nats:{kind}:{name}")
        self.rest.post("/gateways/nats/listeners", listener(name, address, kind, **options))
        return address

    def try_listen(self, name: str, address: Address, kind: str = "tcp", **options: Any) -> Answer:
        self.undo("DELETE", f"/gateways/nats/listeners/nats:{kind}:{name}")
        return self.rest.call("POST", "/gateways/nats/listeners", listener(name, address, kind, **options))

    def change_listener(self, name: str, address: Address, kind: str = "tcp", **options: Any) -> Answer:
        path = f"/gateways/nats/listeners/nats:{kind}:{name}"
        return self.rest.call("PUT", path, listener(name, address, kind, **options))

    def remove_listener(self, name: str, kind: str = "tcp") -> None:
        self.rest.delete(f"/gateways/nats/listeners/nats:{kind}:{name}")

    def listener(self, name: str, kind: str | None = None) -> dict | None:
        listeners = self.rest.get("/gateways/nats/listeners")
        return next((one for one in listeners if one["name"] == name and kind in (None, one["type"])), None)

    # --- Authentication ----------------------------------------------------------------------------------------------

    def authenticate(self, authenticator: dict, listener: str | None = None) -> None:
        path = authentication_path(listener)
        self.undo("DELETE", path)
        # The plugin's own one, where its page has logins.
        self.rest.call("DELETE", path)
        self.rest.post(path, authenticator)

    def authenticate_no_more(self, listener: str | None = None) -> None:
        self.rest.delete(authentication_path(listener))

    def add_user(self, user: str, password: str, listener: str | None = None, is_superuser: bool = False) -> None:
        body = {"user_id": user, "password": password, "is_superuser": is_superuser}
        self.rest.post(f"{authentication_path(listener)}/users", body)

    def delete_user(self, user: str, listener: str | None = None) -> None:
        self.rest.delete(f"{authentication_path(listener)}/users/{user}")

    # --- Clients -----------------------------------------------------------------------------------------------------

    def clients(self, **query: Any) -> list[dict]:
        return self.rest.get("/gateways/nats/clients", **{"limit": 1000} | query)["data"]

    def client(self, client_id: str) -> dict | None:
        answer = self.rest.call("GET", f"/gateways/nats/clients/{quoted(client_id)}")
        return answer.body if answer.status == 200 else None

    def known(self, client_id: str) -> dict:
        return wait_until(lambda: self.client(client_id), f"client {client_id} is listed")

    def forgotten(self, client_id: str) -> None:
        wait_until(lambda: self.client(client_id) is None, f"client {client_id} is not listed any more")

    def kick(self, client_id: str) -> None:
        self.rest.delete(f"/gateways/nats/clients/{quoted(client_id)}")

    def subscriptions(self, client_id: str) -> list[dict]:
        return self.rest.get(f"/gateways/nats/clients/{quoted(client_id)}/subscriptions")

    # --- Connections -------------------------------------------------------------------------------------------------

    def nats(
        self,
        address: Address | None = None,
        tls: ssl.SSLContext | None = None,
        tls_first: bool = False,
        proxy: bytes = b"",
        websocket: bytes | None = None,
        **fields: Any,
    ) -> Nats:
        """A connection that is logged in."""
        connection = Nats(address or self.address, tls=tls, tls_first=tls_first, proxy=proxy, websocket=websocket)
        try:
            return connection.connect(**fields)
        except BaseException:
            connection.close()
            raise

    def raw(self, address: Address | None = None) -> Nats:
        return Nats(address or self.address)

    def listening(self) -> bool:
        try:
            with self.raw():
                return True
        except OSError:
            return False

    def served_by_us(self, address: Address | None = None, **options: Any) -> bool:
        """Only the built-in says `jetstream` in its INFO."""
        with Nats(address or self.address, **options) as client:
            return "jetstream" not in client.info

    def served(self, by_us: bool = True) -> bool:
        try:
            return self.served_by_us() is by_us
        except OSError:
            return False

    def mqtt(self, **options: Any) -> Mqtt:
        return Mqtt(self.node.mqtt, **options)


def listener(name: str, address: Address, kind: str = "tcp", **options: Any) -> dict:
    return {"type": kind, "name": name, "bind": f"{address[0]}:{address[1]}"} | options


def authentication_path(listener: str | None) -> str:
    return f"/gateways/nats/{f'listeners/nats:tcp:{listener}/' if listener else ''}authentication"


BUILT_IN_DATABASE = {
    "mechanism": "password_based",
    "backend": "built_in_database",
    "user_id_type": "username",
    "password_hash_algorithm": {"name": "sha256", "salt_position": "suffix"},
}


@contextmanager
def rest_change(rest, path: str, change: dict) -> Iterator[None]:
    """Changes fields of what a path shows, and puts them back."""
    before = rest.get(path)
    rest.put(path, before | change)
    try:
        yield
    finally:
        rest.put(path, before)


@contextmanager
def file_rules(gateway: Gateway, *rules: str) -> Iterator[None]:
    path = "/authorization/sources/file"
    before = gateway.rest.get(path)
    text = "".join(f"{rule}.\n" for rule in (*rules, "{allow, all}"))
    gateway.rest.put(path, {"type": "file", "enable": True, "rules": text})
    try:
        yield
    finally:
        gateway.rest.put(path, before)


@contextmanager
def auto_subscribe(gateway: Gateway, *topics: str) -> Iterator[None]:
    """EMQX subscribes each MQTT client that connects."""
    before = gateway.rest.get("/mqtt/auto_subscribe")
    gateway.rest.put("/mqtt/auto_subscribe", [{"topic": topic} for topic in topics])
    try:
        yield
    finally:
        gateway.rest.put("/mqtt/auto_subscribe", before)
