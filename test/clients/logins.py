"""Logins that the gateway itself knows: what it is told, and what a client shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clients.stack import Stack
from nats_keys import Key, account_jwt, creds, operator_jwt, user_jwt


@dataclass(frozen=True)
class Kind:
    """settings: of the gateway; right, wrong: options of the client programs."""

    settings: dict
    right: dict[str, str]
    wrong: dict[str, str]


@dataclass(frozen=True)
class OwnLogin:
    stack: Stack
    kind: Kind

    @property
    def url(self) -> str:
        return self.stack.url


def _user(_: Path) -> Kind:
    settings = {"users": [{"user": "anne", "password": "correct horse"}]}
    return Kind(settings, {"user": "anne", "password": "correct horse"}, {"user": "anne", "password": "wrong"})


def _token(_: Path) -> Kind:
    return Kind({"auth_token": "t0ken"}, {"token": "t0ken"}, {"token": "wrong"})


def _nkey(_: Path) -> Kind:
    known, unknown = Key("user"), Key("user")
    return Kind({"nkeys": [known.public]}, {"seed": known.seed}, {"seed": unknown.seed})


def _creds(directory: Path) -> Kind:
    operator, account, stranger, user = Key("operator"), Key("account"), Key("account"), Key("user")

    def file(name: str, issuer: Key) -> dict[str, str]:
        path = directory / f"{name}.creds"
        path.write_text(creds(user_jwt(issuer, user), user))
        return {"creds": str(path)}

    accounts = {account.public: account_jwt(operator, account)}
    settings = {"jwt": {"operator": operator_jwt(operator), "accounts": accounts}}
    return Kind(settings, file("right", account), file("wrong", stranger))


LOGINS: dict[str, Callable[[Path], Kind]] = {"user": _user, "token": _token, "nkey": _nkey, "creds": _creds}
