"""`stag link` and what it is made of."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from steertag import Stack
from steertag.cli.main import cli
from steertag.device import (
    FaultDevice,
    Frame,
    MemoryDevice,
    loopback,
    memory_link,
    register_netdevice,
)
from steertag.observe import links
from steertag.observe.processes import Process
from tests.unit.inspected import Program

MACS = (b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2")

DEVICES = """
from steertag import default_stack
from steertag.device import loopback, register_netdevice
from steertag.observe import inspect
device = loopback("shown0", mtu=4321)
register_netdevice(default_stack(), device, lambda frame: None)
device.transmit([bytes(100)])
inspect.start()
print("ready", flush=True)
"""


def ignore(frame: Frame) -> None:
    """A protocol that takes no interest."""


def stag(*args: str) -> Result:
    result = CliRunner().invoke(cli, args)
    assert "Traceback" not in result.output
    return result


def busy_stack() -> Stack:
    stack = Stack()
    register_netdevice(stack, loopback(), ignore)
    ours, theirs = memory_link(mtu=1500, addresses=MACS)
    faulty = FaultDevice(
        ours, rng=random.Random(1), clock=stack.clock, timers=stack.timers, loss=1.0
    )
    register_netdevice(stack, faulty, ignore)
    faulty.transmit([bytes(20)])
    register_netdevice(stack, theirs, ignore)
    return stack


def test_every_device_is_listed_by_its_number() -> None:
    lo, faulty, other = links.links(busy_stack())
    assert [one["ifname"] for one in (lo, faulty, other)] == ["lo", "mem0", "mem1"]
    assert [one["ifindex"] for one in (lo, faulty, other)] == [1, 2, 3]
    assert (lo["link_type"], lo["operstate"], lo["mtu"]) == ("loopback", "UNKNOWN", 65536)
    assert (other["link_type"], other["address"]) == ("ether", "02:00:00:00:00:02")
    assert other["flags"] == ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"]
    assert faulty["faults"][0]["tx"]["lost"] == 1  # type: ignore[index]
    assert "faults" not in other
    assert faulty["features"] == ["generic-receive-offload"]
    assert "tx-tcp-segmentation" in other["features"]  # type: ignore[operator]


def test_counters_are_those_of_the_device() -> None:
    stack = Stack()
    ours, theirs = memory_link(mtu=100)
    register_netdevice(stack, theirs, ignore)
    ours.transmit([bytes(70)])
    theirs.transmit([bytes(30)])
    with pytest.raises(OSError, match="too long"):
        theirs.transmit([bytes(101)])
    theirs.up = False
    ours.transmit([bytes(10)])
    (link,) = links.links(stack)
    assert link["stats64"] == {
        "rx": {"bytes": 70, "packets": 1, "errors": 0, "dropped": 1, "multicast": 0},
        "tx": {"bytes": 30, "packets": 1, "errors": 1, "dropped": 0},
    }
    assert (link["operstate"], link["flags"]) == ("DOWN", ["POINTOPOINT", "NOARP"])


def test_the_text_has_the_lines_of_ip_s_link() -> None:
    lines = links.format(links.owned(busy_stack())).splitlines()
    assert lines[0] == "1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 state UNKNOWN"
    assert re.fullmatch(r'    link/loopback users:\(\(".*",pid=\d+\)\)', lines[1])
    assert lines[3].split() == ["RX:", "bytes", "packets", "errors", "dropped", "mcast"]
    assert lines[4].split() == ["0"] * 5
    assert lines[5].split() == ["TX:", "bytes", "packets", "errors", "dropped"]
    assert lines[3].index("bytes") + len("bytes") == lines[4].index("0") + 1
    assert any("faults TX: passed 0 lost 1 " in line for line in lines)


def test_what_another_process_says_is_shown_harmless() -> None:
    told = [{}, {"ifname": "\x1b[2J", "stats64": "x", "flags": 3, "faults": [7], "linkinfo": None}]
    text = links.format(links.owned(None, [Process(7, "e\x07vil", links=told)]))
    assert text.count("pid=7") == 2
    assert all(line.isprintable() for line in text.splitlines())


def test_the_command_shows_other_programs_and_one_device_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERTAG_INSPECT", str(tmp_path / "steertag"))
    with Program(DEVICES, STEERTAG_INSPECT=str(tmp_path / "steertag")) as program:
        shown = json.loads(stag("link", "--json").stdout)
        (link,) = [one for one in shown if one["ifname"] == "shown0"]
        assert (link["mtu"], link["pid"]) == (4321, program.pid)
        assert link["stats64"]["rx"] == link["stats64"]["tx"] | {"multicast": 0}
        assert link["stats64"]["tx"]["bytes"] == 100
        assert "shown0: <LOOPBACK" in stag("link", "shown0").stdout
        assert "shown0" in stag("link", "-p", str(program.pid)).stdout
        assert stag("link", "nosuch0").exit_code == 1


def test_without_devices_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERTAG_INSPECT", str(tmp_path / "steertag"))
    stack = Stack(load_family=None)
    monkeypatch.setattr("steertag.default_stack", lambda: stack)
    result = stag("link")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no program with a network device" in result.stderr
    assert json.loads(stag("link", "--json").stdout) == []


def test_a_device_description_that_is_none_is_a_usage_error() -> None:
    result = stag("link", "--device", "carrier-pigeon")
    assert result.exit_code == 2
    assert "carrier-pigeon" in result.stderr


def test_a_memory_device_of_a_closed_link_is_down() -> None:
    stack = Stack()
    device = MemoryDevice("mem0")
    register_netdevice(stack, device, ignore)
    device.close()
    assert links.links(stack)[0]["operstate"] == "DOWN"
