"""What the socket object has beside what every family's conformance suite asks."""

import asyncio
import errno
import gc
import http.client
import http.server
import os
import pickle
import select
import socket as std
import struct
import termios
import threading
import warnings
from collections.abc import Iterator

import pytest
from example_stream import EX_SEGMENT, SOL_EXAMPLE
from new_protocol import AF_EXAMPLE, register

from steertag import Stack, default_stack, device, socket
from steertag.socket.default import apply_environment
from steertag.testing import Endpoints, expect_errno
from steertag.testing.families import PATIENCE, fill, mask_of, outcome_of, read_exactly, wait_mask

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def stack() -> Stack:
    stack = Stack()
    register(stack, device.loopback(), "node")
    return stack


@pytest.fixture
def ends(stack: Stack) -> Endpoints:
    return Endpoints(
        make=lambda: socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=stack), address=("node", 0)
    )


@pytest.fixture
def pair(ends: Endpoints) -> Iterator[Pair]:
    with ends.connected() as connected:
        yield connected


def waiting(call: object) -> tuple[threading.Thread, list[object]]:
    """A thread that makes the call, and where its outcome will be."""
    outcomes: list[object] = []
    thread = threading.Thread(target=lambda: outcomes.append(outcome_of(call)))
    thread.start()
    return thread, outcomes


# -- drop-in ----------------------------------------------------------------------------------


def test_everything_the_standard_module_offers_is_here() -> None:
    missing = [name for name in std.__all__ if not hasattr(socket, name)]
    assert missing == []
    for name in ("SocketType", "error", "timeout", "gaierror", "has_ipv6", "has_dualstack_ipv6"):
        assert hasattr(socket, name)


@pytest.mark.parametrize("kind", ["host", "process"])
def test_every_method_of_the_standard_socket_is_here(kind: str, stack: Stack) -> None:
    family = std.AF_INET if kind == "host" else AF_EXAMPLE
    with socket.socket(family, std.SOCK_STREAM, stack=stack) as sock:
        public = [name for name in dir(std.socket) if not name.startswith("_")]
        assert [name for name in public if not hasattr(sock, name)] == []
        assert isinstance(sock, socket.socket)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # the base class's name
        body = f"you asked for {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.mark.parametrize("family", [std.AF_INET, AF_EXAMPLE])
def test_http_server_and_client_run_over_it(family: int, stack: Stack) -> None:
    address = ("127.0.0.1", 0) if family == std.AF_INET else ("node", 80)
    with socket.socket(family, std.SOCK_STREAM, stack=stack) as listener:
        listener.bind(address)
        listener.listen()
        server = http.server.HTTPServer(("", 0), Handler, bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with socket.socket(family, std.SOCK_STREAM, stack=stack) as sock:
            sock.connect(listener.getsockname())
            client = http.client.HTTPConnection("unused")
            client.sock = sock
            for path in ("/one", "/two"):
                client.request("GET", path)
                assert client.getresponse().read() == f"you asked for {path}".encode()
        server.shutdown()
        thread.join()


def test_asyncio_serves_over_it(ends: Endpoints) -> None:
    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        writer.close()
        await writer.wait_closed()

    async def talk(listener: socket.socket) -> list[bytes]:
        async with await asyncio.start_server(upper, sock=listener):
            answers = []
            for line in (b"one\n", b"two\n"):
                sock = ends.make()
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, listener.getsockname())
                reader, writer = await asyncio.open_connection(sock=sock)
                writer.write(line)
                answers.append(await reader.read())
                writer.close()
                await writer.wait_closed()
            return answers

    with ends.bound() as listener:
        listener.setblocking(False)
        listener.listen()
        assert asyncio.run(asyncio.wait_for(talk(listener), PATIENCE)) == [b"ONE\n", b"TWO\n"]


def test_a_connection_of_a_family_that_is_named(stack: Stack, ends: Endpoints) -> None:
    with (
        socket.create_server(("node", 7), family=AF_EXAMPLE, stack=stack) as server,
        socket.create_connection(("node", 7), 5, family=AF_EXAMPLE, stack=stack) as client,
    ):
        assert client.family == AF_EXAMPLE
        assert client.gettimeout() == 5
        server.accept()[0].close()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("localhost", port), family=std.AF_INET) as client:
            assert client.family == std.AF_INET
        with pytest.raises(socket.gaierror):
            socket.create_connection(("127.0.0.1", port), family=std.AF_INET6)


def test_module_functions_make_our_sockets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname(), timeout=PATIENCE) as client:
            conn, _ = server.accept()
            with conn, socket.fromfd(client.fileno(), client.family, client.type) as twin:
                assert all(isinstance(s, socket.socket) for s in (server, client, conn, twin))
                twin.sendall(b"x")
                assert conn.recv(1) == b"x"
        port = server.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with pytest.raises(ExceptionGroup, match="create_connection failed"):
        socket.create_connection(("127.0.0.1", port), all_errors=True)


