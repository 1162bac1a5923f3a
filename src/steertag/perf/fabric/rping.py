"""rping's protocol (librdmacm/examples/rping.c), both sides.

For each ping the client advertises a source buffer; the server reads it by RDMA Read and sends a
go-ahead; the client advertises a sink; the server writes the same text back by RDMA Write, up to
its NUL, and sends a go-ahead. An advertisement is a message of 16 octets; the go-ahead is one of
any contents.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter
from typing import Any, Final

from steertag import verbs as v
from steertag.perf.fabric.errors import Disconnected, ExitCode, FabricError
from steertag.perf.fabric.link import Link, LinkOptions, Say, accepted, connected, listening

PORT: Final = 7174
SIZE: Final = 64
MIN_SIZE: Final = 26
"""rping's: room for "rdma-ping-", a number and the NUL."""
MAX_SIZE: Final = 1 << 26
RPING_MAX_SIZE: Final = 65535
"""More than this only `stag rping` itself sends and takes."""
_ADVERTISEMENT: Final = struct.Struct("!QII")  # address, rkey, octets
_FIRST, _LAST = ord("A"), ord("z")
_REMOTE: Final = v.IBV_ACCESS_LOCAL_WRITE | v.IBV_ACCESS_REMOTE_READ | v.IBV_ACCESS_REMOTE_WRITE


@dataclass(frozen=True, slots=True, kw_only=True)
class RpingOptions:
    """Attributes:
    size: octets of a ping; a server's: of the largest that it takes.
    count: pings; None is without end. A client's.
    verbose: say the data.
    validate: compare what comes back. A client's.
    """

    link: LinkOptions
    size: int = SIZE
    count: int | None = None
    verbose: bool = False
    validate: bool = False


@dataclass(slots=True)
class Outcome:
    """What a side has done.

    Attributes:
        pings: exchanges completed.
        seconds: a client's: that each took.
        facts: of the last connection.
    """

    pings: int = 0
    octets: int = 0
    seconds: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def ping_text(number: int, size: int) -> bytes:
    """The octets of a ping: its number, then letters that begin one further each time; a NUL."""
    head = b"rdma-ping-%d: " % number
    letters = bytes(range(_FIRST, _LAST + 1))
    start = number % len(letters)
    turns = size // len(letters) + 2
    return (head + (letters * turns)[start : start + size])[: size - 1] + b"\0"


def _attr() -> v.QPInitAttr:
    return v.QPInitAttr(cap=v.QPCap(max_send_wr=16, max_recv_wr=2))


class _Messages:
    """The advertisements and go-aheads of one connection."""

    def __init__(self, link: Link) -> None:
        access = v.IBV_ACCESS_LOCAL_WRITE
        self._link = link
        self._outbox = link.region(_ADVERTISEMENT.size, access)
        self._inbox = link.region(_ADVERTISEMENT.size, access)
        link.cmid.post_recv(self._inbox)

    def send(self, address: int = 0, rkey: int = 0, size: int = 0) -> None:
        octets = _ADVERTISEMENT.pack(address, rkey, size)
        self._outbox.write(octets, len(octets))
        self._link.cmid.post_send(self._outbox)
        self._link.complete()

    def receive(self) -> tuple[int, int, int]:
        """The peer's next message as an advertisement: address, rkey, octets."""
        octets = self._link.receive()
        if octets != _ADVERTISEMENT.size:
            raise FabricError(
                ExitCode.CONNECTION_LOST,
                f"{self._link.peer} sent a message of {octets} octets where rping's have"
                f" {_ADVERTISEMENT.size}; is it rping?",
            )
        message: tuple[int, int, int] = _ADVERTISEMENT.unpack(self._inbox.read(octets))
        self._link.cmid.post_recv(self._inbox)
        return message


# --- the client ---------------------------------------------------------------------------------


def run_client(options: RpingOptions, outcome: Outcome, say: Say, log: Say) -> None:
    """Ping a server; `outcome` is kept up to date. Raises FabricError."""
    boxes: list[_Messages] = []
    with connected(options.link, _attr(), lambda link: boxes.append(_Messages(link))) as link:
        log(f"connected to {link.peer}")
        (messages,) = boxes
        source = link.region(options.size, _REMOTE)
        sink = link.region(options.size, _REMOTE)
        try:
            for number in _numbers(options.count):
                _ping(options, number, messages, source, sink, outcome, say, log)
        except Disconnected as exc:
            raise FabricError(exc.code, f"{exc} after {outcome.pings} pings") from exc
        finally:
            outcome.facts = link.facts()
        link.close()
        log("disconnected")


