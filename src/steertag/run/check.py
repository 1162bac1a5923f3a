"""What this kernel and this container allow of what `stag run` needs; each is tried, not assumed.

A child is forked that puts itself under a filter as a supervised program is, and makes one call;
the rest is what a supervisor does with such a call: receive the notification, read and write the
caller's memory, duplicate one of its descriptors, put a descriptor of its own into it. What is
refused is reported with the error and with what to do about it.

Sources: seccomp(2), seccomp_unotify(2), pidfd_getfd(2), process_vm_readv(2), prctl(2), and the
kernel's Documentation/admin-guide/LSM/Yama.rst.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from steertag.run import bpf
from steertag.run.abi import (
    NOTIF,
    NOTIF_ADDFD,
    NOTIF_RESP,
    PR_SET_NO_NEW_PRIVS,
    SECCOMP_ADDFD_FLAG_SEND,
    SECCOMP_FILTER_FLAG_NEW_LISTENER,
    SECCOMP_IOCTL_NOTIF_ADDFD,
    SECCOMP_IOCTL_NOTIF_RECV,
    SECCOMP_IOCTL_NOTIF_SEND,
    SECCOMP_IOCTL_NOTIF_SET_FLAGS,
    SECCOMP_RET_USER_NOTIF,
    SECCOMP_SET_MODE_FILTER,
    SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP,
    SOCK_FPROG,
    Iovec,
)
from steertag.run.syscalls import BY_MACHINE

OLDEST: Final = (5, 14)
_GET_ACTION_AVAIL: Final = 2
_PATIENCE_MS: Final = 10_000
_COLUMNS: Final = 80
_INDENT: Final = " " * 10
YAMA: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
_NONCE: Final = b"steertag"
_CONTAINER: Final = (
    "a container's seccomp profile forbids it: podman or docker run --security-opt"
    " seccomp=unconfined"
)
_PTRACE: Final = (
    "a container's profile keeps it for CAP_SYS_PTRACE: podman or docker run"
    " --cap-add=SYS_PTRACE, or --security-opt seccomp=unconfined"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at, in the kernel's words.
        ok: whether it is there.
        needed: without it `stag run` doesn't work; else it works more slowly, or this is a note.
        found: what was seen: a version, an error.
        advice: what to do about it; empty where there is nothing to do.
    """

    name: str
    ok: bool
    needed: bool
    found: str
    advice: str = ""


def check(yama: Path = YAMA) -> list[Finding]:
    """Try everything; the order is that of the report.

    Args:
        yama: where the kernel says what it allows of ptrace(2).
    """
    machine = platform.machine()
    scope = _number(yama)
    findings = [_processor(machine), _kernel()]
    if findings[0].ok:  # else there are no numbers to try
        findings += _Probe(machine, scope).run()
    return [*findings, *_yama(scope), *_io_uring()]


def possible(findings: list[Finding]) -> bool:
    """Whether `stag run` works here."""
    return all(finding.ok for finding in findings if finding.needed)


def as_json(findings: list[Finding]) -> dict[str, object]:
    """For `--json`: {"possible": bool, "findings": [{name, ok, needed, found, advice}]}."""
    return {
        "possible": possible(findings),
        "findings": [asdict(finding) for finding in findings],
    }


