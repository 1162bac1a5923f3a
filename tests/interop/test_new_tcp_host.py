"""AF_INET_NEW_TCP and the host kernel's TCP, over a TUN or TAP device in a namespace.

Each test has one process of each; `new_tcp_program.py` is what they run.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.interop.namespace import Namespace, Running, require_tun
from tests.processes import PATIENCE
from tests.support import IN_CI, require_tool

pytestmark = [pytest.mark.slow]

OURS: Final = {"IPv4": "10.9.0.2", "IPv6": "fd00:9::2"}
HOSTS: Final = {"IPv4": "10.9.0.1", "IPv6": "fd00:9::1"}
ANY: Final = {"IPv4": "0.0.0.0", "IPv6": "::"}
VERSIONS: Final = tuple(OURS)
MIB: Final = 1 << 20
BULK: Final = (1024 if IN_CI else 256) * MIB
LONG: Final = 300.0


def device(kind: str = "tun", mtu: int = 1500, **settings: str) -> str:
    """A device of the Stack's, with the host at its other end."""
    parts = [f"{kind}:stag0", *(f"{address}/64" for address in (OURS["IPv6"],))]
    parts += [f"{OURS['IPv4']}/24", f"host={HOSTS['IPv4']}/24", f"host={HOSTS['IPv6']}/64"]
    parts += [f"mtu={mtu}", *(f"{name}={value}" for name, value in settings.items())]
    return ",".join(parts)


@pytest.fixture
def network() -> Iterator[Namespace]:
    require_tun()
    with Namespace() as namespace:
        yield namespace


class Pair:
    """Two processes with a connection between them: ours, and the host's.

    Args:
        ours, hosts: command and arguments, without role and address.
        we_connect: the host listens; else we do.
    """

    def __init__(
        self,
        network: Namespace,
        spec: str,
        version: str,
        *,
        ours: tuple[Any, ...],
        hosts: tuple[Any, ...],
        we_connect: bool,
    ) -> None:
        self.ours: Running
        self.hosts: Running
        if we_connect:
            self.hosts = network.program("", hosts[0], "listen", ANY[version], 0, *hosts[1:])
            port = self.hosts.object()["port"]
            where = ("connect", HOSTS[version], port)
            self.ours = network.program(spec, ours[0], *where, *ours[1:])
        else:
            self.ours = network.program(spec, ours[0], "listen", OURS[version], 0, *ours[1:])
            port = self.ours.object()["port"]
            where = ("connect", OURS[version], port)
            self.hosts = network.program("", hosts[0], *where, *hosts[1:])


def move(
    network: Namespace, spec: str, version: str, octets: int, *, we_send: bool, we_connect: bool
) -> float:
    """Move octets one way, close that half, hear the digest the other way. Seconds it took."""
    send, take = ("send", octets), ("take",)
    ours, hosts = (send, take) if we_send else (take, send)
    pair = Pair(network, spec, version, ours=ours, hosts=hosts, we_connect=we_connect)
    sender, taker = (pair.ours, pair.hosts) if we_send else (pair.hosts, pair.ours)
    sent, taken = sender.object(LONG), taker.object(LONG)
    assert taken["octets"] == octets
    assert sent["digest"] == taken["digest"] == sent["answer"]
    for running in (sender, taker):
        running.wait()
    return float(sent["seconds"])


# --- bulk -------------------------------------------------------------------------------------


@pytest.mark.parametrize("offload", ["yes", "no"])
@pytest.mark.parametrize("mtu", [1280, 1500, 9000, 65535])
def test_octets_arrive_both_ways_at_every_mtu(network: Namespace, mtu: int, offload: str) -> None:
    octets = 16 * MIB + 12345
    spec = device(mtu=mtu, offload=offload)
    for version in VERSIONS:
        for we_send in (True, False):
            move(network, spec, version, octets, we_send=we_send, we_connect=we_send)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("we_send", [True, False], ids=["out", "in"])
@pytest.mark.timeout(LONG + PATIENCE)
def test_a_long_stream_arrives_whole(network: Namespace, version: str, we_send: bool) -> None:
    seconds = move(network, device(), version, BULK, we_send=we_send, we_connect=not we_send)
    print(f"{'out' if we_send else 'in'}, {version}: {BULK / seconds / 1e6:.0f} MB/s")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("offload", ["yes", "no"])
