"""The control process, from its start to its end.

It is the program's parent, and every orphaned descendant's (a subreaper), so that Yama's
ptrace_scope 1 lets it look into them all. Once it has started the program it leaves the session:
neither the terminal's signals nor a stop reach it or the data process.
"""

from __future__ import annotations

import errno
import marshal
import os
import select
import signal
import socket as std
import sys
import threading
import time
from collections.abc import Sequence
from typing import Final, NoReturn

from steertag.run import data, spawn
from steertag.run.abi import PR_SET_CHILD_SUBREAPER, libc
from steertag.run.bpf import program
from steertag.run.calls import HANDLERS
from steertag.run.launch import ENDED, NOT_EXECUTED, REFUSED, STARTED, STOPPED, RunConfig
from steertag.run.notify import Listener
from steertag.run.plan import Plan
from steertag.run.supervisor import Supervisor
from steertag.run.syscalls import of_machine

SWITCH_INTERVAL: Final = 1e-4
"""Seconds that one of our threads waits at most for the interpreter while another computes."""
PATIENCE: Final = 2.0
"""Seconds that the data process has for its last words."""


def control(
    argv: Sequence[str],
    config: RunConfig,
    front: std.socket,
    says: int,
    mask: set[int | signal.Signals],
) -> NoReturn:
    """Run it, in a child that has just been forked.

    Args:
        argv: the program.
        config: what `stag run` was asked for.
        front: is told how it goes (`launch.STARTED`, ...).
        says: becomes standard error, of the data process too.
        mask: signals that are blocked in the program.
    """
    status = 1
    try:
        _Control(argv, config, front, says, mask).run()
        status = 0
    except OSError as exc:
        _tell(front, REFUSED, exc.errno or errno.EIO, exc.strerror or str(exc))
    except Exception as exc:  # noqa: BLE001 - the process ends here, whatever it is
        _tell(front, REFUSED, errno.EIO, f"a bug in steertag: {type(exc).__name__}: {exc}")
    finally:
        os._exit(status)


def _tell(front: std.socket, *message: int | str) -> None:
    try:
        front.send(marshal.dumps(message))
    except OSError:
        return  # whoever started us is gone; the program goes on


class _Control:
    def __init__(
        self,
        argv: Sequence[str],
        config: RunConfig,
        front: std.socket,
        says: int,
        mask: set[int | signal.Signals],
    ) -> None:
        self._argv = argv
        self._config = config
        self._front = front
        self._says = says
        self._mask = mask
        self._reported = threading.Event()
        self._inherited = _inheritable()

    def run(self) -> None:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        calls = of_machine()
        plan = Plan(self._config)
        rows = program(calls, plan.sockets, others=plan.others, datagrams=plan.datagrams)
        child = spawn.spawn(self._argv, rows, calls, self._mask)
        self._detach()
        try:
            _, channel = data.start(self._config, [self._front.fileno(), *child.descriptors])
        except OSError:
            child.abandon()
            raise
        listener = Listener(child.listener)
        listener.wake_in_place()
        sup = Supervisor(listener, calls, plan, channel, HANDLERS, verbose=self._config.verbose)
        sys.setswitchinterval(SWITCH_INTERVAL)
        attending = threading.Thread(target=sup.attend, daemon=True)
        attending.start()
        threading.Thread(target=self._reap, args=(child,), daemon=True).start()
        # On kernels before 6.11 nothing ends this wait: then the other thread's end does.
        threading.Thread(target=sup.serve, daemon=True).start()
        attending.join()
        self._reported.wait()
        self._finish(sup)

    def _detach(self) -> None:
        """Keep nothing of the program's: its terminal, its pipes."""
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(self._says, 2)
        os.close(self._says)
        os.close(null)
        for fd in self._inherited:
            os.close(fd)

    def _reap(self, child: spawn.Spawned) -> None:
        """Let the program go, and see to every child's end; report the program's."""
        _tell(self._front, STARTED, child.pid)
        error = child.go()
        if error:
            _tell(self._front, NOT_EXECUTED, error)
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED)
            except ChildProcessError:
                return
            if info is None or info.si_pid != child.pid:
                continue
            if info.si_code == os.CLD_STOPPED:
                _tell(self._front, STOPPED)
            elif info.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):
                exited = info.si_code == os.CLD_EXITED
                if not error:
                    _tell(self._front, ENDED, info.si_status if exited else -info.si_status)
                self._program_ended(child)

    def _program_ended(self, child: spawn.Spawned) -> None:
        poller = select.poll()
        poller.register(child.listener, 0)
        if not poller.poll(0):
            # Descendants go on; nobody waits for them, or listens.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            os.close(null)
            self._front.close()
        self._reported.set()

    def _finish(self, sup: Supervisor) -> None:
        """Nobody is left: the data process delivers what was sent, and ends by itself."""
        deadline = time.monotonic() + PATIENCE
        counters: dict[str, int] = {}
        answered = not self._config.stats or sup.dead

        def then(error: int, result: dict[str, int] | None) -> None:
            nonlocal answered
            answered = True
            counters.update(result or {})

        with sup.lock:
            if not answered:
                sup.data.stats(then)
            while (not answered or sup.data.wants_write) and time.monotonic() < deadline:
                _turn(sup)
            if self._config.stats:
                counters = {**sup.stats(), **{f"data.{k}": v for k, v in counters.items()}}
                said = " ".join(f"{name}={value}" for name, value in counters.items())
                print(f"stag run: {said}", file=sys.stderr, flush=True)
            sup.data.close_channel()


def _turn(sup: Supervisor) -> None:
    """Go on with the channel, for a moment."""
    poller = select.poll()
    poller.register(
        sup.data.fileno(), select.POLLIN | (select.POLLOUT if sup.data.wants_write else 0)
    )
    poller.poll(100)
    sup.data.flush()
    sup.data.dispatch()


def _inheritable() -> list[int]:
    """Descriptors above standard error that an executed program keeps."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
        except OSError:
            continue  # that of the listing itself
    return found
