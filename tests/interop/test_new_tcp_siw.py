"""iWARP over TCP/IP in user space, with Linux's siw over the kernel's at the other end.

The guest's third network card is a TAP interface of a namespace, in which our Stack has a TUN: the
namespace's kernel routes between the two. So our TCP talks to the TCP of the guest's kernel.
"""

from __future__ import annotations

import array
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.interop.guest.build import build
from tests.interop.guest.machine import PORTS, Guest
from tests.interop.namespace import Namespace, require_tun
from tests.transfer.harness import STAG

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

OURS: Final = "10.9.0.2"
GUESTS: Final = "10.8.0.2"
DEVICE: Final = f"tun:stag0,{OURS}/24,host=10.9.0.1/24,via=10.9.0.1"
PORT: Final = PORTS[0]
_MAKE_TAP: Final = """
import fcntl, os, socket, struct, sys
fd = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"guest0", 0x1002))
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as to:
    to.connect(sys.argv[1])
    socket.send_fds(to, [b"x"], [fd])
"""
_SET_UP_GUEST: Final = f"""
/usr/bin/ip address add {GUESTS}/24 dev eth2 && /usr/bin/ip link set eth2 up &&
/usr/bin/ip route add 10.9.0.0/24 via 10.8.0.1 &&
/usr/bin/tc qdisc add dev eth2 root netem delay 2ms limit 100000 &&
/usr/bin/rdma link add siw2 type siw netdev eth2
"""


@pytest.fixture(scope="module")
def network() -> Iterator[Namespace]:
    require_tun()
    with Namespace() as namespace:
        yield namespace


@pytest.fixture(scope="module")
def beside(network: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest that the namespace's kernel routes to."""
    directory = tmp_path_factory.mktemp("beside")
    tap = make_tap(network, directory / "tap")
    network.ip("address", "add", "10.8.0.1/24", "dev", "guest0")
    network.ip("link", "set", "guest0", "up")
    network.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    with Guest(build(), directory, tap=tap) as guest:
        guest.check(_SET_UP_GUEST)
        yield guest
    os.close(tap)


def make_tap(network: Namespace, path: Path) -> int:
    """A TAP interface of the namespace's, as a descriptor."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        maker = network.start(sys.executable, "-c", _MAKE_TAP, path)
        with listener.accept()[0] as connection:
            _, fds, _, _ = socket.recv_fds(connection, 1, array.array("i").itemsize)
        maker.wait()
    return int(fds[0])


def report_of(said: str) -> dict[str, Any]:
    found = json.loads(said.splitlines()[-1])
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("crc", [True, False], ids=["crc", "plain"])
@pytest.mark.parametrize("size", [64, 60000])
def test_our_client_pings_siw(network: Namespace, beside: Guest, size: int, crc: bool) -> None:
    beside.kill_all()
    server = beside.start(f"rping -s -a {GUESTS} -p {PORT} -v -C 3 -S {size}", port=PORT)
    said = network.run(
        *(*STAG, "rping", "-c", "-a", GUESTS, "-p", str(PORT), "-C", "3", "-S", str(size)),
        *("-V", "--json", "--crc" if crc else "--no-crc"),
        *("--family", "new_tcp", "--device", DEVICE),
    )
    report = report_of(said)
    assert (report["pings"], report["crc"]) == (3, crc)
    assert "server ping data: rdma-ping-2: CDEF" in server.result().output


@pytest.mark.parametrize("size", [64, 60000])
def test_siw_pings_our_server(network: Namespace, beside: Guest, size: int) -> None:
    beside.kill_all()
    words = ("rping", "-s", "-p", str(PORT), "-S", str(size), "--json")
    ours = network.start(*STAG, *words, "--family", "new_tcp", "--device", DEVICE)
    assert ours.process.stderr is not None
    assert "listening" in ours.process.stderr.readline()
    status, said = beside.shell(f"rping -c -a {OURS} -p {PORT} -v -V -C 3 -S {size}")
    assert status == 0, f"{said}\nours: {ours.stop()}"
    assert "ping data: rdma-ping-2: CDEF" in said
    assert "mismatch" not in said
    assert report_of(ours.wait())["pings"] == 3
