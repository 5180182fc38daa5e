"""Every case of the wire table, byte for byte, against the gateway inside EMQX, over TCP, TLS and WebSocket."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from certificates import Authority
from emqx.gateway import Gateway

WIRE = Path(__file__).resolve().parents[1] / "wire"


@pytest.mark.plugin
@pytest.mark.timeout(180, func_only=True)
@pytest.mark.parametrize("transport", ["tcp", "tls", "ws", "wss"])
def test_the_wire_table(gateway: Gateway, name: str, tmp_path: Path, transport: str):
    """Cases with settings of their own are skipped there: test_settings.py and test_plugin_page.py have them."""
    if not WIRE.is_dir():
        pytest.skip("test/wire is not here")
    gateway.settings(server_name="wire")
    (host, port), more = gateway.address, {"WIRE_TRANSPORTS": transport}
    if transport == "ws":
        host, port = gateway.listen(name, "ws")
    elif transport != "tcp":
        server = Authority(tmp_path).server()
        files = {key: Path(getattr(server, key)).read_text() for key in ("certfile", "keyfile")}
        host, port = gateway.listen(name, "ssl" if transport == "tls" else "wss", ssl_options=files)
        more["WIRE_CAFILE"] = server.cafile
    done = wire_tests((host, port), ["-k", "test_case and gateway and not nats-server", str(WIRE)], more)
    # Nothing chosen would be a success, too.
    assert done.returncode == 0 and re.search(r"\b\d{3} passed", done.stdout), done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.plugin
@pytest.mark.timeout(180, func_only=True)
def test_random_sessions(gateway: Gateway):
    """Beside a nats-server, where there is one."""
    file = WIRE / "test_differential.py"
    if not file.exists():
        pytest.skip("test/wire is not here")
    done = wire_tests(gateway.address, [str(file)], {})
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-8000:] + done.stderr[-2000:]


def wire_tests(address: tuple[str, int], which: list[str], more: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *which],
        env=os.environ | {"GATEWAY_ADDRESS": "%s:%d" % address} | more,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=170,
    )
