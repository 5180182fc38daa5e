"""Ports of 127.0.0.1 for servers that a test starts."""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"

# Below what the kernel gives to clients: one of those could take a port before its server does.
PORTS = range(10240, 32768)

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
