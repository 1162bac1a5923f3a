"""What pyverbs raises."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_last = threading.local()


class PyverbsError(Exception):
    """Base of the others.

    Args:
        msg: what could not be done.
        error_code: an errno; its words are added to the message. -1 is none.
    """

    def __init__(self, msg: str, error_code: int = -1) -> None:
        if error_code != -1:
            msg = f"{msg}. Errno: {error_code}, {os.strerror(abs(error_code))}"
        super().__init__(msg)


class PyverbsRDMAError(PyverbsError):
    """The RDMA device, or what stands for it, refused."""

    def __init__(self, msg: str, error_code: int = -1) -> None:
        super().__init__(msg, error_code)
        self._error_code = error_code

    @property
    def error_code(self) -> int:
        return self._error_code


class PyverbsUserError(PyverbsError):
    """The program's own mistake."""

    def __init__(self, msg: str) -> None:
        super().__init__(msg)


@contextmanager
def failing(msg: str, sign: int = 1) -> Iterator[None]:
    """Turn an OSError into a PyverbsRDMAError that says `msg`, and why.

    `sign`: -1 for calls whose C counterpart returns a negative errno.
    """
    try:
        yield
    except (OSError, ValueError) as exc:
        number = (exc.errno if isinstance(exc, OSError) else None) or errno.EINVAL
        _last.errno = number
        raise PyverbsRDMAError(f"{msg}: {exc}", sign * number) from exc


def last_errno() -> int:
    """The errno of the last call that failed in this thread, as C's `errno` has it."""
    return getattr(_last, "errno", 0)


def unsupported(what: str) -> PyverbsRDMAError:
    """The error of a device without the feature."""
    _last.errno = errno.EOPNOTSUPP
    return PyverbsRDMAError(f"{what}: an RNIC has no such thing", errno.EOPNOTSUPP)
