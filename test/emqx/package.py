"""The plugin's package, and the same plugin under another version."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from pathlib import Path


def members(package: Path) -> dict[str, bytes]:
    with tarfile.open(package) as archive:
        return {one.name: archive.extractfile(one).read() for one in archive.getmembers() if one.isfile()}


def release(package: Path) -> dict:
    root = package.name.removesuffix(".tar.gz")
    return json.loads(members(package)[f"{root}/release.json"])


def with_version(package: Path, version: str, directory: Path) -> Path:
    """The same code, packaged as another version: what `make package-here` makes when only the version was raised."""
    old = release(package)["rel_vsn"]
    old_name, new_name = f"nats_gateway-{old}", f"nats_gateway-{version}"
    target = directory / f"{new_name}.tar.gz"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in members(package).items():
            if name.endswith("/release.json"):
                data = data.replace(old_name.encode(), new_name.encode())
                data = data.replace(f'"rel_vsn": "{old}"'.encode(), f'"rel_vsn": "{version}"'.encode())
            elif name.endswith("/nats_gateway.app"):
                data = re.sub(rb'{vsn,\s*"[^"]*"}', f'{{vsn,"{version}"}}'.encode(), data)
            entry = tarfile.TarInfo(name.replace(old_name, new_name))
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    target.write_bytes(gzip.compress(content.getvalue()))
    return target
