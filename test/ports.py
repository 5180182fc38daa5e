"""Ports of 127.0.0.1 for servers that a test starts."""

from __future__ import annotations

import os
import random
import socket

HOST = "127.0.0.1"

# Where several workers run tests side by side, each has ports of its own: what one has just stopped must not meet another's.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
# Below what the kernel gives to clients: one of those could take a port before its server does.
PORTS = range(10240 + _WORKER, 32768, _WORKERS)

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


def free_port() -> int:
    """A port that was not given before: a listener that is removed and added again must not meet another test's."""
    while True:
        port = random.choice(PORTS)
        if port not in _given and is_free(port):
            _given.add(port)
            return port