def _numbers(pings: int | None) -> Iterator[int]:
    return iter(count() if pings is None else range(pings))


def _ping(
    options: RpingOptions,
    number: int,
    messages: _Messages,
    source: v.MR,
    sink: v.MR,
    outcome: Outcome,
    say: Say,
    log: Say,
) -> None:
    text = ping_text(number, options.size)
    source.write(text, len(text))
    started = perf_counter()
    for region in (source, sink):
        log(f"RDMA addr {region.buf:x} rkey {region.rkey:x} len {options.size}")
        messages.send(region.buf, region.rkey, options.size)
        messages.receive()
    outcome.seconds.append(perf_counter() - started)
    echo = sink.read(options.size)
    if options.validate and echo != text:
        at = next(i for i, (sent, came) in enumerate(zip(text, echo, strict=True)) if sent != came)
        raise FabricError(
            ExitCode.DATA_MISMATCH, f"ping {number} came back changed, from octet {at} on"
        )
    outcome.pings += 1
    outcome.octets += 2 * options.size
    if options.verbose:
        say(f"ping data: {_text(echo)}")


def _text(octets: bytes) -> str:
    return octets.partition(b"\0")[0].decode("ascii", errors="backslashreplace")


# --- the server ---------------------------------------------------------------------------------


def run_server(options: RpingOptions, outcome: Outcome, say: Say, log: Say, announce: Say) -> None:
    """Serve one client until it disconnects. Raises FabricError."""
    with listening(options.link, _attr(), announce) as listener:
        _serve(listener.get_request(), options, outcome, say, log)


def run_persistent_server(
    options: RpingOptions, outcome: Outcome, say: Say, log: Say, announce: Say
) -> None:
    """Serve clients, several at a time, until interrupted; `announce` hears of failed ones."""
    lock = threading.Lock()
    threads: list[threading.Thread] = []
    requests: list[v.CMID] = []

    def serve(request: v.CMID) -> None:
        own = Outcome()
        try:
            _serve(request, options, own, say, log)
        except FabricError as exc:
            announce(str(exc))
        finally:
            with lock:
                outcome.pings += own.pings
                outcome.octets += own.octets
                outcome.facts = own.facts
                requests.remove(request)

    with listening(options.link, _attr(), announce) as listener:
        try:
            while True:
                request = listener.get_request()
                with lock:
                    requests.append(request)
                threads = [thread for thread in threads if thread.is_alive()]
                threads.append(threading.Thread(target=serve, args=(request,)))
                threads[-1].start()
        finally:
            with lock:
                for request in requests:
                    request.disconnect()  # ends what its thread waits for
            for thread in threads:
                thread.join()


def _serve(request: v.CMID, options: RpingOptions, outcome: Outcome, say: Say, log: Say) -> None:
    boxes: list[_Messages] = []
    with accepted(request, options.link, lambda link: boxes.append(_Messages(link))) as link:
        log(f"accepted {link.peer}")
        (messages,) = boxes
        buffer = link.region(max(options.size, RPING_MAX_SIZE), v.IBV_ACCESS_LOCAL_WRITE)
        try:
            while True:
                try:
                    wanted = messages.receive()
                except Disconnected:
                    log(f"{link.peer} disconnected")
                    break
                _pong(options, link, messages, buffer, wanted, outcome, say, log)
        finally:
            outcome.facts = link.facts()
        link.close()


def _pong(
    options: RpingOptions,
    link: Link,
    messages: _Messages,
    buffer: v.MR,
    source: tuple[int, int, int],
    outcome: Outcome,
    say: Say,
    log: Say,
) -> None:
    address, rkey, size = _bounded(source, buffer, log)
    link.cmid.post_read(buffer, size, address, rkey, v.IBV_SEND_SIGNALED)
    link.complete()
    text = buffer.read(size)
    if options.verbose:
        say(f"server ping data: {_text(text)}")
    messages.send()
    address, rkey, room = _bounded(messages.receive(), buffer, log)
    octets = min(len(text.partition(b"\0")[0]) + 1, size, room)
    link.cmid.post_write(buffer, octets, address, rkey, v.IBV_SEND_SIGNALED)
    link.complete()
    messages.send()
    outcome.pings += 1
    outcome.octets += size + octets


def _bounded(advertisement: tuple[int, int, int], buffer: v.MR, log: Say) -> tuple[int, int, int]:
    address, rkey, size = advertisement
    log(f"received rkey {rkey:x} addr {address:x} len {size}")
    if size > buffer.length:
        raise FabricError(
            ExitCode.FAILURE,
            f"the client advertises {size} octets, more than the {buffer.length} of this server;"
            f" start it with -S {size}",
        )
    return advertisement
