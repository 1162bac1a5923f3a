"""What a peer does wrong, between our RNIC and siw, ends that connection with the right Terminate.

In both directions: we do wrong and siw says so (in its own form of a Terminate, the nibbles
swapped), or siw's user does and we say so, as RFC 5040 has it. Afterwards the peer serves the next
connection as if nothing had been.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from steertag import verbs as v
from steertag.wire import mpa, rdmap
from tests.interop.guest.machine import PORTS, Guest
from tests.interop.our_end import TIMEOUT, OurEnd, OurListener, connected
from tests.interop.wire import Wire
from tests.wire.mpa_stream import Direction

PORT = PORTS[2]
READ_ONLY = v.IBV_ACCESS_LOCAL_WRITE | v.IBV_ACCESS_REMOTE_READ
WRITE_ONLY = v.IBV_ACCESS_LOCAL_WRITE | v.IBV_ACCESS_REMOTE_WRITE

# The first connection is the one that goes wrong; the second shows that the peer is alive. Nothing
# waits for the end of the first: siw flushes no receive for a Read Request that it refuses.
SERVE = """
with listen({port}) as listener:
    first = accept(listener, access={access}, receives={receives})
    first.receive()
    first.advertise()
    second = accept(listener)
    second.send(second.receive())
    second.ended()
"""
CONNECT = """
first = connect({port}, receives=3)
first.send(b"hello")
address, rkey, length = ADVERTISEMENT.unpack(first.receive())
status = {fault}
print("failed" if status or first.ended() else "nothing happened")
second = connect({port})
second.send(b"alive")
print(second.receive())
second.ended()
"""


def terminate_of(direction: Direction) -> rdmap.Terminate:
    """The one that a side sent."""
    (found,) = [
        segment.body for segment in direction.segments if isinstance(segment.body, rdmap.Terminate)
    ]
    return found


def is_alive(port: int) -> bool:
    with connected(port) as end:
        end.send(b"alive")
        answer = end.receive()
        end.close()
    return answer == b"alive"


# --- we do wrong --------------------------------------------------------------------------------


def siw_access(access: int) -> str:
    names = {
        v.IBV_ACCESS_LOCAL_WRITE: "LOCAL_WRITE",
        v.IBV_ACCESS_REMOTE_READ: "REMOTE_READ",
        v.IBV_ACCESS_REMOTE_WRITE: "REMOTE_WRITE",
    }
    return " | ".join(f"e.IBV_ACCESS_{name}" for bit, name in names.items() if access & bit)


@pytest.mark.parametrize(
    ("kind", "access", "rkey_change", "address_change", "expected"),
    [
        ("write", 7, 1 << 8, 0, (1, 1, 0x00)),
        ("write", 7, 0, 4096, (1, 1, 0x01)),
        ("write", 7, 0, -8, (1, 1, 0x01)),
        # RFC 5040 has (0, 1, 0x02) for it, which we send; siw takes it for an invalid STag.
        ("write", READ_ONLY, 0, 0, (1, 1, 0x00)),
        ("read", 7, 1 << 8, 0, (0, 1, 0x00)),
        ("read", 7, 0, 4096, (0, 1, 0x01)),
        # A Read of a region without that right siw answers: it checks none for Reads.
    ],
    ids=[
        "write-bad-stag",
        "write-past-the-end",
        "write-before-the-start",
        "write-without-right",
        "read-bad-stag",
        "read-past-the-end",
    ],
)
def test_siw_terminates_what_we_may_not(
    guest: Guest,
    wire: Wire,
    kind: str,
    access: int,
    rkey_change: int,
    address_change: int,
    expected: tuple[int, int, int],
) -> None:
    script = SERVE.format(port=PORT, access=siw_access(access), receives=2)
    server = guest.start_python(script, port=PORT)
    with connected(guest.ports[PORT]) as end:
        end.send(b"hello")
        address, rkey, _ = end.advertised()
        end.rdma(kind, address + address_change, rkey ^ rkey_change, 64)
        reason = end.ended()
    assert is_alive(guest.ports[PORT])
    assert server.result().status == 0, server.result().output
    first, _ = wire.check(crc=True)
    terminate = terminate_of(first.server)
    assert (terminate.layer, terminate.etype, terminate.code) == expected
    assert terminate.swapped
    layer, etype, code = expected
    assert reason == f"peer sent a Terminate: layer {layer}, type {etype}, code {code:#04x}"


def test_siw_terminates_a_send_that_no_receive_waits_for(guest: Guest, wire: Wire) -> None:
    script = SERVE.format(port=PORT, access="ALL", receives=2)
    server = guest.start_python(script, port=PORT)
    with connected(guest.ports[PORT]) as end:
        end.send(b"hello")
        end.advertised()
        for _ in range(3):
            end.send(b"too many")
        reason = end.ended()
    assert is_alive(guest.ports[PORT])
    assert server.result().status == 0, server.result().output
    first, _ = wire.check(crc=True)
    terminate = terminate_of(first.server)
    assert (terminate.layer, terminate.etype, terminate.code) == (1, 2, 0x02)
    assert "layer 1, type 2, code 0x02" in reason


# --- siw's user does wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "access", "expected"),
    [
        ('first.rdma("write", address, rkey ^ 256, 64)', 7, (1, 1, 0x00)),
        ('first.rdma("write", address + 4096, rkey, 64)', 7, (1, 1, 0x01)),
        ('first.rdma("write", address, rkey, 64)', READ_ONLY, (0, 1, 0x02)),
        ('first.rdma("read", address, rkey ^ 256, 64)', 7, (0, 1, 0x00)),
        ('first.rdma("read", address + 4096, rkey, 64)', 7, (0, 1, 0x01)),
        ('first.rdma("read", address, rkey, 64)', WRITE_ONLY, (0, 1, 0x02)),
        ('[first.send(b"too many") for _ in range(4)] and 0', 7, (1, 2, 0x02)),
    ],
    ids=[
        "write-bad-stag",
        "write-past-the-end",
        "write-without-right",
        "read-bad-stag",
        "read-past-the-end",
        "read-without-right",
        "unposted-receive",
    ],
)
def test_we_terminate_what_siw_may_not(
    guest: Guest, wire: Wire, fault: str, access: int, expected: tuple[int, int, int]
) -> None:
    guest.set_siw(mpa_crc_required=True)
    with OurListener() as listener:
        client = guest.start_python(CONNECT.format(port=listener.port, fault=fault))
        with listener.accepted(access=access) as first:
            assert first.receive() == b"hello"
            first.advertise()
            assert first.ended().startswith("protocol error: ")
            assert first.qp.counters.terminates_sent == 1
        echo(listener)
    assert client.result() == (0, "failed\nb'alive'\n")
    one, _ = wire.check(crc=True)
    terminate = terminate_of(one.server)
    assert (terminate.layer, terminate.etype, terminate.code) == expected
    assert not terminate.swapped


def echo(listener: OurListener) -> None:
    """Serve a connection that shows that we are alive."""
    with listener.accepted() as second:
        second.send(second.receive())
        second.close()


# --- a bad CRC, made on the way -----------------------------------------------------------------


class Relay:
    """Forwards one connection at a time to `target`, and spoils one octet of the first.

    Args:
        spoil_client: in what the client sends; otherwise in what the server sends.

    What is spoilt is the last octet but four of the second or a later read with `mark` in it: the
    last of an FPDU's payload.
    """

    def __init__(self, target: tuple[str, int], *, spoil_client: bool, mark: bytes) -> None:
        self._target, self._spoil_client, self._mark = target, spoil_client, mark
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.spoilt = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for _ in range(2):
            client, _ = self._listener.accept()
            server = socket.create_connection(self._target)
            back = threading.Thread(target=self._copy, args=(server, client, False))
            back.start()
            self._copy(client, server, True)
            back.join()
            client.close()
            server.close()

    def _copy(self, source: socket.socket, sink: socket.socket, from_client: bool) -> None:
        # Where one side resets the connection, the other hears of it when this one is closed.
        with suppress(OSError):
            while octets := source.recv(65536):
                at = octets.find(self._mark)
                if from_client is self._spoil_client and at >= 0 and not self.spoilt:
                    self.spoilt += 1
                    octets = octets[:at] + bytes([octets[at] ^ 1]) + octets[at + 1 :]
                sink.sendall(octets)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._thread.join(TIMEOUT)
        self._listener.close()


@contextmanager
def relay(target: tuple[str, int], *, spoil_client: bool, mark: bytes) -> Iterator[Relay]:
    made = Relay(target, spoil_client=spoil_client, mark=mark)
    yield made
    made.close()


CRC_ERROR = (mpa.LAYER_LLP, mpa.ETYPE_MPA, mpa.E_CRC)
ECHO_TWICE = f"""
with listen({PORT}) as listener:
    first = accept(listener)
    {{first}}
    second = accept(listener)
    second.send(second.receive())
    second.ended()
