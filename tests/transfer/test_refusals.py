"""Bad input of every kind: one line that says what was wrong, the documented code, nothing lost."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import require_tool, require_unshare
from tests.transfer.harness import (
    PATHS,
    PATIENCE,
    Command,
    Serving,
    assert_one_line,
    make_file,
    stag,
)
from tests.transfer.middlebox import FlipAt, HoldAfter, Middlebox

SIZE = 2 * 1024 * 1024


@contextmanager
def speaking(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port on which something other than stag answers each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(PATIENCE)


# 2, 3, 4: usage, no such file, no permission


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "http://localhost/x"),
        ("get", "stag://localhost/"),
        ("get", "stag://localhost:99999/x"),
        ("ls", "localhost"),
        ("serve", ".", "--bind", "::1"),
        ("serve", ".", "--no-auth", "--token-file", "x"),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    assert_one_line(stag(*arguments), 2)


def test_standard_output_is_no_destination(
    server: Serving, served: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_file(served / "file", 10)
    monkeypatch.chdir(here)
    assert_one_line(stag("get", server.url + "file", "-"), 2, "verified", "./-")
    assert os.listdir(here) == []


def test_a_file_that_is_not_there_is_3(server: Serving, here: Path) -> None:
    assert_one_line(stag("get", server.url + "no%0Ane", here), 3, "no\\x0ane", "stag ls")
    assert_one_line(stag("put", here / "none", server.url), 3, "none")
    assert_one_line(stag("ls", server.url + "none"), 3, "none")
    assert_one_line(stag("get", server.url + "x/y", here), 3)
    assert os.listdir(here) == []


def test_a_destination_directory_that_is_not_there_is_3(
    server: Serving, served: Path, here: Path
) -> None:
    make_file(served / "file", 10)
    assert_one_line(stag("get", server.url + "file", here / "no" / "file"), 3)
    make_file(here / "file", 10)
    assert_one_line(stag("put", here / "file", server.url + "no/file"), 3)


def test_a_served_directory_that_is_not_there_is_3(tmp_path: Path) -> None:
    assert_one_line(stag("serve", tmp_path / "none"), 3, "none")


def without_override() -> tuple[str, ...]:
    """A wrapper that takes root's right to pass over modes away; nobody else has it anyway."""
    if os.geteuid() != 0:
        return ()
    lost = "-dac_override,-dac_read_search"
    return (require_tool("setpriv"), f"--bounding-set={lost}", f"--inh-caps={lost}")


def test_no_permission_at_the_client_is_4(server: Serving, served: Path, here: Path) -> None:
    make_file(served / "file", 10)
    make_file(here / "mine", 10, 0)
    here.chmod(0o500)
    with Command("get", server.url + "file", here / "x", wrap=without_override()) as command:
        assert_one_line(command.wait(), 4, "Permission denied")
    with Command("put", here / "mine", server.url, wrap=without_override()) as command:
        assert_one_line(command.wait(), 4, "mine")
    here.chmod(0o700)
    assert (os.listdir(here), os.listdir(served)) == (["mine"], ["file"])


def test_no_permission_at_the_server_is_4(served: Path, here: Path) -> None:
    make_file(served / "locked", 10, 0)
    make_file(here / "file", 10)
    served.chmod(0o500)
    with Serving(served, "--writable", wrap=without_override()) as server:
        assert_one_line(stag("get", server.url + "locked", here), 4, "locked")
        assert_one_line(stag("put", here / "file", server.url), 4, "file")
    served.chmod(0o700)
    assert (os.listdir(here), os.listdir(served)) == (["file"], ["locked"])


def test_a_read_only_server_takes_nothing(served: Path, here: Path) -> None:
    make_file(here / "file", 10)
    with Serving(served) as server:
        assert_one_line(stag("put", here / "file", server.url), 4, "read-only", "--writable")
    assert os.listdir(served) == []


# 5, 6: nobody there, somebody else there


