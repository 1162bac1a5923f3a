"""What the patched programs of these tests share."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import steertag

FAMILIES = ("host", "new_tcp", "sdp")


@pytest.fixture(params=FAMILIES)
def patched(request: pytest.FixtureRequest) -> Iterator[str]:
    """A program whose sockets are of one family; its name."""
    family: str = request.param
    with steertag.patch(family):
        yield family


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key with its certificate for "localhost", signed by itself."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    key, cert = path.with_suffix(".key"), path.with_suffix(".crt")
    subprocess.run(
        [*command, *names, "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    path.write_text(key.read_text() + cert.read_text())
    return path


@pytest.fixture
def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["echo/1"])
    return context


@pytest.fixture
def client_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_alpn_protocols(["echo/1"])
    return context
