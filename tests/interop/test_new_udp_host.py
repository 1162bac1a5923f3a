"""UDP, ping and raw sockets of AF_INET_NEW_TCP and of the host kernel, over a TUN or TAP device."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Final

import pytest

from tests.interop.namespace import Namespace, require_tun
from tests.support import PROJECT, require_root

PROGRAM: Final = PROJECT / "tests" / "interop" / "udp_program.py"
ADDRESSES: Final = {"IPv4": ("10.9.0.2", "10.9.0.1", 24), "IPv6": ("fd00:9::2", "fd00:9::1", 64)}
EXPECTED: Final = {
    "datagrams": [],
    "refused": "ECONNREFUSED",
    "ping": ["0005", "data"],
    "raw": [True, True],
}


@pytest.fixture
def network() -> Iterator[Namespace]:
    require_root()  # for the host's raw sockets
    require_tun()
    with Namespace() as namespace:
        yield namespace


@pytest.mark.parametrize("version", ADDRESSES)
@pytest.mark.parametrize("kind", ["tun", "tap"])
@pytest.mark.parametrize("offload", ["yes", "no"])
def test_the_host_and_we_understand_each_other(
    network: Namespace, kind: str, version: str, offload: str
) -> None:
    ours, hosts, length = ADDRESSES[version]
    device = f"{kind}:stag0,{ours}/{length},host={hosts}/{length},mtu=1500,offload={offload}"
    running = network.start(sys.executable, PROGRAM, ours, hosts, device=device)
    found = json.loads(running.wait())
    segments = found.pop("segments")
    for direction in ("to the host", "to us"):
        assert {name: each[direction] for name, each in found.items()} == EXPECTED
        (plain_right, plain_sizes), (gro_right, _) = segments[direction]
        assert (plain_right, gro_right, plain_sizes) == (True, True, [1000])
