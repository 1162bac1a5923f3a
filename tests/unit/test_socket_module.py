"""`steertag.socket` beside the standard library's module."""

from __future__ import annotations

import os
import select
import socket as std

import pytest

from steertag import socket

PATIENCE = 20.0


def test_every_name_of_the_standard_module_is_there() -> None:
    assert [name for name in dir(std) if not hasattr(socket, name)] == []
    assert set(std.__all__) <= set(socket.__all__)
    own = {name for name in socket.__all__ if hasattr(std, name)}
    same = {name for name in own if getattr(socket, name) is getattr(std, name)}
    assert own - same == {
        *("SocketType", "close", "create_connection", "create_server", "fromfd", "socket"),
        "socketpair",
    }


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET_NEW_TCP, socket.AF_INET_SDP])
def test_sockets_of_every_family_are_of_the_types_that_programs_ask_for(family: int) -> None:
    with socket.socket(family) as sock:
        assert isinstance(sock, socket.socket)
        assert isinstance(sock, socket.SocketType)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET_NEW_TCP, socket.AF_INET_SDP])
def test_create_connection_knows_the_default_for_a_timeout_that_libraries_pass(family: int) -> None:
    default = std._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]
    with (
        socket.create_server(("127.0.0.1", 0), family=family) as server,
        socket.create_connection(server.getsockname(), default, family=family) as sock,
    ):
        assert sock.gettimeout() is None


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET_NEW_TCP, socket.AF_INET_SDP])
def test_close_ends_the_connection_of_a_descriptor_that_was_detached(family: int) -> None:
    with socket.create_server(("127.0.0.1", 0), family=family) as server:
        client = socket.create_connection(server.getsockname(), PATIENCE, family=family)
        conn, _ = server.accept()
        with conn:
            conn.settimeout(PATIENCE)
            number = client.detach()
            assert select.select([conn], [], [], 0)[0] == []
            socket.close(number)
            assert conn.recv(1) == b""


def test_close_closes_any_other_descriptor() -> None:
    reader, writer = os.pipe()
    socket.close(writer)
    assert os.read(reader, 1) == b""
    socket.close(reader)
