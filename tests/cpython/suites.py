"""What is run: CPython's test modules, over which families, and where their sources are."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

MINOR: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
BASELINE: Final = "baseline"
"""The unpatched interpreter, treated as a family."""


@dataclass(frozen=True, slots=True)
class Family:
    """What the sockets of a run are.

    Attributes:
        environment: what a user would set to get them.
        use: what `steertag.patch` is called with, a family's name or rules; "" where nothing is
            patched.
        module: whether `steertag.socket` stands in for the module `socket` instead.
    """

    name: str
    use: str
    module: bool = False
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


FALLBACK_RULES: Final = Path(__file__).resolve().parent / "fallback.conf"

FAMILIES: Final[Mapping[str, Family]] = {
    family.name: family
    for family in (
        Family(BASELINE, ""),
        Family("host", "", module=True),
        Family("new_tcp", "new_tcp"),
        # Nothing but SDP, on both sides.
        Family("sdp", "sdp", environment={"SDP_FALLBACK": "never"}),
        # SDP's sockets, all of whose connections fall back to TCP.
        Family("sdp_fallback", "sdp", environment={"SDP_CONFIG": str(FALLBACK_RULES)}),
    )
}

MODULES: Final = (
    "test_socket",
    "test_asyncio.test_streams",
    "test_asyncio.test_sock_lowlevel",
    "test_asyncio.test_sendfile",
    "test_httplib",
    "test_ftplib",
    "test_smtplib",
    "test_socketserver",
    "test_ssl",
)

ON_LOOPBACK: Final = ("test_socketserver",)
"""Modules that ask for the resource "network" and leave this host nowhere."""

STREAM_CLASSES: Final = (
    "BasicTCPTest",
    "BasicTCPTest2",
    "BufferIOTest",
    "ContextManagersTest",
    "CreateServerFunctionalTest",
    "CreateServerTest",
    "FileObjectClassTestCase",
    "GeneralModuleTests",
    "InheritanceTest",
    "InterruptedSendTimeoutTest",
    "LineBufferedFileObjectClassTestCase",
    "NetworkConnectionAttributesTest",
    "NetworkConnectionBehaviourTest",
    "NetworkConnectionNoServer",
    "NonBlockingTCPTests",
    "NonblockConstantTest",
    "RecvmsgIntoTCPTest",
    "RecvmsgTCPTest",
    "SendfileUsingSendTest",
    "SendfileUsingSendfileTest",
    "SendmsgTCPTest",
    "SmallBufferedFileObjectClassTestCase",
    "TCPCloserTest",
    "TCPTimeoutTest",
    "TestExceptions",
    "UnbufferedFileObjectClassTestCase",
    "UnicodeReadFileObjectClassTestCase",
    "UnicodeReadWriteFileObjectClassTestCase",
    "UnicodeWriteFileObjectClassTestCase",
)
"""What test_socket has for streams. The other classes make datagram, Unix and kernel sockets,
which no family but the host's has anything to do with."""

SLOW: Final = "STEERTAG_CPYTHON_ALL"
"""Environment variable: 1 runs everything, of every family."""


def everything() -> bool:
    return os.environ.get(SLOW) == "1"


def find_test_package() -> Path | None:
    """The folder that holds the package `test`; None where the interpreter came without it.

    Debian has it in `libpython3.N-testsuite`, whatever interpreter of that minor version runs.
    """
    spec = importlib.util.find_spec("test")
    places = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    places.append(Path(f"/usr/lib/python{MINOR}/test"))
    for place in places:
        if (place / "test_socket.py").is_file():
            return place.parent
    return None
