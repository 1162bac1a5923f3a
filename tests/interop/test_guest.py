"""The guest itself: siw talks to siw, and what it says on the wire is seen from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.guest.machine import ADDRESS, PORTS, Guest

PORT = PORTS[0]


def test_siw_is_the_guests_rdma_device(guest: Guest) -> None:
    assert "siw0/1 state ACTIVE" in guest.check("rdma link")


def test_siw_talks_to_itself(guest: Guest) -> None:
    server = guest.start(f"rping -s -a {ADDRESS} -p {PORT} -v -C 2", port=PORT)
    said = guest.check(f"rping -c -a {ADDRESS} -p {PORT} -v -C 2")
    assert "ping data: rdma-ping-1" in said
    assert "server ping data: rdma-ping-1" in server.result(60).output


def test_a_script_that_takes_too_long_is_killed(guest: Guest) -> None:
    assert guest.shell("echo begun; sleep 1000", timeout=0.5) == (124, "begun\n")


def test_a_python_script_has_pyverbs_at_hand(guest: Guest) -> None:
    script = "import pyverbs.device; print([d.name for d in pyverbs.device.get_device_list()])"
    assert guest.python(script) == (0, "[b'siw0']\n")
    assert guest.python("raise SystemExit('no')") == (1, "no\n")


def test_files_go_in_and_come_out(guest: Guest) -> None:
    octets = bytes(range(256)) * 1000
    guest.put(octets, "/tmp/file")
    assert guest.get("/tmp/file") == octets
    with pytest.raises(OSError, match="No such file"):
        guest.get("/tmp/nothing")


@pytest.mark.parametrize("name", ["mpa_crc_required", "peer_to_peer", "mpa_crc_strict"])
def test_siws_constants_can_be_changed_and_go_back(guest: Guest, name: str) -> None:
    show = f"cat /sys/module/siw/parameters/{name}"
    guest.set_siw(**{name: True})
    assert guest.check(show) == "Y\n"
    guest.set_siw()
    assert guest.check(show) == "N\n"


def test_eth0_is_captured(guest: Guest, tmp_path: Path) -> None:
    capture = tmp_path / "ping.pcap"
    with guest.capturing(capture):
        guest.check("ping -c 1 10.0.2.2")
    assert b"\x08\x00" in capture.read_bytes()
