"""Which EMQX the tests are run with."""

from __future__ import annotations

from pathlib import Path

import pytest

from emqx.node import emqx_home, newest_first


def test_the_newest_version_is_the_first():
    names = ["emqx-5.9", "emqx-6.2", "emqx-5.10", "emqx-5.10.4", "emqx-10.0"]
    places = [f"/opt/{name}" for name in names]
    newest = ["emqx-10.0", "emqx-6.2", "emqx-5.10.4", "emqx-5.10", "emqx-5.9"]
    assert newest_first(places) == newest_first(places[::-1]) == [f"/opt/{name}" for name in newest]


def test_the_named_one_goes_before_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("EMQX_HOME", str(tmp_path))
    assert emqx_home() is None
    script = tmp_path / "bin" / "emqx"
    script.parent.mkdir()
    script.touch(mode=0o755)
    assert emqx_home() == tmp_path
