"""`--pcap FILE`: what a command says over RDMA, recorded by itself."""

from __future__ import annotations

import json
import socket as std
import threading
from pathlib import Path

import pytest

from steertag import Stack, socket
from steertag import verbs as v
from steertag.observe.pcap import TcpStream, read_pcap, tcp_streams
from steertag.observe.recorder import Recorder
from steertag.wire import mpa
from tests.processes import PATIENCE
from tests.transfer.harness import Command, Serving, stag

OCTETS = bytes(range(256)) * 1000


@pytest.fixture
def served(tmp_path: Path) -> Path:
    directory = tmp_path / "served"
    directory.mkdir()
    (directory / "file").write_bytes(OCTETS)
    return directory


def iwarp(capture: Path) -> list[TcpStream]:
    """The connections of a capture, each of which has to begin with MPA's set-up."""
    streams = tcp_streams(capture)
    for stream in streams:
        assert mpa.StartFrame.parse(memoryview(stream.sent)) is not None
        assert mpa.StartFrame.parse(memoryview(stream.received)) is not None
    return streams


@pytest.mark.parametrize("path", ["rdma-write", "rdma-read"])
def test_both_sides_record_the_same_connection(served: Path, tmp_path: Path, path: str) -> None:
    active, passive = tmp_path / "active.pcap", tmp_path / "passive.pcap"
    with Serving(served, "--pcap", passive) as server:
        done = stag("get", f"{server.url}file", tmp_path, "--path", path, "--pcap", active)
        assert done.code == 0, done.err
        server.events()
    (mine,), (its,) = iwarp(active), iwarp(passive)
    assert (mine.client, mine.server) == (its.client, its.server)
    assert mine.server == ("127.0.0.1", server.port)
    assert (mine.sent, mine.received) == (its.sent, its.received)
    assert len(mine.received) > len(OCTETS)
    assert mine.complete
    assert active.stat().st_mode & 0o777 == 0o600


def test_put_is_recorded_too(served: Path, tmp_path: Path) -> None:
    capture = tmp_path / "put.pcap"
    with Serving(served, "--writable") as server:
        source = served / "file"
        done = stag("put", source, f"{server.url}copy", "--path", "rdma-write", "--pcap", capture)
    assert done.code == 0, done.err
    (stream,) = iwarp(capture)
    assert len(stream.sent) > len(OCTETS)


def test_a_server_that_is_killed_leaves_a_capture_of_all_its_connections(
    served: Path, tmp_path: Path
) -> None:
    capture = tmp_path / "server.pcap"
    with Serving(served, "--pcap", capture) as server:
        for turn in range(3):
            options = ("--path", "rdma-write")
            assert stag("get", f"{server.url}file", tmp_path / str(turn), *options).code == 0
        server.process.kill()
        server.process.wait(PATIENCE)
    streams = iwarp(capture)
    assert [len(stream.received) > len(OCTETS) for stream in streams] == [True] * 3
    assert all(stream.complete for stream in streams)


def test_a_transfer_over_tcp_leaves_a_capture_without_packets(served: Path, tmp_path: Path) -> None:
    capture = tmp_path / "empty.pcap"
    with Serving(served) as server:
        where = (f"{server.url}file", tmp_path)
        assert stag("get", *where, "--path", "tcp-buffered", "--pcap", capture).code == 0
    assert list(read_pcap(capture)) == []


def test_bench_records_its_active_side(tmp_path: Path) -> None:
    capture = tmp_path / "bench.pcap"
    done = stag("bench", "write", "-s", "1000", "-n", "8", "-r", "1", "--json", "--pcap", capture)
    assert done.code == 0, done.err
    (stream,) = iwarp(capture)
    assert len(stream.sent) > 8 * 1000


def test_stag_decode_finds_nothing_wrong_in_what_was_recorded(tmp_path: Path) -> None:
    capture = tmp_path / "bench.pcap"
    assert stag("bench", "read", "-s", "70000", "-n", "4", "-r", "1", "--pcap", capture).code == 0
    decoded = stag("decode", "--json", capture)
    assert decoded.code == 0, decoded.err
    summary = decoded.report
    assert (summary["type"], summary["bad"], summary["gaps"]) == ("summary", 0, 0)
    assert (summary["iwarp_streams"], summary["mpa_frames"]) == (1, 2)
    assert summary["crc"]["good"] == summary["fpdus"] > 8


