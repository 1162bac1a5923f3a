"""The page about AF_INET_NEW_TCP names the options and parameters that there are, and no others."""

from __future__ import annotations

import errno
import re

import pytest

from steertag import socket
from steertag.family import Stack
from steertag.inet import AF_INET_NEW_TCP, const, register
from tests.support import PROJECT

PAGE = (PROJECT / "docs" / "reference" / "inet.md").read_text(encoding="utf-8")
OURS = re.compile(r"net\.ipv[46]\.")
LEVELS = {
    "IPPROTO_IP": (const.SOL_IP, "IP_"),
    "IPPROTO_IPV6": (const.SOL_IPV6, "IPV6_"),
    "IPPROTO_TCP": (const.SOL_TCP, "TCP_"),
    "IPPROTO_UDP": (const.SOL_UDP, "UDP_"),
}


@pytest.fixture(scope="module")
def stack() -> Stack:
    stack = Stack(load_family=None)
    register(stack)
    return stack


def is_there(stack: Stack, kind: int, level: int, number: int) -> bool:
    """Whether the option can be set or read."""
    protocol = const.IPPROTO_RAW if kind == socket.SOCK_RAW else 0
    with socket.socket(AF_INET_NEW_TCP, kind, protocol, stack=stack) as sock:
        for call in (
            lambda: sock.getsockopt(level, number),
            lambda: sock.setsockopt(level, number, b""),
        ):
            try:
                call()
            except OSError as error:
                if error.errno == errno.ENOPROTOOPT:
                    continue
            return True
    return False


@pytest.mark.parametrize("level", LEVELS)
def test_the_page_names_each_option_that_is_there_and_no_other(stack: Stack, level: str) -> None:
    number, prefix = LEVELS[level]
    row = re.search(rf"^\| {level} \| (.*) \|$", PAGE, re.MULTILINE)
    assert row is not None
    shown = set(re.findall(r"`(\w+)`", row[1]))
    names = [name for name in vars(const) if name.startswith(prefix) and "PMTUDISC" not in name]
    kinds = {"TCP_": [socket.SOCK_STREAM], "UDP_": [socket.SOCK_DGRAM]}.get(
        prefix, [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW]
    )
    there = {
        name
        for name in names
        if any(is_there(stack, kind, number, getattr(const, name)) for kind in kinds)
    }
    aliases = {"IP_ORIGDSTADDR", "IPV6_ORIGDSTADDR", "TCP_CM_INQ"}
    assert shown == there - aliases


def parameters(stack: Stack) -> str:
    """The table of the page."""
    rows = [stack.sysctl.table(name) for name in sorted(stack.sysctl) if OURS.match(name)]
    lines = ["| name | default | |", "|---|---|---|"]
    lines += [f"| `{row.name}` | {stack.sysctl.format(row.name)} | {row.doc} |" for row in rows]
    return "\n".join(lines)


def test_the_page_lists_the_parameters_with_their_defaults(stack: Stack) -> None:
    shown = PAGE.partition("<!-- parameters: begin -->\n")[2].partition("\n<!-- parameters: end")[0]
    assert shown == parameters(stack)
