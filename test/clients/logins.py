"""Logins that the gateway itself knows: what it is told, and what a client shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clients.command import run_cli
from clients.stack import Stack
from nats_keys import Key, account_jwt, claims, creds, operator_jwt, user_jwt


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


def _user(_: Path, __: Path) -> Kind:
    settings = {"users": [{"user": "anne", "password": "correct horse"}]}
    return Kind(settings, {"user": "anne", "password": "correct horse"}, {"user": "anne", "password": "wrong"})


def _token(_: Path, __: Path) -> Kind:
    return Kind({"auth_token": "t0ken"}, {"token": "t0ken"}, {"token": "wrong"})


def _nkey(_: Path, __: Path) -> Kind:
    known, unknown = Key("user"), Key("user")
    return Kind({"nkeys": [known.public]}, {"seed": known.seed}, {"seed": unknown.seed})


def _creds(directory: Path, _: Path) -> Kind:
    operator, account, stranger, user = Key("operator"), Key("account"), Key("account"), Key("user")

    def file(name: str, issuer: Key) -> dict[str, str]:
        path = directory / f"{name}.creds"
        path.write_text(creds(user_jwt(issuer, user), user))
        return {"creds": str(path)}

    accounts = {account.public: account_jwt(operator, account)}
    settings = {"jwt": {"operator": operator_jwt(operator), "accounts": accounts}}
    return Kind(settings, file("right", account), file("wrong", stranger))


def _nats_auth(directory: Path, cli: Path) -> Kind:
    """An operator with a signing key, made with the command `nats`; the account of another operator has the same name."""

    def made(operator: str) -> tuple[str, dict[str, str], str]:
        for arguments in (
            ["operator", "add", operator],
            ["account", "add", "factory", "--operator", operator, "--defaults"],
            ["user", "add", "anne", "factory", "--operator", operator, "--defaults", "--credential", f"{operator}.creds"],
        ):
            done = run_cli(cli, directory, "auth", *arguments, cwd=directory)
            assert done.returncode == 0, done
        store = next(directory.rglob(f"stores/{operator}"))
        # With the system account of the operator, without which nats-server does not start.
        jwts = [file.read_text().strip() for file in store.glob("accounts/*/*.jwt")]
        accounts = {claims(jwt)["sub"]: jwt for jwt in jwts}
        return (store / f"{operator}.jwt").read_text().strip(), accounts, str(directory / f"{operator}.creds")

    operator, accounts, right = made("acme")
    _, _, wrong = made("other")
    return Kind({"jwt": {"operator": operator, "accounts": accounts}}, {"creds": right}, {"creds": wrong})


# Each is told a directory of its own and the command `nats`.
LOGINS: dict[str, Callable[[Path, Path], Kind]] = {
    "user": _user,
    "token": _token,
    "nkey": _nkey,
    "creds": _creds,
    "nats_auth": _nats_auth,
}