@pytest.mark.parametrize("kind", [std.SOCK_STREAM, std.SOCK_DGRAM, std.SOCK_SEQPACKET])
def test_socketpair_of_every_type(kind: int) -> None:
    left, right = socket.socketpair(type=kind)
    with left, right:
        left.send(b"pair")
        assert right.recv(10) == b"pair"
    with pytest.raises(OSError, match="not supported"):
        socket.socketpair(std.AF_INET)


def test_descriptors_go_over_a_unix_socket() -> None:
    left, right = socket.socketpair()
    with left, right, open(os.devnull, "rb") as file:
        socket.send_fds(left, [b"x"], [file.fileno()])
        _, fds, _, _ = socket.recv_fds(right, 1, 1)
        assert os.path.samestat(os.fstat(fds[0]), os.fstat(file.fileno()))
        os.close(fds[0])


@pytest.mark.parametrize("family", [std.AF_INET, AF_EXAMPLE])
def test_a_socket_left_open_warns(family: int, stack: Stack) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        socket.socket(family, std.SOCK_STREAM, stack=stack)
        gc.collect()
    assert [str(w.message).split()[0] for w in caught] == ["unclosed"]
    stack.sock_unregister(family)  # and it was released all the same


@pytest.mark.parametrize("family", [std.AF_INET, AF_EXAMPLE])
def test_a_subclass_keeps_its_own_methods(family: int, stack: Stack) -> None:
    class Shouting(socket.socket):
        def send(self, data: bytes, flags: int = 0) -> int:
            return super().send(data.upper(), flags)

    address = ("127.0.0.1", 0) if family == std.AF_INET else ("node", 1)
    with socket.socket(family, std.SOCK_STREAM, stack=stack) as server:
        server.bind(address)
        server.listen()
        with Shouting(family, std.SOCK_STREAM, stack=stack) as sock:
            sock.connect(server.getsockname())
            sock.send(b"quiet")
            conn, _ = server.accept()
            with conn:
                assert isinstance(sock, Shouting)
                assert conn.recv(10) == b"QUIET"


@pytest.mark.parametrize("family", [std.AF_INET, AF_EXAMPLE])
def test_small_things_the_standard_library_does_too(family: int, stack: Stack) -> None:
    with socket.socket(family, std.SOCK_STREAM, stack=stack) as sock:
        assert (sock.gettimeout(), sock.timeout, sock.getblocking()) == (None, None, True)
        sock.setblocking(False)
        assert (sock.gettimeout(), sock.getblocking()) == (0.0, False)
        with pytest.raises(ValueError, match="Timeout value out of range"):
            sock.settimeout(-1)
        assert sock.get_inheritable() is False
        sock.set_inheritable(True)
        assert sock.get_inheritable() is True
        with pytest.raises(TypeError, match="cannot pickle"):
            pickle.dumps(sock)
        with pytest.raises(ValueError, match="negative buffersize"):
            sock.recv(-1)
        assert f"fd={sock.fileno()}, family={family:d}" in repr(sock)
    assert "[closed]" in repr(sock)
    assert sock.fileno() == -1


def test_the_default_timeout_is_the_standard_librarys(stack: Stack) -> None:
    std.setdefaulttimeout(7.5)
    try:
        with socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=stack) as sock:
            assert sock.gettimeout() == 7.5
    finally:
        std.setdefaulttimeout(None)


# -- waiting ----------------------------------------------------------------------------------


def test_closing_wakes_a_reader_with_ebadf(pair: Pair) -> None:
    _, conn = pair
    conn.settimeout(None)
    thread, outcomes = waiting(lambda: conn.recv(1))
    while not conn.kernel.wait_queue:  # until it waits on the descriptor
        select.select([], [], [], 0.001)
    conn.close()
    thread.join(PATIENCE)
    assert [getattr(outcome, "errno", outcome) for outcome in outcomes] == [errno.EBADF]


def test_a_blocking_send_takes_everything(pair: Pair) -> None:
    client, conn = pair
    client.settimeout(None)
    data = bytes(1_000_000)
    thread, outcomes = waiting(lambda: client.sendmsg([data[:300_000], data[300_000:]]))
    assert len(read_exactly(conn, len(data))) == len(data)
    thread.join(PATIENCE)
    assert outcomes == [len(data)]


def test_receive_timeout_option_ends_a_wait_with_eagain(pair: Pair) -> None:
    _, conn = pair
    conn.settimeout(None)
    conn.setsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, struct.pack("@ll", 0, 10_000))
    assert struct.unpack("@ll", conn.getsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, 16)) == (0, 10_000)
    expect_errno(lambda: conn.recv(1), errno.EAGAIN)


