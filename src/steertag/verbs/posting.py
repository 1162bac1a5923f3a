"""Posting lists of work requests, and saying which one was the first that could not be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, Self, TypeVar


class Linked(Protocol):
    """A work request with those behind it."""

    @property
    def next_wr(self) -> Self | None: ...


Request = TypeVar("Request", bound=Linked)


def each_of(wr: Request | Iterable[Request]) -> Iterator[Request]:
    """A request and those linked behind it, or all of an iterable."""
    if isinstance(wr, Iterable):
        yield from wr
        return
    one: Request | None = wr
    while one is not None:
        yield one
        one = one.next_wr


def post_list(
    lock: AbstractContextManager[bool],
    post: Callable[[Request], None],
    wr: Request | Iterable[Request],
) -> None:
    """Post each, with the lock held. `bad_wr` of an OSError is the first that was not posted."""
    one: Request | None = None
    with lock:
        try:
            for one in each_of(wr):
                post(one)
        except OSError as exc:
            exc.bad_wr = one  # type: ignore[attr-defined]
            raise
