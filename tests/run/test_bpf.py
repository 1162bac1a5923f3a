"""What the filter of `stag run` lets through, shown by the kernel's own rules for such programs."""

from __future__ import annotations

import errno
import socket as std

import pytest

from steertag.run import bpf
from steertag.run.abi import SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_USER_NOTIF
from steertag.run.syscalls import (
    AARCH64,
    AUDIT_ARCH_AARCH64,
    AUDIT_ARCH_X86_64,
    X32_SYSCALL_BIT,
    X86_64,
    Syscalls,
)

AUDIT_ARCH_I386 = 0x4000_0003
SERVED = {std.AF_INET: {std.SOCK_STREAM}, 45: {std.SOCK_STREAM, std.SOCK_SEQPACKET}}
NOTIFY, ALLOW = SECCOMP_RET_USER_NOTIF, SECCOMP_RET_ALLOW
ENOSYS = SECCOMP_RET_ERRNO | errno.ENOSYS

both = pytest.mark.parametrize("calls", [X86_64, AARCH64], ids=lambda calls: calls.machine)


def verdict(calls: Syscalls, name: str, *arguments: int, datagrams: bool = False) -> int:
    rows = bpf.program(calls, SERVED, datagrams=datagrams)
    return bpf.evaluate(rows, calls[name], calls.arch, arguments)


@both
def test_only_sockets_of_the_families_and_types_asked_for_are_looked_at(calls: Syscalls) -> None:
    flags = std.SOCK_NONBLOCK | std.SOCK_CLOEXEC
    assert verdict(calls, "socket", std.AF_INET, std.SOCK_STREAM) == NOTIFY
    assert verdict(calls, "socket", std.AF_INET, std.SOCK_STREAM | flags, 6) == NOTIFY
    assert verdict(calls, "socket", 45, std.SOCK_SEQPACKET) == NOTIFY
    assert verdict(calls, "socket", std.AF_INET, std.SOCK_DGRAM) == ALLOW
    assert verdict(calls, "socket", std.AF_UNIX, std.SOCK_STREAM) == ALLOW
    assert verdict(calls, "socket", 45, std.SOCK_DGRAM) == ALLOW


@both
def test_further_families_are_looked_at_where_modules_may_register_them(calls: Syscalls) -> None:
    rows = bpf.program(calls, SERVED, others=(std.AF_UNIX, std.AF_INET, std.AF_NETLINK))

    def of(family: int, kind: int) -> int:
        return bpf.evaluate(rows, calls["socket"], calls.arch, (family, kind, 0))

    assert of(64, std.SOCK_STREAM) == of(64, std.SOCK_DGRAM) == NOTIFY
    assert of(std.AF_UNIX, std.SOCK_STREAM) == of(std.AF_NETLINK, std.SOCK_RAW) == ALLOW
    assert of(std.AF_INET, std.SOCK_STREAM) == NOTIFY
    assert of(std.AF_INET, std.SOCK_DGRAM) == ALLOW  # as without others


@both
@pytest.mark.parametrize("name", bpf.ALWAYS)
def test_calls_about_connections_are_looked_at(calls: Syscalls, name: str) -> None:
    assert verdict(calls, name, 3) == NOTIFY


@both
@pytest.mark.parametrize("name", bpf.OF_DATAGRAMS)
def test_messages_are_looked_at_only_where_datagrams_are_served(calls: Syscalls, name: str) -> None:
    assert verdict(calls, name, 3) == ALLOW
    assert verdict(calls, name, 3, datagrams=True) == NOTIFY


@both
@pytest.mark.parametrize("datagrams", [False, True])
def test_whoever_asks_for_the_error_queue_is_looked_at(calls: Syscalls, datagrams: bool) -> None:
    asks = std.MSG_ERRQUEUE | std.MSG_TRUNC
    for name, flags in bpf.RECEIVING.items():
        arguments = [0x1000] * flags + [asks]
        arguments[0] = 3
        assert verdict(calls, name, *arguments, datagrams=datagrams) == NOTIFY
        arguments[flags] = std.MSG_TRUNC
        plain = NOTIFY if datagrams and name != "recvfrom" else ALLOW
        assert verdict(calls, name, *arguments, datagrams=datagrams) == plain


