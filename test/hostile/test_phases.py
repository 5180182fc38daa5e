"""What a connection holds in each phase is what docs/limits.md says, and not several times as much."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.phases import PHASES, measure
from hostile.conftest import LONG, STANDALONE, size
from wire.servers import REPOSITORY

# One that goes through most of the others; each takes half a minute.
SHORT = ("WebSocket over TLS, nothing said",)
# The documented figure is the mean of more connections, and memory grows by whole carriers of the allocators.
FACTOR, CARRIERS = 1.5, 8_000_000


def documented() -> dict[str, float]:
    """Bytes, of the table of phases."""
    rows = (line.split("|") for line in (REPOSITORY / "docs" / "limits.md").read_text().splitlines())
    return {row[1].strip(): float(row[2]) * 1000 for row in rows if len(row) > 2 and row[1].strip() in PHASES}


def test_every_phase_is_documented():
    assert documented().keys() == PHASES.keys()


@STANDALONE
@pytest.mark.parametrize("name", PHASES if LONG else SHORT)
def test_what_a_connection_holds(place, note: Callable[[object], None], tmp_path: Path, name: str):
    connections = size(300, 1000)
    held = measure(name, tmp_path, connections)
    note(f"{held / 1000:.1f} KB")
    assert held < FACTOR * documented()[name] + CARRIERS / connections
