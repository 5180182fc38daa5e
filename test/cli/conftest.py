from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli.running import Running, started_mosquitto


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[int]:
    """The port of a broker that somebody else started."""
    with started_mosquitto(tmp_path) as port:
        yield port


@pytest.fixture
def gateway(tmp_path: Path, mosquitto: int) -> Iterator[Running]:
    running = Running(tmp_path, mosquitto)
    yield running
    if running.process is not None and running.process.poll() is None:
        running.process.kill()
        running.process.wait()
