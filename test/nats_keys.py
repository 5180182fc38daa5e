"""NKeys, NATS JWTs and `.creds` files for tests, made here and now."""

from __future__ import annotations

import base64
import json
import os
import time
from typing import Any

import nkeys

PREFIXES = {
    "user": nkeys.PREFIX_BYTE_USER,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
}
# -1 is no limit, and what is not there is 0.
NO_LIMITS = {"subs": -1, "data": -1, "payload": -1}


class Key:
    """A key pair; `public` and `seed` are its text forms."""

    def __init__(self, role: str):
        self.role = role
        self.seed = nkeys.encode_seed(os.urandom(32), prefix=PREFIXES[role]).decode()
        self._pair = nkeys.from_seed(bytearray(self.seed.encode()))
        self.public = self._pair.public_key.decode()

    def sign(self, data: bytes) -> bytes:
        return self._pair.sign(data)

    def signature(self, info: dict[str, Any]) -> str:
        """What `sig` of a CONNECT is to be."""
        return base64url(self.sign(info["nonce"].encode()))


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwt(issuer: Key, claims: dict[str, Any]) -> str:
    header = {"typ": "JWT", "alg": "ed25519-nkey"}
    body = {"iss": issuer.public, "iat": int(time.time()), "jti": "test"} | claims
    signed = ".".join(base64url(json.dumps(part, separators=(",", ":")).encode()) for part in (header, body))
    return f"{signed}.{base64url(issuer.sign(signed.encode()))}"


def old_jwt(issuer: Key, kind: str, subject: Key, nats: dict[str, Any], **claims: Any) -> str:
    """Of version 1, as the tools wrote them until 2020: only the claims are signed."""
    header = {"typ": "jwt", "alg": "ed25519"}
    body = {"iss": issuer.public, "iat": int(time.time()), "jti": "test", "sub": subject.public, "type": kind, "nats": nats} | claims
    header, body = (base64url(json.dumps(part, separators=(",", ":")).encode()) for part in (header, body))
    return f"{header}.{body}.{base64url(issuer.sign(body.encode()))}"


def claims(token: str) -> dict[str, Any]:
    body = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))


def operator_jwt(operator: Key, **nats: Any) -> str:
    return jwt(operator, {"sub": operator.public, "name": "O", "nats": {"type": "operator", "version": 2, **nats}})


def account_jwt(operator: Key, account: Key, name: str = "A", limits: dict | None = None, top: dict | None = None, **nats: Any) -> str:
    unlimited = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
    body = {"type": "account", "version": 2, "limits": unlimited | (limits or {}), **nats}
    return jwt(operator, {"sub": account.public, "name": name, "nats": body} | (top or {}))


def user_jwt(issuer: Key, user: Key, name: str = "u", account: Key | None = None, top: dict | None = None, **nats: Any) -> str:
    """account: where the issuer is one of its signing keys."""
    body = {"type": "user", "version": 2, **NO_LIMITS, **nats}
    if account is not None:
        body["issuer_account"] = account.public
    return jwt(issuer, {"sub": user.public, "name": name, "nats": body} | (top or {}))


def scoped_jwt(issuer: Key, user: Key, account: Key, name: str = "u", **nats: Any) -> str:
    """Of a scoped signing key: without anything that its template says."""
    body = {"type": "user", "version": 2, "issuer_account": account.public, **nats}
    return jwt(issuer, {"sub": user.public, "name": name, "nats": body})


def creds(token: str, user: Key) -> str:
    """A `.creds` file, as the tools of NATS write it."""
    rule = "*" * 13
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"{rule} IMPORTANT {rule}\nNKEY Seed printed below can be used to sign and prove identity.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n\n{rule * 2}\n"
    )
