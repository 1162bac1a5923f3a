"""The control connection: messages in order, stale ones dropped, failures raised."""

from __future__ import annotations

from typing import TypeVar

from steertag.errors import WireError
from steertag.transfer.errors import ExitCode, PathCode, PathFailed, PeerFailed, TransferError
from steertag.transfer.names import printable
from steertag.transfer.protocol import (
    FRAME,
    MAGIC,
    MAX_NAME,
    Failed,
    Message,
    PathDown,
    Start,
    emit,
    parse_body,
    parse_header,
)
from steertag.transfer.stream import Stream

M = TypeVar("M", bound=Message)


class Restart(Exception):
    """The client gave the current attempt up and asks for another."""

    def __init__(self, start: Start) -> None:
        super().__init__(start.path)
        self.start = start


class Control:
    """Messages over a `Stream`.

    Args:
        stream: the connection.
        serves: whether this is a server's end, which a client may tell to `Start` again.

    Attributes:
        serial: of the request or attempt in progress; older messages are dropped.
    """

    def __init__(self, stream: Stream, serves: bool) -> None:
        self.stream = stream
        self._serves = serves
        self.serial = 0

    def send_magic(self) -> None:
        self.stream.send_all(MAGIC, more=True)

    def expect_magic(self, deadline: float) -> None:
        """Read the peer's magic, octet by octet so that a stranger's first one tells.

        Raises:
            WireError: the peer speaks something else.
        """
        for position in range(len(MAGIC)):
            if self.stream.recv_exactly(1, deadline)[0] != MAGIC[position]:
                raise WireError("the peer does not speak the stag protocol")

    def send(self, message: Message) -> None:
        self.stream.send_all(emit(message))

    def tell(self, error: TransferError) -> None:
        """Send `error` to the peer, once."""
        if not error.told:
            error.told = True
            self.send(failure(error, self.serial, self._serves))

    def receive(self, deadline: float | None = None, max_body: int | None = None) -> Message:
        """The next message, whatever it is.

        Raises:
            WireError: it is none.
            ConnectionLost: there is none.
        """
        kind, length = parse_header(self.stream.recv_exactly(FRAME.size, deadline))
        if max_body is not None and length > max_body:
            raise WireError(f"a {kind.name} frame of {length} octets; {max_body} at most here")
        return parse_body(kind, self.stream.recv_exactly(length, deadline))

    def expect(self, cls: type[M]) -> M:
        """The next message of the current attempt, which has to be a `cls`.

        Raises:
            PeerFailed: the peer ended the request.
            PathFailed: the peer (a server) gave the path up.
            Restart: the peer (a client) gave the path up.
            WireError: anything else came.
        """
        while True:
            message = self._sift(self.receive(), cls is Start)
            if isinstance(message, cls):
                return message
            if message is not None:
                raise WireError(f"{cls.KIND.name} was due, {message.KIND.name} came")

    def listen(self) -> None:
        """Look, without waiting, whether the peer ended or restarted the current attempt.

        Raises as `expect` does; a message that is no such news is a WireError.
        """
        while self.stream.readable():
            message = self._sift(self.receive(), False)
            if message is not None:
                raise WireError(f"{message.KIND.name} came in the middle of an attempt")

    def _sift(self, message: Message, start_is_due: bool) -> Message | None:
        """`message`, or None when it is stale; raises what ends the current attempt."""
        serial = getattr(message, "serial", self.serial)
        if self._serves and isinstance(message, Start) and serial > self.serial:
            if not start_is_due:
                raise Restart(message)
            self.serial = serial
            return message
        if serial < self.serial:
            return None
        self._raise_for(message)
        return message

    def _raise_for(self, message: Message) -> None:
        if isinstance(message, Failed):
            raise peer_failed(message)
        if isinstance(message, PathDown):
            known = message.code in PathCode.__members__.values()
            code = PathCode(message.code) if known else PathCode.LOST
            raise PathFailed(code, printable(message.reason))


def failure(error: TransferError, serial: int, in_words: bool) -> Failed:
    """The message that tells a peer of `error`.

    A client's words name its own files, which are none of a server's business: it sends the
    code only.
    """
    text = error.message[:MAX_NAME] if in_words else error.code.name.lower().replace("_", " ")
    return Failed(serial, int(error.code), text)


def peer_failed(message: Failed) -> PeerFailed:
    """The error that a `Failed` stands for; a stranger's code and words are not trusted."""
    try:
        code = ExitCode(message.code)
    except ValueError:
        code = ExitCode.FAILURE
    if code is ExitCode.OK:
        code = ExitCode.FAILURE
    return PeerFailed(code, printable(message.message))
