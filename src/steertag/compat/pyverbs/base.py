"""What pyverbs' objects have in common."""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import ClassVar, Self

from steertag import verbs
from steertag.compat.pyverbs.pyverbs_error import PyverbsRDMAError, failing, last_errno
from steertag.verbs.managed import Managed


def inc_rkey(rkey: int) -> int:
    """The next key of a memory window of type 2."""
    return verbs.inc_rkey(rkey)


def PyverbsRDMAErrno(msg: str) -> PyverbsRDMAError:  # noqa: N802
    """An error with the errno of the last call that failed."""
    return PyverbsRDMAError(msg, last_errno())


class PyverbsObject:
    """Anything of pyverbs."""

    def __init__(self) -> None:
        self.logger = logging.getLogger(self.__class__.__name__)

    def set_log_level(self, val: int) -> None:
        self.logger.setLevel(val)


class PyverbsCM(PyverbsObject):
    """Something that is closed: by `close`, by leaving its `with` block, or by dropping it.

    Closing closes first what uses it.

    Attributes:
        core: the object of `steertag.verbs` that it stands for.
    """

    close_order: ClassVar[int] = 0
    """Among what uses the same object: those that use others are closed before them."""
    closing: ClassVar[str] = "Failed to close"
    core: Managed
    _open = False

    def __init__(self) -> None:
        super().__init__()
        self._users: weakref.WeakSet[PyverbsCM] = weakref.WeakSet()

    def add_ref(self, obj: PyverbsCM) -> None:
        """`obj` uses this, and is closed before it."""
        self._users.add(obj)

    def drop_ref(self, obj: PyverbsCM) -> None:
        self._users.discard(obj)

    def close(self) -> None:
        if not self._open:
            return
        for user in sorted(self._users, key=lambda user: user.close_order):
            user.close()
        self._open = False
        with failing(self.closing):
            self._release()

    def _release(self) -> None:
        self.core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # While the interpreter goes away there is nothing left to give back to.
        if self._open and not sys.is_finalizing():
            self.close()


def lines(title: str, record: object, names: Iterable[str]) -> str:
    """`record`'s members, one a line, as pyverbs prints its objects."""
    text = "".join(
        f"{name.replace('_', ' '):22}: {getattr(record, name)!s:<20}\n" for name in names
    )
    return f"{title}\n{text}" if title else text
