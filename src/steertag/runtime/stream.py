"""What a driver asks of a byte stream: what every stream socket object offers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class Stream(Protocol):
    """A connected, non-blocking stream socket: the standard library's, or any family's.

    Calls raise BlockingIOError where they would wait and OSError where the stream is lost.
    """

    def fileno(self) -> int: ...
    def send(self, data: Buffer, /) -> int: ...
    def sendmsg(self, buffers: Iterable[Buffer], /) -> int: ...
    def recvmsg_into(
        self, buffers: Iterable[memoryview], /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, object]: ...
    def setblocking(self, flag: bool, /) -> None: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...
