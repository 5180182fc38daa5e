"""The command `nats`."""

from __future__ import annotations

import subprocess
from pathlib import Path

DEADLINE = 30.0


def environment(home: Path) -> dict[str, str]:
    """Without contexts of whoever runs the tests."""
    return {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_DATA_HOME": str(home), "PATH": "/usr/bin:/bin"}


def run_cli(cli: Path, home: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(cli), *arguments]
    return subprocess.run(
        command, env=environment(home), cwd=cwd, capture_output=True, text=True, timeout=DEADLINE, stdin=subprocess.DEVNULL
    )


def exchange(cli: Path, home: Path, options: list[str], subject: str) -> None:
    """A request that another one answers, and a message."""
    command = [str(cli), *options, "reply", subject, "--echo"]
    with subprocess.Popen(
        command, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as replier:
        try:
            # It does not say when it has subscribed: a request that finds nobody is repeated.
            for _ in range(50):
                done = run_cli(cli, home, *options, "request", subject, "question", "--timeout", "5s")
                if "No responders" not in done.stderr:
                    break
        finally:
            replier.kill()
    assert done.returncode == 0 and "question" in done.stdout.split(), done
    assert run_cli(cli, home, *options, "pub", subject, "hello").returncode == 0
