"""What bin/nats_gateway tells systemd, by the socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from cli.running import Running


def test_systemd_is_told_of_start_and_end(gateway: Running, tmp_path: Path, monkeypatch):
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.fspath(path))
        manager.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", os.fspath(path))
        gateway.write(lame_duck_grace_period="3s")
        gateway.start()
        assert manager.recv(1024) == b"READY=1\n"
        # It serves clients by then, and knows its signals.
        with gateway.client() as client:
            client.ping()
            gateway.signal(signal.SIGTERM)
            # The lame duck mode, and what comes after it.
            assert manager.recv(1024) == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=13000000\n"
        assert gateway.ended() == 0
