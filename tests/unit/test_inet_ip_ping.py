"""`stag ping` to this host itself, and what it says of errors."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import pytest

from steertag.cli.ping import Statistics, explain
from tests.processes import PATIENCE

STAG = (sys.executable, "-m", "steertag", "ping")


def ping(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*STAG, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE
    )


@pytest.mark.parametrize(
    ("address", "head"),
    [
        ("127.0.0.1", "PING 127.0.0.1 (127.0.0.1) 100(128) bytes of data."),
        ("::1", "PING ::1 (::1) 100 data bytes"),
    ],
)
def test_it_prints_what_ping_prints(address: str, head: str) -> None:
    done = ping("-c", "3", "-i", "0.01", "-s", "100", address)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == head
    for number, line in enumerate(lines[1:4], 1):
        pattern = rf"108 bytes from {address}: icmp_seq={number} ttl=64 time=[\d.]+ ms"
        assert re.fullmatch(pattern, line), line
    assert lines[4:6] == ["", f"--- {address} ping statistics ---"]
    assert re.fullmatch(r"3 packets transmitted, 3 received, 0% packet loss, time \d+ms", lines[6])
    assert re.fullmatch(r"rtt min/avg/max/mdev = ([\d.]+/){3}[\d.]+ ms", lines[7])


def test_json_has_every_reply() -> None:
    done = ping("-c", "2", "-i", "0.01", "--json", "127.0.0.1")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["transmitted"], report["received"], report["loss_percent"]) == (2, 2, 0)
    assert [(each["icmp_seq"], each["ttl"]) for each in report["replies"]] == [(1, 64), (2, 64)]
    assert report["rtt_ms"]["min"] <= report["rtt_ms"]["avg"] <= report["rtt_ms"]["max"]


def test_ctrl_c_ends_it_with_the_figures() -> None:
    running = subprocess.Popen(
        [*STAG, "-i", "0.01", "127.0.0.1"], stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    for _ in range(3):
        running.stdout.readline()
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0
    assert "0% packet loss" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-c", "1", "192.0.2.1"), "stag: connect: Network is unreachable; --device gives it one"),
        (("-c", "1", "-4", "::1"), "stag: ::1: "),
        (("-c", "1", "fe80::1%nowhere"), "stag: unknown device nowhere"),
        (("-c", "1", "fe80::1"), "stag: connect: Invalid argument: a link-local address needs"),
        (("--device", "nonsense", "127.0.0.1"), "nonsense"),
        (("-c", "0", "127.0.0.1"), "-c"),
        (("-s", "70000", "127.0.0.1"), "-s"),
    ],
)
def test_what_cannot_be_is_one_line_and_code_2(arguments: tuple[str, ...], said: str) -> None:
    done = ping(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ((4, 3, 1, 0), "Destination Host Unreachable"),
        ((4, 3, 4, 1400), "Frag needed and DF set (mtu = 1400)"),
        ((4, 11, 0, 0), "Time to live exceeded"),
        ((4, 12, 0, 20), "Parameter problem: pointer = 20"),
        ((4, 3, 99, 0), "Bad ICMP type: 3"),
        ((6, 1, 3, 0), "Destination unreachable: Address unreachable"),
        ((6, 2, 0, 1400), "Packet too big: mtu=1400"),
        ((6, 3, 0, 0), "Time exceeded: Hop limit"),
        ((6, 4, 1, 40), "Parameter problem: Unknown header at 40"),
    ],
)
def test_errors_are_in_pings_words(error: tuple[int, int, int, int], words: str) -> None:
    assert explain(*error) == words


def test_the_deviation_is_pings() -> None:
    stats = Statistics()
    for elapsed in (1.0, 2.0, 3.0):
        stats.transmitted += 1
        stats.received += 1
        stats.add(elapsed)
    stats.transmitted += 1
    assert stats.loss == 25.0
    least, mean, most, deviation = stats.summary() or (0.0, 0.0, 0.0, 0.0)
    assert (least, mean, most) == (1.0, 2.0, 3.0)
    assert deviation == pytest.approx((2 / 3) ** 0.5)
