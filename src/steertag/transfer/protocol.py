"""The stag control protocol: frames and messages, without I/O.

A client opens with `MAGIC` and a server answers with `MAGIC`; then frames follow both ways:

    +--------+--------+--------+--------+--------+----------------
    |  kind  |         body length, 32 bits      |  body (JSON)
    +--------+--------+--------+--------+--------+----------------

A body is one JSON object of at most `MAX_BODY` octets. Unknown keys are ignored, so that a newer
peer may say more. Octet strings travel as hexadecimal; file names as JSON strings in which octets
that are no UTF-8 are lone surrogates (PEP 383), so that every name survives.

Every request carries a `serial` that the client raises by one each time, and each reply repeats
it: what arrives with an older serial belongs to an attempt that was given up, and is dropped.

File data over the tcp paths runs in-line, in chunks: a 32-bit length and that many octets; length
0 ends them, and a frame (`Done` or `Failed`) says how it ended.

Whatever the octets, parsing raises nothing but WireError.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import IntEnum
from struct import Struct
from typing import Any, ClassVar, Final

from steertag.errors import WireError
from steertag.transfer.names import is_encodable

MAGIC: Final = b"stag/1\r\n"
"""What either side sends first. It ends a line, so that a line-based server answers at once."""
VERSION: Final = 1
MAX_BODY: Final = 64 * 1024
MAX_NAME: Final = 4096
MAX_CHUNK: Final = 8 * 1024 * 1024
MAX_FILE: Final = 2**63 - 1

FRAME: Final = Struct(">BI")
CHUNK: Final = Struct(">I")


class Kind(IntEnum):
    """The first octet of a frame."""

    HELLO = 1
    HELLO_REPLY = 2
    AUTH = 3
    AUTH_REPLY = 4
    LIST = 5
    LISTING = 6
    GET = 7
    FILE = 8
    PUT = 9
    READY = 10
    START = 11
    STARTED = 12
    DONE = 13
    RESULT = 14
    PATH_DOWN = 15
    FAILED = 16


@dataclass(frozen=True, slots=True)
class Message:
    """One frame's meaning."""

    KIND: ClassVar[Kind]


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """Client: who I am. `nonce` is fresh."""

    KIND: ClassVar[Kind] = Kind.HELLO
    version: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class HelloReply(Message):
    """Server: who I am, what I can do, whether you must prove that you know the token."""

    KIND: ClassVar[Kind] = Kind.HELLO_REPLY
    version: int
    nonce: bytes
    session: bytes
    auth: bool
    writable: bool
    rdma: bool
    rdma_reason: str


@dataclass(frozen=True, slots=True)
class Auth(Message):
    """Client: proof that it knows the token."""

    KIND: ClassVar[Kind] = Kind.AUTH
    proof: bytes


@dataclass(frozen=True, slots=True)
class AuthReply(Message):
    """Server: proof that it knows the token too."""

    KIND: ClassVar[Kind] = Kind.AUTH_REPLY
    proof: bytes


