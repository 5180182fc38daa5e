"""Ports of 127.0.0.1 for servers that a test starts."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

HOST = "127.0.0.1"

# Below what the kernel gives to clients: one of those could take a port before its server does.
PORTS = range(10240, 32768)

# Several workers and stages run tests side by side: what one has just stopped must not meet another's. A process that gives a
# port locks the byte of that number here until it ends.
_TAKEN = os.open(Path(tempfile.gettempdir()) / f"nats_gateway-test-ports-{os.getuid()}", os.O_RDWR | os.O_CREAT, 0o600)

_given: set[int] = set()


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Only a listening socket is in the way, not the ends of its connections.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _is_mine(port: int) -> bool:
    """Until this process ends, when no other has it."""
    try:
        fcntl.lockf(_TAKEN, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


def free_port() -> int:
    """A port that was not given before: a listener that is removed and added again must not meet another test's."""
    while True:
        port = random.choice(PORTS)
        if port not in _given and _is_mine(port) and is_free(port):
            _given.add(port)
            return port
