"""Who may come in, and what strangers can do to a server."""

from __future__ import annotations

import json
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steertag.transfer.protocol import FRAME, MAGIC, Hello, Kind, emit
from steertag.transfer.server import Server, ServerConfig
from tests.processes import PATIENCE
from tests.transfer.harness import PATHS, Serving, assert_one_line, make_file, stag
from tests.transfer.middlebox import Middlebox

ANYWHERE = "0.0.0.0:0"


def token_file(path: Path, token: str = "correct horse battery staple") -> Path:
    path.write_text(token)
    path.chmod(0o600)
    return path


def test_a_server_on_all_addresses_makes_a_token_and_keeps_it(served: Path, tmp_path: Path) -> None:
    make_file(served / "file", 10)
    state = str(tmp_path / "state")
    with Serving(served, bind=ANYWHERE, XDG_STATE_HOME=state) as server:
        path = Path(server.banner["token_file"])
        token = path.read_text().strip()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        command_line = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
        assert token.encode() not in command_line
        assert token not in json.dumps(server.banner)
        url = f"stag://127.0.0.1:{server.port}/"
        assert_one_line(stag("ls", url), 7, "--token-file")
        assert stag("ls", url, "--token-file", path).out == "file\n"
        assert stag("ls", url, STAG_TOKEN_FILE=str(path)).out == "file\n"
    with Serving(served, bind=ANYWHERE, XDG_STATE_HOME=state):
        assert path.read_text().strip() == token


def test_a_server_on_loopback_asks_for_no_token(server: Serving) -> None:
    assert server.banner["token_file"] is None
    assert stag("ls", server.url).code == 0


def test_without_auth_everybody_may_come_when_that_was_said(served: Path) -> None:
    with Serving(served, "--no-auth", bind=ANYWHERE) as server:
        assert stag("ls", f"stag://127.0.0.1:{server.port}/").code == 0


def test_a_program_has_to_say_it_too(served: Path) -> None:
    with pytest.raises(Exception, match="can be reached by others"):
        Server(ServerConfig(served, host="0.0.0.0", port=0))


@pytest.mark.parametrize("path", PATHS)
def test_the_token_never_crosses_the_wire(
    served: Path, here: Path, tmp_path: Path, path: str
) -> None:
    token = "correct horse battery staple"
    right = token_file(tmp_path / "right", token)
    data = make_file(served / "file", 100_000)
    with (
        Serving(served, "--token-file", right) as server,
        Middlebox(server.port) as box,
    ):
        url = f"stag://127.0.0.1:{box.port}/file"
        done = stag("get", url, here, "--token-file", right, "--path", path, "--json")
        assert done.report["path"] == path
        assert (here / "file").read_bytes() == data
        assert token.encode() not in bytes(box.seen)
        assert MAGIC in bytes(box.seen)


@pytest.mark.parametrize("verb", ["ls", "get", "put"])
def test_a_wrong_token_gets_nothing(served: Path, here: Path, tmp_path: Path, verb: str) -> None:
    right = token_file(tmp_path / "right")
    wrong = token_file(tmp_path / "wrong", "wrong horse battery staple")
    make_file(served / "file", 10)
    make_file(here / "mine", 10)
    with Serving(served, "--writable", "--token-file", right) as server:
        ends = {
            "ls": (server.url,),
            "get": (server.url + "file", here / "got"),
            "put": (here / "mine", server.url),
        }[verb]
        assert_one_line(stag(verb, *ends, "--token-file", wrong), 7, "not this server's")
        assert_one_line(stag(verb, *ends), 7, "asks for a token")
    assert (os.listdir(here), os.listdir(served)) == (["mine"], ["file"])


def test_a_request_before_the_proof_is_refused(served: Path, tmp_path: Path) -> None:
    right = token_file(tmp_path / "right")
    with Serving(served, "--token-file", right) as server:
        listing = FRAME.pack(Kind.LIST, 24) + b'{"serial": 1, "name":""}'
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock:
            sock.sendall(MAGIC + emit(Hello(1, bytes(32))) + listing)
            answer = read_all(sock)
        assert b"wants a token first" in answer
        assert b"entries" not in answer


def test_a_server_without_the_token_is_not_trusted(
    served: Path, here: Path, tmp_path: Path
) -> None:
    """A client with a token tells a server that asks for none nothing, unless on this machine."""
    token = token_file(tmp_path / "token")
    make_file(here / "secret", 10)
    with Serving(served, "--writable") as server:
        done = stag("put", here / "secret", server.url, "--token-file", token)
        assert_one_line(done, 7, "asks for no token")
        assert stag("put", here / "secret", server.url, STAG_TOKEN_FILE=str(token)).code == 0


def test_a_token_file_that_others_can_read_is_refused(served: Path, tmp_path: Path) -> None:
    path = token_file(tmp_path / "token")
    path.chmod(0o644)
    assert_one_line(stag("serve", served, "--token-file", path), 7, "chmod 600")


