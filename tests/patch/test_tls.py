"""`ssl` on top of sockets that have no descriptor of the host's."""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import steertag
from steertag.patch import wrap_socket
from tests.patch.support import PATIENCE, answering


def client_of(
    context: ssl.SSLContext,
    address: tuple[str, int],
    *,
    name: str = "localhost",
    ragged: bool = True,
    session: ssl.SSLSession | None = None,
) -> ssl.SSLSocket:
    sock = socket.create_connection(address, PATIENCE)
    return context.wrap_socket(
        sock, server_hostname=name, suppress_ragged_eofs=ragged, session=session
    )


def over_tls(
    context: ssl.SSLContext, handle: Callable[[ssl.SSLSocket], None]
) -> Callable[[socket.socket], None]:
    def run(conn: socket.socket) -> None:
        # A client that leaves with session tickets unread resets the connection.
        with (
            suppress(ConnectionResetError),
            context.wrap_socket(conn, server_side=True) as secure,
        ):
            handle(secure)

    return run


def echo(conn: ssl.SSLSocket) -> None:
    while data := conn.recv(65536):
        conn.sendall(data)


def test_what_was_agreed_is_said(
    patched: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    with (
        answering(over_tls(server_context, echo)) as address,
        client_of(client_context, address) as conn,
    ):
        assert isinstance(conn, ssl.SSLSocket)
        assert isinstance(conn, socket.socket)
        assert conn.version() in ("TLSv1.2", "TLSv1.3")
        assert conn.selected_alpn_protocol() == "echo/1"
        assert conn.server_hostname == "localhost"
        certificate = conn.getpeercert()
        assert certificate is not None
        assert ("DNS", "localhost") in certificate["subjectAltName"]
        cipher = conn.cipher()
        assert cipher is not None
        assert cipher[2] >= 128
        assert conn.getpeername() == address
        assert conn.context is client_context


def test_large_data_goes_both_ways_at_once(
    patched: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    content = os.urandom(1_000_000)
    with (
        answering(over_tls(server_context, echo)) as address,
        client_of(client_context, address) as conn,
    ):
        writer = threading.Thread(target=conn.sendall, args=(content,))
        writer.start()
        got, filled = bytearray(len(content)), 0
        while filled < len(got):
            filled += conn.recv_into(memoryview(got)[filled:])
        writer.join(PATIENCE)
        assert got == content


def test_files_over_it(
    patched: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"line\n" * 10_000)

    def send(conn: ssl.SSLSocket) -> None:
        with path.open("rb") as file:
            assert conn.sendfile(file) == 50_000

    with (
        answering(over_tls(server_context, send)) as address,
        client_of(client_context, address) as conn,
        conn.makefile("r") as lines,
    ):
        assert sum(line == "line\n" for line in lines) == 10_000


def test_a_socket_that_is_wrapped_before_it_connects(
    patched: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    with answering(over_tls(server_context, echo)) as address:
        sock = socket.socket()
        sock.settimeout(PATIENCE)
        with client_context.wrap_socket(sock, server_hostname="localhost") as conn:
            assert sock.fileno() == -1
            conn.connect(address)
            conn.sendall(b"hello")
            assert conn.recv(100) == b"hello"
            with pytest.raises(ValueError, match="already-connected"):
                conn.connect(address)


def test_a_listener_that_is_wrapped_accepts_tls(
    patched: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with server_context.wrap_socket(listener, server_side=True) as secure:
        secure.settimeout(PATIENCE)

        def serve() -> None:
            conn, _ = secure.accept()
            with conn:
                echo(conn)

        thread = threading.Thread(target=serve)
        thread.start()
        with client_of(client_context, secure.getsockname()) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
        thread.join(PATIENCE)


def test_without_blocking_it_says_what_to_wait_for(
    patched: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    content = os.urandom(500_000)

    def take(conn: ssl.SSLSocket) -> None:
        got = bytearray()
        while len(got) < len(content):
            got += conn.recv(65536)
        conn.sendall(b"same" if got == content else b"other")

    def patiently(call: Callable[..., Any], *args: object) -> object:
        while True:
            try:
                return call(*args)
            except ssl.SSLWantReadError:
                assert select.select([conn], [], [], PATIENCE)[0]
            except ssl.SSLWantWriteError:
                assert select.select([], [conn], [], PATIENCE)[1]

    with answering(over_tls(server_context, take)) as address:
        sock = socket.create_connection(address, PATIENCE)
        sock.setblocking(False)
        conn = client_context.wrap_socket(
            sock, server_hostname="localhost", do_handshake_on_connect=False
        )
        with conn:
            patiently(conn.do_handshake)
            with pytest.raises(ssl.SSLWantReadError):
                conn.recv(10)
            sent = 0
            while sent < len(content):
                count = patiently(conn.send, content[sent:])
                assert isinstance(count, int)
                sent += count
            assert patiently(conn.recv, 10) == b"same"


def test_a_handshake_at_once_is_for_sockets_that_block(
    patched: str, client_context: ssl.SSLContext
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname(), PATIENCE)
        sock.setblocking(False)
        with pytest.raises(ValueError, match="do_handshake_on_connect"):
            client_context.wrap_socket(sock, server_hostname="localhost")


def test_a_handshake_that_is_not_answered_times_out(
    patched: str, client_context: ssl.SSLContext
) -> None:
    ended = threading.Event()

    def say_nothing(conn: socket.socket) -> None:
        with conn:
            assert ended.wait(PATIENCE)

    with answering(say_nothing) as address:
        sock = socket.create_connection(address, 0.05)
        try:
            with pytest.raises(TimeoutError, match="handshake operation timed out"):
                client_context.wrap_socket(sock, server_hostname="localhost")
        finally:
            ended.set()


def test_a_certificate_for_another_name_is_refused(
    patched: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    def hear_it(conn: socket.socket) -> None:
        with conn, pytest.raises(ssl.SSLError):
            server_context.wrap_socket(conn, server_side=True).recv(1)

    with (
        answering(hear_it) as address,
        pytest.raises(ssl.SSLCertVerificationError, match="not valid for 'example"),
    ):
        client_of(client_context, address, name="example.org")


def test_a_peer_without_tls_is_an_ssl_error(patched: str, client_context: ssl.SSLContext) -> None:
    def chat(conn: socket.socket) -> None:
        with conn, suppress(ConnectionResetError):
            conn.sendall(b"220 this is not TLS, but mail\r\n" * 10)
            conn.shutdown(socket.SHUT_WR)
            while conn.recv(4096):
                """Until it leaves."""

    with answering(chat) as address, pytest.raises(ssl.SSLError) as caught:
        client_of(client_context, address)
    assert caught.value.reason == "WRONG_VERSION_NUMBER"


def test_a_connection_that_ends_without_a_word_is_ragged(
    patched: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    def leave(conn: socket.socket) -> None:
        secure = server_context.wrap_socket(conn, server_side=True)
        secure.sendall(b"bye")
        secure.close()

    with answering(leave) as address, client_of(client_context, address, ragged=False) as conn:
        assert conn.recv(100) == b"bye"
        with pytest.raises(ssl.SSLEOFError):
            conn.recv(100)
    with answering(leave) as address, client_of(client_context, address) as conn:
        assert conn.recv(100) == b"bye"
        assert conn.recv(100) == b""


def test_after_unwrap_the_connection_goes_on_in_plain(
    patched: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    def serve(conn: socket.socket) -> None:
        with server_context.wrap_socket(conn, server_side=True) as secure:
            assert secure.recv(100) == b"secret"
            secure.unwrap()
            secure.sendall(secure.recv(100).upper())

    with answering(serve) as address, client_of(client_context, address) as conn:
        conn.sendall(b"secret")
        plain = conn.unwrap()
        plain.sendall(b"plain")
        assert plain.recv(100) == b"PLAIN"
        with pytest.raises(ValueError, match="No SSL wrapper"):
            conn.unwrap()


def test_a_context_s_own_class_of_sockets_is_kept(
    patched: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    class Named(ssl.SSLSocket):
        def peer(self) -> str:
            return f"peer {self.getpeername()[1]}"

    client_context.sslsocket_class = Named
    with (
        answering(over_tls(server_context, echo)) as address,
        client_of(client_context, address) as conn,
    ):
        assert isinstance(conn, Named)
        assert conn.peer() == f"peer {address[1]}"


def test_a_session_is_taken_up_again(
    patched: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    client_context.maximum_version = ssl.TLSVersion.TLSv1_2
    session = None
    for again in (False, True):
        with (
            answering(over_tls(server_context, echo)) as address,
            client_of(client_context, address, session=session) as conn,
        ):
            conn.sendall(b"x")
            assert conn.recv(1) == b"x"
            assert conn.session_reused is again
            session = conn.session


def test_rules_choose_the_family_of_a_socket_that_was_wrapped_first(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, tmp_path: Path
) -> None:
    path = tmp_path / "policy.conf"
    path.write_text("use new_tcp * * *:*\n")
    with (
        steertag.patch(rules=path),
        answering(over_tls(server_context, echo)) as address,
        client_context.wrap_socket(socket.socket(), server_hostname="localhost") as conn,
    ):
        conn.settimeout(PATIENCE)
        conn.connect(address)
        conn.sendall(b"hello")
        assert conn.recv(100) == b"hello"


def test_without_patching_a_function_wraps_a_socket_of_this_process(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    from steertag import socket as ours

    with ours.create_server(("127.0.0.1", 0), family=ours.AF_INET_NEW_TCP) as server:

        def serve() -> None:
            conn, _ = server.accept()
            with wrap_socket(server_context, conn, server_side=True) as secure:
                echo(secure)

        thread = threading.Thread(target=serve)
        thread.start()
        address = server.getsockname()
        plain = ours.create_connection(address, PATIENCE, family=ours.AF_INET_NEW_TCP)
        with wrap_socket(client_context, plain, server_hostname="localhost") as secure:
            secure.sendall(b"hello")
            assert secure.recv(100) == b"hello"
        thread.join(PATIENCE)
