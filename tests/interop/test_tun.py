"""TUN and TAP against the host kernel: super-segments both ways, names, errors, the host's side."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from steertag.device.frame import CHECKSUM_NONE, CHECKSUM_PARTIAL, GSO_UDP_L4
from tests.interop.namespace import Namespace, require_tun
from tests.interop.tshark import shown
from tests.support import PROJECT, require_tool

PROGRAM: Final = PROJECT / "tests" / "interop" / "tun_program.py"
PAYLOAD: Final = 50200
MSS: Final = 1000

wires = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
kinds = pytest.mark.parametrize("kind", ["tun", "tap"])
offloads = pytest.mark.parametrize("offload", ["offload", "plain"])


@pytest.fixture
def network() -> Iterator[Namespace]:
    require_tun()
    with Namespace() as namespace:
        yield namespace


def scene(network: Namespace, *arguments: object, mtu: int = 1500) -> dict[str, Any]:
    words = [str(argument) for argument in arguments]
    if len(words) > 1:
        words.insert(4, str(mtu))
    found = json.loads(network.run(sys.executable, PROGRAM, *words))
    assert isinstance(found, dict)
    return found


@wires
@kinds
@offloads
def test_the_kernels_super_datagrams_come_whole_or_cut(
    network: Namespace, kind: str, version: int, offload: str
) -> None:
    found = scene(network, "udp_in", kind, version, offload)
    assert found["right"]
    assert found["sums"]
    assert found["packets"] == 51
    if offload == "offload" and len(found["frames"]) == 1:
        assert found["frames"][0][1:] == [CHECKSUM_PARTIAL, GSO_UDP_L4, MSS]
    elif offload == "offload":  # a kernel without USO for TUN
        assert {frame[1] for frame in found["frames"]} == {CHECKSUM_PARTIAL}
    else:
        assert {tuple(frame[1:]) for frame in found["frames"]} == {(CHECKSUM_NONE, 0, 0)}


@wires
@kinds
@offloads
def test_our_super_datagrams_reach_the_kernels_sockets(
    network: Namespace, kind: str, version: int, offload: str
) -> None:
    found = scene(network, "udp_out", kind, version, offload)
    assert found["right"]
    assert found["sizes"] == [PAYLOAD % MSS, MSS]
    assert found["sent"] in ((2, 52) if offload == "offload" else (52,))


@wires
@kinds
@offloads
def test_the_kernels_stream_comes_in_super_segments_or_is_joined(
    network: Namespace, kind: str, version: int, offload: str
) -> None:
    found = scene(network, "tcp_in", kind, version, offload)
    assert found["right"]
    assert found["sums"]
    assert found["joined_right"]
    assert (max(found["sizes"]) > 0) == (offload == "offload")
    assert found["largest"] > 5000  # software joined what was cut


@wires
@kinds
@offloads
def test_our_super_segments_reach_the_kernels_sockets(
    network: Namespace, kind: str, version: int, offload: str
) -> None:
    found = scene(network, "tcp_out", kind, version, offload)
    assert found["right"]
    assert found["sent"] == (3 if offload == "offload" else 53)


@pytest.mark.parametrize("whole", ["whole", "cut"])
@wires
@kinds
def test_tshark_finds_nothing_wrong_in_a_capture(
    network: Namespace, kind: str, version: int, whole: str, tmp_path: Path
) -> None:
    require_tool("tshark")
    capture = tmp_path / "a.pcap"
    found = scene(network, "captured", kind, version, "offload", capture, whole)
    assert found == {
        "udp_in": True, "udp_out": True, "tcp_in": True, "tcp_out": True, "failure": False
    }  # fmt: skip
    checks = [
        option for name in ("ip", "tcp", "udp") for option in ("-o", f"{name}.check_checksum:TRUE")
    ]
    wrong = (
        "tcp.checksum.status==0 || udp.checksum.status==0 || ip.checksum.status==0"
        " || _ws.malformed || tcp.analysis.lost_segment"
    )
    assert shown(capture, *checks, "-Y", wrong) == ""
    fields = ["-T", "fields", "-e", "tcp.len", "-e", "udp.length"]
    lengths = [line.split("\t") for line in shown(capture, *checks, *fields).splitlines()]
    streams = sum(int(line[0]) for line in lengths if line[0])
    assert streams == 2 * PAYLOAD
    largest = max(int(line[0]) for line in lengths if line[0])
    assert largest == PAYLOAD if whole == "whole" else largest <= 1500
    datagrams = [int(line[1]) - 8 for line in lengths if len(line) > 1 and line[1]]
    assert sum(datagrams) == 2 * PAYLOAD + len("one by itself")


def test_names_are_given_chosen_and_free_again(network: Namespace) -> None:
    found = scene(network, "naming")
    assert found["names"][0] == "mine0"
    assert found["names"][1].startswith("tun")
    assert found["names"][2] == "wire0"
    code, message = found["busy"]
    assert code == errno.EBUSY
    assert "mine0" in message
    code, message = found["wrong_kind"]
    assert code == errno.EINVAL
    assert "lo" in message


def test_an_interface_that_was_there_before_is_used_and_stays(network: Namespace) -> None:
    found = scene(network, "persistent")
    assert found["features"] == [True, False, True]
    assert found["received"] == 60
    code, message = found["wrong_kind"]
    assert code == errno.EINVAL
    assert "keep0" in message


def test_without_the_right_to_it_the_error_says_what_to_do(network: Namespace) -> None:
    require_tool("unshare")
    # A user namespace of its own has no rights in a network namespace that is another's.
    done = network.run("unshare", "--user", sys.executable, PROGRAM, "forbidden")
    for code, message in json.loads(done).values():
        assert code == errno.EPERM
        assert "unshare -Urn" in message
        assert "\n" not in message


def test_the_hosts_side_is_set_up_without_a_program(network: Namespace) -> None:
    found = scene(network, "host_side")
    (link,) = found["shown"]
    assert (link["mtu"], link["txqlen"]) == (9000, 77)
    assert "UP" in link["flags"]
    assert {"10.9.0.1/24", "fd00:9::1/64"} <= {
        f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"]
    }
    assert not any(one.get("tentative") for one in link["addr_info"] if one["scope"] == "global")
    assert "UP" in found["loopback"]
    assert found["no_such"][0] == errno.ENODEV
    assert found["mtu"][0] == errno.EINVAL


def test_a_host_side_that_is_down_or_gone_is_an_error_and_no_more(network: Namespace) -> None:
    found = scene(network, "host_side")
    assert found["down"][0] == found["down_again"][0] == errno.ENETDOWN
    assert found["no_packet"][0] == errno.EINVAL  # neither IPv4 nor IPv6
    assert found["too_long"][0] == errno.EMSGSIZE
    assert found["counters"] == [0, 2, 2]
    assert [bool(one) for one in found["gone"]] == [True, True]
    assert found["gone"][1][0] == errno.ENETDOWN
    assert found["closed"][0] == errno.ENETDOWN
    assert found["after_close"]
