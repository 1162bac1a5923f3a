"""Who meets a peer without SDP: what is tried, what is told, and that no octet is lost."""

from __future__ import annotations

import errno
import logging
import os
import socket as std
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from steertag import AF_INET_SDP, Stack, socket
from steertag.family.rules import Rules
from steertag.observe import netstat, sockets
from steertag.runtime.sdp import SdpConfig, SdpFabric, fabric_of, register
from steertag.runtime.sdp_transport import HostTransport
from steertag.sdp.fallback import Reason
from steertag.wire.mpa import StartFrame
from tests.unit.test_sdp_conformance import LOOPBACK, close_stacks, opened

__all__ = ["close_stacks"]
PATIENCE = 30.0
TEXT = bytes(range(256)) * 300


def new_stack(**config: object) -> Stack:
    stack = opened()
    register(stack, SdpConfig(**config))  # type: ignore[arg-type]
    return stack


def fabric(stack: Stack) -> SdpFabric:
    found = fabric_of(stack)
    assert found is not None
    return found


def sdp(stack: Stack) -> socket.socket:
    sock = socket.socket(AF_INET_SDP, std.SOCK_STREAM, stack=stack)
    sock.settimeout(PATIENCE)
    return sock


def info(sock: socket.socket) -> dict[str, str]:
    text = sock.getsockopt(socket.SOL_SDP, socket.SDP_INFO, 1024).decode()
    return dict(line.split(" ", 1) for line in text.splitlines())


@contextmanager
def plain_server(*answers: Callable[[std.socket], None]) -> Iterator[tuple[str, int]]:
    """One of the host's: each connection is seen to by the next of `answers`."""
    failures: list[BaseException] = []
    with std.create_server(LOOPBACK) as server:

        def serve() -> None:
            try:
                for answer in answers:
                    conn, _ = server.accept()
                    conn.settimeout(PATIENCE)
                    with conn:
                        answer(conn)
            except (AssertionError, OSError) as exc:
                failures.append(exc)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()
        finally:
            thread.join(PATIENCE)
    assert not failures, failures[0]


def read_request(conn: std.socket) -> None:
    assert conn.recv(4096).startswith(b"MPA ID Req Frame")


def answers_something_else(conn: std.socket) -> None:
    read_request(conn)
    conn.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")


def speaks_first(conn: std.socket) -> None:
    conn.sendall(b"220 ready\r\n")
    conn.recv(1000)


def closes(conn: std.socket) -> None:
    read_request(conn)


def closes_unread(conn: std.socket) -> None:
    """With octets unread the host resets the stream."""
    while not conn.recv(1, std.MSG_PEEK):
        pass


def is_silent(conn: std.socket) -> None:
    read_request(conn)
    with suppress(ConnectionResetError):
        assert conn.recv(1) == b"", "the client gave up, and closed"


def rejects(conn: std.socket) -> None:
    read_request(conn)
    conn.sendall(StartFrame(reply=True, reject=True, enhanced=True, private_data=bytes(4)).emit())


def has_another_protocol(conn: std.socket) -> None:
    """A verbs program: it accepts, and its private data is no HelloAck."""
    request = StartFrame.parse(conn.recv(4096))
    assert request is not None
    words = request.private_data[:4]
    reply = StartFrame(reply=True, enhanced=True, private_data=words + b"not SDP")
    conn.sendall(reply.emit())
    conn.recv(1000)


def echoes(conn: std.socket) -> None:
    while data := conn.recv(65536):
        conn.sendall(data)


CASES = [
    (answers_something_else, Reason.ANSWERED),
    (speaks_first, Reason.ANSWERED),
    (closes, Reason.CLOSED),
    (closes_unread, Reason.CLOSED),
    (is_silent, Reason.SILENT),
    (rejects, Reason.REJECTED),
    (has_another_protocol, Reason.NOT_SDP),
]
peers = pytest.mark.parametrize(("peer", "reason"), CASES, ids=[case[0].__name__ for case in CASES])


# -- connecting -----------------------------------------------------------------------------------