def test_a_port_where_nobody_listens_is_5(here: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert_one_line(stag("get", f"stag://127.0.0.1:{port}/x", here), 5, "refused", "check host")


def test_a_host_that_does_not_exist_is_5(here: Path) -> None:
    assert_one_line(stag("ls", "stag://no-such-host.invalid/"), 5, "no-such-host.invalid")


def test_another_program_on_that_port_is_6(here: Path) -> None:
    def http(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

    with speaking(http) as port:
        assert_one_line(stag("get", f"stag://127.0.0.1:{port}/x", here), 6, "no stag server")


def test_a_program_that_hangs_up_is_6(here: Path) -> None:
    with speaking(lambda connection: None) as port:
        assert_one_line(stag("ls", f"stag://127.0.0.1:{port}/"), 6, "no stag server")


def test_a_silent_program_is_6(here: Path) -> None:
    def silent(connection: socket.socket) -> None:
        while connection.recv(4096):
            continue  # until the client has had enough

    with speaking(silent) as port:
        done = stag("ls", f"stag://127.0.0.1:{port}/", "--connect-timeout", "0.3")
        assert_one_line(done, 6, "no stag server", "silent")


def test_a_server_that_talks_nonsense_after_the_greeting_is_6(here: Path) -> None:
    with speaking(lambda connection: connection.sendall(b"stag/1\r\n" + b"\xff" * 64)) as port:
        assert_one_line(stag("ls", f"stag://127.0.0.1:{port}/"), 6, "protocol")


# 8: lost in the middle


@pytest.mark.parametrize("victim", ["client", "server"])
@pytest.mark.parametrize("verb", ["get", "put"])
@pytest.mark.parametrize("path", PATHS)
def test_a_peer_killed_in_the_middle_is_8_and_leaves_nothing_half_done(
    served: Path, here: Path, verb: str, path: str, victim: str
) -> None:
    source, target = (served, here) if verb == "get" else (here, served)
    make_file(source / "file", SIZE)
    (target / "file").write_bytes(b"old")
    hold = HoldAfter(SIZE // 2)
    with (
        Serving(served, "--writable") as server,
        Middlebox(server.port, control=hold, rdma=hold) as box,
    ):
        url = f"stag://127.0.0.1:{box.port}/file"
        ends = (url, here / "file") if verb == "get" else (here / "file", url)
        with Command(verb, *ends, "--path", path) as client:
            assert hold.held.wait(PATIENCE)
            if victim == "server":
                server.process.kill()
                assert_one_line(client.wait(), 8, "127.0.0.1")
            else:
                client.process.kill()
                client.process.wait(PATIENCE)
                again = stag("ls", server.url)
                assert again.code == 0, again
        assert (target / "file").read_bytes() == b"old"
        assert (source / "file").stat().st_size == SIZE
    if verb == "get" and victim == "server":
        assert os.listdir(here) == ["file"]


def test_a_server_that_falls_silent_is_8(served: Path, here: Path) -> None:
    make_file(served / "file", SIZE)
    hold = HoldAfter(SIZE // 2)
    with Serving(served) as server, Middlebox(server.port, control=hold) as box:
        url = f"stag://127.0.0.1:{box.port}/file"
        done = stag("get", url, here, "--path", "tcp-buffered", "--timeout", "0.5")
        assert_one_line(done, 8, "silent for 0.5 s")
    assert os.listdir(here) == []


# 9: no space


def small(directory: Path) -> tuple[str, ...]:
    """A wrapper that runs a command where `directory` is a file system of 1 MiB."""
    require_unshare("--mount")
    script = 'mount -t tmpfs -o size=1m,mode=755 tmpfs "$1" && shift && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, "sh", str(directory))


@pytest.mark.parametrize("path", PATHS)
def test_a_full_disk_at_the_client_is_9(
    server: Serving, served: Path, here: Path, path: str
) -> None:
    make_file(served / "file", SIZE)
    arguments = ("get", server.url + "file", here, "--path", path)
    with Command(*arguments, wrap=small(here)) as client:
        assert_one_line(client.wait(), 9, "No space left", "free some space")
    assert stag("get", server.url + "file", here).code == 0


@pytest.mark.parametrize("path", PATHS)
def test_a_full_disk_at_the_server_is_9_and_is_free_again_afterwards(
    served: Path, here: Path, path: str
) -> None:
    make_file(here / "file", SIZE)
    make_file(here / "little", 600_000)
    with Serving(served, "--writable", wrap=small(served)) as server:
        done = stag("put", here / "file", server.url, "--path", path)
        assert_one_line(done, 9, "No space left")
        assert stag("put", here / "little", server.url, "--path", path).code == 0
        assert stag("ls", server.url).out == "little\n"


# 10: what arrives is not what was sent


@pytest.mark.parametrize("verb", ["get", "put"])
@pytest.mark.parametrize("path", ["tcp-buffered", "tcp-sendfile"])
def test_a_bit_that_flips_on_the_way_is_10(served: Path, here: Path, verb: str, path: str) -> None:
    source, target = (served, here) if verb == "get" else (here, served)
    make_file(source / "file", SIZE)
    (target / "file").write_bytes(b"old")
    with (
        Serving(served, "--writable") as server,
        Middlebox(server.port, control=FlipAt(SIZE // 2, verb == "put")) as box,
    ):
        url = f"stag://127.0.0.1:{box.port}/file"
        ends = (url, here / "file") if verb == "get" else (here / "file", url)
        assert_one_line(stag(verb, *ends, "--path", path), 10, "not what was sent")
    assert (target / "file").read_bytes() == b"old"
    assert os.listdir(target) == ["file"]


# 11: a source that changes


@pytest.mark.parametrize("verb", ["get", "put"])
@pytest.mark.parametrize("path", PATHS)
def test_a_source_that_shrinks_is_11_and_the_server_goes_on(
    served: Path, here: Path, verb: str, path: str
) -> None:
    size = 32 * 1024 * 1024  # more than the buffers on the way hold
    source, target = (served, here) if verb == "get" else (here, served)
    make_file(source / "file", 64)
    os.truncate(source / "file", size)
    (target / "file").write_bytes(b"old")
    gate = Gate(SIZE)
    with (
        Serving(served, "--writable") as server,
        Middlebox(server.port, control=gate, rdma=gate) as box,
    ):
        url = f"stag://127.0.0.1:{box.port}/file"
        ends = (url, here / "file") if verb == "get" else (here / "file", url)
        with Command(verb, *ends, "--path", path) as client:
            assert gate.reached.wait(PATIENCE)
            os.truncate(source / "file", 64)
            gate.open.set()
            assert_one_line(client.wait(), 11, "shrank")
        assert stag("get", server.url + "file", here / "other").code == 0
    assert (target / "file").read_bytes() == b"old"


class Gate:
    """A filter that stops after `count` octets until it is opened.

    Attributes:
        reached: set when it has stopped.
        open: set it to go on.
    """

    def __init__(self, count: int) -> None:
        self._left = count
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, octets: bytes, from_client: bool) -> bytes:
        self._left -= len(octets)
        if self._left < 0:
            self.reached.set()
            self.open.wait(PATIENCE)
        return octets


# 12: outside the directory


@pytest.mark.parametrize(
    "name", ["../secret", "..%2Fsecret", "sub/../../secret", "/etc/hostname", "link", "dir/secret"]
)
@pytest.mark.parametrize("verb", ["get", "put", "ls"])
def test_a_path_that_leaves_the_directory_is_12(
    server: Serving, served: Path, here: Path, tmp_path: Path, verb: str, name: str
) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (served / "sub").mkdir()
    (served / "link").symlink_to("../secret")
    (served / "dir").symlink_to("..")
    make_file(here / "file", 10)
    url = server.url + name
    if verb == "ls":
        done = stag("ls", url)
    elif verb == "get":
        done = stag("get", url, here / "got")
    else:
        done = stag("put", here / "file", url)
    assert_one_line(done, 12)
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert os.listdir(here) == ["file"]


# 13: busy


def test_two_puts_of_one_name_do_not_mix(served: Path, here: Path) -> None:
    data = make_file(here / "file", SIZE)
    gate = Gate(SIZE // 2)
    with Serving(served, "--writable") as server, Middlebox(server.port, control=gate) as box:
        slow = f"stag://127.0.0.1:{box.port}/file"
        with Command("put", here / "file", slow, "--path", "tcp-buffered") as first:
            assert gate.reached.wait(PATIENCE)
            done = stag("put", here / "file", server.url + "file")
            assert_one_line(done, 13, "another transfer")
            gate.open.set()
            assert first.wait().code == 0
    assert (served / "file").read_bytes() == data


def test_one_client_too_many_is_13(served: Path, here: Path) -> None:
    make_file(served / "file", SIZE)
    gate = Gate(SIZE // 2)
    with Serving(served, "--max-clients", "1") as server:
        with Middlebox(server.port, control=gate) as box:
            slow = f"stag://127.0.0.1:{box.port}/file"
            with Command("get", slow, here, "--path", "tcp-buffered") as first:
                assert gate.reached.wait(PATIENCE)
                assert_one_line(stag("ls", server.url), 13, "already serves 1")
                gate.open.set()
                assert first.wait().code == 0
        assert stag("ls", server.url).code == 0


# 130: interrupted


@pytest.mark.parametrize("number", [2, 15], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("path", PATHS)
def test_an_interrupted_client_is_130_and_leaves_nothing(
    served: Path, here: Path, path: str, number: int
) -> None:
    make_file(served / "file", SIZE)
    hold = HoldAfter(SIZE // 2)
    with Serving(served) as server, Middlebox(server.port, control=hold, rdma=hold) as box:
        url = f"stag://127.0.0.1:{box.port}/file"
        with Command("get", url, here, "--path", path) as client:
            assert hold.held.wait(PATIENCE)
            client.signal(number)
            assert_one_line(client.wait(), 130, "interrupted")
        assert os.listdir(here) == []
        assert stag("ls", server.url).code == 0


def test_an_interrupted_server_ends_with_0_even_in_the_middle(served: Path, here: Path) -> None:
    make_file(served / "file", SIZE)
    hold = HoldAfter(SIZE // 2)
    with Serving(served) as server, Middlebox(server.port, control=hold) as box:
        url = f"stag://127.0.0.1:{box.port}/file"
        with Command("get", url, here, "--path", "tcp-buffered") as client:
            assert hold.held.wait(PATIENCE)
            assert server.events()[0]["event"] == "left"
            assert_one_line(client.wait(), 8)


def test_errors_are_json_too_when_asked_for(server: Serving, here: Path) -> None:
    done = stag("get", server.url + "none", here, "--json")
    assert done.code == 3
    assert done.report["error"]["code"] == 3
    assert done.report["error"]["name"] == "no_such_file"
    assert done.report["error"]["message"] in done.err
