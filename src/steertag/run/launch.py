"""The way in: run a program with its sockets served by a family."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import marshal
import os
import select
import signal
import socket as std
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.run.abi import PR_SET_CHILD_SUBREAPER, libc

if TYPE_CHECKING:
    from steertag.family.rules import Rules

Endpoint = tuple[str, int]
"""Host and port; host "*" is any, port 0 is any."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What `stag run` was asked for.

    Attributes:
        family: what serves the program's AF_INET and AF_INET6 sockets: "sdp", "new_tcp", "host", or
            the number of a registered family ("45"). Numbers that the kernel doesn't know are
            served by the family of that number, whatever this says.
        rules: who goes where, by program, role, address and port; None: everything to `family`.
        maps: addresses that are replaced in bind, connect and sendto, (from, to).
        device: devices of AF_INET_NEW_TCP, as STEERTAG_DEVICE has them; None: the environment's.
        verbose: every call that is answered here is written to stderr.
        relay: the relayed path even for a family whose sockets are the host's own.
        rtt: seconds that a connection takes longer than it does, for tests.
        stats: at the end, counters on stderr.
        modules: to be imported first where the Stack is; they may register families with it.
    """

    family: str = "sdp"
    rules: Rules | None = None
    maps: Sequence[tuple[Endpoint, Endpoint]] = ()
    device: str | None = None
    verbose: bool = False
    relay: bool = False
    rtt: float = 0.0
    stats: bool = False
    modules: Sequence[str] = ()


_FORWARDED: Final = {
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1),
    *(signal.SIGUSR2, signal.SIGALRM, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH),
}
_SIGINFO: Final = struct.Struct("=IiiI112x")
"""struct signalfd_siginfo: signal, errno, code, process."""
STARTED, STOPPED, ENDED, NOT_EXECUTED, REFUSED = range(5)
"""What the control process says, marshalled with: pid; nothing; status (negative: a signal); errno;
errno and text. The end of it says that nothing more is to be waited for."""
_BY_KERNEL: Final = 0
"""Codes above are the kernel's: of a terminal, whose signals the program gets by itself."""
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127


def run(argv: Sequence[str], config: RunConfig) -> int:
    """Run `argv` until it ends; its exit status, or the negative of the signal that killed it.

    126: the program can't be executed; 127: there is no such program, as a shell says it. Signals
    that this process is sent go on to the program; what a terminal sends, it gets by itself. When
    the program is stopped, so is this process. Descendants that outlive the program keep their
    sockets: the two processes that serve them stay until the last of them has ended.

    Raises:
        OSError: what the kernel refuses of what is needed (`stag run --check` says which).
    """
    from steertag.run.control import control  # a child's business; the fork makes it this one's

    mine, theirs = std.socketpair(std.AF_UNIX, std.SOCK_SEQPACKET)
    # What the two processes say goes through us: those that outlive us hold nobody's pipe open.
    said, says = os.pipe()
    # Should the control process die, the program becomes our child, and its status ours to tell.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            mine.close()
            os.close(said)
            control(argv, config, theirs, says, mask)
        theirs.close()
        os.close(says)
        with mine:
            return _Front(pid, mine, said, argv[0]).wait()
    finally:
        os.close(said)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Front:
    """The process that the user started, while the program runs.

    Args:
        control: the control process.
        news: what it says (`STARTED` and so on).
        said: what it and the data process write to standard error.
        name: the program's.
    """

    def __init__(self, control: int, news: std.socket, said: int, name: str) -> None:
        self._control = control
        self._news = news
        self._said = said
        self._name = name
        self._program = 0
        self._early: list[int] = []
        self._status: int | None = None

    def wait(self) -> int:
        """The program's status. Raises OSError: it could not be started under supervision."""
        signals = _signalfd(_FORWARDED)
        try:
            poller = select.poll()
            poller.register(signals, select.POLLIN)
            poller.register(self._news, select.POLLIN)
            poller.register(self._said, select.POLLIN)
            going = True
            while going:
                ready = {fd for fd, _ in poller.poll()}
                if self._said in ready and not self._pass_on():
                    poller.unregister(self._said)
                if signals in ready:
                    self._forward(os.read(signals, _SIGINFO.size))
                if self._news.fileno() in ready:
                    going = self._take(self._news.recv(1 << 12))
            self._last_words()
        finally:
            os.close(signals)
        if self._status is None:
            return self._inherit()
        os.waitpid(self._control, os.WNOHANG)
        return self._status

    def _pass_on(self) -> bool:
        """What was written, to standard error; False: nobody is left who could write."""
        text = os.read(self._said, 1 << 16)
        with contextlib.suppress(OSError):
            os.write(2, text)
        return bool(text)

    def _last_words(self) -> None:
        poller = select.poll()
        poller.register(self._said, select.POLLIN)
        while any(mask & select.POLLIN for _, mask in poller.poll(0)) and self._pass_on():
            continue

    def _take(self, message: bytes) -> bool:
        """One piece of news; False: there is no more."""
        if not message:
            return False
        kind, *fields = marshal.loads(message)
        if kind == STARTED:
            self._program = fields[0]
            for number in self._early:
                self._send(number)
        elif kind == ENDED:
            self._status = fields[0]
        elif kind == STOPPED:
            if _is_stopped(self._program):
                os.kill(os.getpid(), signal.SIGSTOP)
        elif kind == NOT_EXECUTED:
            self._status = self._not_executed(fields[0])
        else:
            os.waitpid(self._control, 0)
            raise OSError(fields[0], fields[1])
        return True

    def _not_executed(self, error: int) -> int:
        reason = _why_not_executed(self._name, error)
        print(f"stag run: {self._name or repr('')}: {reason}", file=sys.stderr, flush=True)
        return NOT_FOUND if error == errno.ENOENT else NOT_EXECUTABLE

    def _forward(self, info: bytes) -> None:
        number, _, code, sender = _SIGINFO.unpack(info)
        if code > _BY_KERNEL or sender == self._program:
            return
        if self._program:
            self._send(number)
        else:
            self._early.append(number)  # the program is to have it all the same

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self._program, number)

    def _inherit(self) -> int:
        """The control process died before the program: that is our child now."""
        print(
            "stag run: the control process has died; the program goes on without its sockets",
            file=sys.stderr,
            flush=True,
        )
        os.waitpid(self._control, 0)  # only then is it ours
        try:
            _, status = os.waitpid(self._program, 0)
        except ChildProcessError:
            return NOT_EXECUTABLE
        return os.waitstatus_to_exitcode(status)


def _why_not_executed(name: str, error: int) -> str:
    """The kernel's word for it, but where that says another thing than it means."""
    if error == errno.ENOENT:
        if " " in name and not os.path.exists(name):
            return "there is no such program; its arguments are words of their own, unquoted"
        if "/" not in name:
            return "there is no such program in PATH"
        if os.path.exists(name):
            return "what its first line names, or its loader, is not there"
    return os.strerror(errno.EISDIR if os.path.isdir(name) else error)


def _signalfd(numbers: Iterable[int]) -> int:
    """signalfd(2). Raises OSError."""
    wanted = ctypes.create_string_buffer(128)  # sigset_t
    libc.sigemptyset(wanted)
    for number in numbers:
        libc.sigaddset(wanted, int(number))
    fd = int(libc.signalfd(-1, wanted, os.O_CLOEXEC))
    if fd < 0:
        raise os_error(ctypes.get_errno())
    return fd


def _is_stopped(pid: int) -> bool:
    """Whether it is at this moment: it may go on already, with us."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"T"
    except OSError:
        return False
