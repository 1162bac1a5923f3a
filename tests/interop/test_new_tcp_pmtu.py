"""A path that is narrower than both its ends: a router of the host's kernel says so, by ICMP."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.interop.namespace import Namespace, require_tun
from tests.support import require_root

MTU = 1300
OURS = {4: "10.9.0.2", 6: "fd00:9::2"}
ROUTERS = {4: "10.9.0.1", 6: "fd00:9::1"}
FAR = {4: "10.8.0.2", 6: "fd00:8::2"}
DEVICE = (
    f"tun:stag0,{OURS[4]}/24,{OURS[6]}/64,via={ROUTERS[4]},via={ROUTERS[6]},"
    f"host={ROUTERS[4]}/24,host={ROUTERS[6]}/64"
)
OCTETS = 3_000_000


@pytest.fixture
def network() -> Iterator[tuple[Namespace, Namespace]]:
    """The router's namespace, with our device in it, and the far host's.

    The link between them carries 1300 octets that way; the far host does not know.
    """
    require_root()
    require_tun()
    with Namespace() as router, Namespace() as far:
        holder = far.start("cat")
        target = str(holder.process.pid)
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        peer = ("peer", "name", "v1", "netns", target)
        router.ip("link", "add", "v0", "mtu", str(MTU), "type", "veth", *peer)
        router.ip("link", "set", "v0", "up")
        router.ip("addr", "add", "10.8.0.1/24", "dev", "v0")
        router.ip("addr", "add", "fd00:8::1/64", "dev", "v0", "nodad")
        far.ip("link", "set", "v1", "mtu", "1500", "up")
        far.ip("addr", "add", f"{FAR[4]}/24", "dev", "v1")
        far.ip("addr", "add", f"{FAR[6]}/64", "dev", "v1", "nodad")
        promise = ("mtu", str(MTU), "advmss", "1460")  # what it sends fits, what it asks for not
        far.ip("route", "add", "default", "via", "10.8.0.1", *promise)
        far.ip("-6", "route", "add", "default", "via", "fd00:8::1", *promise)
        yield router, far


def told(router: Namespace, version: int) -> int:
    """How often the router said that a packet was too big."""
    if version == 6:
        rows = router.run("cat", "/proc/net/snmp6").splitlines()
        return int(next(row for row in rows if row.startswith("Icmp6OutPktTooBigs")).split()[1])
    rows = router.run("cat", "/proc/net/snmp").splitlines()
    names, values = (row.split() for row in rows if row.startswith("Icmp:"))
    return int(values[names.index("OutDestUnreachs")])


@pytest.mark.parametrize("offload", ["yes", "no"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_stream_finds_its_way_through(
    network: tuple[Namespace, Namespace], version: int, offload: str
) -> None:
    router, far = network
    taker = far.program("", "take", "listen", FAR[version], 0)
    port = taker.object()["port"]
    spec = f"{DEVICE},offload={offload}"
    sent = router.program(spec, "send", "connect", FAR[version], port, OCTETS).object()
    assert taker.object() == {"octets": OCTETS, "digest": sent["digest"]}
    assert sent["answer"] == sent["digest"]
    assert told(router, version) > 0


@pytest.mark.parametrize("version", [4, 6])
def test_an_echo_that_is_too_long_is_told_once_and_then_refused_here(
    network: tuple[Namespace, Namespace], version: int
) -> None:
    router, _ = network
    running = router.start(
        *(sys.executable, "-m", "steertag", "ping", "-c", "2", "-i", "0.2", "-s", "1400"),
        *("-M", "do", "--device", DEVICE, FAR[version]),
    )
    said, _ = running.process.communicate(timeout=60)
    words = {4: f"Frag needed and DF set (mtu = {MTU})", 6: f"Packet too big: mtu={MTU}"}
    assert f"From {ROUTERS[version]} icmp_seq=1 {words[version]}" in said
    assert f"stag: local error: message too long, mtu={MTU}" in said


@pytest.mark.parametrize("version", [4, 6])
def test_an_echo_that_may_be_fragmented_arrives(
    network: tuple[Namespace, Namespace], version: int
) -> None:
    router, _ = network
    said = router.run(
        *(sys.executable, "-m", "steertag", "ping", "-c", "3", "-i", "0.2", "-s", "5000"),
        *("-M", "want", "--json", "--device", DEVICE, FAR[version]),
    )
    # The first may be what finds the path's MTU out.
    assert json.loads(said)["received"] >= 2