def test_low_water_mark_delays_readiness(pair: Pair) -> None:
    client, conn = pair
    conn.setsockopt(std.SOL_SOCKET, std.SO_RCVLOWAT, 3)
    client.send(b"ab")
    assert not mask_of(conn) & select.POLLIN
    client.send(b"c")
    wait_mask(conn, select.POLLIN)


def test_a_hang_up_shows_as_one(pair: Pair) -> None:
    client, conn = pair
    assert mask_of(conn) == select.POLLOUT
    client.close()
    assert mask_of(conn, select.POLLIN | select.POLLRDHUP) == select.POLLIN | select.POLLRDHUP
    conn.shutdown(std.SHUT_RDWR)
    assert mask_of(conn) & select.POLLHUP


def test_linger_waits_until_it_is_delivered(pair: Pair) -> None:
    client, conn = pair
    sent = fill(client)
    client.setsockopt(std.SOL_SOCKET, std.SO_LINGER, struct.pack("@ii", 1, int(PATIENCE)))
    client.settimeout(None)
    thread, _ = waiting(client.close)
    assert thread.is_alive()
    read_exactly(conn, sent)
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_linger_of_zero_resets(pair: Pair) -> None:
    client, conn = pair
    client.setsockopt(std.SOL_SOCKET, std.SO_LINGER, struct.pack("@ii", 1, 0))
    client.close()
    expect_errno(lambda: conn.recv(1), errno.ECONNRESET)


# -- descriptors ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [std.AF_INET, AF_EXAMPLE])
def test_a_detached_descriptor_can_be_taken_up_again(family: int, stack: Stack) -> None:
    sock = socket.socket(family, std.SOCK_STREAM, stack=stack)
    fd = sock.detach()
    assert sock.fileno() == -1
    with socket.socket(fileno=fd, stack=stack) as again:
        assert again.fileno() == fd
        assert (again.family, again.type) == (family, std.SOCK_STREAM)
    expect_errno(lambda: os.fstat(fd), errno.EBADF)
    stack.sock_unregister(family)


def test_a_detached_descriptor_ends_with_the_object_that_closes_it(
    stack: Stack, pair: Pair
) -> None:
    client, conn = pair
    borrower = socket.socket(fileno=client.fileno(), stack=stack)
    borrower.sendall(b"through the other object")
    borrower.detach()
    client.close()
    assert read_exactly(conn, 24) == b"through the other object"
    assert conn.recv(1) == b""


def test_a_socket_lives_until_its_last_holder_closes(stack: Stack, pair: Pair) -> None:
    client, conn = pair
    with socket.fromfd(client.fileno(), AF_EXAMPLE, std.SOCK_STREAM, stack=stack) as twin:
        client.close()
        twin.sendall(b"still here")
        assert conn.recv(100) == b"still here"
    assert conn.recv(1) == b""


# -- members of Proto and ProtoOps at work ----------------------------------------------------


def test_ioctl_tells_what_is_queued(pair: Pair) -> None:
    client, conn = pair
    client.send(b"12345")
    assert conn.ioctl(termios.FIONREAD) == 5
    assert client.ioctl(termios.TIOCOUTQ) == 0
    expect_errno(lambda: client.ioctl(0x1234), errno.ENOTTY)
    left, right = socket.socketpair()
    with left, right:
        left.send(b"123")
        assert right.ioctl(termios.FIONREAD) == 3


def test_protocol_options_reach_the_protocol(pair: Pair) -> None:
    client, _ = pair
    client.setsockopt(SOL_EXAMPLE, EX_SEGMENT, 77)
    assert client.getsockopt(SOL_EXAMPLE, EX_SEGMENT) == 77
    assert client.getsockopt(SOL_EXAMPLE, EX_SEGMENT, 4) == struct.pack("@i", 77)
    expect_errno(lambda: client.setsockopt(SOL_EXAMPLE, EX_SEGMENT, 0), errno.EINVAL)
    expect_errno(lambda: client.setsockopt(SOL_EXAMPLE, 9, 1), errno.ENOPROTOOPT)


@pytest.mark.parametrize("segment", [1, 100, 30_000])
def test_a_stream_of_any_segment_size_gets_through(segment: int, pair: Pair) -> None:
    client, conn = pair
    client.setsockopt(SOL_EXAMPLE, EX_SEGMENT, segment)
    data = bytes(range(256)) * (10 if segment == 1 else 1000)
    thread, _ = waiting(lambda: client.sendall(data))
    assert read_exactly(conn, len(data)) == data
    thread.join(PATIENCE)