def test_a_tap_with_its_address_resolution_does_the_same(
    network: Namespace, version: str, offload: str
) -> None:
    spec = device("tap", mac="02:00:00:00:00:02", offload=offload)
    for we_send in (True, False):
        move(network, spec, version, 4 * MIB, we_send=we_send, we_connect=not we_send)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_faulty_link_costs_time_and_nothing_else(network: Namespace, version: str) -> None:
    spec = device(loss="2%", duplicate="1%", corrupt="1%", reorder="2%", delay="2ms", seed="7")
    for we_send in (True, False):
        move(network, spec, version, MIB, we_send=we_send, we_connect=we_send)


# --- many connections ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_thousands_of_short_connections_from_the_host(network: Namespace, version: str) -> None:
    ours = network.program(device(), "echo", OURS[version], 0)
    port = ours.object()["port"]
    hosts = network.program("", "burst", OURS[version], port, 2000, 8)
    assert hosts.object(LONG) == {"connections": 2000}


@pytest.mark.parametrize("version", VERSIONS)
def test_thousands_of_short_connections_to_the_host(network: Namespace, version: str) -> None:
    hosts = network.program("", "echo", ANY[version], 0)
    port = hosts.object()["port"]
    ours = network.program(device(), "burst", HOSTS[version], port, 2000, 8)
    assert ours.object(LONG) == {"connections": 2000}


def test_a_hundred_connections_at_once_from_the_host(network: Namespace) -> None:
    ours = network.program(device(), "echo", "::", 0)
    port = ours.object()["port"]
    for version in VERSIONS:
        hosts = network.program("", "hold", OURS[version], port, 100)
        assert hosts.object(LONG) == {"connections": 100}


def test_a_hundred_connections_at_once_to_the_host(network: Namespace) -> None:
    hosts = network.program("", "echo", "::", 0)
    port = hosts.object()["port"]
    for version in VERSIONS:
        ours = network.program(device(), "hold", HOSTS[version], port, 100)
        assert ours.object(LONG) == {"connections": 100}
        ours.wait()


# --- ends that are not good ones ----------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("we_reset", [True, False], ids=["ours", "the host's"])
def test_a_reset_is_seen_as_one(network: Namespace, version: str, we_reset: bool) -> None:
    ours, hosts = (("reset",), ("suffer",)) if we_reset else (("suffer",), ("reset",))
    pair = Pair(network, device(), version, ours=ours, hosts=hosts, we_connect=not we_reset)
    victim = pair.hosts if we_reset else pair.ours
    assert victim.object() == {"error": "ECONNRESET"}
    assert victim.object() == {"error": "EPIPE"}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_port_where_nobody_listens_refuses(network: Namespace, version: str) -> None:
    ours = network.program(device(), "refused", HOSTS[version], 9)
    assert ours.object() == {"error": "ECONNREFUSED"}
    ours.wait()
    ours = network.program(device(), "echo", OURS[version], 0)
    ours.object()
    hosts = network.program("", "refused", OURS[version], 9)
    assert hosts.object() == {"error": "ECONNREFUSED"}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_host_that_vanishes_ends_our_connection(network: Namespace, version: str) -> None:
    pair = Pair(network, device(), version, ours=("vanish", 1500), hosts=("take",), we_connect=True)
    assert pair.ours.object() == {"connected": True}
    network.ip("link", "set", "stag0", "down")
    pair.ours.tell("")
    assert pair.ours.object() == {"error": "ETIMEDOUT"}


def test_the_host_ends_a_connection_to_us_when_we_vanish(network: Namespace) -> None:
    pair = Pair(network, device(), "IPv4", ours=("take",), hosts=("vanish", 1500), we_connect=False)
    assert pair.hosts.object() == {"connected": True}
    pair.ours.process.send_signal(signal.SIGSTOP)
    pair.hosts.tell("")
    told = pair.hosts.object()
    pair.ours.process.send_signal(signal.SIGCONT)
    assert told == {"error": "ETIMEDOUT"}


# --- programs -----------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path: Path) -> bytes:
    """`tmp_path/page`."""
    data = os.urandom(3 * MIB + 17)
    (tmp_path / "page").write_bytes(data)
    return data


