"""`stag decode`: what goes where, and the exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from steertag.wire import mpa
from tests.decode_support import Talk, every_operation, pcap, pcapng
from tests.support import PROJECT
from tests.wire.mpa_stream import CAPTURES

TIMEOUT = 60
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}


def stag(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "steertag", "decode", *arguments],
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
        env=ENVIRONMENT,
    )
    assert b"Traceback" not in done.stderr
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def capture(*, bad: bool = False) -> bytes:
    talk = Talk()
    every_operation(talk)
    if bad:
        octets = bytearray(b"".join(mpa.emit_fpdu([b"\xc1\x40" + bytes(12), b"abc"])))
        octets[17] ^= 1
        talk.client.put(bytes(octets))
    talk.close()
    return pcap(talk.packets)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "capture.pcap"
    path.write_bytes(capture())
    return str(path)


def test_a_line_for_each_frame_and_the_summary_on_standard_error(file: str) -> None:
    done = stag(file)
    assert done.returncode == 0
    shown = done.stdout.splitlines()
    assert len(shown) == 1 + 2 + 2 * 19
    assert shown[0].endswith("#0 40000 > 7471  iWARP, 10.0.0.1:40000 > 10.0.0.2:7471")
    assert "crc: good 38, bad 0" in done.stderr
    assert done.stderr.endswith("bad: 0\n")


def test_json_is_an_object_a_line_and_the_summary_the_last(file: str) -> None:
    done = stag("--json", file)
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert [found["type"] for found in objects[:3]] == ["stream", "mpa_request", "mpa_reply"]
    assert objects[-1]["type"] == "summary"
    assert objects[-1]["fpdus"] == len(objects) - 4 == 38
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize("make", [pcap, pcapng])
def test_a_dash_is_standard_input(make: object) -> None:
    assert callable(make)
    talk = Talk()
    talk.client.untagged(payload=b"hello")
    done = stag("-", stdin=make(talk.packets))
    assert "Send last, QN 0 MSN 1 MO 0, 5 octets, crc: good" in done.stdout
    assert done.returncode == 0


def test_something_bad_is_exit_code_1_and_can_be_shown_alone() -> None:
    done = stag("--bad", "-", stdin=capture(bad=True))
    assert done.returncode == 1
    assert [line.partition("crc: ")[2] for line in done.stdout.splitlines()] == ["bad"]
    assert done.stderr.endswith("bad: 1\n")


def test_a_spoilt_crc_of_siws_is_exit_code_1() -> None:
    done = stag(str(CAPTURES / "user-pyrping-badcrc.pcap.xz"))
    assert done.returncode == 1
    assert "crc: bad" in done.stdout
    assert "MPA error: CRC error (layer 2 type 0 code 0x02, siw's form)" in done.stdout


def test_the_limit_counts_frames_and_says_that_it_stopped(file: str) -> None:
    done = stag("-c", "3", file)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1 + 3
    assert "stopped at the limit" in done.stderr


def test_streams_and_ports_select(file: str) -> None:
    assert len(stag("--stream", "0", file).stdout.splitlines()) == 41
    assert stag("--stream", "1", file).stdout == ""
    assert len(stag("--port", "7471", "--port", "80", file).stdout.splitlines()) == 41
    assert stag("--port", "80", file).stdout == ""


def test_a_connection_that_is_something_else_brings_advice() -> None:
    talk = Talk(start=False)
    talk.client.put(b"GET / HTTP/1.1\r\n\r\n")
    done = stag("-", stdin=pcap(talk.packets))
    assert (done.returncode, done.stdout) == (0, "")
    assert "--port" in done.stderr


@pytest.mark.parametrize(
    ("octets", "says"),
    [
        (b"", "0 octets, too few for a file header; give a file of tcpdump's"),
        (b"GET / HTTP/1.1\r\nHost: somewhere\r\n", "magic number"),
        (capture()[:-1], "was decoded"),
        (pcap([packet._replace(linktype=147) for packet in Talk().packets]), "link type 147"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_cannot_be_read_is_one_line_and_exit_code_2(
    octets: bytes, says: str, as_json: bool
) -> None:
    done = stag("-", *(["--json"] if as_json else []), stdin=octets)
    assert done.returncode == 2
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("stag: ")]
    assert says in told
    if as_json:
        error, summary = (json.loads(line) for line in done.stdout.splitlines()[-2:])
        assert (error["type"], error["code"], summary["type"]) == ("error", 2, "summary")
        assert says in error["message"]


def test_what_comes_before_the_cut_of_a_file_is_shown() -> None:
    done = stag("-", stdin=capture()[:-1])
    assert len(done.stdout.splitlines()) == 41


@pytest.mark.parametrize("name", ["missing.pcap", "."])
def test_a_file_that_cannot_be_opened_is_exit_code_2(name: str, tmp_path: Path) -> None:
    done = stag(str(tmp_path / name))
    assert done.returncode == 2
    assert done.stderr.startswith("stag: ")
    assert "check the name" in done.stderr


def test_a_wrong_option_is_exit_code_2(file: str) -> None:
    assert stag("--port", "70000", file).returncode == 2
    assert stag().returncode == 2


@contextmanager
def reading(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that was given a capture, whose end it hasn't seen yet."""
    with subprocess.Popen(
        [sys.executable, "-m", "steertag", "decode", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(capture())
        process.stdin.flush()
        yield process


def test_frames_of_a_running_capture_are_shown_at_once() -> None:
    with reading("-l", "-") as process:
        assert process.stdout is not None
        shown = [process.stdout.readline() for _ in range(30)]  # the input hasn't ended
        assert all(line.endswith(b"\n") for line in shown)
        assert process.stdin is not None
        process.stdin.close()
        # Not by communicate(): the first lines may have brought more with them into the buffer.
        shown += process.stdout.readlines()
        assert process.wait(TIMEOUT) == 0
        assert len(shown) == 41


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    with reading("-l", "-") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stdin is not None
        process.stdin.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(TIMEOUT) == 0


def test_an_interrupt_is_exit_code_130() -> None:
    with reading("-l", "-") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 130
        assert b"Traceback" not in err


@pytest.mark.parametrize("choice", [("--stream", "7"), ("--port", "9")])
def test_a_choice_that_fits_no_connection_is_told(file: str, choice: tuple[str, str]) -> None:
    done = stag(file, *choice)
    assert done.returncode == 0
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        "no iWARP connection is among those that --stream and --port choose"
    )
