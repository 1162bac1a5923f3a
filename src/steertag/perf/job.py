"""What both processes of a benchmark have to agree on, and how they say it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

from steertag.socket import socket

_MAX_LINE: Final = 65536


@dataclass(frozen=True, slots=True)
class Job:
    """One round.

    Attributes:
        op: write, read or send.
        size: octets of a message.
        count: messages.
        latency: one message at a time and its echo, instead of as many as go.
        post_list: requests posted with one call.
        poll: wait by looking again and again instead of sleeping.
    """

    op: str
    size: int
    count: int
    latency: bool = False
    post_list: int = 1
    poll: bool = False


class Control:
    """A connection that carries one JSON object a line, between processes of our own."""

    def __init__(self, stream: socket) -> None:
        self._stream = stream
        self._file = stream.makefile("rb")

    def send(self, message: dict[str, object]) -> None:
        self._stream.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, object]:
        """The next message. Raises ConnectionResetError where the other process is gone."""
        line = self._file.readline(_MAX_LINE)
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the other process of the benchmark is gone")
        message: dict[str, object] = json.loads(line)
        if "error" in message:
            raise ConnectionResetError(f"the other process failed: {message['error']}")
        return message

    def close(self) -> None:
        self._file.close()
        self._stream.close()


def job_message(transport: str, job: Job) -> dict[str, object]:
    return {"transport": transport, **asdict(job)}


def job_from(message: dict[str, object]) -> Job:
    fields = {name: message[name] for name in Job.__dataclass_fields__}
    return Job(**fields)  # type: ignore[arg-type]