# Garbage


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            some = sock.recv(65536)
        except TimeoutError:
            raise
        except OSError:  # reset; or ENOTCONN, when the call before this one was told of that
            return data
        if not some:
            return data
        data += some


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        MAGIC + b"\xff" * 100,
        MAGIC + FRAME.pack(Kind.HELLO, 60000) + b"x" * 60000,
        MAGIC + emit(Hello(1, bytes(32))) + FRAME.pack(Kind.GET, 2) + b"{}",
        MAGIC + emit(Hello(1, bytes(32))) + emit(Hello(1, bytes(32))),
        MAGIC + emit(Hello(2, bytes(32))),
        b"MPA ID Req Frame" + b"\xff" * 100,
        b"M",
    ],
)
def test_garbage_is_answered_or_dropped_and_the_server_lives(
    served: Path, here: Path, octets: bytes
) -> None:
    with Server(ServerConfig(served, port=0, hello_timeout=0.5)) as server:
        with socket.create_connection((server.host, server.port), PATIENCE) as sock:
            with suppress(OSError):  # it may have hung up already
                sock.sendall(octets)
                sock.shutdown(socket.SHUT_WR)
            answer = read_all(sock)
        if b"stag" in octets:
            assert b'"message":"' in answer
            assert len(answer) < 1000
        assert stag("ls", server.url).code == 0


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_a_server_survives_any_octets(
    live: Server, octets: bytes, greeted: bool, rdma: bool
) -> None:
    prefix = MAGIC + emit(Hello(1, bytes(32))) if greeted else b"MPA ID Req Frame" * rdma
    with socket.create_connection((live.host, live.port), PATIENCE) as sock:
        with suppress(OSError):  # it may have hung up already
            sock.sendall(prefix + octets)
            sock.shutdown(socket.SHUT_WR)
        read_all(sock)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> object:
    directory = tmp_path_factory.mktemp("live")
    with Server(ServerConfig(directory, port=0)) as server:
        yield server
        assert stag("ls", server.url).code == 0
        assert server.counters["wire_errors"] > 0


def test_a_silent_stranger_is_dropped_in_time(served: Path) -> None:
    with Server(ServerConfig(served, port=0, hello_timeout=0.2)) as server:
        with socket.create_connection((server.host, server.port), PATIENCE) as sock:
            assert read_all(sock) == b""
        wait_until_dropped(server)


def test_a_stranger_that_drips_octets_has_no_more_time_than_a_silent_one(served: Path) -> None:
    with Server(ServerConfig(served, port=0, hello_timeout=0.5)) as server:
        with socket.create_connection((server.host, server.port), 0.02) as sock:
            drip(sock, MAGIC + FRAME.pack(Kind.HELLO, 1000) + b" " * 1000)
        wait_until_dropped(server)


def wait_until_dropped(server: Server) -> None:
    """Closing a server waits for its threads, which count before they end."""
    server.close()
    assert server.counters["strangers_dropped"] == 1


def drip(sock: socket.socket, octets: bytes) -> None:
    """Send `octets` one by one, as slowly as the peer's silence lets, until it hangs up."""
    for octet in octets:
        try:
            sock.send(bytes([octet]))
            some = sock.recv(4096)
        except TimeoutError:
            continue
        except OSError:
            return
        if not some:
            return
    raise AssertionError("the server waited for all of it")


def test_more_strangers_than_there_is_room_for_are_refused(served: Path) -> None:
    with Server(ServerConfig(served, port=0, max_strangers=2)) as server:
        address = (server.host, server.port)
        with socket.create_connection(address) as one, socket.create_connection(address) as two:
            with socket.create_connection(address, PATIENCE) as three:
                assert read_all(three) == b""
            one.close()
            two.close()
        assert server.counters["refused"] == 1


def test_a_client_that_leaves_or_stalls_costs_the_others_nothing(served: Path, here: Path) -> None:
    size = 50 * 1024 * 1024
    make_file(served / "file", 64)
    os.truncate(served / "file", size)
    with Server(ServerConfig(served, port=0, idle_timeout=0.5)) as server:
        hello = MAGIC + emit(Hello(1, bytes(32)))
        get = json.dumps({"serial": 1, "name": "file", "digest": "xxh3_128"}).encode()
        start = json.dumps({"serial": 2, "path": "tcp-buffered", "code": "", "reason": ""}).encode()
        frames = FRAME.pack(Kind.GET, len(get)) + get + FRAME.pack(Kind.START, len(start)) + start
        with socket.create_connection((server.host, server.port), PATIENCE) as stalled:
            stalled.sendall(hello + frames)  # and reads nothing
            with socket.create_connection((server.host, server.port), PATIENCE) as gone:
                gone.sendall(hello + frames)
            assert stag("get", server.url + "file", here).code == 0
    assert (here / "file").stat().st_size == size