def report(findings: list[Finding]) -> str:
    """A screen of 80 columns: a line each, what to do below what is missing, a verdict."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        mark = "ok" if finding.ok else "MISSING" if finding.needed else "no"
        lines.append(f"{mark:<8}{finding.name:<{width}}  {finding.found}".rstrip())
        if finding.advice:
            lines += _wrapped(finding.advice, _INDENT)
    missing = [finding.name for finding in findings if finding.needed and not finding.ok]
    verdict = f"not possible here: {', '.join(missing)}" if missing else "possible here"
    return "\n".join([*lines, "", *_wrapped(f"stag run is {verdict}", "")])


def _wrapped(text: str, indent: str) -> list[str]:
    import textwrap

    return textwrap.wrap(
        text,
        _COLUMNS,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _processor(machine: str) -> Finding:
    known = machine in BY_MACHINE and sys.maxsize > 1 << 32
    advice = "" if known else f"there are tables for {' and '.join(BY_MACHINE)}, 64 bits"
    return Finding("processor", known, True, machine, advice)


def _kernel() -> Finding:
    release = platform.release()
    numbers = [int(part) for part in release.split("-")[0].split(".")[:2] if part.isdecimal()]
    recent = platform.system() == "Linux" and tuple(numbers) >= OLDEST
    # A distribution may have brought what is needed to an older one: that is tried, below.
    advice = "" if recent else f"Linux {OLDEST[0]}.{OLDEST[1]} has all of what follows"
    return Finding("kernel", recent, False, f"{platform.system()} {release}", advice)


class _Probe:
    """The one call of the child, and what a supervisor does with it."""

    def __init__(self, machine: str, scope: int | None) -> None:
        self._calls = BY_MACHINE[machine]
        self._scope = scope
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long
        self._findings: list[Finding] = []

    def run(self) -> list[Finding]:
        self._actions()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = ctypes.create_string_buffer(_NONCE, 64)  # at the same address in the child
        with ours, theirs:
            child = os.fork()
            if child == 0:
                ours.close()
                self._child(theirs)
            theirs.close()
            try:
                self._supervise(ours, child, ctypes.addressof(memory))
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        return self._findings

    # -- the child: everything up to the call, told step by step

    def _child(self, channel: socket.socket) -> None:
        """Never returns; says (step, errno) after each step, with the listener after the filter."""
        try:
            number = self._call(lambda: self._libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
            channel.send(struct.pack("=i", number))
            listener = self._filter()
            if listener < 0:
                channel.send(struct.pack("=i", -listener))
                os._exit(1)
            rights = array.array("i", [listener])
            channel.sendmsg(
                [struct.pack("=i", 0)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            )
            os.close(listener)
            made = self._libc.syscall(self._calls["socket"], socket.AF_INET, socket.SOCK_STREAM, 0)
            inode = os.fstat(made).st_ino if made >= 0 else -ctypes.get_errno()
            channel.send(struct.pack("=q", inode))
            signal.pause()  # the supervisor looks at us, and ends us
        finally:
            os._exit(1)

    def _filter(self) -> int:
        """Install a filter that notifies of socket(2); the listener, or minus an error."""
        program = bpf.pack(
            [
                (bpf.LD_W_ABS, 0, 0, 0),
                (bpf.JEQ_K, 0, 1, self._calls["socket"]),
                *bpf.NOTIFY,
                *bpf.ALLOW,
            ]
        )
        text = ctypes.create_string_buffer(program, len(program))
        header = SOCK_FPROG.pack(len(program) // 8, ctypes.addressof(text))
        argument = ctypes.create_string_buffer(header, len(header))
        listener: int = self._libc.syscall(
            self._calls["seccomp"],
            SECCOMP_SET_MODE_FILTER,
            SECCOMP_FILTER_FLAG_NEW_LISTENER,
            argument,
        )
        return listener if listener >= 0 else -ctypes.get_errno()

    # -- the supervisor

    def _actions(self) -> None:
        action = ctypes.c_uint32(SECCOMP_RET_USER_NOTIF)
        number = self._call(
            lambda: self._libc.syscall(
                self._calls["seccomp"], _GET_ACTION_AVAIL, 0, ctypes.byref(action)
            )
        )
        self._tell("seccomp user notification", number, _seccomp_advice(number))

    def _supervise(self, channel: socket.socket, child: int, address: int) -> None:
        number = self._heard(channel)[0]
        self._tell("no_new_privs", number, _CONTAINER)
        number, listener = self._heard(channel)
        self._tell("notification listener", number, _seccomp_advice(number))
        if listener is None:
            return
        try:
            self._answer(channel, listener, child, address)
        finally:
            os.close(listener)

    def _answer(self, channel: socket.socket, listener: int, child: int, address: int) -> None:
        number = _tried(
            lambda: fcntl.ioctl(
                listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
            )
        )
        self._tell(
            "SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP",
            number,
            "Linux 6.6 has it; without it each call costs some microseconds more",
            needed=False,
        )
        notification = bytearray(NOTIF.size)
        if not _readable(listener):
            self._tell("SECCOMP_IOCTL_NOTIF_RECV", errno.ETIMEDOUT, _CONTAINER)
            return
        number = _tried(lambda: fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, notification, True))
        self._tell("SECCOMP_IOCTL_NOTIF_RECV", number, _CONTAINER)
        if number:
            return
        identity = int(NOTIF.unpack(notification)[0])
        self._memory(child, address)
        self._getfd(child)
        self._inject(channel, listener, identity)

    def _memory(self, child: int, address: int) -> None:
        room = ctypes.create_string_buffer(64)
        ours = Iovec(ctypes.addressof(room), len(_NONCE))
        theirs = Iovec(address, len(_NONCE))
        for name in ("process_vm_readv", "process_vm_writev"):
            function = getattr(self._libc, name)
            ctypes.set_errno(0)
            moved = function(child, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
            number = ctypes.get_errno() if moved < 0 else 0
            if not number and room.raw[: len(_NONCE)] != _NONCE:
                number = errno.EFAULT
            self._tell(name, number, self._ptrace_advice())

    def _getfd(self, child: int) -> None:
        """The child's standard error; any descriptor would do."""
        try:
            pidfd = os.pidfd_open(child)
        except OSError as error:
            self._tell("pidfd_getfd", error.errno or errno.EIO, _CONTAINER)
            return
        copy = self._libc.syscall(self._calls["pidfd_getfd"], pidfd, 2, 0)
        number = ctypes.get_errno() if copy < 0 else 0
        if number == errno.EBADF:  # it has none: so much is allowed
            number = 0
        if copy >= 0:
            os.close(copy)
        os.close(pidfd)
        self._tell("pidfd_getfd", number, self._ptrace_advice())

    def _inject(self, channel: socket.socket, listener: int, identity: int) -> None:
        with socket.socket(socket.AF_UNIX) as ours:
            request = bytearray(
                NOTIF_ADDFD.pack(identity, SECCOMP_ADDFD_FLAG_SEND, ours.fileno(), 0, os.O_CLOEXEC)
            )
            number = _tried(lambda: fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, request, True))
            if number:
                _tried(
                    lambda: fcntl.ioctl(
                        listener,
                        SECCOMP_IOCTL_NOTIF_SEND,
                        NOTIF_RESP.pack(identity, 0, -errno.ENOSYS, 0),
                    )
                )
            elif not _readable(channel.fileno()):
                number = errno.ETIMEDOUT
            else:
                (inode,) = struct.unpack("=q", channel.recv(8))
                number = 0 if inode == os.fstat(ours.fileno()).st_ino else errno.EBADF
        self._tell("SECCOMP_ADDFD_FLAG_SEND", number, "Linux 5.14 has it")

    def _heard(self, channel: socket.socket) -> tuple[int, int | None]:
        """(errno, descriptor that came along) of the child's next step."""
        if not _readable(channel.fileno()):
            return errno.ETIMEDOUT, None
        data, control, _, _ = channel.recvmsg(8, socket.CMSG_SPACE(4))
        if not data:
            return errno.ESRCH, None
        listener = struct.unpack("=i", control[0][2][:4])[0] if control else None
        return struct.unpack("=i", data)[0], listener

    def _ptrace_advice(self) -> str:
        if self._scope == 2:
            return "Yama forbids it: run as root, or sysctl kernel.yama.ptrace_scope=1"
        if self._scope == 3:
            return "Yama forbids it until the next boot: kernel.yama.ptrace_scope=3 stays"
        return _PTRACE

    def _call(self, function: Callable[[], int]) -> int:
        """The errno of a call that answers with a negative number; 0: none."""
        ctypes.set_errno(0)
        return ctypes.get_errno() if function() < 0 else 0

    def _tell(self, name: str, number: int, advice: str, *, needed: bool = True) -> None:
        found = os.strerror(number) if number else ""
        self._findings.append(Finding(name, not number, needed, found, advice if number else ""))


def _seccomp_advice(number: int) -> str:
    return {
        errno.ENOSYS: "the kernel lacks CONFIG_SECCOMP_FILTER, or a container's profile hides it",
        errno.EOPNOTSUPP: "the kernel is older than Linux 5.0",
        errno.EBUSY: "a supervisor is above this one already, which there can be one of:"
        " leave the outer `stag run`",
    }.get(number, _CONTAINER)


def _tried(function: Callable[[], object]) -> int:
    try:
        function()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(_PATIENCE_MS))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _yama(scope: int | None) -> Iterator[Finding]:
    if scope is None:
        yield Finding("yama", True, False, "not there")
        return
    advice = {
        2: "only root may look into processes",
        3: "nobody may look into processes, until the next boot",
    }.get(scope, "")
    enough = ", which is enough" if scope < 2 else ""
    yield Finding("yama", scope < 2, False, f"ptrace_scope={scope}{enough}", advice)


def _io_uring() -> Iterator[Finding]:
    # What is asked for in its ring would pass the filter by.
    yield Finding("io_uring", True, False, "kept from programs (ENOSYS)")
