"""The package is what EMQX expects, and holds nothing that only the standalone gateway needs."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from emqx.package import members, release

pytestmark = pytest.mark.plugin
SOURCE = Path(__file__).resolve().parents[2] / "erlang_src"
STANDALONE = {module.stem for module in SOURCE.glob("standalone/*.erl")}


@pytest.fixture
def files(package: Path) -> dict[str, bytes]:
    root = package.name.removesuffix(".tar.gz")
    assert all(name.startswith(f"{root}/") for name in members(package))
    return {name.removeprefix(f"{root}/"): content for name, content in members(package).items()}


@pytest.fixture
def app(package: Path) -> str:
    return package.name.removesuffix(".tar.gz")


def test_checksum(package: Path):
    checksum, name = package.with_name(f"{package.name}.sha256").read_text().split()
    assert name == package.name
    assert checksum == hashlib.sha256(package.read_bytes()).hexdigest()


def test_release(package: Path, app: str):
    described = release(package)
    assert described["name"] == "nats_gateway"
    assert f"nats_gateway-{described['rel_vsn']}" == app
    assert described["rel_apps"] == [app]
    assert described["description"]
    assert described["with_config_schema"] is True
    assert f'{{vsn, "{described["rel_vsn"]}"}}' in (SOURCE / "nats_gateway.app.src").read_text()


def test_files(files: dict[str, bytes], app: str):
    assert {"release.json", "README.md", "LICENSE"} <= set(files)
    beams = {name for name in files if name.endswith(".beam")}
    others = set(files) - beams - {"release.json", "README.md", "LICENSE"}
    priv = ("nats_gateway_nif.so", "config_schema.avsc", "config_i18n.json", "config.hocon", "monitor.html")
    assert others == {f"{app}/ebin/nats_gateway.app", *(f"{app}/priv/{name}" for name in priv)}
    assert "nats_gateway_cli" in STANDALONE
    assert {Path(name).stem for name in beams} == {module.stem for module in SOURCE.rglob("*.erl")} - STANDALONE
    listed = re.search(rb"{modules,\s*\[([^\]]*)\]}", files[f"{app}/ebin/nats_gateway.app"]).group(1)
    assert {f"{app}/ebin/{module.strip().decode()}.beam" for module in listed.split(b",")} == beams


def test_the_readme_needs_no_other_file(files: dict[str, bytes]):
    """The dashboard shows it."""
    text = files["README.md"].decode()
    assert text.startswith("# nats_gateway\n")
    assert "docs/emqx.md" in text
    assert re.findall(r"\]\((?![a-z]+:)[^)]*\)|^ *!.*", text, re.MULTILINE) == []


def test_every_text_of_the_page_is_in_english_and_chinese(files: dict[str, bytes], app: str):
    schema = json.loads(files[f"{app}/priv/config_schema.avsc"])
    texts = json.loads(files[f"{app}/priv/config_i18n.json"])
    used = set(re.findall(r'"(\$[a-z_]+)"', json.dumps([field["$ui"] for field in schema["fields"]])))
    assert used == set(texts)
    assert all(set(text) == {"en", "zh"} and all(text.values()) for text in texts.values())
    assert all(re.search(r"[\u4e00-\u9fff]", text["zh"]) for text in texts.values())


def test_defaults_of_the_page_and_of_the_file_are_the_same(files: dict[str, bytes], app: str):
    schema = json.loads(files[f"{app}/priv/config_schema.avsc"])
    lines = files[f"{app}/priv/config.hocon"].decode().splitlines()
    assert {key: json.loads(value) for key, value in (line.split(" = ") for line in lines)} == {
        field["name"]: field["default"] for field in schema["fields"]
    }
