"""What an operator asks below `$SYS.REQ.SERVER`: over a raw connection, and with the command `nats`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from emqx.nats import Nats
from ports import HOST

NO_RESPONDERS = b"NATS/1.0 503\r\n\r\n"
TOOLS = Path(__file__).resolve().parents[1] / ".tools" / "bin"


def request(client: Nats, subject: str, **body: object) -> dict | None:
    """The answer, or None where there are no responders. The client is subscribed to `answers`."""
    client.publish(f"$SYS.REQ.SERVER.{subject}", json.dumps(body).encode(), reply="answers")
    message = client.message()
    if message.headers == NO_RESPONDERS and not message.payload:
        return None
    assert message.headers is None
    return json.loads(message.payload)


def is_answered_nothing(client: Nats) -> bool:
    """As before there were such requests: no responders at once, and a PUB without a reply subject is a violation."""
    client.subscribe("answers", sid="9")
    for subject in ("PING", "PING.VARZ", "PING.CONNZ", f"{client.info['server_id']}.VARZ", f"{client.info['server_id']}.KICK"):
        assert request(client, subject, cid=client.info["client_id"]) is None, subject
    client.publish("$SYS.REQ.SERVER.PING")
    client.expect(b"-ERR 'Permissions Violation for Publish to \"$SYS.REQ.SERVER.PING\"'\r\n")
    client.ping()
    return True


def nats_cli(port: int, *arguments: str, user: str = "admin", password: str = "pw", timeout: str = "1s") -> subprocess.CompletedProcess:
    """The command `nats`, which bin/install-missing builds."""
    program = os.environ.get("NATS_CLI") or shutil.which("nats", path=str(TOOLS)) or shutil.which("nats")
    if program is None:
        pytest.fail("no command `nats`: run bin/install-missing test", pytrace=False)
    return subprocess.run(
        [program, "--server", f"nats://{user}:{password}@{HOST}:{port}", "--timeout", timeout, *arguments],
        capture_output=True, text=True, timeout=30,
    )


def nats(port: int, *arguments: str, **login: str) -> str:
    done = nats_cli(port, *arguments, **login)
    assert done.returncode == 0, f"nats {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout
