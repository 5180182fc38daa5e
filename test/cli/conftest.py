from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli.running import Running
from ports import HOST, free_port
from wire.servers import accepts, mosquitto_path


@pytest.fixture
def mosquitto(tmp_path: Path):
    """The port of a broker that somebody else started."""
    port = free_port()
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} {HOST}\nallow_anonymous true\npersistence false\n")
    process = subprocess.Popen([mosquitto_path(), "-c", str(config)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 10
    while not accepts((HOST, port)):
        assert process.poll() is None and time.monotonic() < until, "Mosquitto did not start"
        time.sleep(0.02)
    yield port
    process.terminate()
    process.wait(10)


@pytest.fixture
def gateway(tmp_path: Path, mosquitto: int) -> Iterator[Running]:
    running = Running(tmp_path, mosquitto)
    yield running
    if running.process is not None and running.process.poll() is None:
        running.process.kill()
        running.process.wait()
