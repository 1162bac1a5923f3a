"""The end of a stream of AF_INET_SDP, once it was said."""

from __future__ import annotations

import os
import select

import pytest

from steertag import socket
from steertag.runtime import driver
from tests.unit.test_sdp_fallback import close_stacks, listening, new_stack, sdp

__all__ = ["close_stacks"]

PATIENCE = 20.0


def test_an_abort_behind_the_end_of_the_stream_does_not_take_it_back() -> None:
    with socket.create_server(("127.0.0.1", 0), family=socket.AF_INET_SDP) as server:
        client = socket.create_connection(server.getsockname(), PATIENCE, family=socket.AF_INET_SDP)
        conn, _ = server.accept()
        with client, conn:
            conn.settimeout(PATIENCE)
            client.shutdown(socket.SHUT_WR)
            assert conn.recv(1) == b""
            conn.sendall(b"for nobody")
            assert select.select([client], [], [], PATIENCE)[0]
            client.close()  # with octets unread: an abort
            poll = select.poll()
            poll.register(conn, 0)
            assert poll.poll(PATIENCE * 1000)[0][1] & select.POLLHUP
            assert conn.recv(1) == b""


def test_who_has_said_everything_waits_for_the_peer_to_have_heard_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long it takes: a stream closed before is reset as soon as the peer says anything."""
    monkeypatch.setattr(driver, "LINGER", 0.0)
    text = bytes(range(256)) * 3500
    there, here = new_stack(), new_stack()
    with listening(there) as server, sdp(here) as client:
        client.connect(server.getsockname())
        client.setsockopt(socket.SOL_SDP, socket.SDP_ZCOPY_THRESH, 0)
        conn, _ = server.accept()
        with conn:
            conn.settimeout(PATIENCE)
            conn.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
            with there.lock:  # the peer has much to do
                client.sendall(text)
                client.shutdown(socket.SHUT_WR)
                late = here.clock() + 0.3
                while here.clock() < late:
                    os.sched_yield()
            got = bytearray()
            while octets := conn.recv(1000):
                got += octets
            assert got == text
