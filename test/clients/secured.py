"""Stacks that speak TLS, and what a client needs to get in."""

from __future__ import annotations

from dataclasses import dataclass

from certificates import Certificate, client_context
from clients.stack import Stack
from wire.transports import server_certificate

WAYS = {
    "upgrade": {},
    "handshake_first": {"mode": "handshake_first"},
    "auto": {"mode": "auto"},
    "optional": {"allow_non_tls": True},
    "mutual": {"verify": True},
    "mutual_first": {"mode": "handshake_first", "verify": True},
}


@dataclass(frozen=True)
class Secured:
    """A stack, and what a client needs to get in."""

    stack: Stack
    first: bool
    own: Certificate | None
    required: bool

    @property
    def url(self) -> str:
        return self.stack.url

    @property
    def options(self) -> dict:
        """Of the client programs."""
        own = {"certfile": self.own.certfile, "keyfile": self.own.keyfile} if self.own else {}
        return {"cafile": server_certificate().cafile, "first": self.first} | own

    def nats_py(self, own: Certificate | None = None) -> dict:
        context = client_context(server_certificate().cafile, own or self.own)
        return {"tls": context, "tls_hostname": "localhost"} | ({"tls_handshake_first": True} if self.first else {})
