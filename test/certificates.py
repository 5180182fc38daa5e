"""Certificates for the tests, made when they are needed, with the openssl command."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

KEYS = {
    "ec": ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
    "rsa": ("-newkey", "rsa:2048"),
    "ed25519": ("-newkey", "ed25519"),
}
LOCAL = ("DNS:localhost", "IP:127.0.0.1")


@dataclass(frozen=True)
class Certificate:
    """In PEM files, and who has signed it."""

    certfile: str
    keyfile: str
    cafile: str
    password: str | None = None


class Authority:
    def __init__(self, directory: Path, name: str = "ca"):
        self._directory = directory
        self._name = name
        directory.mkdir(parents=True, exist_ok=True)
        self.certfile, self._keyfile = self._paths(name)
        _openssl(
            "req", "-x509", "-nodes", *KEYS["ec"], "-days", "2", "-subj", f"/O=Test/CN={name}",
            "-keyout", self._keyfile, "-out", self.certfile,
        )

    def issue(
        self,
        name: str,
        subject: str | None = None,
        san: tuple[str, ...] = (),
        key: str = "ec",
        password: str | None = None,
    ) -> Certificate:
        """Once more under the same name: other files in the same place."""
        certfile, keyfile = self._paths(f"{self._name}-{name}")
        request = str(self._directory / f"{self._name}-{name}.csr")
        protection = ("-passout", f"pass:{password}") if password else ("-nodes",)
        # Without any extension it would be of version 1, which rustls does not take.
        extensions = ["-addext", "extendedKeyUsage=serverAuth,clientAuth"]
        if san:
            extensions += ["-addext", f"subjectAltName={','.join(san)}"]
        _openssl(
            "req", "-new", "-utf8", *protection, *KEYS[key], "-subj", subject or f"/O=Test/CN={name}", *extensions,
            "-keyout", keyfile, "-out", request,
        )
        _openssl(
            "x509", "-req", "-in", request, "-days", "2", "-copy_extensions", "copy",
            "-CA", self.certfile, "-CAkey", self._keyfile, "-CAcreateserial", "-out", certfile,
        )
        return Certificate(certfile, keyfile, self.certfile, password)

    def server(self, name: str = "server", **options) -> Certificate:
        return self.issue(name, san=LOCAL, **options)

    def _paths(self, name: str) -> tuple[str, str]:
        return str(self._directory / f"{name}.pem"), str(self._directory / f"{name}.key")


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"openssl {' '.join(arguments)}: {done.stderr}"


def client_context(cafile: str | None = None, own: Certificate | None = None) -> ssl.SSLContext:
    """Of a client that verifies the server against the file, if one is given, and shows a certificate of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if cafile is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cafile)
    if own is not None:
        context.load_cert_chain(own.certfile, own.keyfile, own.password)
    return context
