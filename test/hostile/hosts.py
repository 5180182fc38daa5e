"""The two hosts of the gateway as the tests see them: the standalone program with a Mosquitto, and an EMQX node."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from clients.stack import Address, Server, Stack, gateway_in_front_of, mosquitto
from emqx.gateway import Gateway, unique
from emqx.page import Page
from hostile.measure import Neighbour, Usage, wait_until
from ports import HOST, free_port
from wire.servers import accepts, toml
from wire.transports import server_certificate

# Kind and options of a listener for each transport.
LISTENERS: dict[str, tuple[str, dict[str, Any]]] = {
    "tcp": ("tcp", {}),
    "tls": ("ssl", {"ssl_options": {}}),
    "ws": ("ws", {}),
    "ws-deflate": ("ws", {"websocket": {"compress": True}}),
}


class Standalone:
    """A program of its own for each test, with a listener for each transport."""

    name = "standalone"
    idle = None

    def __init__(self, directory: Path, settings: dict[str, Any], mqtt: Address | None = None, access: str = ""):
        """mqtt: of a broker that is there already; access: lines of Mosquitto's configuration."""
        broker = None if mqtt else mosquitto(directory, access or "allow_anonymous true\n")
        self.mqtt = mqtt or broker.address
        self._gateway = gateway_in_front_of(self.mqtt, directory)
        self._stack = Stack(self._gateway, broker)
        self._ports = {transport: free_port() for transport in LISTENERS}
        config = directory / "gateway.toml"
        top = "".join(f"{name} = {toml(value)}\n" for name, value in settings.items())
        config.write_text(top + config.read_text() + "".join(map(self._listener, LISTENERS)))

    def _listener(self, transport: str) -> str:
        kind, options = LISTENERS[transport]
        if "ssl_options" in options:
            own = server_certificate()
            options = {"ssl_options": {"certfile": own.certfile, "keyfile": own.keyfile}}
        lines = {"bind": f"{HOST}:{self._ports[transport]}"} | options
        body = "".join(f"{name} = {toml(value)}\n" for name, value in lines.items())
        return f"\n[listeners.{kind}.{transport}]\n{body}"

    def start(self) -> None:
        self._stack.start()
        # The first listener serves before the others are there.
        wait_until(lambda: all(accepts((HOST, port)) for port in self._ports.values()), "all listeners are there")
        # What a start loads once it serves is no memory of any client.
        wait_until(lambda: self.usage.spent_in(0.1) < 0.02, "all is loaded")

    def stop(self) -> None:
        if "neighbour" in self.__dict__:
            self.neighbour.stop()
        # To end in order takes the runtime a second, and the next test starts a gateway of its own.
        self.kill()
        self._stack.stop()

    def kill(self) -> None:
        self._gateway.kill()

    @property
    def broker(self) -> Server:
        return self._stack.broker

    def address(self, transport: str = "tcp") -> Address:
        return HOST, self._ports[transport]

    @cached_property
    def usage(self) -> Usage:
        return Usage.of_session(self._gateway.session)

    @cached_property
    def neighbour(self) -> Neighbour:
        return Neighbour(self.address(), self.mqtt)

    def log(self) -> str:
        return self._gateway.log()


class Emqx:
    """The node that all tests share, with listeners and settings of a test's own."""

    name = "emqx"
    # Memory of each node before its first test: what it keeps in reserve after one is no start for the next.
    _idle: dict[str, int] = {}

    def __init__(self, gateway: Gateway, page: Page):
        self._gateway = gateway
        self._page = page
        self._addresses = {"tcp": gateway.address}
        self.mqtt = gateway.node.mqtt
        self._log_begin = gateway.node.log_size

    def set(self, settings: dict[str, Any]) -> None:
        """Those of the plugin's page and those of the gateway, by their names there."""
        own = self._page.read()
        page = {name: value for name, value in settings.items() if name in own}
        if page:
            self._page.change(**page)
        if more := {name: value for name, value in settings.items() if name not in own}:
            self._gateway.settings(**more)

    def start(self) -> None:
        self.idle = Emqx._idle.setdefault(self._gateway.node.name, self.usage.rss())

    def stop(self) -> None:
        if "neighbour" in self.__dict__:
            self.neighbour.stop()

    def address(self, transport: str = "tcp") -> Address:
        if transport not in self._addresses:
            kind, options = LISTENERS[transport]
            if "ssl_options" in options:
                own = server_certificate()
                files = {key: Path(getattr(own, key)).read_text() for key in ("certfile", "keyfile")}
                options = {"ssl_options": files}
            self._addresses[transport] = self._gateway.listen(unique(), kind, **options)
        return self._addresses[transport]

    @cached_property
    def usage(self) -> Usage:
        return Usage.of_session(self._gateway.node.session)

    @cached_property
    def neighbour(self) -> Neighbour:
        return Neighbour(self._gateway.address)

    def log(self) -> str:
        return self._gateway.node.log(self._log_begin)


Host = Standalone | Emqx