@peers
def test_a_peer_without_sdp_is_connected_to_again_and_gets_each_octet_once(
    peer: Callable[[std.socket], None], reason: Reason, caplog: pytest.LogCaptureFixture
) -> None:
    stack = new_stack()
    stack.sysctl["net.sdp.hello_timeout"] = 200 if peer is is_silent else 30000
    with (
        caplog.at_level(logging.WARNING, "steertag.sdp"),
        plain_server(peer, echoes) as address,
        sdp(stack) as sock,
    ):
        sock.connect(address)
        assert info(sock)["path"] == "tcp"
        assert info(sock)["fallback"] == reason
        sock.sendall(TEXT)
        sock.shutdown(std.SHUT_WR)
        with sock.makefile("rb") as file:
            assert file.read() == TEXT
    assert fabric(stack).counters.by_reason[reason] == 1
    assert [record for record in caplog.records if f"({reason})" in record.getMessage()]


@peers
def test_who_never_falls_back_is_refused(
    peer: Callable[[std.socket], None], reason: Reason
) -> None:
    stack = new_stack(fallback="never")
    stack.sysctl["net.sdp.hello_timeout"] = 200 if peer is is_silent else 30000
    code = errno.ETIMEDOUT if reason is Reason.SILENT else errno.ECONNREFUSED
    with plain_server(peer) as address, sdp(stack) as sock:
        assert sock.connect_ex(address) == code
        with pytest.raises(OSError, match="not connected"):
            sock.getpeername()
    assert fabric(stack).counters.refused == 1
    assert not any(fabric(stack).counters.by_reason.values())