"""


def spoilt_exchange(guest: Guest, first: str, *, spoil_client: bool) -> tuple[str, OurEnd]:
    """Connect through a relay that spoils "message", then once more; how the first ended."""
    server = guest.start_python(ECHO_TWICE.format(first=first), port=PORT)
    target = ("127.0.0.1", guest.ports[PORT])
    with relay(target, spoil_client=spoil_client, mark=b"message") as between:
        with connected(between.port) as end:
            end.send(b"message")
            reason = end.ended()
        assert is_alive(between.port)
    assert between.spoilt == 1
    assert server.result().status == 0, server.result().output
    return reason, end


def test_siw_terminates_our_connection_after_a_bad_crc(guest: Guest, wire: Wire) -> None:
    reason, end = spoilt_exchange(guest, "", spoil_client=True)
    assert reason == "peer sent a Terminate: layer 2, type 0, code 0x02"
    assert end.qp.counters.terminates_received == 1
    verdict = wire.verdict()
    assert (verdict.bad, verdict.malformed) == (1, 0)
    first, _ = wire.connections()
    terminate = terminate_of(first.server)
    assert (terminate.layer, terminate.etype, terminate.code) == CRC_ERROR
    assert terminate.swapped


def test_we_terminate_siws_connection_after_a_bad_crc(guest: Guest, wire: Wire) -> None:
    first = "first.send(first.receive())"
    reason, end = spoilt_exchange(guest, first, spoil_client=False)
    assert reason == "protocol error: CRC32C of an FPDU is wrong"
    assert (end.qp.counters.crc_errors, end.qp.counters.terminates_sent) == (1, 1)
    verdict = wire.verdict()
    assert (verdict.bad, verdict.malformed) == (0, 0)  # it was spoilt after it had left the guest
    first_connection, _ = wire.connections()
    terminate = terminate_of(first_connection.client)
    assert (terminate.layer, terminate.etype, terminate.code) == CRC_ERROR
    assert not terminate.swapped