def test_demo_records_the_clients_side(tmp_path: Path) -> None:
    capture = tmp_path / "demo.pcap"
    done = stag("demo", "--size", "64K", "--runs", "1", "--json", "--pcap", capture)
    assert done.code == 0, done.err
    assert len(iwarp(capture)) == 4  # two RDMA paths, a run that doesn't count and one that does


@pytest.mark.parametrize("command", ["get", "bench", "serve"])
def test_a_file_that_cannot_be_made_is_told_before_anything_is_done(
    served: Path, tmp_path: Path, command: str
) -> None:
    capture = tmp_path / "no" / "such.pcap"
    arguments = {
        "get": ("stag://127.0.0.1:9/file", str(tmp_path)),
        "bench": ("write",),
        "serve": (str(served), "--bind", "127.0.0.1:0"),
    }[command]
    done = stag(command, *arguments, "--pcap", capture)
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert f"--pcap {capture}: No such file or directory; name a file that can be" in done.err


def test_a_full_disk_ends_the_capture_and_not_the_transfer(served: Path, tmp_path: Path) -> None:
    with Serving(served) as server:
        done = stag(
            *("get", f"{server.url}file", tmp_path, "--path", "rdma-write", "--json"),
            *("--pcap", "/dev/full"),
        )
    assert done.code == 1
    assert (tmp_path / "file").read_bytes() == OCTETS
    error = json.loads(done.out.splitlines()[-1])["error"]
    assert error["name"] == "failure"
    assert "--pcap /dev/full: No space left on device" in error["message"]
    assert "--pcap /dev/full: No space left on device" in done.err


def test_a_capture_can_be_piped(served: Path, tmp_path: Path) -> None:
    with Serving(served) as server:
        options = ("--path", "rdma-write", "-q", "--pcap", "/dev/stdout")
        with Command("get", f"{server.url}file", tmp_path / "copy", *options) as command:
            out, _ = command.process.communicate(timeout=PATIENCE)
    capture = tmp_path / "piped.pcap"
    capture.write_bytes(out)
    assert len(iwarp(capture)) == 1


# -- the recorder --------------------------------------------------------------------------------


def connect(active: v.Context, passive: v.Context, streams: tuple[object, object]) -> None:
    """Set a connection up over a pair of streams, and end it."""
    ends = [v.CMID(pd=v.PD(context)) for context in (active, passive)]

    def accept() -> None:
        ends[1].adopt_passive(streams[1])  # type: ignore[arg-type]
        ends[1].accept()

    thread = threading.Thread(target=accept)
    thread.start()
    ends[0].adopt_active(streams[0])  # type: ignore[arg-type]
    thread.join()
    for end in ends:
        end.close()


def over_tcp() -> tuple[std.socket, std.socket]:
    with std.create_server(("127.0.0.1", 0)) as server:
        active = std.create_connection(server.getsockname(), PATIENCE)
        return active, server.accept()[0]


def test_connections_of_several_rnics_and_threads_share_a_file(tmp_path: Path) -> None:
    def run(stack: Stack) -> None:
        with v.Context(stack=stack) as active, v.Context() as passive:
            for _ in range(5):
                connect(active, passive, over_tcp())

    with Recording(tmp_path / "all.pcap") as stack:
        threads = [threading.Thread(target=run, args=(stack,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    streams = iwarp(tmp_path / "all.pcap")
    assert len({(stream.client, stream.server) for stream in streams}) == 20


def test_streams_without_addresses_get_some_of_their_own(tmp_path: Path) -> None:
    with (
        Recording(tmp_path / "pairs.pcap") as stack,
        v.Context(stack=stack) as active,
        v.Context() as passive,
    ):
        for _ in range(2):
            connect(active, passive, socket.socketpair())
    first, second = iwarp(tmp_path / "pairs.pcap")
    assert first.client.host == second.client.host == "192.0.2.1"
    assert first.client.port != second.client.port


class Recording:
    """A Stack whose RNICs are recorded."""

    def __init__(self, path: Path) -> None:
        self._recorder = Recorder(path)

    def __enter__(self) -> Stack:
        stack = Stack()
        stack.observers.append(self._recorder.watch)
        return stack

    def __exit__(self, *exc: object) -> None:
        self._recorder.close()
