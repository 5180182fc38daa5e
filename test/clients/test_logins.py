"""Every client logs in with what it has: a password, a token, the seed of an NKey, a `.creds` file."""

from __future__ import annotations

import re
from pathlib import Path

import nats
import pytest

from clients.aio import connected, subscribed, take
from clients.command import exchange, run_cli
from clients.logins import OwnLogin
from clients.program import Program


def nats_py_options(given: dict[str, str], tmp_path: Path) -> dict[str, str]:
    match given:
        case {"seed": seed}:
            file = tmp_path / "seed"
            file.write_text(seed)
            return {"nkeys_seed": str(file)}
        case {"creds": path}:
            return {"user_credentials": path}
        case _:
            return given


async def test_nats_py(own_login: OwnLogin, subject: str, tmp_path: Path):
    async with connected(own_login.url, **nats_py_options(own_login.kind.right, tmp_path)) as nc:
        sub = await subscribed(nc, subject)
        await nc.publish(subject, b"welcome")
        assert [message.data for message in await take(sub, 1)] == [b"welcome"]


async def test_nats_py_is_refused(own_login: OwnLogin, tmp_path: Path):
    with pytest.raises(nats.errors.Error, match="(?i)authorization violation"):
        async with connected(own_login.url, **nats_py_options(own_login.kind.wrong, tmp_path)):
            pass


def test_nats_js(nats_js: Program, own_login: OwnLogin, subject: str):
    nats_js.run("login", url=own_login.url, subject=subject, **own_login.kind.right)


def test_nats_js_is_refused(nats_js: Program, own_login: OwnLogin, subject: str):
    nats_js.run("badLogin", url=own_login.url, subject=subject, **own_login.kind.wrong)


def test_async_nats(async_nats: Program, own_login: OwnLogin, subject: str):
    async_nats.run("login", url=own_login.url, subject=subject, **own_login.kind.right)


def test_async_nats_is_refused(async_nats: Program, own_login: OwnLogin, subject: str):
    async_nats.run("bad_login", url=own_login.url, subject=subject, **own_login.kind.wrong)


def test_nats_go(nats_go: Program, own_login: OwnLogin, subject: str):
    nats_go.run("login", url=own_login.url, subject=subject, **own_login.kind.right)


def test_nats_go_is_refused(nats_go: Program, own_login: OwnLogin, subject: str):
    nats_go.run("bad_login", url=own_login.url, subject=subject, **own_login.kind.wrong)


# --- The command `nats` ----------------------------------------------------------------------------------------------


def cli_options(given: dict[str, str], tmp_path: Path) -> list[str]:
    match given:
        case {"seed": seed}:
            file = tmp_path / "seed"
            file.write_text(seed)
            return ["--nkey", str(file)]
        case {"creds": path}:
            return ["--creds", path]
        case {"token": token}:
            return ["--user", token]
        case _:
            return ["--user", given["user"], "--password", given["password"]]


def test_nats_cli(nats_cli: Path, own_login: OwnLogin, subject: str, tmp_path: Path):
    options = ["--server", own_login.url, *cli_options(own_login.kind.right, tmp_path)]
    exchange(nats_cli, tmp_path, options, subject)


def test_nats_cli_account_info(nats_cli: Path, own_login: OwnLogin, tmp_path: Path):
    options = ["--server", own_login.url, *cli_options(own_login.kind.right, tmp_path)]
    done = run_cli(nats_cli, tmp_path, *options, "account", "info")
    assert done.returncode == 0, done
    told = {name.strip(): value.strip() for name, _, value in (line.partition(": ") for line in done.stdout.splitlines())}
    match own_login.kind.right:
        case {"user": user}:
            assert (told["User"], told["Account"]) == (user, "$G"), done.stdout
        case {"token": _}:
            assert (told["User"], told["Account"]) == ("[REDACTED]", "$G"), done.stdout
        case {"seed": _}:
            assert re.fullmatch("U[A-Z2-7]{55}", told["User"]) and told["Account"] == "$G", done.stdout
        case _:
            assert re.fullmatch("U[A-Z2-7]{55}", told["User"]) and re.fullmatch("A[A-Z2-7]{55}", told["Account"]), done.stdout


def test_nats_cli_is_refused(nats_cli: Path, own_login: OwnLogin, subject: str, tmp_path: Path):
    options = ["--server", own_login.url, *cli_options(own_login.kind.wrong, tmp_path)]
    done = run_cli(nats_cli, tmp_path, *options, "pub", subject, "hello")
    assert done.returncode != 0 and "Authorization Violation" in done.stdout + done.stderr, done