def test_a_peer_that_is_gone_as_soon_as_it_is_connected_to_is_no_bug(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A socket that was reset has no peer any more, which nobody may wait for."""

    def gone(_: HostTransport) -> None:
        raise OSError(errno.ENOTCONN, "as after a reset")

    monkeypatch.setattr(HostTransport, "getpeername", gone)
    with plain_server(closes, echoes) as address, sdp(new_stack()) as client:
        client.connect(address)
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"


def test_a_peer_without_sdp_is_remembered_for_a_time() -> None:
    stack = new_stack()
    with plain_server(closes, echoes, echoes, closes, echoes) as address:
        for expected in (Reason.CLOSED, Reason.REMEMBERED, Reason.CLOSED):
            with sdp(stack) as sock:
                sock.connect(address)
                assert info(sock)["fallback"] == expected
            if expected is Reason.REMEMBERED:
                # The minute that it was to be remembered is over.
                known = fabric(stack).peers
                assert known.recall(address, fabric(stack).reactor.clock() + 61) is None


def test_nothing_is_remembered_where_the_time_for_it_is_none() -> None:
    stack = new_stack()
    stack.sysctl["net.sdp.fallback_memory"] = 0
    with plain_server(closes, echoes, closes, echoes) as address:
        for _ in range(2):
            with sdp(stack) as sock:
                sock.connect(address)
                assert info(sock)["fallback"] == Reason.CLOSED


def test_nobody_there_is_no_reason_to_fall_back() -> None:
    stack = new_stack()
    with std.socket() as nobody, sdp(stack) as sock:
        nobody.bind(LOOPBACK)
        with pytest.raises(ConnectionRefusedError):
            sock.connect(nobody.getsockname())
        with pytest.raises(ConnectionRefusedError):
            sock.connect(nobody.getsockname())
    assert not any(fabric(stack).counters.by_reason.values())


@peers
def test_a_socket_that_is_bound_keeps_its_port_when_it_falls_back(
    peer: Callable[[std.socket], None], reason: Reason
) -> None:
    stack = new_stack()
    stack.sysctl["net.sdp.hello_timeout"] = 200 if peer is is_silent else 30000
    with plain_server(peer, echoes) as address, sdp(stack) as sock:
        sock.bind(LOOPBACK)
        name = sock.getsockname()
        sock.connect(address)
        assert sock.getsockname() == name
        assert info(sock)["fallback"] == reason


def test_options_of_the_transport_count_on_whichever_socket_it_ends() -> None:
    stack = new_stack()
    with plain_server(closes, echoes) as address, sdp(stack) as sock:
        sock.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
        sock.setsockopt(std.IPPROTO_TCP, std.TCP_KEEPIDLE, 77)
        sock.setsockopt(std.SOL_SOCKET, std.SO_KEEPALIVE, 1)
        sock.setsockopt(std.SOL_SOCKET, std.SO_RCVBUF, 1 << 17)
        sock.connect(address)
        assert info(sock)["path"] == "tcp"
        assert sock.getsockopt(std.IPPROTO_TCP, std.TCP_NODELAY) == 1
        assert sock.getsockopt(std.IPPROTO_TCP, std.TCP_KEEPIDLE) == 77
        assert sock.getsockopt(std.SOL_SOCKET, std.SO_KEEPALIVE) == 1
        assert sock.getsockopt(std.SOL_SOCKET, std.SO_RCVBUF) == 2 << 17
        assert sock.getsockopt(std.SOL_SOCKET, std.SO_DOMAIN) == AF_INET_SDP


def test_the_option_of_a_socket_goes_before_the_rest() -> None:
    stack = new_stack(fallback="never")
    with plain_server(closes, echoes) as address, sdp(stack) as sock:
        assert sock.getsockopt(socket.SOL_SDP, socket.SDP_FALLBACK, 16) == b"never"
        sock.setsockopt(socket.SOL_SDP, socket.SDP_FALLBACK, b"auto")
        assert sock.getsockopt(socket.SOL_SDP, socket.SDP_FALLBACK, 16) == b"auto"
        sock.connect(address)
        assert info(sock)["path"] == "tcp"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (socket.SDP_FALLBACK, b"maybe"),
        (socket.SDP_FALLBACK, 1),
        (socket.SDP_TRANSPORT, b"pigeons"),
        (socket.SDP_ZCOPY_THRESH, -1),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(name: int, value: int | bytes) -> None:
    with sdp(new_stack()) as sock, pytest.raises(OSError, match="Invalid argument"):
        sock.setsockopt(socket.SOL_SDP, name, value)


def test_options_that_nobody_knows_are_refused() -> None:
    with sdp(new_stack()) as sock:
        for level, name in ((socket.SOL_SDP, 7), (std.IPPROTO_TCP, 9999), (std.SOL_SOCKET, 9999)):
            with pytest.raises(OSError, match="not available"):
                sock.setsockopt(level, name, 1)
        with pytest.raises(OSError, match="not available"):
            sock.setsockopt(socket.SOL_SDP, socket.SDP_INFO, b"")
        with pytest.raises(OSError, match="AF_INET_NEW_TCP"):
            sock.setsockopt(socket.SOL_SDP, socket.SDP_TRANSPORT, b"new_tcp")


# -- listening ------------------------------------------------------------------------------------


@contextmanager
def listening(stack: Stack) -> Iterator[socket.socket]:
    with sdp(stack) as server:
        server.bind(LOOPBACK)
        server.listen()
        yield server


def test_one_port_takes_peers_of_both_kinds() -> None:
    stack, other = new_stack(), new_stack()
    with listening(stack) as server:
        for way, client in (("sdp", sdp(other)), ("tcp", std.socket()), ("sdp", sdp(other))):
            with closing(client):
                client.connect(server.getsockname())
                client.sendall(TEXT)
                client.shutdown(std.SHUT_WR)
                conn, peer = server.accept()
                with conn, conn.makefile("rb") as file:
                    assert peer == client.getsockname()
                    assert info(conn)["path"] == way
                    assert file.read() == TEXT
    counters = fabric(stack).counters
    assert counters.sdp_passive == 2
    assert counters.by_reason[Reason.PLAIN_PEER] == 1
    assert fabric(other).counters.sdp_active == 2


@pytest.mark.parametrize("first", [b"M", b"MPA ID", b"MPA ID Req Fram", b"MPA ID Rep Frame", b"x"])
def test_a_plain_peer_loses_no_octet_however_its_first_ones_look(first: bytes) -> None:
    stack = new_stack()
    with listening(stack) as server, std.socket() as client:
        client.connect(server.getsockname())
        client.sendall(first)
        conn, _ = server.accept()
        with conn:
            client.sendall(b" and the rest")
            client.shutdown(std.SHUT_WR)
            with conn.makefile("rb") as file:
                assert file.read() == first + b" and the rest"
            assert info(conn)["fallback"] == Reason.PLAIN_PEER


@pytest.mark.parametrize("closes", [False, True])
def test_a_peer_that_says_nothing_is_a_plain_one(closes: bool) -> None:
    stack = new_stack()
    stack.sysctl["net.sdp.listen_grace"] = 60000 if closes else 20
    with listening(stack) as server, std.socket() as client:
        client.settimeout(PATIENCE)
        client.connect(server.getsockname())
        if closes:
            client.shutdown(std.SHUT_WR)
        conn, _ = server.accept()
        with conn:
            conn.sendall(b"220 ready\r\n")  # a server that speaks first
            assert client.recv(100) == b"220 ready\r\n"
            if closes:
                assert conn.recv(1) == b""


def test_who_looks_too_late_counts_what_has_come_meanwhile() -> None:
    """Under load the time for a peer's first octets may be over before anybody looks at them."""
    stack = new_stack()
    stack.sysctl["net.sdp.listen_grace"] = 300
    with listening(stack) as server, std.socket() as client:
        client.settimeout(PATIENCE)
        reactor = fabric(stack).reactor
        client.connect(server.getsockname())
        while len(reactor.handlers()) < 2:
            os.sched_yield()
        with stack.lock:
            client.sendall(
                StartFrame(reply=False, enhanced=True, private_data=bytes(4) + b"no SDP").emit()
            )
            late = reactor.clock() + 0.4
            while reactor.clock() < late:
                os.sched_yield()
        assert client.recv(4096).startswith(b"MPA ID Rep Frame")
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_many_that_are_slow_to_say_what_they_are_are_waited_for() -> None:
    stack = new_stack()
    stack.sysctl["net.sdp.listen_grace"] = 60000
    with listening(stack) as server, ExitStack() as opened_here:
        server.listen(1)
        many = [
            opened_here.enter_context(std.create_connection(server.getsockname()))
            for _ in range(40)
        ]
        reactor = fabric(stack).reactor
        while len(reactor.handlers()) < 1 + len(many):
            os.sched_yield()
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_passive_side_may_speak_first_over_sdp() -> None:
    stack = new_stack()
    with listening(stack) as server, sdp(stack) as client:
        client.connect(server.getsockname())
        conn, _ = server.accept()
        with conn:
            conn.sendall(b"220 ready\r\n")
            assert client.recv(100) == b"220 ready\r\n"
            assert info(client)["path"] == info(conn)["path"] == "sdp"


def test_a_listener_that_never_falls_back_closes_on_plain_peers() -> None:
    stack = new_stack(fallback="never")
    with listening(stack) as server, std.socket() as plain, sdp(stack) as client:
        plain.settimeout(PATIENCE)
        plain.connect(server.getsockname())
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with suppress(ConnectionResetError):
            assert plain.recv(1) == b""
        client.connect(server.getsockname())
        conn, peer = server.accept()
        with conn:
            assert peer == client.getsockname()
    assert fabric(stack).counters.refused == 1


def test_a_request_that_is_not_sdps_is_rejected() -> None:
    stack = new_stack()
    with listening(stack) as server, std.socket() as client:
        client.settimeout(PATIENCE)
        client.connect(server.getsockname())
        client.sendall(StartFrame(reply=False, enhanced=True, private_data=bytes(4)).emit())
        with client.makefile("rb") as file:
            answer = StartFrame.parse(file.read())
        assert answer is not None
        assert answer.reply
        assert answer.reject
        server.settimeout(0.0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not fabric(stack).rnic.qps


def test_a_request_that_never_ends_leaves_nothing_when_its_peer_goes() -> None:
    stack = new_stack()
    with listening(stack) as server:
        with std.socket() as client:
            client.connect(server.getsockname())
            client.sendall(b"MPA ID Req Frame\x10\x02\x01\xfc" + bytes(100))
        with sdp(stack) as other:
            other.connect(server.getsockname())
            conn, _ = server.accept()
            conn.close()


# -- policy ---------------------------------------------------------------------------------------


def test_rules_choose_by_role_and_port() -> None:
    with plain_server(echoes, closes, echoes) as address:
        text = f"use tcp client * *:{address[1]}\nuse both * * *:*\n"
        stack = new_stack(rules=Rules.parse(text))
        with sdp(stack) as sock:
            sock.connect(address)
            assert info(sock)["fallback"] == Reason.POLICY
        other = new_stack(rules=Rules.parse("use tcp server * *:*"), fallback="never")
        with sdp(other) as sock:
            assert sock.connect_ex(address) == errno.ECONNREFUSED
        with sdp(new_stack(rules=Rules.parse("use sdp client * *:1"))) as sock:
            sock.connect(address)
            assert info(sock)["path"] == "tcp"


def test_a_rule_can_have_a_listener_take_everybody_as_they_are() -> None:
    stack = new_stack(rules=Rules.parse("use tcp server * *:*"))
    with listening(stack) as server, std.socket() as client:
        client.connect(server.getsockname())
        conn, _ = server.accept()
        with conn:
            assert info(conn)["fallback"] == Reason.POLICY


def test_the_environment_is_read_and_judged(tmp_path: Path) -> None:
    rules = tmp_path / "sdp.conf"
    rules.write_text("use tcp client * *:22\n")
    config = SdpConfig.from_environment(
        {"SDP_FALLBACK": "never", "SDP_ZCOPY_THRESH": "4096", "SDP_CONFIG": str(rules)}
    )
    assert (config.fallback, config.zcopy_thresh, config.carrier) == ("never", 4096, "host")
    assert config.rules is not None
    assert fabric(new_stack(zcopy_thresh=4096)).zcopy_thresh == 4096
    rules.write_text("nonsense\n")
    for wrong in (
        {"SDP_FALLBACK": "sometimes"},
        {"SDP_ZCOPY_THRESH": "much"},
        {"STEERTAG_SDP_TRANSPORT": "rfc1149"},
        {"SDP_CONFIG": str(rules)},
    ):
        with pytest.raises(OSError, match="expected") as caught:
            SdpConfig.from_environment(wrong)
        assert caught.value.errno == errno.EINVAL


# -- a connection that has fallen back ------------------------------------------------------------


def test_its_descriptor_is_the_hosts_own_and_a_child_can_have_it() -> None:
    stack = new_stack()
    with listening(stack) as server, std.socket() as client:
        client.connect(server.getsockname())
        client.sendall(b"hello")
        conn, _ = server.accept()
        with conn:
            with std.socket(fileno=os.dup(conn.fileno())) as native:
                assert native.recv(100) == b"hello"
            with socket.socket(fileno=os.dup(conn.fileno()), stack=stack) as again:
                again.sendall(b"and back")
            assert client.recv(100) == b"and back"


def test_a_reset_of_its_peer_is_told_as_the_host_tells_it() -> None:
    stack = new_stack()
    with listening(stack) as server, std.socket() as client:
        client.connect(server.getsockname())
        client.sendall(b"x")
        conn, _ = server.accept()
        with conn:
            client.setsockopt(std.SOL_SOCKET, std.SO_LINGER, struct.pack("@ii", 1, 0))
            client.close()
            assert conn.recv(1) == b"x"
            with pytest.raises(ConnectionResetError):
                conn.recv(1)


# -- shown ----------------------------------------------------------------------------------------


def test_the_way_is_shown_by_the_listings() -> None:
    stack = new_stack()
    with listening(stack) as server, sdp(stack) as client, std.socket() as plain:
        client.connect(server.getsockname())
        plain.connect(server.getsockname())
        plain.sendall(b"x")
        with server.accept()[0], server.accept()[0]:
            rows = [row for row in sockets.rows(stack, listening=False) if row.netid == "sdp"]
            paths = sorted(str(row.info.get("path")) for row in rows)
            assert paths == ["sdp", "sdp", "tcp"]
            assert {row.info.get("fallback") for row in rows} == {None, "plain-peer"}
    groups = netstat.groups(stack)
    assert groups["Sdp"]["ActiveOpens"] == groups["Sdp"]["PassiveOpens"] == 1
    assert groups["Sdp"]["FallbackPlainPeer"] == 1
    assert groups["SdpExt"]["protocol_errors"] == 0
