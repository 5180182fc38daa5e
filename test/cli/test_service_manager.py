"""What bin/nats_gateway tells systemd, by the socket that NOTIFY_SOCKET names, and its log in the journal."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.running import GATEWAY, Running
from ports import HOST, free_port


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd listens on."""
    path = os.fspath(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(path)
        listening.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield listening


def test_systemd_is_told_of_start_and_end(gateway: Running, manager: socket.socket):
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


@pytest.mark.parametrize("is_journal", [True, False])
def test_lines_in_the_journal_say_how_grave_they_are(mosquitto: int, manager: socket.socket, is_journal: bool):
    journal, theirs = socket.socketpair()
    with journal, theirs:
        stream = os.fstat(theirs.fileno())
        named = f"{stream.st_dev}:{stream.st_ino + (0 if is_journal else 1)}"

        def run(*arguments: str) -> subprocess.Popen:
            return subprocess.Popen(
                [GATEWAY, "--listen", f"{HOST}:{free_port()}", *arguments], env=os.environ | {"JOURNAL_STREAM": named},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs,
            )

        assert run("--nonsense").wait(30) == 64
        process = run("--upstream", f"mqtt://{HOST}:{mosquitto}")
        try:
            assert manager.recv(1024) == b"READY=1\n"
            process.send_signal(signal.SIGHUP)
            theirs.close()
            said = b""
            while said.count(b"\n") < 2:
                said += journal.recv(65536)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
        refused, reloaded = said.decode().splitlines()
    if is_journal:
        assert refused.startswith("<3>nats_gateway: unknown option")
        assert reloaded.startswith("<5>notice settings_reloaded ")
    else:
        assert refused.startswith("nats_gateway: unknown option")
        assert re.match(r"\d{4}-\d\d-\d\dT\S+ notice settings_reloaded ", reloaded)
