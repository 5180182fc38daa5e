"""The plugin's own page of settings, over REST."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from emqx.node import Node, name_vsn
from emqx.rest import Answer

DEFAULTS = {
    "max_control_line": "4KB",
    "max_subscriptions": 100000,
    "max_sub_tokens": 0,
    "authentication_timeout": "2s",
    "retained_on_subscribe": False,
    "publish_properties": False,
    "show_properties": False,
    "auto_subscribe": False,
    "device_rules": [],
    "device_timeout": "5s",
    "device_idle_timeout": "1m",
    "device_max_requests": 1000,
    "max_pending": "64MB",
    "send_timeout": "10s",
    "drain_time": "1s",
    "tls_mode": "auto",
    "allow_non_tls": False,
    "handshake_first_wait": "50ms",
    "peer_cert_as_username": "disabled",
    "internal_authn": [],
    "token": "",
    "nkeys": [],
    "trusted_operators": [],
    "resolver_preload": [],
    "websocket_same_origin": False,
    "websocket_jwt_cookie": "",
    "monitor_bind": "",
    "emqx_prometheus": False,
    "system_users": [],
    "system_nkeys": [],
    "system_accounts": [],
    "built_in_may_serve": False,
    "presence_topic": "",
    "presence_qos": 1,
    "presence_connected": "online",
    "presence_disconnected": "offline",
    "presence_retain": True,
    "kv_enable": False,
    "kv_buckets": [],
    "publish_mappings": [],
    "subscribe_mappings": [],
}


class Page:
    def __init__(self, node: Node, plugin: str):
        self._node = node
        self._plugin = f"/plugins/{plugin}"
        self._path = f"{self._plugin}/config"

    def read(self) -> dict:
        return self._node.rest.get(self._path)

    def try_change(self, **changes: object) -> Answer:
        return self._node.rest.call("PUT", self._path, DEFAULTS | changes)

    def change(self, **changes: object) -> None:
        answer = self.try_change(**changes)
        assert answer.status == 204, answer

    def replace(self, settings: dict) -> Answer:
        return self._node.rest.call("PUT", self._path, settings)

    def health(self) -> str:
        """Of the plugin: empty if it is well."""
        shown = self._node.rest.get(self._plugin)["running_status"][0].get("health_status")
        assert shown is not None, "EMQX does not tell the health"
        return "" if shown["status"] == "ok" else shown["message"]


def stored_file(node: Node) -> Path:
    """EMQX keeps one for all versions of a plugin."""
    return node.data / "plugins" / "nats_gateway" / "config.hocon"


@contextmanager
def installed_with(node: Node, package: Path, change: Callable[[str], str | None]) -> Iterator[bool]:
    """The plugin is installed again where this is stored, as another version may have left it; then with what was.

    Whether EMQX has installed it: EMQX 6.3 refuses a plugin whose stored settings do not fit its schema.
    """
    file = stored_file(node)
    before = file.read_text()

    def install(text: str | None) -> Answer:
        if node.plugin("nats_gateway") is not None:
            node.stop_plugin(package)
            node.uninstall(package)
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        node.ctl("plugins", "allow", name_vsn(package))
        answer = node.upload(package)
        if answer.status == 204:
            node.start_plugin(package)
        return answer

    try:
        answer = install(change(before))
        assert answer.status in (204, 400), answer
        yield answer.status == 204
    finally:
        assert install(before).status == 204