@both
@pytest.mark.parametrize("address", [0x1000, 0x7FFF_0000_0000], ids=["low", "high half alone"])
def test_sendto_is_looked_at_only_with_an_address(calls: Syscalls, address: int) -> None:
    assert verdict(calls, "sendto", 3, 0x1000, 10, 0, address, 16) == NOTIFY
    assert verdict(calls, "sendto", 3, 0x1000, 10, 0, 0, 0) == ALLOW
    assert verdict(calls, "recvfrom", 3, 0x1000, 10, 0, address, 16) == ALLOW
    assert verdict(calls, "recvfrom", 3, 0x1000, 10, 0, address, 16, datagrams=True) == NOTIFY
    assert verdict(calls, "recvfrom", 3, 0x1000, 10, 0, 0, 0, datagrams=True) == ALLOW


@both
def test_an_option_that_the_pair_keeps_by_itself_is_not_looked_at(calls: Syscalls) -> None:
    for name in bpf.NATIVE_OPTIONS:
        assert verdict(calls, "setsockopt", 3, std.SOL_SOCKET, name) == ALLOW
    assert verdict(calls, "setsockopt", 3, std.SOL_SOCKET, std.SO_KEEPALIVE) == NOTIFY
    assert verdict(calls, "setsockopt", 3, std.IPPROTO_TCP, bpf.NATIVE_OPTIONS[0]) == NOTIFY


@both
def test_every_other_call_of_the_processor_is_native(calls: Syscalls) -> None:
    rows = bpf.program(calls, SERVED, datagrams=True)
    special = set(calls.numbers.values())
    for number in set(range(600)) - special:
        assert bpf.evaluate(rows, number, calls.arch, [3, 1, 2, 3, 4, 5]) == ALLOW


@both
def test_a_ring_which_passes_by_every_filter_cannot_be_had(calls: Syscalls) -> None:
    assert verdict(calls, "io_uring_setup", 8, 0x1000) == ENOSYS


@both
@pytest.mark.parametrize("arch", [AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64, 0])
def test_calls_of_another_abi_fail(calls: Syscalls, arch: int) -> None:
    rows = bpf.program(calls, SERVED)
    if arch != calls.arch:
        for number in range(600):
            assert bpf.evaluate(rows, number, arch) == ENOSYS


def test_calls_of_x32_fail() -> None:
    rows = bpf.program(X86_64, SERVED)
    for name in ("socket", "connect", "ioctl"):
        assert bpf.evaluate(rows, X32_SYSCALL_BIT | X86_64[name], X86_64.arch, [2, 1]) == ENOSYS


def test_a_filter_that_serves_nothing_lets_every_socket_be_made_natively() -> None:
    rows = bpf.program(X86_64, {})
    assert bpf.evaluate(rows, X86_64["socket"], X86_64.arch, [2, 1, 6]) == ALLOW


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "0 instructions"),
        ([(bpf.LD_W_ABS, 0, 0, 0)], "not a return"),
        ([(bpf.JEQ_K, 1, 0, 0), (bpf.RET_K, 0, 0, 0)], "out of the program"),
        ([(bpf.LD_W_ABS, 0, 0, 2), (bpf.RET_K, 0, 0, 0)], "loads from"),
        ([(0x99, 0, 0, 0), (bpf.RET_K, 0, 0, 0)], "code"),
    ],
)
def test_what_the_kernel_would_refuse_is_refused(rows: list[bpf.Instruction], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        bpf.evaluate(rows, 0, X86_64.arch)


def test_a_packed_instruction_is_a_sock_filter() -> None:
    assert bpf.pack([(0x0102, 3, 4, 5)]) == bytes.fromhex("0201 03 04 05000000".replace(" ", ""))