@pytest.mark.parametrize("version", VERSIONS)
def test_curl_fetches_from_http_server_on_our_socket(
    network: Namespace, tmp_path: Path, page: bytes, version: str
) -> None:
    require_tool("curl")
    ours = network.program(device(), "http", OURS[version], 0, tmp_path)
    port = ours.object()["port"]
    name = f"[{OURS[version]}]" if version == "IPv6" else OURS[version]
    copy = tmp_path / "copy"
    url = f"http://{name}:{port}/page"
    network.run("curl", "--silent", "--fail", "--globoff", "--output", copy, url)
    assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(page).digest()


@pytest.mark.parametrize("version", VERSIONS)
def test_http_client_on_our_socket_fetches_from_the_host(
    network: Namespace, tmp_path: Path, page: bytes, version: str
) -> None:
    hosts = network.program("", "http", ANY[version], 0, tmp_path)
    port = hosts.object()["port"]
    ours = network.program(device(), "fetch", HOSTS[version], port, "/page")
    fetched = ours.object()
    assert fetched["status"] == 200
    assert fetched["octets"] == len(page)


def test_wrk_loads_http_server_on_our_socket(network: Namespace, tmp_path: Path) -> None:
    require_tool("wrk")
    (tmp_path / "small").write_bytes(b"x" * 1000)
    ours = network.program(device(), "http", OURS["IPv4"], 0, tmp_path)
    port = ours.object()["port"]
    url = f"http://{OURS['IPv4']}:{port}/small"
    said = network.run("wrk", "-t", "1", "-c", "8", "-d", "2s", "--timeout", "20s", url)
    requests = re.search(r"(\d+) requests in", said)
    assert requests is not None, said
    assert int(requests[1]) > 0
    assert "Socket errors" not in said, said
    assert "Non-2xx" not in said, said


@pytest.mark.parametrize("reverse", [(), ("--reverse",)], ids=["in and out", "reverse"])
def test_iperf3_measures_through_a_relay_of_ours(
    network: Namespace, reverse: tuple[str, ...]
) -> None:
    """Host client -> our TCP -> relay -> our TCP -> host server: twice through the Stack."""
    require_tool("iperf3")
    server = network.start("iperf3", "--server", "--one-off", "--forceflush")
    server.line()
    while "listening" not in server.line():
        continue
    ours = network.program(device(), "relay", OURS["IPv4"], 0, HOSTS["IPv4"], 5201)
    port = ours.object()["port"]
    client = ("iperf3", "--client", OURS["IPv4"], "--port", str(port), "--bytes", "32M", "--json")
    said = network.run(*client, *reverse, timeout=LONG)
    assert '"error"' not in said
    octets = re.search(r'"sum_received":\s*{[^}]*"bytes":\s*(\d+)', said)
    assert octets is not None, said
    assert int(octets[1]) > 0
    server.wait()


def test_nc_sends_to_us(network: Namespace, tmp_path: Path, page: bytes) -> None:
    require_tool("nc")
    ours = network.program(device(), "take", "listen", OURS["IPv4"], 0)
    port = ours.object()["port"]
    sent = tmp_path / "page"
    command = f"nc -N {OURS['IPv4']} {port} < {sent}"
    digest = network.run("sh", "-c", command)
    taken = ours.object()
    assert taken["octets"] == len(page)
    assert taken["digest"] == digest


def test_nc_takes_from_us(network: Namespace, tmp_path: Path) -> None:
    require_tool("nc")
    copy = tmp_path / "copy"
    ours = network.program(device(), "send", "listen", OURS["IPv4"], 0, MIB)
    port = ours.object()["port"]
    network.run("sh", "-c", f"nc -d {OURS['IPv4']} {port} > {copy}")
    assert ours.object()["octets"] == copy.stat().st_size == MIB


def test_the_host_pings_us(network: Namespace) -> None:
    require_tool("ping")
    ours = network.program(device(), "echo", OURS["IPv4"], 0)
    ours.object()
    for version in VERSIONS:
        said = network.run("ping", "-c", "3", "-i", "0.2", "-s", "1000", OURS[version])
        assert "3 received" in said
