"""What a driver asks of a byte stream: what every stream socket object offers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class Stream(Protocol):
    """A connected stream socket in blocking mode: the standard library's, or any family's.

    With MSG_DONTWAIT calls raise BlockingIOError where they would wait; OSError where the stream
    is lost.
    """

    def fileno(self) -> int: ...
    def send(self, data: Buffer, flags: int = ..., /) -> int: ...
    def sendmsg(
        self,
        buffers: Iterable[Buffer],
        ancdata: Iterable[tuple[int, int, Buffer]] = ...,
        flags: int = ...,
        /,
    ) -> int: ...
    def recv_into(self, buffer: memoryview, nbytes: int = ..., flags: int = ..., /) -> int: ...
    def recvmsg_into(
        self, buffers: Iterable[memoryview], ancbufsize: int = ..., flags: int = ..., /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, object]: ...
    def setsockopt(self, level: int, option: int, value: bytes | int, /) -> None: ...
    def setblocking(self, flag: bool, /) -> None: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...
