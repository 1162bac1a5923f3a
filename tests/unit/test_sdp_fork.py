"""AF_INET_SDP and processes that fork."""

from __future__ import annotations

import os

import pytest

from steertag import socket

PATIENCE = 20.0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking with threads
def test_a_child_leaves_the_connections_of_its_parent_alone() -> None:
    with socket.create_server(("127.0.0.1", 0), family=socket.AF_INET_SDP) as server:
        first = socket.create_connection(server.getsockname(), PATIENCE, family=socket.AF_INET_SDP)
        conn, _ = server.accept()
        conn.settimeout(PATIENCE)
        with first, conn:
            child = os.fork()
            if not child:
                os._exit(0)
            assert os.waitpid(child, 0) == (child, 0)
            first.sendall(b"after the fork")
            assert conn.recv(100) == b"after the fork"
            conn.sendall(b"both ways")
            assert first.recv(100) == b"both ways"
            with socket.create_connection(
                server.getsockname(), PATIENCE, family=socket.AF_INET_SDP
            ) as second:
                another, _ = server.accept()
                another.close()
                assert second.recv(1) == b""
