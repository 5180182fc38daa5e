"""The package is what EMQX expects, and holds nothing that only the standalone gateway needs."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from emqx.package import members, release

pytestmark = pytest.mark.plugin
SOURCE = Path(__file__).resolve().parents[2] / "erlang_src"
LIBRARY = "nats_gateway_nif.so"
STANDALONE = {module.stem for module in SOURCE.glob("standalone/*.erl")}


@pytest.fixture
def files(package: Path) -> dict[str, bytes]:
    root = package.name.removesuffix(".tar.gz")
    assert all(name.startswith(f"{root}/") for name in members(package))
    return {name.removeprefix(f"{root}/"): content for name, content in members(package).items()}


@pytest.fixture
def app(package: Path) -> str:
    return package.name.removesuffix(".tar.gz")


def platforms(package: Path) -> list[str]:
    """As the package itself says: `make package-here` makes one with a single platform."""
    return release(package)["compatibility"]["platforms"].split(", ")[:-1]


@pytest.fixture
def unpacked(package: Path, app: str, tmp_path: Path) -> Path:
    with tarfile.open(package) as archive:
        archive.extractall(tmp_path)
    return tmp_path / app / app


def load(unpacked: Path) -> str:
    """What Erlang says that loads the library of the package."""
    program = """
        case nats_gateway_nif:load() of
            ok -> io:put_chars(nats_gateway_nif:topic(<<"a.b">>, <<>>));
            {error, Text} -> io:put_chars(Text)
        end,
        halt()."""
    command = ["erl", "-noinput", "-boot", "start_clean", "-pa", unpacked / "ebin", "-eval", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


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


def test_files(files: dict[str, bytes], app: str, package: Path):
    beside = {"release.json", "README.md", "LICENSE", "THIRD-PARTY-LICENSES.txt", "sbom.cdx.json"}
    assert beside <= set(files)
    beams = {name for name in files if name.endswith(".beam")}
    others = set(files) - beams - beside
    libraries = (f"{platform}/{LIBRARY}" for platform in platforms(package))
    priv = (*libraries, "config_schema.avsc", "config_i18n.json", "config.hocon", "monitor.html")
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


def test_the_library_for_this_machine_is_loaded(unpacked: Path):
    assert load(unpacked) == "a/b"


def test_a_machine_that_no_library_is_for(unpacked: Path):
    served = list((unpacked / "priv").glob(f"*/{LIBRARY}"))
    for library in served[1:]:
        shutil.rmtree(library.parent)
    served[0].parent.rename(unpacked / "priv" / "sparc64-linux-gnu")
    text = load(unpacked)
    assert re.fullmatch(r"there is no native library for this machine \(\S+\), only for sparc64-linux-gnu", text)


def test_no_library_needs_a_newer_c_library_than_the_package_says(unpacked: Path, package: Path):
    said = re.search(r"glibc ([\d.]+) or newer$", release(package)["compatibility"]["platforms"]).group(1)
    for platform in platforms(package):
        symbols = subprocess.run(
            ["objdump", "-T", unpacked / "priv" / platform / LIBRARY], capture_output=True, text=True, check=True
        ).stdout
        needed = re.findall(r"\(GLIBC_([\d.]+)\)", symbols)
        assert needed
        assert max(map(as_numbers, needed)) <= as_numbers(said)


def as_numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
