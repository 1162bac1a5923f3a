"""Files arrive whole, over every path and in both directions, and the figures add up."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from tests.transfer.harness import PATHS, Command, Serving, make_file, stag

SIZE = 3 * 1024 * 1024 + 17
MTIME = 1_234_567_890_123_456_789


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("verb", ["get", "put"])
def test_a_file_arrives_with_mode_and_time(
    server: Serving, served: Path, here: Path, verb: str, path: str
) -> None:
    source, target = (served, here) if verb == "get" else (here, served)
    data = make_file(source / "file", SIZE, 0o640)
    os.utime(source / "file", ns=(0, MTIME))
    url = server.url + "file"
    ends = (url, here / "file") if verb == "get" else (here / "file", url)
    done = stag(verb, *ends, "--path", path, "--json")
    assert done.code == 0, done
    status = (target / "file").stat()
    assert (target / "file").read_bytes() == data
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert status.st_mtime_ns == MTIME
    assert sorted(os.listdir(target)) == ["file"]
    report = done.report
    assert (report["asked"], report["path"], report["bytes"]) == (path, path, SIZE)
    assert report["digest"]["ok"] is True
    assert report["fallback"] is None
    assert report["gb_per_s"] == pytest.approx(SIZE / report["seconds"] / 1e9)
    for side in ("own", "peer"):
        assert report[side]["syscalls"] > 0
        assert report[side]["cpu_s"] >= 0


@pytest.mark.parametrize(
    ("path", "sender_staged", "receiver_staged"),
    [("tcp-buffered", SIZE, SIZE), ("tcp-sendfile", 0, SIZE)],
)
def test_the_report_says_what_was_staged_where(
    server: Serving, served: Path, here: Path, path: str, sender_staged: int, receiver_staged: int
) -> None:
    make_file(served / "file", SIZE)
    report = stag("get", server.url + "file", here, "--path", path, "--json").report
    assert report["peer"]["staged_bytes"] == sender_staged
    assert report["own"]["staged_bytes"] == receiver_staged
    report = stag("put", here / "file", server.url + "up", "--path", path, "--json").report
    assert report["own"]["staged_bytes"] == sender_staged
    assert report["peer"]["staged_bytes"] == receiver_staged


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [0, 1, 4096, 1024 * 1024])
def test_round_and_tiny_sizes_arrive(
    server: Serving, here: Path, served: Path, path: str, size: int
) -> None:
    data = make_file(here / "file", size)
    done = stag("put", here / "file", server.url, "--path", path)
    assert done.code == 0, done
    done = stag("get", server.url + "file", here / "back", "--path", path)
    assert done.code == 0, done
    assert (served / "file").read_bytes() == (here / "back").read_bytes() == data


@pytest.mark.parametrize(
    "octets", [b"two words", b"a\nb\x1b[31mc", b"caf\xc3\xa9", b"\xff\xfe", b"100%25", b"-rf", b"~"]
)
def test_any_name_makes_the_round_trip(
    server: Serving, served: Path, here: Path, octets: bytes
) -> None:
    name = os.fsdecode(octets)
    url = server.url + "".join(f"%{octet:02x}" for octet in octets)
    make_file(here / "file", 100)
    assert stag("put", here / "file", url).code == 0
    assert os.listdir(os.fsencode(served)) == [octets]
    done = stag("get", url, cwd=here)
    assert done.code == 0, done
    assert (here / name).read_bytes() == (here / "file").read_bytes()
    assert done.err.isprintable() or "\x1b" not in done.err
    listed = stag("ls", server.url, "--json").report
    assert os.fsencode(listed["name"]) == octets


@pytest.mark.slow
@pytest.mark.parametrize("path", ["tcp-sendfile", "rdma-write", "rdma-read"])
def test_a_file_over_4_gib_arrives(server: Serving, served: Path, here: Path, path: str) -> None:
    size = 4 * 1024**3 + 4097
    if shutil.disk_usage(here).free < 2 * size:
        pytest.skip(f"not possible here: {here} has no room for the copy")
    with (served / "big").open("wb") as file:
        file.truncate(size)
        for offset in (0, 2**32 - 4, 2**32 + 1, size - 5):
            os.pwrite(file.fileno(), b"marks", offset)
    done = stag("get", server.url + "big", here, "--path", path, "--json")
    assert done.code == 0, done
    assert done.report["bytes"] == size
    with (here / "big").open("rb") as file:
        for offset in (0, 2**32 - 4, 2**32 + 1, size - 5):
            assert os.pread(file.fileno(), 5, offset) == b"marks"
    (here / "big").unlink()


def test_several_clients_at_once(server: Serving, served: Path, here: Path) -> None:
    data = make_file(served / "file", SIZE)
    runs = [
        Command("get", server.url + "file", here / f"copy{number}", "--path", path)
        for number, path in enumerate(PATHS * 2)
    ]
    assert [run.wait().code for run in runs] == [0] * len(runs)
    for number in range(len(runs)):
        assert (here / f"copy{number}").read_bytes() == data


def test_the_destination_may_be_left_out_or_be_a_directory(
    server: Serving, served: Path, here: Path
) -> None:
    (served / "sub").mkdir()
    data = make_file(served / "sub" / "file", 10)
    assert stag("get", server.url + "sub/file", cwd=here).code == 0
    assert (here / "file").read_bytes() == data
    done = stag("get", server.url + "sub/file", f"{here}/nowhere/")
    assert done.code == 3
    assert "nowhere" in done.err
    (here / "into").mkdir()
    assert stag("get", server.url + "sub/file", here / "into").code == 0
    assert (here / "into" / "file").read_bytes() == data
    assert stag("put", here / "file", server.url + "sub/").code == 0
    assert stag("put", here / "file", server.url).code == 0
    assert sorted(os.listdir(served)) == ["file", "sub"]


def test_an_existing_file_is_replaced_unless_told_not_to(
    server: Serving, served: Path, here: Path
) -> None:
    new = make_file(served / "file", 10)
    (here / "file").write_bytes(b"old")
    for verb, ends in (
        ("get", (server.url + "file", here / "file")),
        ("put", (here / "file", server.url + "file")),
    ):
        done = stag(verb, *ends, "--no-clobber")
        assert done.code == 1
        assert "exists" in done.err
    assert (here / "file").read_bytes() == b"old"
    assert stag("get", server.url + "file", here / "file").code == 0
    assert (here / "file").read_bytes() == new


def test_another_digest_can_be_asked_for(server: Serving, served: Path, here: Path) -> None:
    import hashlib

    data = make_file(served / "file", SIZE)
    done = stag("get", server.url + "file", here, "--digest", "sha256", "--json")
    assert done.report["digest"] == {
        "algo": "sha256",
        "hex": hashlib.sha256(data).hexdigest(),
        "ok": True,
    }
