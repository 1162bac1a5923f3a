"""Echoes between AF_INET_NEW_TCP and the host kernel, over TUN and TAP, each way."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.interop.namespace import Namespace, require_tun
from tests.support import require_tool

STAG = (sys.executable, "-m", "steertag")
OURS = {4: "10.9.0.2", 6: "fd00:9::2"}
HOSTS = {4: "10.9.0.1", 6: "fd00:9::1"}
NOBODY = {4: "10.9.0.77", 6: "fd00:9::77"}
SPEC = f"stag0,{OURS[4]}/24,{OURS[6]}/64,host={HOSTS[4]}/24,host={HOSTS[6]}/64"
LENGTHS = ["0", "56", "5000", "65507"]


@pytest.fixture
def network() -> Iterator[Namespace]:
    require_tun()
    with Namespace() as namespace:
        yield namespace


def stag_ping(network: Namespace, *arguments: str) -> tuple[int, str]:
    running = network.start(*STAG, "ping", *arguments)
    out, err = running.process.communicate(timeout=60)
    return running.process.returncode, out + err


@pytest.mark.parametrize("kind", ["tun", "tap"])
@pytest.mark.parametrize("version", [4, 6])
def test_the_host_answers_us(network: Namespace, kind: str, version: int) -> None:
    for size in LENGTHS:
        code, said = stag_ping(
            network,
            "-c",
            "2",
            "-i",
            "0.01",
            "-s",
            size,
            "--json",
            "--device",
            f"{kind}:{SPEC}",
            HOSTS[version],
        )
        assert code == 0, said
        report = json.loads(said)
        assert (report["received"], report["errors"]) == (2, 0)


@pytest.mark.parametrize("kind", ["tun", "tap"])
def test_we_answer_the_host(network: Namespace, kind: str) -> None:
    require_tool("ping")
    ours = network.start(*STAG, "ping", "-i", "60", "--device", f"{kind}:{SPEC}", HOSTS[4])
    ours.line()
    ours.line()  # answered: both ends are up
    for version in (4, 6):
        for size in ("56", "5000", "60000"):
            said = network.run("ping", "-c", "2", "-i", "0.2", "-s", size, OURS[version])
            assert " 0% packet loss" in said


@pytest.mark.parametrize("version", [4, 6])
def test_a_neighbour_that_is_not_there_is_told_in_pings_words(
    network: Namespace, version: int
) -> None:
    code, said = stag_ping(network, "-c", "1", "--device", f"tap:{SPEC}", NOBODY[version])
    assert code == 1
    assert f"From {OURS[version]} icmp_seq=1 " in said
    assert {4: "Destination Host Unreachable", 6: "Address unreachable"}[version] in said


def test_what_may_not_be_fragmented_is_told(network: Namespace) -> None:
    code, said = stag_ping(
        network, "-c", "1", "-s", "5000", "-M", "do", "--device", f"tun:{SPEC}", HOSTS[4]
    )
    assert code == 1
    assert "stag: local error: message too long, mtu=1500" in said


def test_a_device_that_cannot_be_had_is_one_line_and_code_2(
    network: Namespace,
) -> None:
    holder = network.start(*STAG, "ping", "-i", "60", "--device", f"tun:{SPEC}", HOSTS[4])
    holder.line()
    code, said = stag_ping(network, "-c", "1", "--device", f"tun:{SPEC}", HOSTS[4])
    assert code == 2
    assert said.startswith("stag: ")
    assert "Traceback" not in said


@pytest.mark.parametrize("option", ["-i", "-W"])
@pytest.mark.parametrize("time", ["nan", "inf"])
def test_a_time_that_is_no_number_is_a_wrong_command_line(
    network: Namespace, option: str, time: str
) -> None:
    code, said = stag_ping(network, option, time, "-c", "2", "--device", f"tun:{SPEC}", HOSTS[4])
    assert code == 2
    assert f"Invalid value for '{option}': {time}" in said


def test_an_address_that_two_devices_were_to_have_is_named(network: Namespace) -> None:
    devices = ["--device", f"tun:stag0,{OURS[4]}/24", "--device", f"tun:stag1,{OURS[4]}/24"]
    code, said = stag_ping(network, "-c", "1", *devices, HOSTS[4])
    assert code == 2
    assert said == f"stag: File exists: {OURS[4]}: a device of the Stack has it already\n"
