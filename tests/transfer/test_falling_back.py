"""Where one side, or something between, has no RDMA, the file goes over TCP, and that is said."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from steertag.transfer.client import Options, Request, connect
from steertag.transfer.server import Server, ServerConfig
from tests.transfer.harness import Serving, assert_one_line, make_file, stag
from tests.transfer.middlebox import Filter, FlipAt, HoldAfter, Middlebox, straight

SIZE = 3 * 1024 * 1024 + 17


def refuse(octets: bytes, from_client: bool) -> None:
    return None


def garble(octets: bytes, from_client: bool) -> bytes:
    return b"HTTP/1.1 400 Bad Request\r\n\r\n".ljust(len(octets)) if not from_client else octets


class ResetAfter(HoldAfter):
    """Resets both sides once `count` octets have passed."""

    def __call__(self, octets: bytes, from_client: bool) -> bytes | None:  # type: ignore[override]
        passed = super().__call__(octets, from_client)
        return None if self.held.is_set() else passed


@pytest.mark.parametrize("verb", ["get", "put"])
@pytest.mark.parametrize("asked", ["auto", "rdma-write", "rdma-read"])
def test_a_server_without_rdma_gets_and_gives_over_tcp(
    served: Path, here: Path, asked: str, verb: str
) -> None:
    source, target = (served, here) if verb == "get" else (here, served)
    data = make_file(source / "file", SIZE)
    with Serving(served, "--writable", "--no-rdma") as server:
        assert server.banner["rdma"] is False
        url = server.url + "file"
        ends = (url, here / "file") if verb == "get" else (here / "file", url)
        done = stag(verb, *ends, "--path", asked, "--json")
        fallback = done.report["fallback"]
        assert done.code == 0
        assert (target / "file").read_bytes() == data
        assert done.report["path"] == "tcp-sendfile"
        assert fallback["to"] == "tcp-sendfile"
        assert fallback["from"] == ("rdma-write" if asked == "auto" else asked)
        assert fallback["code"] == "peer-no-rdma"
        assert "--no-rdma" in fallback["reason"]
        said = [line for line in done.err.splitlines() if "fell back" in line]
        assert len(said) == 1
        assert fallback["reason"] in said[0]


def test_a_fallback_is_said_even_when_asked_to_be_quiet(served: Path, here: Path) -> None:
    make_file(served / "file", 10)
    with Serving(served, "--no-rdma") as server:
        assert "fell back" in stag("get", server.url + "file", here, "-q").err
        assert stag("get", server.url + "file", here, "-q", "--path", "tcp-buffered").err == ""


def test_auto_takes_rdma_and_says_so(server: Serving, served: Path, here: Path) -> None:
    make_file(served / "file", SIZE)
    done = stag("get", server.url + "file", here, "--json")
    assert done.report["path"].startswith("rdma-")
    assert done.report["why"] == "both sides have RDMA"
    assert done.err.startswith(f"path: {done.report['path']} (both sides have RDMA)")


BREAKS: list[tuple[str, Callable[[str], Filter], str]] = [
    ("reset", lambda verb: refuse, "rdma-reset"),
    ("swallow", lambda verb: HoldAfter(0), "rdma-timeout"),
    ("garble", lambda verb: garble, "rdma-garbled"),
    ("reset-later", lambda verb: ResetAfter(SIZE // 2), "rdma-lost"),
    ("swallow-later", lambda verb: HoldAfter(SIZE // 2), "rdma-stalled"),
    ("flip-later", lambda verb: FlipAt(SIZE // 2, verb == "put"), "rdma-garbled"),
]


@pytest.mark.parametrize("verb", ["get", "put"])
@pytest.mark.parametrize("asked", ["rdma-write", "rdma-read"])
@pytest.mark.parametrize(("how", "box_of", "code"), BREAKS, ids=[how for how, _, _ in BREAKS])
def test_a_middlebox_that_breaks_mpa_makes_it_tcp(
    served: Path,
    here: Path,
    how: str,
    box_of: Callable[[str], Filter],
    code: str,
    asked: str,
    verb: str,
) -> None:
    source, target = (served, here) if verb == "get" else (here, served)
    data = make_file(source / "file", SIZE)
    options = ("--path", asked, "--json", "--rdma-timeout", "0.5", "--timeout", "3")
    with (
        Serving(served, "--writable") as server,
        Middlebox(server.port, rdma=box_of(verb)) as box,
    ):
        url = f"stag://127.0.0.1:{box.port}/file"
        ends = (url, here / "file") if verb == "get" else (here / "file", url)
        done = stag(verb, *ends, *options)
        assert done.code == 0, done
        assert box.rdma_connections == 1
        report = done.report
        assert (report["asked"], report["path"]) == (asked, "tcp-sendfile")
        assert report["fallback"]["code"] == code
        assert report["fallback"]["reason"] in done.err
        assert report["digest"]["ok"] is True
        logged = [event for event in server.events() if event["event"] == "fallback"]
        assert [event["code"] for event in logged] == [code]
    assert (target / "file").read_bytes() == data
    assert os.listdir(target) == ["file"]


def test_a_client_that_fell_back_goes_on_with_the_same_connection(served: Path, here: Path) -> None:
    data = make_file(served / "file", SIZE)
    with (
        Server(ServerConfig(served, port=0, writable=True)) as server,
        Middlebox(server.port, rdma=refuse) as box,
        connect("127.0.0.1", box.port, options=Options(rdma_timeout=5)) as client,
    ):
        for number in range(3):
            report = client.fetch("file", here / f"copy{number}")
            assert report.fallback is not None
            assert report.path == "tcp-sendfile"
        client.store(here / "copy0", "up", Request("tcp-buffered"))
        assert sorted(entry.name for entry in client.list()) == ["file", "up"]
        assert server.counters["connections"] == 1 + 3
    assert (here / "copy2").read_bytes() == (served / "up").read_bytes() == data


def test_one_connection_moves_many_files_and_survives_errors(served: Path, here: Path) -> None:
    data = make_file(served / "file", SIZE)
    with (
        Server(ServerConfig(served, port=0, writable=True)) as server,
        connect(server.host, server.port) as client,
    ):
        for path in ("rdma-write", "tcp-buffered", "rdma-read", "tcp-sendfile"):
            with pytest.raises(Exception, match="No such file"):
                client.fetch("none", here / "none", Request(path))
            assert client.fetch("file", here / "file", Request(path)).path == path
            assert client.store(here / "file", "up", Request(path)).path == path
            assert (served / "up").read_bytes() == data
    # Its session is over: a transfer is counted once its last message is on its way.
    assert server.counters["failed"] == 4
    assert (server.counters["gets"], server.counters["puts"]) == (4, 4)


@pytest.mark.parametrize("path", ["rdma-write", "rdma-read"])
@pytest.mark.parametrize("verb", ["get", "put"])
def test_the_rdma_paths_stage_next_to_nothing(
    server: Serving, served: Path, here: Path, verb: str, path: str
) -> None:
    size = 64 * 1024 * 1024
    source = served if verb == "get" else here
    make_file(source / "file", 64)
    os.truncate(source / "file", size)
    url = server.url + "file"
    ends = (url, here / "file") if verb == "get" else (here / "file", url)
    report = stag(verb, *ends, "--path", path, "--json").report
    for side in ("own", "peer"):
        # The small messages that steer the transfer are parsed from a buffer, and count.
        assert 0 < report[side]["staged_bytes"] < size / 500


def test_an_rdma_connection_that_names_no_session_is_turned_down(served: Path, here: Path) -> None:
    from steertag.transfer import rdma
    from steertag.transfer.errors import PathCode, PathFailed
    from steertag.transfer.stream import dial

    with Server(ServerConfig(served, port=0)) as server:
        for private_data in (b"", rdma.Ticket(bytes(16), 1, bytes(16)).pack()):
            end = rdma.End(dial(server.host, server.port, 5))
            with end, pytest.raises(PathFailed) as caught:
                end.connect(private_data, 5)
            assert caught.value.code in (PathCode.REFUSED, PathCode.RESET)
        assert stag("ls", server.url).code == 0
        assert server.counters["wire_errors"] == 2


def test_what_tcp_would_not_cure_is_no_reason_to_fall_back(
    server: Serving, served: Path, here: Path
) -> None:
    make_file(served / "file", SIZE)
    done = stag("get", server.url + "file", here / "no" / "dir", "--path", "rdma-write", "--json")
    assert_one_line(done, 3)
    assert json.loads(done.out)["error"]["code"] == 3


def test_the_middlebox_itself_breaks_nothing(served: Path, here: Path) -> None:
    make_file(served / "file", SIZE)
    with Serving(served) as server, Middlebox(server.port, rdma=straight) as box:
        url = f"stag://127.0.0.1:{box.port}/file"
        for path in ("rdma-write", "rdma-read"):
            report = stag("get", url, here, "--path", path, "--json").report
            assert (report["path"], report["fallback"]) == (path, None)
        assert box.rdma_connections == 2
