"""What the mover's peers may do with its RDMA connections: no more than the transfer needs."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from steertag.rdma.connection import Offer
from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE,
    ACCESS_REMOTE_INVALIDATE,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
)
from steertag.rdma.memory import Region
from steertag.rdma.rnic import Rnic
from steertag.transfer import rdma
from steertag.transfer.auth import NONCE_OCTETS, Challenge
from steertag.transfer.client import Request, connect
from steertag.transfer.control import Control
from steertag.transfer.errors import PathFailed
from steertag.transfer.protocol import VERSION, Hello, HelloReply
from steertag.transfer.report import Meter
from steertag.transfer.server import Server, ServerConfig
from steertag.transfer.stream import Stream, dial

TIMEOUT = 20.0


@contextmanager
def session(server: Server) -> Iterator[tuple[Control, Challenge]]:
    """A client that has said hello, and can make tickets for RDMA connections."""
    stream = Stream(dial(server.host, server.port, TIMEOUT), TIMEOUT, "server", Meter(0))
    with closing(stream):
        control, nonce = Control(stream, serves=False), bytes(NONCE_OCTETS)
        control.send_magic()
        control.send(Hello(VERSION, nonce))
        control.expect_magic(TIMEOUT * 1e6)
        reply = control.expect(HelloReply)
        yield control, Challenge(nonce, reply.nonce, reply.session)


def request(ticket: rdma.Ticket) -> bytes:
    """An MPA Request that asks for the session of `ticket`."""
    return Offer(private_data=ticket.pack()).request().emit()


def test_a_client_that_opens_rdma_connections_without_end_holds_two_of_them(
    tmp_path: Path,
) -> None:
    """Each with a ticket that is right; it never says what they are for."""
    with ExitStack() as stack, Server(ServerConfig(tmp_path, port=0)) as server:
        _, challenge = stack.enter_context(session(server))
        poll = select.poll()
        for serial in range(1, 31):
            peer = stack.enter_context(
                socket.create_connection((server.host, server.port), TIMEOUT)
            )
            binding = challenge.rdma_binding(b"", serial)
            peer.sendall(request(rdma.Ticket(challenge.session, serial, binding)))
            poll.register(peer, select.POLLIN)
        closed: set[int] = set()
        while len(closed) < 28:
            gone = poll.poll(TIMEOUT * 1000)
            assert gone, f"only {len(closed)} were closed"
            for fd, _ in gone:
                poll.unregister(fd)
                closed.add(fd)
        assert not poll.poll(0)
        assert server.counters["connections"] == 31


@pytest.mark.parametrize(
    ("path", "right"),
    [("rdma-write", ACCESS_REMOTE_WRITE), ("rdma-read", ACCESS_REMOTE_READ)],
)
@pytest.mark.parametrize("verb", ["get", "put"])
def test_one_region_is_open_to_the_peer_in_one_way_while_a_file_moves(
    path: str, right: int, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ends' registrations: two for messages, the ring, the mapped file; all closed after."""
    registered: list[tuple[Rnic, Region]] = []
    register = Rnic.register

    def noted(self: Rnic, pd: int, buffer: object, access: int, base: int | None = None) -> Region:
        region = register(self, pd, buffer, access, base)
        registered.append((self, region))
        return region

    monkeypatch.setattr(Rnic, "register", noted)
    size = 3_000_000
    (tmp_path / "file").write_bytes(b"\xa5" * size)
    with (
        Server(ServerConfig(tmp_path, port=0, writable=True)) as server,
        connect(server.host, server.port) as client,
    ):
        if verb == "get":
            report = client.fetch("file", tmp_path / "copy", Request(path))
        else:
            report = client.store(tmp_path / "file", "copy", Request(path))
    assert report.path == path
    assert len(registered) == 4
    opened = [region for _, region in registered if region.access & ~ACCESS_LOCAL_WRITE]
    (region,) = opened
    assert region.access & (ACCESS_REMOTE | ACCESS_REMOTE_INVALIDATE) == right
    assert region.length == (size if right == ACCESS_REMOTE_WRITE else rdma.WINDOW * rdma.SLOT)
    assert not any(region.valid for _, region in registered)
    assert not any(rnic.table.regions for rnic, _ in registered)


def test_the_ticket_of_one_session_does_not_open_another(tmp_path: Path) -> None:
    """It is bound to the session's nonces, the attempt, and the token where there is one."""
    with (
        ExitStack() as stack,
        Server(ServerConfig(tmp_path, port=0)) as server,
    ):
        _, one = stack.enter_context(session(server))
        _, two = stack.enter_context(session(server))
        for session_id, binding in (
            (two.session, one.rdma_binding(b"", 1)),
            (one.session, one.rdma_binding(b"", 2)),
            (one.session, one.rdma_binding(b"another token, long enough", 1)),
        ):
            end = rdma.End(dial(server.host, server.port, TIMEOUT))
            with end, pytest.raises(PathFailed):
                end.connect(rdma.Ticket(session_id, 1, binding).pack(), TIMEOUT)
        assert server.counters["wire_errors"] == 3


def test_a_sender_cannot_change_the_file_once_it_has_its_name(tmp_path: Path) -> None:
    """Its region is closed before: no mapping is left that a late Write could go to."""
    served, here = tmp_path / "served", tmp_path / "here"
    served.mkdir()
    here.mkdir()
    (here / "file").write_bytes(b"\xa5" * 100_000)
    with (
        Server(ServerConfig(served, port=0, writable=True)) as server,
        connect(server.host, server.port) as client,
    ):
        client.store(here / "file", "file", Request("rdma-write"))
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
        assert str(served / "file") not in mapped
        assert ".part" not in mapped
    assert server.counters["puts"] == 1