def test_disconnect_makes_a_socket_new(ends: Endpoints) -> None:
    with ends.bound() as server, ends.client() as client:
        server.listen()
        for _ in range(2):
            client.connect(server.getsockname())
            assert client.fileno() > 0
            conn, _ = server.accept()
            with conn:
                client.shutdown(std.SHUT_RDWR)
                assert mask_of(client) & select.POLLHUP
                client.disconnect()
                assert not mask_of(client) & select.POLLHUP
                expect_errno(client.getpeername, errno.ENOTCONN)


def test_disconnect_of_a_host_socket_forgets_the_peer() -> None:
    with socket.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 9))
        sock.disconnect()
        expect_errno(sock.getpeername, errno.ENOTCONN)


@pytest.mark.parametrize("kind", [std.SOCK_STREAM, std.SOCK_DGRAM])
def test_a_port_is_taken_until_its_socket_closes(kind: int, stack: Stack) -> None:
    for _ in range(2):
        with (
            socket.socket(AF_EXAMPLE, kind, stack=stack) as first,
            socket.socket(AF_EXAMPLE, kind, stack=stack) as second,
        ):
            first.bind(("node", 7))
            expect_errno(lambda: second.bind(("node", 7)), errno.EADDRINUSE)


def test_listening_without_an_address_takes_a_port(stack: Stack, ends: Endpoints) -> None:
    with ends.make() as server, ends.client() as client:
        server.listen()
        port = server.getsockname()[1]
        assert port
        client.connect(("node", port))
        server.accept()[0].close()


def test_a_full_backlog_refuses(ends: Endpoints) -> None:
    with ends.bound() as server, ends.client() as first, ends.client() as second:
        server.listen(0)
        first.connect(server.getsockname())
        expect_errno(lambda: second.connect(server.getsockname()), errno.ECONNREFUSED)


def test_closing_a_listener_resets_who_waits(ends: Endpoints) -> None:
    with ends.client() as client:
        with ends.bound() as server:
            server.listen()
            client.connect(server.getsockname())
        expect_errno(lambda: client.recv(1), errno.ECONNRESET)


def test_when_ports_run_out_connecting_is_eaddrnotavail(stack: Stack, ends: Endpoints) -> None:
    stack.sysctl["net.ipv4.ip_local_port_range"] = (5000, 5000)
    with ends.bound() as server, ends.client() as client:
        assert server.getsockname() == ("node", 5000)
        server.listen()
        expect_errno(lambda: client.connect(("node", 5000)), errno.EADDRNOTAVAIL)


# -- parameters -------------------------------------------------------------------------------


def test_buffer_sizes_obey_their_sysctls(stack: Stack) -> None:
    stack.sysctl["net.core.wmem_max"] = 10_000
    stack.sysctl["net.core.rmem_max"] = 20_000
    stack.sysctl["net.exstream.rmem"] = "4096 9999 99999"
    with socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=stack) as sock:
        assert sock.getsockopt(std.SOL_SOCKET, std.SO_RCVBUF) == 9999
        for option, most in ((std.SO_SNDBUF, 20_000), (std.SO_RCVBUF, 40_000)):
            sock.setsockopt(std.SOL_SOCKET, option, 10**6)
            assert sock.getsockopt(std.SOL_SOCKET, option) == most


def test_somaxconn_cuts_the_backlog(stack: Stack, ends: Endpoints) -> None:
    stack.sysctl["net.core.somaxconn"] = 3
    with ends.bound() as server:
        server.listen(100)
        assert server.kernel.sk.sk_max_ack_backlog == 3


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("net.core.nope", 1, errno.ENOENT),
        ("net.core.rmem_max", "many", errno.EINVAL),
        ("net.core.rmem_max", -1, errno.EINVAL),
        ("net.core.rmem_max", "1 2", errno.EINVAL),
        ("net.exstream.mem", "3 2 1", errno.EINVAL),
        ("net.exstream.mem", "1 2", errno.EINVAL),
    ],
)
def test_a_wrong_setting_changes_nothing(
    stack: Stack, name: str, value: int | str, code: int
) -> None:
    before = {key: stack.sysctl.read(key) for key in stack.sysctl}
    expect_errno(lambda: stack.sysctl.write(name, value), code)
    assert {key: stack.sysctl.read(key) for key in stack.sysctl} == before


def test_the_environment_sets_parameters(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = "net.core.somaxconn=9; net/exstream/mem = 1 2 3;"
    monkeypatch.setenv("STEERTAG_SYSCTL", setting)
    apply_environment(stack)
    assert stack.sysctl["net.core.somaxconn"] == 9
    assert stack.sysctl.read("net.exstream.mem") == (1, 2, 3)
    monkeypatch.setenv("STEERTAG_SYSCTL", "net.core.somaxconn")
    expect_errno(lambda: apply_environment(stack), errno.EINVAL)


def test_the_default_stack_is_one() -> None:
    assert default_stack() is default_stack()
