"""The programs in Rust that the tests run: a NATS client and an MQTT broker, in the workspace test/Cargo.toml."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# That of our own tests: many of the crates are the same.
TARGET = HERE.parent / "target"
# Seconds; a first build compiles some 280 crates.
BUILD_DEADLINE = 900.0


@functools.cache
def _build() -> subprocess.CompletedProcess[str]:
    """All of them, as `make test-programs` does: one alone would need some crates with other features."""
    command = ["cargo", "build", "--locked", "--quiet", "--target-dir", str(TARGET)]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=BUILD_DEADLINE)


def rust_program(name: str) -> Path:
    if shutil.which("cargo") is None:
        pytest.skip("no cargo: Rust is needed")
    done = _build()
    assert done.returncode == 0, done.stderr[-2000:]
    return TARGET / "debug" / name
