"""The end of a stream of AF_INET_SDP, once it was said."""

from __future__ import annotations

import select

from steertag import socket

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
