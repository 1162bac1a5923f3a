"""Ctrl-C and SIGTERM: both end a command in order, with nothing half-done left behind."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_AGAIN: Final = 0.01
"""Seconds after which an interruption that was lost is made again."""


def take_interrupts() -> None:
    """SIGTERM ends the command as Ctrl-C does, by KeyboardInterrupt, and neither is lost."""
    signal.signal(signal.SIGTERM, _interrupt)
    keep_interrupts()


def keep_interrupts() -> None:
    """An interruption that comes while a finalizer or a weak reference's call-back runs isn't lost:
    Python drops what those raise, so it is raised once more, soon after."""
    if isinstance(sys.unraisablehook, _Keeper):
        return
    signal.signal(signal.SIGALRM, _interrupt)
    sys.unraisablehook = _Keeper(sys.unraisablehook)


class _Keeper:
    """Takes what finalizers raise; `others` takes all but interruptions."""

    def __init__(self, others: Callable[[UnraisableHookArgs], object]) -> None:
        self._others = others

    def __call__(self, lost: UnraisableHookArgs, /) -> None:
        if lost.exc_type is KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        else:
            self._others(lost)


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt
