"""Sockets of a patched program: what they are, and what they say of themselves."""

from __future__ import annotations

import array
import contextlib
import os
import pickle
import select
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import steertag
from steertag import socket as ours
from steertag.errors import StateError
from steertag.inet.const import AF_INET_NEW_TCP
from steertag.sdp.options import AF_INET_SDP, SDP_FALLBACK, SDP_INFO, SDP_TRANSPORT, SOL_SDP
from tests.patch.support import PATIENCE, answering, of_this_process

HOST_CLASS = socket.socket


def test_patching_is_undone_at_the_end_of_the_block() -> None:
    functions = (socket.socket, socket.SocketType, socket.close)
    with steertag.patch("new_tcp") as patch:
        assert socket.socket is not HOST_CLASS
        with pytest.raises(StateError, match="patched already"):
            steertag.patch("sdp")
    assert (socket.socket, socket.SocketType, socket.close) == functions
    patch.undo()
    steertag.unpatch()
    assert socket.socket is HOST_CLASS


def test_a_class_that_was_kept_makes_the_hosts_sockets_again() -> None:
    with steertag.patch("new_tcp"):
        kept = socket.socket
    with kept() as sock:
        assert type(sock) is HOST_CLASS


def test_unpatch_undoes_a_call_without_a_block() -> None:
    steertag.patch("new_tcp")
    try:
        with socket.socket() as sock:
            assert of_this_process(sock)
    finally:
        steertag.unpatch()
    with socket.socket() as sock:
        assert not of_this_process(sock)


def test_a_socket_is_of_the_family_and_says_what_the_program_asked_for(patched: str) -> None:
    for domain in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(domain) as sock:
            assert isinstance(sock, socket.socket)
            assert isinstance(sock, socket.SocketType)
            assert sock.family is domain
            assert sock.type is socket.SOCK_STREAM
            assert of_this_process(sock) == (patched != "host")
            assert repr(sock).startswith("<socket.socket fd=")
            with pytest.raises(TypeError, match="cannot pickle"):
                pickle.dumps(sock)
            numbers = {"new_tcp": AF_INET_NEW_TCP, "sdp": AF_INET_SDP}
            if of_this_process(sock):
                assert sock.kernel.family == numbers[patched]  # type: ignore[attr-defined]


def test_what_the_family_has_not_is_the_hosts(patched: str) -> None:
    one, other = socket.socketpair()
    with one, other, socket.socket(socket.AF_UNIX) as path:
        assert not any(map(of_this_process, (one, other, path)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        assert of_this_process(datagrams) == (patched == "new_tcp")


def test_datagrams_go_over_the_family_that_has_them() -> None:
    with (
        steertag.patch("new_tcp"),
        socket.socket(type=socket.SOCK_DGRAM) as one,
        socket.socket(type=socket.SOCK_DGRAM) as other,
    ):
        one.bind(("localhost", 0))
        one.settimeout(PATIENCE)
        other.sendto(b"a datagram", ("localhost", one.getsockname()[1]))
        data, peer = one.recvfrom(100)
        assert data == b"a datagram"
        assert peer[1] == other.getsockname()[1]


@pytest.mark.parametrize(
    ("domain", "host", "wildcard"),
    [(socket.AF_INET, "127.0.0.1", "0.0.0.0"), (socket.AF_INET6, "::1", "::")],
)
def test_addresses_have_the_form_of_the_programs_family(
    patched: str, domain: int, host: str, wildcard: str
) -> None:
    with socket.socket(domain) as server, socket.socket(domain) as client:
        assert client.getsockname()[:2] == (wildcard, 0)
        server.bind(("", 0))
        server.listen()
        name = server.getsockname()
        assert name[0] == wildcard
        client.settimeout(PATIENCE)
        client.connect((host, name[1]))
        conn, peer = server.accept()
        with conn:
            assert conn.family == domain
            assert peer == client.getsockname() == conn.getpeername()
            assert client.getpeername() == conn.getsockname()
            assert len(peer) == len(name) == (2 if domain == socket.AF_INET else 4)


def test_an_option_of_the_other_version_is_refused(patched: str) -> None:
    with socket.socket(socket.AF_INET) as sock, pytest.raises(OSError, match="not available"):
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    with socket.socket(socket.AF_INET6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_hosts_may_be_named(patched: str) -> None:
    def shout(conn: socket.socket) -> None:
        with conn:
            conn.sendall(conn.recv(100).upper())

    with (
        answering(shout) as (_, port),
        socket.create_connection(("localhost", port), PATIENCE) as conn,
    ):
        conn.sendall(b"hello")
        assert conn.recv(100) == b"HELLO"


def test_nobody_there_is_a_refused_connection(patched: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), PATIENCE)


def test_a_file_a_duplicate_and_a_descriptor_are_the_same_connection(patched: str) -> None:
    def echo(conn: socket.socket) -> None:
        with conn, conn.makefile("rwb") as file:
            for line in file:
                file.write(line.upper())
                file.flush()

    with answering(echo) as address:
        conn = socket.create_connection(address, PATIENCE)
        with conn.dup() as copy, conn.makefile("r") as reader:
            copy.sendall(b"by a duplicate\n")
            assert reader.readline() == "BY A DUPLICATE\n"
        again = socket.socket(fileno=conn.detach())
        assert conn.fileno() == -1
        with socket.fromfd(again.fileno(), socket.AF_INET, socket.SOCK_STREAM) as third:
            assert of_this_process(third) == (patched != "host")
            third.settimeout(PATIENCE)
            third.sendall(b"by its number\n")
            assert third.recv(100) == b"BY ITS NUMBER\n"
        socket.close(again.detach())


def test_sendfile_and_recv_into_move_a_file(patched: str, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    path = tmp_path / "file"
    path.write_bytes(content)

    def send(conn: socket.socket) -> None:
        with conn, path.open("rb") as file:
            assert conn.sendfile(file) == len(content)

    got = bytearray(len(content))
    with answering(send) as address, socket.create_connection(address, PATIENCE) as conn:
        view, filled = memoryview(got), 0
        while filled < len(got):
            count = conn.recv_into(view[filled:])
            assert count
            filled += count
    assert got == content


def test_selectors_select_and_poll_see_what_is_there(patched: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        selectors.DefaultSelector() as selector,
    ):
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ)
        assert selector.select(0) == []
        with socket.create_connection(server.getsockname(), PATIENCE) as client:
            assert selector.select(PATIENCE)[0][0].fileobj is server
            conn, _ = server.accept()
            with conn:
                conn.setblocking(False)
                with pytest.raises(BlockingIOError):
                    conn.recv(1)
                assert select.select([conn], [conn], [], 0)[0] == []
                client.sendall(b"!")
                assert select.select([conn], [], [], PATIENCE)[0] == [conn]
                poll = select.poll()
                poll.register(conn, select.POLLIN)
                assert poll.poll(PATIENCE * 1000) == [(conn.fileno(), select.POLLIN)]
                assert conn.recv(10) == b"!"


def test_a_buffer_is_its_owners_again_in_the_handler_of_a_call_that_failed(patched: str) -> None:
    def fail_and_clear(call: Callable[[bytearray], object], error: type[OSError]) -> None:
        buffer = bytearray(100_000)
        try:
            while True:
                call(buffer)
        except error:
            buffer.clear()  # BufferError, while anything still looks into it

    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())
        conn, _ = server.accept()
        receiving = (client.recv_into, client.recvfrom_into, lambda b: client.recvmsg_into([b]))
        sending = (client.sendall, client.send, lambda b: client.sendmsg([b]))
        for timeout, error in ((0.0, BlockingIOError), (0.01, TimeoutError)):
            client.settimeout(timeout)
            for call in (*receiving, *sending):
                fail_and_clear(call, error)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
        conn.close()
        client.settimeout(PATIENCE)
        fail_and_clear(client.recv_into, ConnectionResetError)
        for call in sending:
            fail_and_clear(call, BrokenPipeError)


def test_a_timeout_is_one(patched: str) -> None:
    ended = threading.Event()

    def say_nothing(conn: socket.socket) -> None:
        with conn:
            assert ended.wait(PATIENCE)

    with answering(say_nothing) as address, socket.create_connection(address, 0.05) as conn:
        try:
            with pytest.raises(TimeoutError):
                conn.recv(1)
        finally:
            ended.set()


def test_descriptors_go_over_a_socket_of_the_hosts() -> None:
    with steertag.patch("sdp"):
        one, other = socket.socketpair()
        with one, other:
            socket.send_fds(one, [b"x"], [0])
            data, fds, _, _ = socket.recv_fds(other, 10, 1)
            assert data == b"x"
            assert os.fstat(fds[0]).st_ino == os.fstat(0).st_ino
            os.close(fds[0])
            assert array.array("i", fds).itemsize == socket.CMSG_LEN(4) - socket.CMSG_LEN(0)


# -- rules --------------------------------------------------------------------------------------


def rules(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.conf"
    path.write_text(text)
    return path


def test_rules_choose_by_the_address_that_is_bound(tmp_path: Path) -> None:
    policy = rules(tmp_path, "use new_tcp server * 127.0.0.1:*\n")
    with steertag.patch(rules=policy):
        with socket.create_server(("127.0.0.1", 0)) as server:
            assert of_this_process(server)
        with socket.create_server(("127.0.0.2", 0)) as server:
            assert not of_this_process(server)


def test_rules_choose_sdp_and_whether_it_falls_back(tmp_path: Path) -> None:
    with steertag.patch("sdp"), socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        steertag.unpatch()
        policy = rules(
            tmp_path,
            f"use tcp client * 127.0.0.1:{port + 1}\n"
            "use sdp client other *:*\n"
            f"use both client * 127.0.0.1:{port}\n",
        )
        with steertag.patch(rules=policy):
            client = socket.socket()
            assert not of_this_process(client)
            client.settimeout(PATIENCE)
            client.connect(("127.0.0.1", port))
            with client, server.accept()[0] as conn:
                assert of_this_process(client)
                assert client.getsockopt(SOL_SDP, SDP_FALLBACK, 10) == b"auto"
                assert b"path sdp\n" in client.getsockopt(SOL_SDP, SDP_INFO, 1024)
                client.sendall(b"over SDP")
                conn.settimeout(PATIENCE)
                assert conn.recv(100) == b"over SDP"


def test_what_was_set_before_the_choice_is_set_after_it(tmp_path: Path) -> None:
    policy = rules(tmp_path, "use new_tcp * * *:*\n")
    with steertag.patch(rules=policy), socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.settimeout(PATIENCE)
        number = sock.fileno()
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        sock.connect(server.getsockname())
        with sock, server.accept()[0]:
            assert of_this_process(sock)
            assert sock.gettimeout() == PATIENCE
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.fileno() == number
            assert poll.poll(PATIENCE * 1000) == [(number, select.POLLOUT)]
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(number)


def test_a_client_that_binds_first_is_still_a_client(tmp_path: Path) -> None:
    policy = rules(tmp_path, "use new_tcp client * *:*\nuse new_tcp server * *:7199\n")
    with steertag.patch(rules=policy), socket.create_server(("127.0.0.1", 7199)) as server:
        assert of_this_process(server)
        with socket.create_connection(
            ("127.0.0.1", 7199), PATIENCE, source_address=("127.0.0.1", 0)
        ) as client:
            assert of_this_process(client)
            with server.accept()[0] as conn:
                assert conn.getpeername() == client.getsockname()


def test_a_choice_goes_from_one_family_of_the_process_to_another(tmp_path: Path) -> None:
    policy = rules(tmp_path, "use new_tcp server * *:*\nuse sdp client * *:*\n")
    with steertag.patch("sdp"), socket.create_server(("127.0.0.1", 0)) as server:
        steertag.unpatch()
        with steertag.patch(rules=policy), socket.socket() as sock:
            number = sock.fileno()
            sock.bind(("127.0.0.1", 0))
            name = sock.getsockname()
            sock.settimeout(PATIENCE)
            sock.connect(server.getsockname())
            with server.accept()[0] as conn:
                assert sock.kernel.family == AF_INET_SDP  # type: ignore[attr-defined]
                assert (sock.fileno(), sock.getsockname()) == (number, name)
                assert conn.getpeername() == name


def test_a_family_or_a_file_that_is_wrong_patches_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'ipx' is no family: expected"):
        steertag.patch("ipx")
    with pytest.raises(OSError, match="no family has the number 99"):
        steertag.patch(99)
    with pytest.raises(ValueError, match=r"policy\.conf:1: "):
        steertag.patch(rules=rules(tmp_path, "use sdp\n"))
    with pytest.raises(FileNotFoundError):
        steertag.patch(rules=tmp_path / "nowhere")
    assert socket.socket is HOST_CLASS


def test_the_environment_chooses_where_the_call_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STEERTAG_FAMILY", "new_tcp")
    with steertag.patch(), socket.socket() as sock:
        assert of_this_process(sock)
    monkeypatch.setenv("SDP_CONFIG", str(rules(tmp_path, "use host * * 127.0.0.1:*\n")))
    with steertag.patch():
        with socket.create_server(("127.0.0.1", 0)) as server:
            assert not of_this_process(server)
        with socket.create_server(("127.0.0.2", 0)) as server:
            assert of_this_process(server)


def test_a_listener_s_receive_buffer_takes_no_window_back_from_a_plain_peer(
    tmp_path: Path,
) -> None:
    # A peer that has seen a large window waits for half of it: of a smaller one it learns by
    # probes, five a second.
    got = []
    for asked in (4096, 1 << 17):
        with (
            steertag.patch(rules=rules(tmp_path, "use both server * *:*\n")),
            socket.create_server(("127.0.0.1", 0)) as server,
            HOST_CLASS() as plain,
        ):
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, asked)
            plain.settimeout(PATIENCE)
            plain.connect(server.getsockname())
            plain.sendall(b"no Request")
            with server.accept()[0] as conn, HOST_CLASS() as fresh:
                got.append(conn.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
                assert got[-1] >= fresh.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert got[1] == 2 << 17 > got[0]


def test_linger_waits_for_a_connection_that_fell_back_to_the_tcp_of_this_process() -> None:
    with (
        ours.socket(AF_INET_NEW_TCP) as server,
        ours.socket(AF_INET_SDP) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(PATIENCE)
        client.setsockopt(SOL_SDP, SDP_TRANSPORT, b"new_tcp")
        client.setsockopt(SOL_SDP, SDP_FALLBACK, b"auto")
        connecting = pool.submit(client.connect, server.getsockname())
        server.accept()[0].close()  # of the Request
        conn, _ = server.accept()
        with conn:
            connecting.result(PATIENCE)
            assert b"path tcp\n" in client.getsockopt(SOL_SDP, SDP_INFO, 1024)
            client.setblocking(False)
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += client.send(bytes(65536))
            client.setblocking(True)
            linger = struct.pack("@ii", 1, int(PATIENCE))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            closing = pool.submit(client.close)
            with pytest.raises(TimeoutError):
                closing.result(0.2)
            conn.settimeout(PATIENCE)
            while data := conn.recv(1 << 20):
                sent -= len(data)
            assert sent == 0
            closing.result(PATIENCE)