@dataclass(frozen=True, slots=True)
class List(Message):
    """Client: what is in directory (or what is file) `name`?"""

    KIND: ClassVar[Kind] = Kind.LIST
    serial: int
    name: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One directory entry. `type` is "file", "directory", "symlink" or "other"."""

    name: str
    type: str
    size: int
    mode: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Listing(Message):
    """Server: some entries; more follow unless `last`."""

    KIND: ClassVar[Kind] = Kind.LISTING
    serial: int
    entries: tuple[Entry, ...]
    last: bool


@dataclass(frozen=True, slots=True)
class Get(Message):
    """Client: I want file `name`."""

    KIND: ClassVar[Kind] = Kind.GET
    serial: int
    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class File(Message):
    """Server: it is open; this is what it looks like. Say `Start`."""

    KIND: ClassVar[Kind] = Kind.FILE
    serial: int
    size: int
    mode: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Put(Message):
    """Client: I want to send file `name`. `replace`: whether an existing one may go."""

    KIND: ClassVar[Kind] = Kind.PUT
    serial: int
    name: str
    size: int
    mode: int
    mtime_ns: int
    digest: str
    replace: bool


@dataclass(frozen=True, slots=True)
class Ready(Message):
    """Server: there is room and I hold it. Say `Start`."""

    KIND: ClassVar[Kind] = Kind.READY
    serial: int


@dataclass(frozen=True, slots=True)
class Start(Message):
    """Client: move the data over `path`; `code` and `reason` say why, after another one failed."""

    KIND: ClassVar[Kind] = Kind.START
    serial: int
    path: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Started(Message):
    """Server: go."""

    KIND: ClassVar[Kind] = Kind.STARTED
    serial: int


@dataclass(frozen=True, slots=True)
class Done(Message):
    """Sender: all sent; its digest and what it cost on this side."""

    KIND: ClassVar[Kind] = Kind.DONE
    serial: int
    digest: bytes
    cpu_s: float
    syscalls: int
    staged_bytes: int


@dataclass(frozen=True, slots=True)
class Result(Message):
    """Receiver: all there, the digest is right, and the file is under its name."""

    KIND: ClassVar[Kind] = Kind.RESULT
    serial: int
    digest: bytes
    cpu_s: float
    syscalls: int
    staged_bytes: int
    sync_s: float


@dataclass(frozen=True, slots=True)
class PathDown(Message):
    """Server: this path does not work from here. Say `Start` with another."""

    KIND: ClassVar[Kind] = Kind.PATH_DOWN
    serial: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Failed(Message):
    """Either: the request is over. `code` is an exit code, `message` one line for a person."""

    KIND: ClassVar[Kind] = Kind.FAILED
    serial: int
    code: int
    message: str


_CLASSES: Final[dict[int, type[Message]]] = {
    cls.KIND: cls
    for cls in (
        *(Hello, HelloReply, Auth, AuthReply),
        *(List, Listing, Get, File, Put, Ready),
        *(Start, Started, Done, Result, PathDown, Failed),
    )
}


def emit(message: Message) -> bytes:
    """The frame of `message`."""
    values = {field.name: _plain(getattr(message, field.name)) for field in fields(message)}
    # ASCII only: a lone surrogate becomes \udcXX, which UTF-8 could not carry.
    body = json.dumps(values, separators=(",", ":")).encode("ascii")
    if len(body) > MAX_BODY:
        raise ValueError(f"a {message.KIND.name} body of {len(body)} octets; {MAX_BODY} at most")
    return FRAME.pack(message.KIND, len(body)) + body


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [{field.name: getattr(item, field.name) for field in fields(item)} for item in value]
    return value


def parse_header(data: bytes | bytearray | memoryview) -> tuple[Kind, int]:
    """The kind and body length that the first `FRAME.size` octets announce."""
    if len(data) < FRAME.size:
        raise WireError(f"a frame header has {FRAME.size} octets, not {len(data)}")
    kind, length = FRAME.unpack_from(data)
    if kind not in _CLASSES:
        raise WireError(f"unknown kind of frame {kind:#04x}")
    if length > MAX_BODY:
        raise WireError(f"a frame of {length} octets; {MAX_BODY} at most")
    return Kind(kind), length


def parse_body(kind: Kind, body: bytes | bytearray) -> Message:
    """The message that `body` holds."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise WireError(f"the body of a {kind.name} frame is no JSON") from None
    cls = _CLASSES[kind]
    return cls(**_arguments(cls, values, kind.name))


def parse_chunk_header(data: bytes | bytearray | memoryview) -> int:
    """The length of the chunk of file data that follows; 0 ends them."""
    if len(data) < CHUNK.size:
        raise WireError(f"a chunk header has {CHUNK.size} octets, not {len(data)}")
    (length,) = CHUNK.unpack_from(data)
    if length > MAX_CHUNK:
        raise WireError(f"a chunk of {length} octets; {MAX_CHUNK} at most")
    return int(length)


def _arguments(cls: type[Any], values: object, what: str) -> dict[str, Any]:
    """The checked values for `cls`'s fields."""
    if not isinstance(values, dict):
        raise WireError(f"{what} is no JSON object")
    arguments = {}
    for field in fields(cls):
        if field.name not in values:
            raise WireError(f"{what} lacks {field.name!r}")
        check = _NAMED.get(field.name) or _TYPED[str(field.type)]
        try:
            arguments[field.name] = check(values[field.name])
        except ValueError:
            raise WireError(f"{what} has a bad {field.name!r}") from None
    return arguments


def _integer(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_FILE:
        raise ValueError
    return value


def _number(value: object) -> float:
    # The comparison turns down NaN and infinities, which Python's json would let in.
    if type(value) not in (int, float) or not 0 <= value < 1e18:  # type: ignore[operator]
        raise ValueError
    return float(value)  # type: ignore[arg-type]


def _boolean(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError
    return value


def _text(value: object) -> str:
    if type(value) is not str or len(value) > MAX_NAME:
        raise ValueError
    return value


def _name(value: object) -> str:
    name = _text(value)
    if not is_encodable(name):
        raise ValueError
    return name


def _octets(value: object) -> bytes:
    if type(value) is not str or len(value) > 256:
        raise ValueError
    return bytes.fromhex(value)


def _mtime(value: object) -> int:
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise ValueError
    return value


def _mode(value: object) -> int:
    mode = _integer(value)
    if mode > 0o7777:
        raise ValueError
    return mode


def _entries(value: object) -> tuple[Entry, ...]:
    if not isinstance(value, list):
        raise ValueError
    return tuple(Entry(**_arguments(Entry, item, "an entry")) for item in value)


_TYPED: Final[dict[str, Callable[[object], object]]] = {
    "int": _integer,
    "float": _number,
    "bool": _boolean,
    "str": _text,
    "bytes": _octets,
    "tuple[Entry, ...]": _entries,
}
_NAMED: Final[dict[str, Callable[[object], object]]] = {
    "name": _name,
    "mtime_ns": _mtime,
    "mode": _mode,
}
