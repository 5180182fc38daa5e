"""Which EMQX the tests are run with."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from emqx.node import emqx_homes, link_release, newest_first


def test_the_newest_version_is_the_first():
    names = ["emqx-5.9", "emqx-6.2", "emqx-5.10", "emqx-5.10.4", "emqx-10.0"]
    places = [f"/opt/{name}" for name in names]
    newest = ["emqx-10.0", "emqx-6.2", "emqx-5.10.4", "emqx-5.10", "emqx-5.9"]
    assert newest_first(places) == newest_first(places[::-1]) == [f"/opt/{name}" for name in newest]


def test_the_named_one_goes_before_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("EMQX_HOME", str(tmp_path))
    assert emqx_homes() == []
    executable(tmp_path / "bin" / "emqx", "")
    assert emqx_homes() == [tmp_path]


def test_every_node_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("EMQX_HOME", raising=False)
    monkeypatch.setattr("emqx.node.PLACES", (f"{tmp_path}/emqx-*", f"{tmp_path}/emqx"))
    for name in ("emqx", "emqx-5.10", "emqx-6.3"):
        executable(tmp_path / name / "bin" / "emqx", "")
    (tmp_path / "emqx-empty").mkdir()
    assert [home.name for home in emqx_homes()] == ["emqx-6.3", "emqx-5.10", "emqx"]


# What bin/emqx of a release does before all else.
SCRIPT = """
RUNNER_ROOT_DIR="$(cd "$(dirname "$(realpath "$0")")"/..; pwd -P)"
. "$RUNNER_ROOT_DIR"/releases/emqx_vars
echo "$EMQX_ETC_DIR|$RUNNER_BIN_DIR|$RUNNER_USER|$REL_VSN|$(cat "$RUNNER_ROOT_DIR/lib/a")|$(ls "$RUNNER_ROOT_DIR/releases/1.0")"
"""


@pytest.mark.parametrize("etc", ["$RUNNER_ROOT_DIR/etc", "$BASE_RUNNER_ROOT_DIR/etc", "ELSEWHERE"])
def test_an_untouched_release_with_other_settings(tmp_path: Path, etc: str):
    """As archives, packages and the official image have it: emqx_vars does not care for the environment."""
    home, root = tmp_path / "home", tmp_path / "root"
    etc = etc.replace("ELSEWHERE", str(tmp_path / "elsewhere"))
    executable(home / "bin" / "emqx", SCRIPT)
    write(home / "lib" / "a", "library")
    write(home / "releases" / "1.0" / "emqx.boot", "")
    write(home / "etc" / "emqx.conf", "its own")
    names = f'REL_VSN="1.0"\nEMQX_ETC_DIR="{etc}"\nRUNNER_BIN_DIR="/usr/bin"\nRUNNER_USER="emqx"\n'
    write(home / "releases" / "emqx_vars", names)
    before = sorted(home.rglob("*"))
    belongs_to_another(home)

    released = link_release(home, root, tmp_path / "mine")

    assert released == (home / "etc" if etc.startswith("$") else Path(etc))
    said = subprocess.run([root / "bin" / "emqx"], capture_output=True, text=True, check=True).stdout.strip()
    assert said == f"{tmp_path / 'mine'}|{root / 'bin'}||1.0|library|emqx.boot"
    assert sorted(home.rglob("*")) == before
    assert (home / "releases" / "emqx_vars").read_text() == names
    assert (root / "bin").stat().st_mode & stat.S_IWUSR


def belongs_to_another(home: Path) -> None:
    """As the files of the official image, for whoever is not its user."""
    for path in (home, *home.rglob("*")):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
        if os.geteuid() == 0:
            os.chown(path, 1000, 1000)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def executable(path: Path, script: str) -> None:
    write(path, f"#!/bin/sh\n{script}")
    path.chmod(0o755)
